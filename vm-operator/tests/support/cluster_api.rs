//! Cluster API for tests, out of the bundle that `PCG_EDGE_BUNDLE` names: its definitions and its core manager. Where
//! the bundle lacks the definitions, ones that take anything stand in.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use edge_api::bundle::MANIFESTS_ARTIFACT;
use edge_api::cluster_api::LABEL_CLUSTERCTL;
use edge_tests::wait::Seen;
use edge_tests::{ControlPlane, eventually};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

/// Kinds that the provider looks at: group, kind, plural, and whether it has a status.
const KINDS: [(&str, &str, &str, bool); 4] = [
    ("cluster.x-k8s.io", "Cluster", "clusters", true),
    ("cluster.x-k8s.io", "Machine", "machines", true),
    ("ipam.cluster.x-k8s.io", "IPAddressClaim", "ipaddressclaims", true),
    ("ipam.cluster.x-k8s.io", "IPAddress", "ipaddresses", false),
];

/// Serves our kinds and Cluster API's.
pub async fn install(client: &Client) -> Result<()> {
    let wanted = |d: &Value| {
        let names = |(group, _, plural, _): &(&str, &str, &str, bool)| {
            d["spec"]["group"] == *group && d["spec"]["names"]["plural"] == *plural
        };
        KINDS.iter().any(names)
    };
    let mut real = real()?;
    real.retain(wanted);
    anyhow::ensure!(real.is_empty() || real.len() == KINDS.len(), "the bundle has {} of the kinds", real.len());
    println!("Cluster API's kinds: {}", if real.is_empty() { "of the test" } else { "of Cluster API" });
    let theirs = if real.is_empty() { KINDS.iter().map(open).collect() } else { real };
    serve(client, theirs).await
}

/// Serves our kinds alone.
pub async fn install_ours(client: &Client) -> Result<()> {
    serve(client, Vec::new()).await
}

async fn serve(client: &Client, theirs: Vec<Value>) -> Result<()> {
    let mut definitions: Vec<Value> =
        edge_api::definitions().iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    definitions.extend(theirs);
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let params = PatchParams::apply("edge-tests").force();
    for definition in &definitions {
        let name = definition["metadata"]["name"].as_str().context("a name")?;
        api.patch(name, &params, &Patch::Apply(definition)).await?;
    }
    for definition in &definitions {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        eventually(&format!("CRD {name} to be established"), Duration::from_secs(30), || async {
            let conditions = api.get(name).await?.status.and_then(|s| s.conditions).unwrap_or_default();
            let established = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
            Ok::<_, kube::Error>(Seen::when(established, conditions))
        })
        .await?;
    }
    Ok(())
}

/// The `ClusterClass` of the appliance, with its templates.
pub async fn cluster_class(client: &Client, namespace: &str) -> Result<()> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(include_str!("../../../deploy/cluster-class.yaml"))?;
    let params = PatchParams::apply("edge-tests").force();
    for object in objects {
        let object: DynamicObject = serde_json::from_value(object)?;
        let types = object.types.clone().context("a kind")?;
        let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
        let plural = if types.kind == "ClusterClass" { "clusterclasses".to_owned() } else { kind.plural.clone() };
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &ApiResource { plural, ..kind });
        api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await?;
    }
    Ok(())
}

/// Cluster API's core manager as a process of its own, without its webhooks: nobody defaults and nobody validates.
pub struct Core {
    child: Child,
    log: PathBuf,
}

