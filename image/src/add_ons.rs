//! Install manifests for the layers of workload clusters, each from its pinned module: artifacts of the bundle and of the
//! appliance's registry (type [`MANIFESTS_ARTIFACT`]) with one file, adapted as its edits say. An edit that finds
//! nothing is an error, and so is an image that no recipe makes: a newer pin cannot change what they are there for.

use std::path::Path;

use edge_api::bundle::{ANNOTATION_TITLE, MANIFESTS_ARTIFACT, MANIFESTS_YAML};

use crate::build::{Context, Error, Result, mkdir};
use crate::cache::Key;
use crate::cluster_images;
use crate::containers::Built;
use crate::manifests::{kustomize, module_dir};
use crate::oci::{Layout, io_at};
use crate::pins::{CURRENT, Group, group};
use crate::programs;

/// Part of every key; goes up when the recipe changes.
const FORMAT: &str = "1";
/// Stands for the version of the module in edits.
const VERSION: &str = "@VERSION@";

/// Where a module has its manifests.
#[derive(Debug)]
enum Source {
    /// A file.
    File(&'static str),
    /// A folder with a kustomization.
    Kustomization(&'static str),
}

/// One artifact.
struct AddOn {
    /// Group of the pins, and name of the artifact.
    group: &'static str,
    source: Source,
    /// What is replaced by what, everywhere.
    edits: &'static [(&'static str, &'static str)],
}

const ADD_ONS: &[AddOn] = &[
    AddOn {
        group: "local-path-provisioner",
        source: Source::File("deploy/local-path-storage.yaml"),
        edits: &[
            ("image: rancher/local-path-provisioner:", "image: docker.io/rancher/local-path-provisioner:"),
            ("image: busybox\n", "image: pcg-edge.io/busybox:1\n"),
        ],
    },
    AddOn {
        group: "metrics-server",
        source: Source::Kustomization("manifests/base"),
        edits: &[
            (
                "image: gcr.io/k8s-staging-metrics-server/metrics-server:master\n",
                "image: registry.k8s.io/metrics-server/metrics-server:@VERSION@\n",
            ),
            // kubeadm has kubelets sign their own serving certificates, which no authority vouches for.
            (
                "        - --kubelet-use-node-status-port\n",
                "        - --kubelet-use-node-status-port\n        - --kubelet-insecure-tls\n",
            ),
            // An emulated host stalls for seconds.
            ("          failureThreshold: 3\n", "          failureThreshold: 10\n          timeoutSeconds: 10\n"),
        ],
    },
    AddOn {
        group: "metallb",
        // Announcing by ARP alone, without FRR.
        source: Source::Kustomization("config/native"),
        edits: &[
            // There is no Prometheus.
            ("      annotations:\n        prometheus.io/port: \"7472\"\n        prometheus.io/scrape: \"true\"\n", ""),
            // Of nobody: the API server sets it.
            ("  creationTimestamp: null\n", ""),
            // kubeadm excludes control planes from load balancers, and a cluster may have nothing else.
            (
                "        - --port=7472\n        - --log-level=info\n        env:\n        - name: METALLB_NODE_NAME\n",
                "        - --port=7472\n        - --log-level=info\n        - --ignore-exclude-lb\n        env:\n        \
                 - name: METALLB_NODE_NAME\n",
            ),
            // An emulated host stalls for seconds; and the controller answers once kubelet has brought it the certificate
            // that it made for itself, which may take two minutes.
            ("          failureThreshold: 3\n", "          failureThreshold: 30\n"),
            ("          timeoutSeconds: 1\n", "          timeoutSeconds: 10\n"),
        ],
    },
];

/// Full references.
pub fn names() -> Vec<String> {
    let version = |add_on: &AddOn| group(add_on.group).map_or("unknown", Group::version);
    ADD_ONS.iter().map(|add_on| name(add_on, version(add_on))).collect()
}

fn name(add_on: &AddOn, version: &str) -> String {
    format!("pcg-edge.io/manifests/{}:{version}", add_on.group)
}

/// The layouts of all of them.
pub fn ensure(context: &Context) -> Result<Vec<Built>> {
    ADD_ONS.iter().map(|add_on| ensure_one(context, add_on)).collect()
}

fn ensure_one(context: &Context, add_on: &AddOn) -> Result<Built> {
    let pinned = |name: &str| group(name).ok_or_else(|| Error::Mismatch(format!("the pins have no group {name}")));
    let (group, kubernetes) = (pinned(add_on.group)?, &CURRENT.kubernetes);
    let name = name(add_on, group.version());
    let key = Key::new("add-on")
        .with("format", FORMAT)
        .with("source", format!("{:?}", add_on.source))
        .with("edits", format!("{:?}", add_on.edits))
        .with("images", cluster_images::names().join("\n"))
        .with("module", group.source())
        .with("sum", group.go_sum)
        .with("kubectl", kubernetes.source())
        .finish();
    let artifact = format!("manifests-{}", add_on.group);
    let built = |layout| Built { name: name.clone(), layout, source: group.source() };
    let layout = context.cache.path(&artifact, &key);
    if layout.is_dir() {
        return Ok(built(layout));
    }
    let kubectl = programs::ensure_group(context, kubernetes)?.join("kubectl");
    let layout = context.artifact(&artifact, &key, 1, |staging, task| {
        let scratch = staging.join("scratch");
        mkdir(&scratch)?;
        let file = format!("{}.yaml", add_on.group);
        task.step(&file);
        let text = read(&add_on.source, &module_dir(group, &scratch)?, &kubectl)?;
        let text = edit(text, add_on.edits, group.version()).map_err(|what| misfit(group, &what))?;
        check_images(&text, &cluster_images::names()).map_err(|what| misfit(group, &what))?;
        let mut layout = Layout::create(staging)?;
        let layer = layout.put(MANIFESTS_YAML, text.as_bytes())?.annotated(ANNOTATION_TITLE, &file);
        layout.put_artifact(&name, MANIFESTS_ARTIFACT, &[layer])?;
        layout.finish()?;
        Ok(std::fs::remove_dir_all(&scratch).map_err(io_at("remove", &scratch))?)
    })?;
    Ok(built(layout))
}

fn misfit(group: &Group, what: &str) -> Error {
    Error::Mismatch(format!("the manifests of {}: {what}: adapt add_ons.rs", group.source()))
}

fn read(source: &Source, module: &Path, kubectl: &Path) -> Result<String> {
    match source {
        Source::Kustomization(folder) => kustomize(kubectl, &module.join(folder)),
        Source::File(file) => {
            let path = module.join(file);
            Ok(std::fs::read_to_string(&path).map_err(io_at("read", &path))?)
        }
    }
}

fn edit(mut text: String, edits: &[(&str, &str)], version: &str) -> std::result::Result<String, String> {
    for (from, to) in edits {
        if !text.contains(from) {
            return Err(format!("expected {from:?}"));
        }
        text = text.replace(from, &to.replace(VERSION, version));
    }
    Ok(text)
}

/// Images named anywhere in the text, in templates of pods within other objects too.
fn check_images(text: &str, known: &[String]) -> std::result::Result<(), String> {
    let images = text.lines().filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix("image: "));
    match images.map(|name| name.trim_matches('"')).find(|name| known.iter().all(|known| known != name)) {
        Some(unknown) => Err(format!("no recipe makes {unknown}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_that_finds_nothing_is_an_error() {
        let text = "a: 1\nb: 1\n".to_owned();
        assert_eq!(edit(text.clone(), &[(": 1\n", ": @VERSION@\n")], "v2").unwrap(), "a: v2\nb: v2\n");
        assert!(edit(text, &[("a: 1", "a: 2"), ("a: 1", "a: 3")], "v2").unwrap_err().contains("\"a: 1\""));
    }

    #[test]
    fn unknown_images_are_found_wherever_they_are() {
        let known = ["example.io/a:1".to_owned()];
        assert_eq!(check_images("spec:\n  - image: example.io/a:1\n    image: \"example.io/a:1\"\n", &known), Ok(()));
        let text = "data: |\n  containers:\n  - image: busybox\n";
        assert!(check_images(text, &known).unwrap_err().contains("makes busybox"));
    }
}
