//! Step `cluster-api`: Cluster API's three managers from the bundle (D2), with certificates of the appliance's own
//! authority, what its tooling looks for, and what clusters are made from: the one `ClusterClass`, and the profiles of
//! the library. Ready means that the managers' webhooks answer and that Cluster API has taken the class.

use std::sync::Arc;
use std::time::Duration;

use edge_api::bundle::Index;
use edge_api::names::{CLUSTER_CLASS, NAMESPACE};
use futures::future::LocalBoxFuture;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::bundle;
use crate::ca::Authority;
use crate::durable;
use crate::engine::{Failure, Run, Step, Verdict, chain};
use crate::objects::{self, Applied};
use crate::provider_manifest::{CertificateRequest, Document, Provider, documents, prepare, secret};
use crate::world::World;

/// Reference of the manifests in the bundle, without tag.
const MANIFESTS: &str = "pcg-edge.io/manifests/cluster-api";
/// Files of the managers, in the order of installation, each with the provider that it installs and its Deployment.
const MANAGERS: [(&str, Provider, &str); 3] = [
    (
        "core.yaml",
        Provider { type_: "CoreProvider", name: "cluster-api", label: "cluster-api", namespace: "capi-system" },
        "capi-controller-manager",
    ),
    (
        "bootstrap.yaml",
        Provider {
            type_: "BootstrapProvider",
            name: "kubeadm",
            label: "bootstrap-kubeadm",
            namespace: "capi-kubeadm-bootstrap-system",
        },
        "capi-kubeadm-bootstrap-controller-manager",
    ),
    (
        "control-plane.yaml",
        Provider {
            type_: "ControlPlaneProvider",
            name: "kubeadm",
            label: "control-plane-kubeadm",
            namespace: "capi-kubeadm-control-plane-system",
        },
        "capi-kubeadm-control-plane-controller-manager",
    ),
];
/// Our own, which the step `operator` installs.
const INFRASTRUCTURE: Provider = Provider {
    type_: "InfrastructureProvider",
    name: "libvirt",
    label: "infrastructure-libvirt",
    namespace: NAMESPACE,
};
/// Files with definitions that Cluster API's tooling looks for.
const TOOLING: [&str; 2] = ["inventory.yaml", "cert-manager.yaml"];
/// What clusters are made from.
const SHIPPED: [&str; 2] =
    [include_str!("../../../deploy/cluster-class.yaml"), include_str!("../../../profiles/library/edge.yaml")];
/// Largest file that is read.
const FILE_LIMIT: u64 = 16 << 20;
/// Longest wait for a manager's pod, its pull included.
const DEADLINE: Duration = Duration::from_mins(4);
/// Longest wait for a webhook to answer, once its pod is ready.
const WEBHOOK_DEADLINE: Duration = Duration::from_mins(1);
/// Longest wait for Cluster API to look at the class.
const CLASS_DEADLINE: Duration = Duration::from_mins(2);

/// See the module.
pub struct ClusterApi {
    world: Arc<World>,
    installed: Mutex<Option<Installed>>,
}

/// What this life of the agent made so or found so. The manifests are megabytes: comparing all of them once is enough,
/// and later the objects' marks tell.
struct Installed {
    /// Digest of what it was made from.
    basis: String,
    objects: Vec<Applied>,
    certificates: Vec<CertificateRequest>,
}

impl ClusterApi {
    /// The step.
    pub fn new(world: Arc<World>) -> Self {
        Self { world, installed: Mutex::default() }
    }

    async fn ensure_managers(&self, run: &Run) -> Result<Verdict, Failure> {
        let (index, client) = (self.world.index()?, self.world.client()?);
        let folder = self.world.paths.join("ca");
        let authority = Authority::ensure(&folder, &format!("PCG-Edge {}", self.world.instance), &self.world.clock);
        let authority = authority.map_err(|e| Failure::of(&e))?;
        let mut known = self.installed.lock().await;
        let basis = bundle::sha256(format!("{index:?}{}", authority.certificate()).as_bytes());
        let current = match known.as_ref().filter(|k| k.basis == basis) {
            Some(installed) => all_hold(&client, &installed.objects).await,
            None => false,
        };
        if !current {
            *known = None;
            *known = Some(self.install(run, &client, &index, &authority, basis).await?);
        }
        // Every time: they are renewed before they end. The managers read their files again by themselves.
        for request in known.iter().flat_map(|k| &k.certificates) {
            let leaf = authority.ensure_leaf(&folder, &request.secret, &request.names).map_err(|e| Failure::of(&e))?;
            objects::ensure(&client, run, &secret(request, &leaf, authority.certificate())).await?;
        }
        for (_, provider, deployment) in MANAGERS {
            objects::deployment_available(&client, run, provider.namespace, deployment, DEADLINE).await?;
        }
        for object in questions() {
            answers(run, &client, &object).await?;
        }
        let version = index.artifacts.iter().find_map(|a| a.name.strip_prefix(MANIFESTS)?.strip_prefix(':'));
        let version = version.unwrap_or_default();
        for (_, provider, _) in MANAGERS {
            objects::ensure(&client, run, &provider.entry(version)).await?;
        }
        objects::ensure(&client, run, &INFRASTRUCTURE.entry(&format!("v{}", index.version))).await?;
        for object in shipped()? {
            objects::ensure(&client, run, &object).await?;
        }
        class_taken(run, &client).await?;
        Ok(Verdict::Ready(format!("Cluster API {version}")))
    }