impl Core {
    /// Serves every kind and starts the manager. `None` where the bundle has none.
    pub async fn start(plane: &ControlPlane) -> Result<Option<Self>> {
        let dir = plane.dir();
        let Some(program) = program(dir)? else { return Ok(None) };
        serve(&plane.client(), real()?).await?;
        grant(&plane.client()).await?;
        let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        std::fs::write(dir.join("tls.crt"), certificate.cert.pem())?;
        std::fs::write(dir.join("tls.key"), certificate.signing_key.serialize_pem())?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = dir.join("cluster-api-controller.log");
        let out = std::fs::File::create(&log)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .arg(format!("--kubeconfig={}", super::kubeconfig_as(plane, MANAGER)?.display()))
            .arg(format!("--webhook-cert-dir={}", dir.display()))
            .arg(format!("--webhook-port={port}"))
            .args(["--leader-elect=false", "--health-addr=127.0.0.1:0", "--diagnostics-address=127.0.0.1:0"])
            .args(["--insecure-diagnostics", "--feature-gates=ClusterTopology=true"])
            .arg("--skip-crd-migration-phases=StorageVersionMigration,CleanupManagedFields")
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        Ok(Some(Self { child, log }))
    }

    /// The end of what it wrote.
    pub fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- cluster-api-controller\n{}", self.tail());
        }
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Serves every kind of the bundle and ours, with clusterctl's inventory of Cluster API.
///
/// # Errors
/// The bundle lacks a kind.
pub async fn install_all(client: &Client) -> Result<()> {
    serve(client, real()?).await?;
    let kind = GroupVersionKind::gvk("clusterctl.cluster.x-k8s.io", "v1alpha3", "Provider");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), super::NAMESPACE, &ApiResource::from_gvk(&kind));
    let providers = [
        ("cluster-api", "cluster-api", "CoreProvider", "v1.14.2"),
        ("bootstrap-kubeadm", "kubeadm", "BootstrapProvider", "v1.14.2"),
        ("control-plane-kubeadm", "kubeadm", "ControlPlaneProvider", "v1.14.2"),
    ];
    for (name, provider, of, version) in providers {
        let entry = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": { "name": name, "labels": { LABEL_CLUSTERCTL: "" } },
            "providerName": provider, "type": of, "version": version,
        });
        api.create(&PostParams::default(), &serde_json::from_value(entry)?).await.context("clusterctl's inventory")?;
    }
    Ok(())
}

/// What `clusterctl` says of a control plane. The operator, which it may wait for, runs on meanwhile.
///
/// # Errors
/// It did not succeed; then with what it wrote.
pub async fn clusterctl(plane: &ControlPlane, arguments: &[&str]) -> Result<String> {
    let bundle = std::env::var_os("PCG_EDGE_BUNDLE").map(PathBuf::from).context("PCG_EDGE_BUNDLE is not set")?;
    let out = tokio::process::Command::new(bundle.join("bin/clusterctl"))
        .args(arguments)
        .arg("--kubeconfig")
        .arg(plane.kubeconfig())
        .env("CLUSTERCTL_DISABLE_VERSIONCHECK", "true")
        .env("XDG_CONFIG_HOME", plane.dir())
        .env("HOME", plane.dir())
        .kill_on_drop(true)
        .output()
        .await
        .context("clusterctl")?;
    let (told, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    anyhow::ensure!(out.status.success(), "clusterctl {arguments:?}: {}\n{told}{said}", out.status);
    Ok(format!("{told}{said}"))
}

/// User as which the manager acts.
const MANAGER: &str = "system:serviceaccount:capi-system:capi-manager";

/// The rights that the manager has on the box: its own role, and what is gathered into it. Nobody gathers here, so the
/// operator's part is bound by itself.
async fn grant(client: &Client) -> Result<()> {
    let operator: Vec<Value> = serde_saphyr::from_multiple(include_str!("../../../deploy/operator.yaml"))?;
    let is_role = |d: &Value| d["kind"] == "ClusterRole";
    let own = documents()?.into_iter().filter(is_role).filter(|d| d["metadata"]["name"] == "capi-manager-role");
    let gathered = |d: &Value| d["metadata"]["labels"]["cluster.x-k8s.io/aggregate-to-manager"] == "true";
    let gathered: Vec<Value> = operator.into_iter().filter(is_role).filter(gathered).collect();
    anyhow::ensure!(!gathered.is_empty(), "deploy/operator.yaml has no role for Cluster API");
    let params = PatchParams::apply("edge-tests").force();
    for role in own.chain(gathered) {
        let name = role["metadata"]["name"].as_str().context("a name")?;
        Api::<ClusterRole>::all(client.clone()).patch(name, &params, &Patch::Apply(&role)).await?;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": MANAGER }],
        });
        Api::<ClusterRoleBinding>::all(client.clone()).patch(name, &params, &Patch::Apply(&binding)).await?;
    }
    Ok(())
}

