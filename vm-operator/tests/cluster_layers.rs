//! Layers of a workload cluster: a real API server plays the cluster, a real registry has the artifacts.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use edge_api::agent::{Application, StepState};
use edge_api::bundle::{ANNOTATION_TITLE, MANIFESTS_ARTIFACT, MANIFESTS_YAML};
use edge_api::cluster_profile::{ClusterLayerKind, LayerManifest};
use edge_api::names::{LABEL_LAYER, LABEL_PROFILE};
use edge_tests::control_plane::ADMIN;
use edge_tests::wait::Seen;
use edge_tests::{ControlPlane, eventually};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use support::{SHORT, registry};
use vm_operator::edge_cluster::layers::{Facts, Login, Runner, Wanted};
use vm_operator::edge_cluster::profile::ResolvedLayer;

const NETWORK: &str = "test/network:1";
const WORKLOAD: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: provisioner, namespace: storage}
spec:
  replicas: \"{{ parameters.replicas }}\"
  selector: {matchLabels: {app: provisioner}}
  template:
    metadata: {labels: {app: provisioner}}
    spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: facts, namespace: storage}
data:
  cluster: \"{{ cluster.namespace }}/{{ cluster.name }} {{ cluster.version }} {{ cluster.virtual_ip }}\"
  networks: \"{{ cluster.pod_cidr }} {{ cluster.service_cidr }} {{ cluster.load_balancer_addresses | join(',') }}\"
  text: \"{{ parameters.text }}\"
";

/// What plays the workload cluster, the registry, and how often a controller was woken.
struct Bed {
    plane: ControlPlane,
    registry: registry::Running,
    woken: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

impl Bed {
    async fn start() -> Result<Self> {
        let _second_is_fine = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir()?;
        let (plane, registry) = tokio::try_join!(ControlPlane::start(), registry::Running::start(dir.path()))?;
        let bed = Self { plane, registry, woken: Arc::default(), _dir: dir };
        bed.push("1", MANIFESTS_ARTIFACT, "shared").await?;
        Ok(bed)
    }

    /// An artifact of two files.
    async fn push(&self, tag: &str, artifact_type: &str, map: &str) -> Result<()> {
        let files = ["kind: Namespace\napiVersion: v1\nmetadata: {name: storage}\n".to_owned(), config_map(map)];
        let layers = [("1-namespace.yaml", &files[0]), ("2-map.yaml", &files[1])]
            .map(|(name, text)| (MANIFESTS_YAML, text.clone().into_bytes(), json!({ ANNOTATION_TITLE: name })));
        self.registry.push_artifact("test/network", Some(tag), artifact_type, &layers).await?;
        Ok(())
    }