    async fn install(
        &self,
        run: &Run,
        client: &kube::Client,
        index: &Index,
        authority: &Authority<'_>,
        basis: String,
    ) -> Result<Installed, Failure> {
        let files = bundle::manifest_files(&self.world.bundle(), index, MANIFESTS).map_err(|e| Failure::of(&e))?;
        let mut installed = Installed { basis, objects: Vec::new(), certificates: Vec::new() };
        let of_managers = MANAGERS.iter().map(|(file, provider, _)| (*file, Some(provider)));
        for (file, provider) in of_managers.chain(TOOLING.map(|file| (file, None))) {
            let path =
                files.get(file).ok_or_else(|| Failure::new(format!("{MANIFESTS} of the bundle has no {file}")))?;
            let text = durable::read(path, FILE_LIMIT).map_err(|e| Failure::of(&e))?.unwrap_or_default();
            let text = String::from_utf8(text).map_err(|e| Failure::of(&e))?;
            for (at, document) in documents(&text).enumerate() {
                let prepared = prepare(file, provider, at + 1, document, authority.certificate(), index);
                match prepared.map_err(|e| Failure::of(&e))? {
                    Document::Object(object) => {
                        installed.objects.push(objects::ensure_marked(client, run, &object).await?.1);
                    }
                    Document::Certificate(request) => installed.certificates.push(request),
                    Document::Nothing => {}
                }
            }
        }
        Ok(installed)
    }
}

/// Whether every object is there as it was written.
async fn all_hold(client: &kube::Client, objects: &[Applied]) -> bool {
    for object in objects {
        if !object.holds(client).await {
            return false;
        }
    }
    true
}

impl Step for ClusterApi {
    fn name(&self) -> &'static str {
        "cluster-api"
    }

    fn interruptible(&self) -> bool {
        true
    }

    fn ensure<'a>(&'a self, run: &'a Run) -> LocalBoxFuture<'a, Result<Verdict, Failure>> {
        Box::pin(self.ensure_managers(run))
    }
}

/// The objects that clusters are made from.
fn shipped() -> Result<Vec<Value>, Failure> {
    let mut objects = Vec::new();
    for text in SHIPPED {
        objects.extend(serde_saphyr::from_multiple::<Value>(text).map_err(|e| Failure::of(&e))?);
    }
    objects.retain(|object| !object.is_null());
    Ok(objects)
}