/// The manager's program out of its container image.
fn program(dir: &Path) -> Result<Option<PathBuf>> {
    const NAME: &str = "cluster-api-controller";
    let Some(layout) = std::env::var_os("PCG_EDGE_BUNDLE").map(PathBuf::from) else { return Ok(None) };
    for (name, manifest) in manifests(&layout)? {
        if !name.contains(&format!("/{NAME}:")) {
            continue;
        }
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            let tar = Command::new("tar").arg("-xzf").arg(blob_path(&layout, layer)?).arg("-C").arg(dir).status()?;
            anyhow::ensure!(tar.success(), "tar: {tar}");
        }
        let found = Command::new("find").arg(dir).args(["-type", "f", "-perm", "-100", "-size", "+1M"]).output()?;
        let found = String::from_utf8(found.stdout)?;
        return Ok(Some(found.lines().next().context("a program in the image")?.into()));
    }
    Ok(None)
}

fn blob_path(layout: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().context("a digest")?.replace(':', "/");
    Ok(layout.join("blobs").join(digest))
}

/// Names and manifests of what lies in an OCI layout.
fn manifests(layout: &Path) -> Result<Vec<(String, Value)>> {
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
    let all = index["manifests"].as_array().into_iter().flatten();
    all.map(|descriptor| {
        let name = descriptor["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or_default();
        let manifest = serde_json::from_slice(&std::fs::read(blob_path(layout, descriptor)?)?)?;
        Ok((name.to_owned(), manifest))
    })
    .collect()
}

fn open((group, kind, plural, status): &(&str, &str, &str, bool)) -> Value {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            // Names below k8s.io are for approved definitions.
            "annotations": { "api-approved.kubernetes.io": "unapproved, for a test" },
        },
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List") },
            "versions": [{
                "name": "v1beta2", "served": true, "storage": true, "schema": { "openAPIV3Schema": any },
                "subresources": if *status { json!({ "status": {} }) } else { json!({}) },
            }],
        },
    })
}

/// Cluster API's definitions out of the bundle, without conversion: nothing here speaks older versions.
fn real() -> Result<Vec<Value>> {
    let of_cluster_api = |d: &Value| {
        d["spec"]["group"].as_str().is_some_and(|g| g.ends_with("cluster.x-k8s.io") || g == "cert-manager.io")
    };
    let definitions = documents()?.into_iter().filter(|d| d["kind"] == "CustomResourceDefinition");
    let without_conversion = |mut definition: Value| {
        definition["spec"]["conversion"] = json!({ "strategy": "None" });
        // As the agent does, for clusterctl.
        if definition["spec"]["group"] != "cert-manager.io" {
            definition["metadata"]["labels"][LABEL_CLUSTERCTL] = json!("");
        }
        definition
    };
    Ok(definitions.filter(of_cluster_api).map(without_conversion).collect())
}

/// Every object of the bundle's install manifests.
fn documents() -> Result<Vec<Value>> {
    let Some(layout) = std::env::var_os("PCG_EDGE_BUNDLE").map(PathBuf::from) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (_, manifest) in manifests(&layout)? {
        if manifest["artifactType"] != MANIFESTS_ARTIFACT {
            continue;
        }
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            let path = blob_path(&layout, layer)?;
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            found.extend(serde_saphyr::from_multiple::<Value>(&text)?);
        }
    }
    Ok(found)
}
