//! Layers in workload clusters: one task per cluster renders its layers, applies them, and keeps them so.
//!
//! ```text
//!  ensure ──► task of the cluster ──► artifacts from the registry, templates ──► RenderedLayer…
//!                  ▲        │                                                        │
//!     something changed,    │ wake                                            edge_layers::apply
//!     resync, back-off      ▼                                                        ▼
//!                       controller ──► states                              the cluster's API server
//! ```
//!
//! What is asked for replaces what was asked for before, at once: a pass may be dropped anywhere, and the next one goes
//! on from there. A pass that finds everything right only reads. Nothing is removed with a cluster, whose machines go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crash_points::api::Points;
use edge_api::agent::{Application, StepState};
use edge_profiles::{LayerKind, RenderedLayer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tower::timeout::TimeoutLayer;
use tracing::Instrument as _;

use super::artifact;
use super::profile::ResolvedLayer;
use crate::effects::Effect;
use crate::errors::{chain, delay};
use crate::image::registry::{self, Registry};

/// How long a connection to an API server may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an API server may take to answer. An emulated one is slow.
const ANSWER: Duration = Duration::from_secs(30);
/// The longest pause before an API server that was not reached is tried again.
const UNREACHED: Duration = Duration::from_secs(30);
/// How long a connection may be silent within an answer: longer than the watches, which end by themselves.
const SILENCE: Duration = Duration::from_mins(6);

/// What templates see as `cluster`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Facts {
    /// Name of the cluster.
    pub name: String,
    /// Its namespace in the system cluster.
    pub namespace: String,
    /// Kubernetes version without `v`, for instance `1.36.3`.
    pub version: String,
    /// Addresses of pods, `a.b.c.d/n`.
    pub pod_cidr: String,
    /// Addresses of services, `a.b.c.d/n`.
    pub service_cidr: String,
    /// Address of the control plane.
    pub virtual_ip: String,
    /// Addresses of services of type `LoadBalancer`, each `a.b.c.d/32`.
    pub load_balancer_addresses: Vec<String>,
}

/// The appliance's registry.
#[derive(Clone, PartialEq)]
pub struct Login {
    /// `host:port`.
    pub host: String,
    /// Name of the Secret with the login.
    pub secret_name: String,
    /// The Secret: keys `username`, `password`, `ca.crt`.
    pub secret: Secret,
}

/// What a cluster's layers are to be. It holds credentials, so it has no `Debug`.
#[derive(Clone, PartialEq)]
pub struct Wanted {
    /// `metadata.uid` of the `EdgeCluster`.
    pub uid: String,
    /// Kubeconfig with every right in the cluster, YAML: key `value` of Secret `<name>-kubeconfig`.
    pub kubeconfig: Vec<u8>,
    /// Name of the profile.
    pub profile: String,
    /// Layers in install order.
    pub layers: Vec<ResolvedLayer>,
    /// What templates see of the cluster; its name is the one that is woken.
    pub facts: Facts,
    /// Where artifacts are.
    pub registry: Login,
}

/// Keeps the layers of clusters.
pub struct Runner {
    shared: Arc<Shared>,
}

struct Shared {
    clusters: Mutex<HashMap<String, Kept>>,
    resync: Duration,
    wake: Box<dyn Fn(&str) + Send + Sync>,
}

/// A cluster whose layers are kept. Its task ends when this is dropped.
struct Kept {
    wanted: watch::Sender<Arc<Wanted>>,
    states: Vec<Application>,
}

impl Runner {
    /// `resync` is the time between a success and the next look; `wake` is called with the name of a cluster whenever
    /// its states have changed.
    pub fn new(resync: Duration, wake: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { shared: Arc::new(Shared { clusters: Mutex::default(), resync, wake: Box::new(wake) }) }
    }

    /// Sees to it that a cluster's layers are kept as wanted, and returns at once: nothing happens where the same was
    /// wanted before. Has to be called within a Tokio runtime.
    pub fn ensure(&self, wanted: Wanted) {
        let mut clusters = self.shared.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = clusters.get_mut(&wanted.uid) {
            let before = kept.wanted.borrow().clone();
            if *before != wanted {
                kept.states = begin(&wanted.layers, &before.layers, &kept.states);
                kept.wanted.send_replace(Arc::new(wanted));
            }
            return;
        }
        let (uid, states) = (wanted.uid.clone(), pending(&wanted.layers));
        let span = tracing::info_span!("layers", cluster = wanted.facts.name);
        let (sender, receiver) = watch::channel(Arc::new(wanted));
        clusters.insert(uid, Kept { wanted: sender, states });
        tokio::spawn(keep(self.shared.clone(), receiver).instrument(span));
    }