/// Waits until Cluster API has looked at the class as it is now, and takes its variables.
async fn class_taken(run: &Run, client: &kube::Client) -> Result<(), Failure> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("cluster.x-k8s.io", "v1beta2", "ClusterClass"));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &resource);
    let begun = Instant::now();
    loop {
        let missing = match api.get(CLUSTER_CLASS).await {
            Ok(class) => match untaken(&class) {
                None => return Ok(()),
                Some(missing) => missing,
            },
            Err(e) => chain(&e),
        };
        if begun.elapsed() > CLASS_DEADLINE {
            let seconds = CLASS_DEADLINE.as_secs();
            return Err(Failure::new(format!(
                "after {seconds} s: Cluster API has not taken ClusterClass {CLUSTER_CLASS}: {missing}"
            )));
        }
        run.working(format!("waits for Cluster API to take ClusterClass {CLUSTER_CLASS}: {missing}"));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// What keeps a class from being used.
fn untaken(class: &DynamicObject) -> Option<String> {
    let status = &class.data["status"];
    if status["observedGeneration"].as_i64() != class.metadata.generation {
        return Some("it was not looked at since it changed".to_owned());
    }
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    match conditions.iter().find(|c| c["type"] == "VariablesReady") {
        Some(ready) if ready["status"] == "True" => None,
        Some(ready) => Some(ready["message"].as_str().unwrap_or_default().to_owned()),
        None => Some("it has no condition VariablesReady".to_owned()),
    }
}

/// One object for each manager that its webhooks must look at before the API server takes it. None is kept.
fn questions() -> [Value; 3] {
    let metadata = json!({"name": "pcg-edge-probe", "namespace": NAMESPACE});
    let reference = json!({"apiGroup": "infrastructure.cluster.x-k8s.io", "kind": "LibvirtCluster", "name": "probe"});
    [
        json!({
            "apiVersion": "cluster.x-k8s.io/v1beta2", "kind": "Cluster", "metadata": metadata,
            "spec": {"infrastructureRef": reference},
        }),
        json!({
            "apiVersion": "bootstrap.cluster.x-k8s.io/v1beta2", "kind": "KubeadmConfig", "metadata": metadata,
            "spec": {"format": "cloud-config"},
        }),
        json!({
            "apiVersion": "controlplane.cluster.x-k8s.io/v1beta2", "kind": "KubeadmControlPlane", "metadata": metadata,
            "spec": {
                "version": "v1.36.0",
                "machineTemplate": {"spec": {"infrastructureRef": {
                    "apiGroup": "infrastructure.cluster.x-k8s.io", "kind": "LibvirtMachineTemplate", "name": "probe",
                }}},
            },
        }),
    ]
}

/// Waits until a dry run is answered: accepted, or refused by the webhook with a reason of its own.
async fn answers(run: &Run, client: &kube::Client, object: &Value) -> Result<(), Failure> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let (group, version) = object["apiVersion"].as_str().and_then(|v| v.split_once('/')).unwrap_or_default();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &resource);
    let question: DynamicObject = serde_json::from_value(object.clone()).map_err(|e| Failure::of(&e))?;
    let begun = Instant::now();
    loop {
        let last = match api.create(&PostParams { dry_run: true, ..PostParams::default() }, &question).await {
            Ok(_) => return Ok(()),
            // Refused by a webhook that looked at it.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422) => return Ok(()),
            Err(e) => chain(&e),
        };
        if begun.elapsed() > WEBHOOK_DEADLINE {
            let seconds = WEBHOOK_DEADLINE.as_secs();
            return Err(Failure::new(format!("after {seconds} s: the webhook for {kind} does not answer: {last}")));
        }
        run.working(format!("waits for the webhook for {kind}"));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[cfg(test)]
mod tests {
    use edge_api::ClusterProfile;

    use super::*;

    #[test]
    fn what_is_shipped_can_be_applied() {
        let objects = shipped().unwrap();
        let name_of = |kind: &str| objects.iter().find(|o| o["kind"] == kind).map(|o| &o["metadata"]["name"]);
        assert_eq!(name_of("ClusterClass"), Some(&json!(CLUSTER_CLASS)));
        for object in &objects {
            assert!(object["apiVersion"].is_string() && object["metadata"]["name"].is_string(), "{object}");
            assert!(object["metadata"].get("namespace").is_none_or(|n| n == NAMESPACE), "{object}");
        }
        for template in ["LibvirtClusterTemplate", "LibvirtMachineTemplate"] {
            assert!(name_of(template).is_some(), "{template}");
        }
        let library = std::fs::read_dir("../profiles/library").unwrap().map(|entry| entry.unwrap().path());
        let library: Vec<_> = library.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
        let profiles = objects.iter().filter(|o| o["kind"] == "ClusterProfile").cloned();
        let profiles: Vec<ClusterProfile> = profiles.map(|p| serde_json::from_value(p).unwrap()).collect();
        assert_eq!(profiles.len(), library.len(), "every profile of the library is shipped");
    }

    #[test]
    fn a_class_is_taken_when_its_variables_are() {
        let class = |observed: i64, status: &str| -> DynamicObject {
            let ready = json!({"type": "VariablesReady", "status": status, "message": "a variable is wrong"});
            serde_json::from_value(json!({
                "apiVersion": "cluster.x-k8s.io/v1beta2", "kind": "ClusterClass",
                "metadata": {"name": CLUSTER_CLASS, "generation": 2},
                "status": {"observedGeneration": observed, "conditions": [ready]},
            }))
            .unwrap()
        };
        assert_eq!(untaken(&class(2, "True")), None);
        assert_eq!(untaken(&class(2, "False")).as_deref(), Some("a variable is wrong"));
        assert!(untaken(&class(1, "True")).is_some());
    }
}
