//! Step `cluster-api`: Cluster API's three managers from the bundle (D2), with certificates of the appliance's own
//! authority. Ready means that their webhooks answer.

use std::sync::Arc;
use std::time::Duration;

use edge_api::bundle::Index;
use edge_api::names::NAMESPACE;
use futures::future::LocalBoxFuture;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::bundle;
use crate::ca::Authority;
use crate::durable;
use crate::engine::{Failure, Run, Step, Verdict, chain};
use crate::objects;
use crate::provider_manifest::{Document, documents, prepare, secret};
use crate::world::World;

/// A manager: its manifest in the bundle, its namespace and Deployment.
struct Manager {
    manifest: &'static str,
    namespace: &'static str,
    deployment: &'static str,
}

const MANAGERS: [Manager; 3] = [
    Manager { manifest: "core", namespace: "capi-system", deployment: "capi-controller-manager" },
    Manager {
        manifest: "bootstrap",
        namespace: "capi-kubeadm-bootstrap-system",
        deployment: "capi-kubeadm-bootstrap-controller-manager",
    },
    Manager {
        manifest: "control-plane",
        namespace: "capi-kubeadm-control-plane-system",
        deployment: "capi-kubeadm-control-plane-controller-manager",
    },
];

/// Largest manifest that is read.
const MANIFEST_LIMIT: u64 = 16 << 20;
/// Longest wait for a manager's pod, its pull included.
const DEADLINE: Duration = Duration::from_mins(4);
/// Longest wait for a webhook to answer, once its pod is ready.
const WEBHOOK_DEADLINE: Duration = Duration::from_mins(1);

/// See the module.
pub struct ClusterApi {
    world: Arc<World>,
}

impl ClusterApi {
    /// The step.
    pub fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    async fn ensure_managers(&self, run: &Run) -> Result<Verdict, Failure> {
        let (index, client) = (self.world.index()?, self.world.client()?);
        let folder = self.world.paths.join("ca");
        let authority = Authority::ensure(&folder, &format!("PCG-Edge {}", self.world.instance));
        let authority = authority.map_err(|e| Failure::of(&e))?;
        for manager in &MANAGERS {
            self.apply(run, &client, &index, &authority, manager).await?;
        }
        for manager in &MANAGERS {
            objects::deployment_available(&client, run, manager.namespace, manager.deployment, DEADLINE).await?;
        }
        for object in questions() {
            answers(run, &client, &object).await?;
        }
        let version = index.artifacts.iter().find_map(|a| a.name.split_once("/cluster-api-controller:"));
        Ok(Verdict::Ready(format!("Cluster API {}", version.map_or("", |(_, tag)| tag))))
    }

    async fn apply(
        &self,
        run: &Run,
        client: &kube::Client,
        index: &Index,
        authority: &Authority,
        manager: &Manager,
    ) -> Result<(), Failure> {
        let path = bundle::manifest_file(&self.world.bundle, index, &format!("cluster-api/{}.yaml", manager.manifest));
        let path = path.ok_or_else(|| Failure::new(format!("the bundle has no manifest {}", manager.manifest)))?;
        let text = durable::read(&path, MANIFEST_LIMIT).map_err(|e| Failure::of(&e))?;
        let text = text.ok_or_else(|| Failure::new(format!("{} is missing", path.display())))?;
        let text = String::from_utf8(text).map_err(|e| Failure::of(&e))?;
        for (at, document) in documents(&text).enumerate() {
            let prepared = prepare(manager.manifest, at + 1, document, authority.certificate(), index);
            match prepared.map_err(|e| Failure::of(&e))? {
                Document::Object(object) => drop(objects::ensure(client, run, &object).await?),
                Document::Certificate(request) => {
                    let leaf = authority.ensure_leaf(&self.world.paths.join("ca"), &request.secret, &request.names);
                    let leaf = leaf.map_err(|e| Failure::of(&e))?;
                    objects::ensure(client, run, &secret(&request, &leaf, authority.certificate())).await?;
                }
                Document::Nothing => {}
            }
        }
        Ok(())
    }
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