    /// Where the layers of a cluster stand, in install order; nothing where none were asked for.
    pub fn states(&self, uid: &str) -> Vec<Application> {
        self.shared.states(uid)
    }

    /// Leaves a cluster alone.
    pub fn forget(&self, uid: &str) {
        self.shared.clusters.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Tasks hold what is shared: without this they would hold each other.
        self.shared.clusters.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The states of layers that nobody has begun with.
pub fn pending(layers: &[ResolvedLayer]) -> Vec<Application> {
    begin(layers, &[], &[])
}

/// The states before a pass: what was ready and has not changed stays so until there is news of it.
fn begin(layers: &[ResolvedLayer], before: &[ResolvedLayer], states: &[Application]) -> Vec<Application> {
    let mut earlier: Option<&str> = None;
    let mut begun = Vec::with_capacity(layers.len());
    for layer in layers {
        let known = states.iter().find(|s| s.name == layer.name && s.state == StepState::Ready);
        begun.push(match known {
            Some(known) if before.contains(layer) => known.clone(),
            _ => {
                let message = earlier.map_or_else(|| "is next".to_owned(), |name| format!("waits for {name}"));
                application(&layer.name, layer.version.clone(), StepState::Pending, message)
            }
        });
        earlier = Some(&layer.name);
    }
    begun
}

/// The task of a cluster: ends when nobody wants its layers any more.
async fn keep(shared: Arc<Shared>, mut wanted: watch::Receiver<Arc<Wanted>>) {
    let mut failures = 0;
    loop {
        let now = wanted.borrow_and_update().clone();
        let passes = async {
            loop {
                let outcome = pass(&shared, &now).await;
                let pause = match outcome {
                    Outcome::Kept => shared.resync,
                    Outcome::Unreached => delay(failures).min(UNREACHED),
                    Outcome::Failed => delay(failures),
                };
                failures = if outcome == Outcome::Kept { 0 } else { failures + 1 };
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            biased;
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            () = passes => {}
        }
        failures = 0;
    }
}

/// Why a cluster's layers could not even be begun.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("manifests[{index}]")]
    Artifact { index: usize, source: artifact::Error },
    #[error(transparent)]
    Objects(#[from] edge_profiles::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    // What is wrong with it in detail might repeat a key.
    #[error("the cluster's kubeconfig {0}")]
    Kubeconfig(&'static str),
    #[error("cannot make a client of the cluster's kubeconfig")]
    Client(#[source] kube::Error),
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// All layers are as wanted.
    Kept,
    /// The cluster's API server does not answer, or cannot now.
    Unreached,
    /// A layer failed.
    Failed,
}

/// One pass over the layers of a cluster. What went wrong is in the states and in the log.
async fn pass(shared: &Shared, wanted: &Wanted) -> Outcome {
    let failed = |layer: &str, state: StepState, message: String| {
        tracing::warn!(layer, message, "layer is tried again");
        shared.fail(wanted, layer, state, message);
        if state == StepState::Waiting { Outcome::Unreached } else { Outcome::Failed }
    };
    let layers = match render(wanted).await {
        Ok(layers) => layers,
        Err((layer, error)) => return failed(&layer, StepState::Failed, chain(&error)),
    };
    let client = match client(&wanted.kubeconfig).await {
        Ok(client) => client,
        Err(error) => {
            let first = wanted.layers.first().map(|layer| layer.name.as_str()).unwrap_or_default();
            return failed(first, StepState::Failed, chain(&error));
        }
    };
    let observer = |news: Application| {
        // What it means that a layer failed is told below.
        if news.state != StepState::Failed {
            shared.tell(wanted, news);
        }
    };
    let context = edge_layers::Context { client, helm: None };
    match edge_layers::apply(&context, &layers, &observer).await {
        Ok(edge_layers::Report { written, pruned }) => {
            shared.settle(wanted);
            if !written.is_empty() || !pruned.is_empty() {
                tracing::info!(written = written.len(), removed = pruned.len(), "layers are as wanted");
            }
            Outcome::Kept
        }
        Err(edge_layers::Error { layer, failure }) if failure.is_transient() => {
            let message = format!("waits for the cluster's API server: {}", chain(&failure));
            failed(&layer, StepState::Waiting, message)
        }
        Err(edge_layers::Error { layer, failure }) => failed(&layer, StepState::Failed, chain(&failure)),
    }
}

/// Values of templates.
#[derive(Serialize)]
struct Values<'w> {
    cluster: &'w Facts,
    parameters: &'w Map<String, Value>,
}

/// All layers, ready to be applied; else the layer that cannot be, and why.
async fn render(wanted: &Wanted) -> Result<Vec<RenderedLayer>, (String, Error)> {
    let Wanted { uid: _, kubeconfig: _, profile, layers, facts, registry } = wanted;
    let mut rendered = Vec::with_capacity(layers.len());
    for layer in layers {
        let objects = objects(layer, facts, registry).await;
        let of_objects = |objects| {
            RenderedLayer::of_objects(&layer.name, profile, layer.version.clone(), layer.timeout, objects)
                .map_err(Error::from)
        };
        rendered.push(objects.and_then(of_objects).map_err(|error| (layer.name.clone(), error))?);
    }
    Ok(rendered)
}

async fn objects(layer: &ResolvedLayer, facts: &Facts, login: &Login) -> Result<Vec<Value>, Error> {
    let values = Values { cluster: facts, parameters: &layer.parameters };
    let mut objects = Vec::new();
    for (index, manifest) in layer.manifests.iter().enumerate() {
        if let Some(text) = &manifest.inline {
            objects.extend(edge_profiles::render_objects(&format!("manifests[{index}].inline"), text, &values)?);
        }
        if let Some(reference) = &manifest.artifact {
            let artifact_error = |source| Error::Artifact { index, source };
            let artifact = reference.parse().map_err(|error| artifact_error(artifact::Error::Reference(error)))?;
            let registry = Registry::new(&login.host, &login.secret_name, &login.secret)?;
            for artifact::File { name, text } in artifact::files(&registry, &artifact).await.map_err(artifact_error)? {
                objects.extend(edge_profiles::parse_objects(&format!("{artifact}: {name}"), &text)?);
            }
        }
    }
    Ok(objects)
}

async fn client(kubeconfig: &[u8]) -> Result<Client, Error> {
    let kubeconfig = std::str::from_utf8(kubeconfig).ok().and_then(|text| Kubeconfig::from_yaml(text).ok());
    let kubeconfig = kubeconfig.ok_or(Error::Kubeconfig("cannot be read"))?;
    let mut users = kubeconfig.auth_infos.iter().filter_map(|user| user.auth_info.as_ref());
    if users.any(|user| user.exec.is_some() || user.auth_provider.is_some()) {
        return Err(Error::Kubeconfig("names a program to log in with; only certificates and tokens are taken"));
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config =
        config.map_err(|_| Error::Kubeconfig("lacks a cluster or user, or a certificate is not usable"))?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // The cluster is on a network of the appliance, whatever proxy this process has.
    config.proxy_url = None;
    let builder = ClientBuilder::try_from(config).map_err(Error::Client)?;
    Ok(builder.with_layer(&TimeoutLayer::new(ANSWER)).with_layer(&Points(Effect::in_cluster)).build())
}

impl Shared {
    /// Changes the states of a cluster and wakes its controller, unless something else is wanted by now.
    fn edit(&self, wanted: &Wanted, change: impl FnOnce(&mut Vec<Application>)) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = clusters.get_mut(&wanted.uid) else { return };
        if !std::ptr::eq(Arc::as_ptr(&kept.wanted.borrow()), wanted) {
            return;
        }
        let before = kept.states.clone();
        change(&mut kept.states);
        let is_changed = kept.states != before;
        drop(clusters);
        if is_changed {
            (self.wake)(&wanted.facts.name);
        }
    }

    /// News of a layer.
    fn tell(&self, wanted: &Wanted, news: Application) {
        self.edit(wanted, |states| match states.iter_mut().find(|state| state.name == news.name) {
            Some(old) => {
                let since = if old.state == news.state { old.since } else { news.since };
                *old = Application { since, ..news };
            }
            // One that the profile no longer has, and that cannot be taken away.
            None => states.push(news),
        });
    }

    /// A layer failed, or waits for the API server. In the latter case one that was ready stays so: nothing new is known
    /// of it, and the cluster's machines say what is the matter.
    fn fail(&self, wanted: &Wanted, layer: &str, state: StepState, message: String) {
        let is_ready = |s: &Application| s.name == layer && s.state == StepState::Ready;
        if state == StepState::Waiting && self.states(&wanted.uid).iter().any(is_ready) {
            return;
        }
        let version = wanted.layers.iter().find(|l| l.name == layer).and_then(|l| l.version.clone());
        self.tell(wanted, application(layer, version, state, message));
    }

    /// All is as wanted: layers that could not be taken away are gone.
    fn settle(&self, wanted: &Wanted) {
        self.edit(wanted, |states| states.retain(|s| wanted.layers.iter().any(|layer| layer.name == s.name)));
    }

    fn states(&self, uid: &str) -> Vec<Application> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.get(uid).map(|kept| kept.states.clone()).unwrap_or_default()
    }
}

fn application(name: &str, version: Option<String>, state: StepState, message: String) -> Application {
    let (name, kind) = (name.to_owned(), LayerKind::Manifest.as_str().to_owned());
    Application { name, kind, state, message, version, since: Some(Timestamp::now()) }
}
