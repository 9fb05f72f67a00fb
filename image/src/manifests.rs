//! Cluster API's install manifests, rendered by `kubectl kustomize` from the pinned module, and the definitions that its
//! tooling looks for: an artifact of the bundle (kind `manifests`, type [`MANIFESTS_ARTIFACT`]) with one layer per file. A layer's annotation
//! `org.opencontainers.image.title` is the file's name; its content is plain YAML of many documents.
//!
//! They are as the module has them, which is not yet how a cluster takes them. Whoever applies them has to
//!
//! 1. put the images of the bundle into the Deployments: the module names `gcr.io/k8s-staging-cluster-api/<name>:main`
//!    with pull policy `Always`, the bundle has `registry.k8s.io/cluster-api/<name>:<version>`;
//! 2. leave out `Certificate` and `Issuer` of `cert-manager.io`, and issue the Secrets that the Certificates name
//!    (`spec.secretName` in the Certificate's namespace, type `kubernetes.io/tls`, for `spec.dnsNames`). A common name
//!    has at most 64 characters: use a short one;
//! 3. put the authority into `caBundle`, wherever the annotation `cert-manager.io/inject-ca-from` asks for it: of every
//!    webhook's `clientConfig`, and of `spec.conversion.webhook.clientConfig` of the custom resource definitions;
//! 4. resolve the placeholders `${NAME:=default}`, all in arguments of the managers; `CLUSTER_TOPOLOGY` must be `true`
//!    in core and control-plane for cluster classes;
//! 5. label every object `clusterctl.cluster.x-k8s.io`, as `clusterctl` does with what it installs.
//!
//! `inventory.yaml` is the kind in which `clusterctl` keeps what is installed. Of cert-manager only `Certificate` and
//! `Issuer` are there: `clusterctl init` makes one of each, and installs cert-manager from the internet where it cannot.

use std::path::{Path, PathBuf};

use edge_api::bundle::{ANNOTATION_TITLE, MANIFESTS_ARTIFACT, MANIFESTS_YAML};

use crate::build::{Context, Error, Result, mkdir};
use crate::cache::Key;
use crate::containers::Built;
use crate::oci::{Layout, io_at};
use crate::pins::{CURRENT, Group, group};
use crate::process::Tool;
use crate::programs::{self, Module};

const GROUP: &str = "cluster-api";
const CERT_MANAGER: &str = "cert-manager";

/// File name, and folder of the module.
const FILES: &[(&str, &str)] =
    &[("core.yaml", "core"), ("bootstrap.yaml", "bootstrap/kubeadm"), ("control-plane.yaml", "controlplane/kubeadm")];
/// File name, group of the pins, and files of its module that it is put together from.
const PLAIN: &[(&str, &str, &[&str])] = &[
    ("inventory.yaml", GROUP, &["cmd/clusterctl/config/manifest/clusterctl-api.yaml"]),
    (
        "cert-manager.yaml",
        CERT_MANAGER,
        &["deploy/crds/cert-manager.io_certificates.yaml", "deploy/crds/cert-manager.io_issuers.yaml"],
    ),
];

/// Full reference.
pub fn name() -> String {
    format!("pcg-edge.io/manifests/cluster-api:{}", group(GROUP).map_or("unknown", Group::version))
}

/// The layout of Cluster API's manifests.
pub fn ensure(context: &Context) -> Result<Built> {
    let pinned = |name: &str| group(name).ok_or_else(|| Error::Mismatch(format!("the pins have no group {name}")));
    let (group, kubernetes, cert_manager) = (pinned(GROUP)?, &CURRENT.kubernetes, pinned(CERT_MANAGER)?);
    let key = Key::new("manifests")
        .with("files", format!("{FILES:?}{PLAIN:?}"))
        .with("module", group.source())
        .with("sum", group.go_sum)
        .with("cert-manager", cert_manager.go_sum)
        .with("kubectl", kubernetes.source())
        .with("format", "2")
        .finish();
    let built = |layout| Built { name: name(), layout, source: group.source() };
    let layout = context.cache.path("manifests-cluster-api", &key);
    if layout.is_dir() {
        return Ok(built(layout));
    }
    let kubectl = programs::ensure_group(context, kubernetes)?.join("kubectl");
    let layout = context.artifact("manifests-cluster-api", &key, FILES.len() + PLAIN.len(), |staging, task| {
        let scratch = staging.join("scratch");
        mkdir(&scratch)?;
        let dir = module_dir(group, &scratch)?;
        let mut layout = Layout::create(staging)?;
        let mut layers = Vec::new();
        for (file, folder) in FILES {
            task.step(file);
            let text = kustomize(&kubectl, &dir.join(folder).join("config/default"))?;
            layers.push(layout.put(MANIFESTS_YAML, text.as_bytes())?.annotated(ANNOTATION_TITLE, file));
        }
        for (file, name, parts) in PLAIN {
            task.step(file);
            let dir = module_dir(pinned(name)?, &scratch)?;
            let mut text = String::new();
            for part in *parts {
                let path = dir.join(part);
                let part = std::fs::read_to_string(&path).map_err(io_at("read", &path))?;
                text.push_str(if part.starts_with("---\n") { "" } else { "---\n" });
                text.push_str(&part);
            }
            layers.push(layout.put(MANIFESTS_YAML, text.as_bytes())?.annotated(ANNOTATION_TITLE, file));
        }
        layout.put_artifact(&name(), MANIFESTS_ARTIFACT, &layers)?;
        layout.finish()?;
        Ok(std::fs::remove_dir_all(&scratch).map_err(io_at("remove", &scratch))?)
    })?;
    Ok(built(layout))
}

/// A kustomization's objects as YAML.
pub(crate) fn kustomize(kubectl: &Path, dir: &Path) -> Result<String> {
    Ok(Tool::new(kubectl.display().to_string(), "").arg("kustomize").arg(dir).output()?)
}

/// Where the pinned module lies. Downloads nothing where its programs were built.
pub(crate) fn module_dir(group: &Group, scratch: &Path) -> Result<PathBuf> {
    let module = Module::create(group, scratch.join(group.name))?;
    let text = module.go().args(["mod", "download", "-json", group.module]).output()?;
    let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let dir = said["Dir"].as_str().ok_or_else(|| Error::Mismatch(format!("go has no {}: {text}", group.source())))?;
    Ok(dir.into())
}