    fn runner(&self) -> Runner {
        let woken = self.woken.clone();
        Runner::new(Duration::from_mins(10), move |name| {
            assert_eq!(name, "shop");
            woken.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn wanted(&self, layers: Vec<ResolvedLayer>) -> Result<Wanted> {
        Ok(Wanted {
            uid: "1".to_owned(),
            kubeconfig: std::fs::read(self.plane.kubeconfig())?,
            profile: "profile".to_owned(),
            layers,
            facts: Facts {
                name: "shop".to_owned(),
                namespace: "pcg-edge-system".to_owned(),
                version: "1.36.3".to_owned(),
                pod_cidr: "10.244.0.0/16".to_owned(),
                service_cidr: "10.96.0.0/12".to_owned(),
                virtual_ip: "10.0.0.5".to_owned(),
                load_balancer_addresses: vec!["10.0.0.6/32".to_owned(), "10.0.0.7/32".to_owned()],
            },
            registry: Login {
                host: self.registry.host(),
                secret_name: "registry-pull".to_owned(),
                secret: serde_json::from_value(json!({ "stringData": {}, "data": self.login() }))?,
            },
        })
    }

    fn login(&self) -> Value {
        use base64::Engine as _;
        let encode = |text: &String| base64::prelude::BASE64_STANDARD.encode(text);
        self.registry.secret().iter().map(|(key, value)| (key.clone(), Value::from(encode(value)))).collect()
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.plane.client(), "storage")
    }

    async fn data(&self, name: &str) -> Result<Value> {
        Ok(serde_json::to_value(self.maps().get(name).await?.data)?)
    }

    /// As its controller would when the pods run.
    async fn make_available(&self) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.plane.client(), "storage");
        let generation = api.get("provisioner").await?.metadata.generation;
        let status = json!({"status": {"observedGeneration": generation, "replicas": 2, "updatedReplicas": 2,
            "readyReplicas": 2, "availableReplicas": 2}});
        api.patch_status("provisioner", &PatchParams::default(), &Patch::Merge(&status)).await?;
        Ok(())
    }
}

fn config_map(name: &str) -> String {
    // A template here is none: artifacts are taken as they are.
    format!(
        "kind: ConfigMap\napiVersion: v1\nmetadata: {{name: {name}, namespace: storage}}\ndata: {{a: \"{{{{ x }}}}\"}}\n"
    )
}

fn layer(name: &str, kind: ClusterLayerKind, manifest: LayerManifest, parameters: &Value) -> ResolvedLayer {
    ResolvedLayer {
        name: name.to_owned(),
        kind,
        version: Some("1".to_owned()),
        manifests: vec![manifest],
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        timeout: Duration::from_mins(2),
    }
}

fn artifact(name: &str) -> LayerManifest {
    LayerManifest { artifact: Some(name.to_owned()), inline: None }
}

fn inline(text: &str) -> LayerManifest {
    LayerManifest { artifact: None, inline: Some(text.to_owned()) }
}

fn layers(text: &str) -> Vec<ResolvedLayer> {
    vec![
        layer("network", ClusterLayerKind::Network, artifact(NETWORK), &json!({})),
        layer("storage", ClusterLayerKind::Storage, inline(WORKLOAD), &json!({"replicas": 2, "text": text})),
        layer("metrics", ClusterLayerKind::AddOn, inline(&config_map("metrics").replace("{{ x }}", "x")), &json!({})),
    ]
}

/// Waits until the states and beginnings of messages of the layers are these.
async fn stand(runner: &Runner, what: &str, wanted: &[(&str, StepState, &str)]) -> Result<Vec<Application>> {
    let found = eventually(what, SHORT, || async {
        let states = runner.states("1");
        let fits = states.len() == wanted.len()
            && states.iter().zip(wanted).all(|(found, (name, state, message))| {
                found.name == *name && found.state == *state && found.message.contains(message)
            });
        Ok::<_, anyhow::Error>(if fits { Seen::Done(states) } else { Seen::NotYet(format!("{states:?}")) })
    });
    Ok(found.await?)
}

const READY: [(&str, StepState, &str); 3] =
    [("network", StepState::Ready, ""), ("storage", StepState::Ready, ""), ("metrics", StepState::Ready, "")];

#[tokio::test(flavor = "multi_thread")]
async fn layers_come_in_their_order_and_stay() -> Result<()> {
    let bed = Bed::start().await?;
    let runner = bed.runner();
    let text = "a: b\n- \"c\" {{ parameters.secret }}";
    runner.ensure(bed.wanted(layers(text))?);
    assert_eq!(runner.states("1").len(), 3);
    let expected = [
        ("network", StepState::Ready, ""),
        ("storage", StepState::Waiting, "Deployment storage/provisioner: "),
        ("metrics", StepState::Pending, "waits for storage"),
    ];
    let waiting = stand(&runner, "a wait for the Deployment", &expected).await?;
    assert!(bed.woken.load(Ordering::Relaxed) > 0);
    // The same again changes nothing.
    runner.ensure(bed.wanted(layers(text))?);
    assert_eq!(runner.states("1"), waiting);

    bed.make_available().await?;
    stand(&runner, "all layers", &READY).await?;
    let expected = json!({"cluster": "pcg-edge-system/shop 1.36.3 10.0.0.5", "text": text,
        "networks": "10.244.0.0/16 10.96.0.0/12 10.0.0.6/32,10.0.0.7/32"});
    assert_eq!(bed.data("facts").await?, expected);
    assert_eq!(bed.data("shared").await?, json!({"a": "{{ x }}"}));
    let labels = bed.maps().get("shared").await?.metadata.labels.unwrap_or_default();
    assert_eq!((labels[LABEL_LAYER].as_str(), labels[LABEL_PROFILE].as_str()), ("network", "profile"));

    // Another process, the same cluster: it only reads.
    drop(runner);
    let mark = bed.plane.audit().mark()?;
    let runner = bed.runner();
    runner.ensure(bed.wanted(layers(text))?);
    stand(&runner, "a second pass", &READY).await?;
    assert_eq!(bed.plane.audit().writes_since(mark, |user| user == ADMIN)?, []);

    // A value changes: its object alone is written, and the list of what the layer has.
    runner.ensure(bed.wanted(layers("other"))?);
    eventually("the new value", SHORT, || async {
        bed.data("facts").await.map(|data| Seen::when(data["text"] == "other", data.to_string()))
    })
    .await?;
    stand(&runner, "all layers again", &READY).await?;
    let writes = bed.plane.audit().writes_since(mark, |user| user == ADMIN)?;
    let objects: Vec<_> = writes.iter().map(|write| write.object.as_str()).collect();
    assert_eq!(objects, ["core/configmaps storage/facts"], "{writes:?}");

    // A layer that goes takes its objects along.
    let mut fewer = layers("other");
    fewer.pop();
    runner.ensure(bed.wanted(fewer)?);
    eventually("the object to be gone", SHORT, || async {
        bed.maps().get_opt("metrics").await.map(|found| Seen::when(found.is_none(), "it is there"))
    })
    .await?;
    runner.forget("1");
    assert_eq!(runner.states("1"), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_of_its_layer() -> Result<()> {
    let bed = Bed::start().await?;
    bed.push("image", edge_api::bundle::VM_IMAGE_ARTIFACT, "x").await?;
    let runner = bed.runner();
    let mut broken = layers("x");
    broken[1].manifests[0] = inline(&WORKLOAD.replace("parameters.text", "parameters.absent"));
    let pending = ("metrics", StepState::Pending, "waits for storage");
    for (change, expected) in [
        (
            None,
            [
                ("network", StepState::Pending, "is next"),
                ("storage", StepState::Failed, "manifests[0].inline:17: `parameters.absent` is undefined"),
                pending,
            ],
        ),
        (
            Some("test/network:2"),
            [
                ("network", StepState::Failed, "manifests[0]: registry localhost:"),
                ("storage", StepState::Pending, "waits for network"),
                pending,
            ],
        ),
        (
            Some("test/network:image"),
            [
                ("network", StepState::Failed, "manifests[0]: artifact test/network:image: the artifact is of type"),
                ("storage", StepState::Pending, "waits for network"),
                pending,
            ],
        ),
    ] {
        let mut layers = broken.clone();
        if let Some(change) = change {
            layers[0].manifests[0] = artifact(change);
            layers[1] = good_storage();
        }
        runner.ensure(bed.wanted(layers)?);
        stand(&runner, "a failure", &expected).await?;
    }
    let states = runner.states("1");
    assert!(!format!("{states:?}").contains("correct-horse"), "a password in a state: {states:?}");

    // Nobody answers.
    let mut away = bed.wanted(layers("x"))?;
    let kubeconfig = String::from_utf8(away.kubeconfig)?;
    away.kubeconfig = kubeconfig.replace(bed.plane.url(), "https://127.0.0.1:1").into_bytes();
    runner.ensure(away);
    let waits = ("network", StepState::Waiting, "waits for the cluster's API server: ");
    stand(&runner, "a wait", &[waits, ("storage", StepState::Pending, "waits for network"), pending]).await?;
    // A program is not run, whatever a kubeconfig says.
    let mut program = bed.wanted(layers("x"))?;
    let mut config: Value = serde_saphyr::from_str(&kubeconfig)?;
    config["users"][0]["user"] =
        json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}});
    program.kubeconfig = config.to_string().into_bytes();
    runner.ensure(program);
    let refused = ("network", StepState::Failed, "the cluster's kubeconfig names a program");
    stand(&runner, "a refusal", &[refused, ("storage", StepState::Pending, "waits for network"), pending]).await?;

    // All is well again, at once.
    runner.ensure(bed.wanted(layers("x"))?);
    let api: Api<Deployment> = Api::namespaced(bed.plane.client(), "storage");
    eventually("the Deployment", SHORT, || async {
        api.get_opt("provisioner").await.map(|found| Seen::when(found.is_some(), "none"))
    })
    .await
    .context("a good profile after bad ones")?;
    bed.make_available().await?;
    stand(&runner, "all layers", &READY).await?;
    Ok(())
}

/// A cluster's API server may come up long after its layers are wanted.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_comes_later_is_found() -> Result<()> {
    let bed = Bed::start().await?;
    let runner = bed.runner();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    drop(listener);
    let mut wanted = bed.wanted(layers("x").split_off(2))?;
    wanted.layers[0].manifests = vec![artifact(NETWORK)];
    let kubeconfig = String::from_utf8(wanted.kubeconfig)?;
    wanted.kubeconfig = kubeconfig.replace(bed.plane.url(), &format!("https://{address}")).into_bytes();
    runner.ensure(wanted);
    stand(&runner, "a wait", &[("metrics", StepState::Waiting, "waits for the cluster's API server: ")]).await?;

    let listener = tokio::net::TcpListener::bind(address).await?;
    let server = bed.plane.url().trim_start_matches("https://").to_owned();
    let relay = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(server).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    stand(&runner, "the layer", &[("metrics", StepState::Ready, "")]).await?;
    relay.abort();
    assert_eq!(bed.data("shared").await?, json!({"a": "{{ x }}"}));
    Ok(())
}

fn good_storage() -> ResolvedLayer {
    layers("x").swap_remove(1)
}
