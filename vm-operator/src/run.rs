//! Puts the controllers together: one watch per kind, triggers between them, libvirt's news, health, orderly end.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use edge_api::cluster_api::ANNOTATION_PAUSED;
use edge_api::{Appliance, VirtualMachine, VirtualMachineImage};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Secret;
use kube::core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::{Config, Controller};
use kube::runtime::events::Reporter;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{Predicate as _, PredicateConfig, WatchStreamExt as _, predicates, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::cluster_api::run::Touched;
use crate::context::{Context, Stores, Times, Triggers};
use crate::libvirt::connection::{Hosts, News, What};
use crate::libvirt::events::HostEvent;
use crate::machine::validate::secrets;
use crate::reconcile::{Reconcile, after, reconcile};
use crate::{cluster_api, image, machine};

/// How the operator runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace to watch.
    pub namespace: String,
    /// Address of the health endpoint; none where absent.
    pub health: Option<String>,
    /// Times.
    pub times: Times,
}

/// Images that may be transferred at once.
const TRANSFERS: usize = 2;

type Machine = DeserializeGuard<VirtualMachine>;
type Image = DeserializeGuard<VirtualMachineImage>;
type Site = DeserializeGuard<Appliance>;

/// Runs until `stop` is cancelled.
pub async fn run(client: Client, options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let Options { namespace, health, times } = options;
    let (hosts, news) = Hosts::new().context("libvirt")?;
    let (appliance_triggers, appliances_wanted) = mpsc::unbounded_channel();
    let (image_triggers, images_wanted) = mpsc::unbounded_channel();
    let (machine_triggers, machines_wanted) = mpsc::unbounded_channel();
    let (provider_triggers, provider_wanted) = mpsc::unbounded_channel();
    let triggers = Triggers {
        appliances: appliance_triggers,
        images: image_triggers,
        machines: machine_triggers,
        provider: provider_triggers,
    };
    let (appliance_store, appliance_writer) = store::<Site>();
    let (image_store, image_writer) = store::<Image>();
    let (machine_store, machine_writer) = store::<Machine>();
    let reporter = Reporter { controller: "vm-operator".to_owned(), instance: std::env::var("POD_NAME").ok() };
    let context = Arc::new(Context {
        reporter,
        client: client.clone(),
        namespace: namespace.clone(),
        hosts,
        stores: Stores { appliances: appliance_store, images: image_store, machines: machine_store },
        filled: tokio::sync::OnceCell::new(),
        written: crate::status::Written::default(),
        backoff: crate::errors::Backoff::default(),
        locks: image::transfer::Locks::default(),
        transfers: Semaphore::new(TRANSFERS),
        memories: machine::memory::Memories::default(),
        facts: Mutex::default(),
        times,
    });

    let appliances = watch::<Appliance>(&client, &namespace, appliance_writer);
    let images = watch::<VirtualMachineImage>(&client, &namespace, image_writer);
    let machines = watch::<VirtualMachine>(&client, &namespace, machine_writer);
    let (wake_context, wake) = (context.clone(), triggers.clone());
    let appliances = appliances.inspect_ok(move |touched| {
        note_seen(&wake_context, touched);
        appliance_touched(&wake_context, &wake, touched);
    });
    let (wake_context, wake) = (context.clone(), triggers.clone());
    let images = images.inspect_ok(move |touched| {
        note_seen(&wake_context, touched);
        image_touched(&wake_context, &wake, touched);
    });
    let (wake_context, wake) = (context.clone(), triggers.clone());
    let machines = machines.inspect_ok(move |touched| {
        note_seen(&wake_context, touched);
        machine_touched(&wake_context, &wake, touched);
    });

    let stores = &context.stores;
    let controllers = Box::pin(async {
        tokio::join!(
            control(appliances, stores.appliances.clone(), appliances_wanted, &stop, &context),
            control(images, stores.images.clone(), images_wanted, &stop, &context),
            control(machines, stores.machines.clone(), machines_wanted, &stop, &context),
            cluster_api::run::run(context.clone(), provider_wanted, stop.clone())
        )
    });

    let listener = match &health {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?),
        None => None,
    };
    let helpers = async {
        tokio::join!(
            serve_health(listener, context.clone()),
            follow_news(news, context.clone(), triggers.clone()),
            follow_secrets(&client, &context, &triggers)
        );
    };
    tracing::info!(namespace, "vm-operator runs");
    tokio::select! {
        _ = controllers => {}
        () = helpers => {}
        () = async {
            stop.cancelled().await;
            // Whatever takes longer is picked up by the next life (law 1).
            tokio::time::sleep(Duration::from_secs(10)).await;
        } => tracing::info!("work in progress is left for the next start"),
    }
    Ok(())
}

/// One watch, its cache, and every touched object.
pub(crate) fn watch<K>(
    client: &Client,
    namespace: &str,
    writer: kube::runtime::reflector::store::Writer<DeserializeGuard<K>>,
) -> impl Stream<Item = Result<DeserializeGuard<K>, watcher::Error>> + Send + 'static + use<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let api: Api<DeserializeGuard<K>> = Api::namespaced(client.clone(), namespace);
    watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(|object| {
            // Half of an object's bytes, and nobody here reads them.
            object.managed_fields_mut().clear();
            if let Err(invalid) = &object.0 {
                tracing::warn!(kind = %K::kind(&()), name = invalid.metadata.name, %invalid, "cannot be read");
            }
        })
        .reflect(writer)
        .touched_objects()
}

/// Reconciles what was touched or is wanted for another reason, until it is told to stop.
async fn control<K: Reconcile>(
    touched: impl Stream<Item = Result<DeserializeGuard<K>, watcher::Error>> + Send + 'static,
    reader: Store<DeserializeGuard<K>>,
    wanted: mpsc::UnboundedReceiver<ObjectRef<DeserializeGuard<K>>>,
    stop: &CancellationToken,
    context: &Arc<Context>,
) {
    use kube::runtime::controller::Error;
    let wanted = futures::stream::unfold(wanted, |mut wanted| async {
        let next = wanted.recv().await?;
        Some((next, wanted))
    });
    let stop = stop.clone();
    // Its own status writes do not wake a controller: a failure would be tried again at once instead of with back-off.
    let paused = |guard: &DeserializeGuard<K>| Some(u64::from(guard.annotations().contains_key(ANNOTATION_PAUSED)));
    let of_interest = predicates::generation.combine(predicates::finalizers).combine(paused);
    let touched = touched.predicate_filter(of_interest, PredicateConfig::default());
    Controller::for_stream(touched, reader)
        // Bursts of events about one object are one reconcile.
        .with_config(Config::default().debounce(Duration::from_millis(100)).concurrency(8))
        .reconcile_on(wanted)
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile, |object, error, context| after(&object, error, &context), context.clone())
        .for_each(|done| async {
            match done {
                // Reconcilers' errors are logged already; a deleted object is none.
                Ok(_) | Err(Error::ReconcilerFailed(..) | Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!(error = crate::errors::chain(&error), "watch"),
            }
        })
        .await;
}

/// Sends a trigger. The receiver is gone only while the process ends.
fn send<K: Resource<DynamicType = ()>>(to: &mpsc::UnboundedSender<ObjectRef<K>>, name: &str, context: &Context) {
    let _ending = to.send(ObjectRef::new(name).within(&context.namespace));
}

/// Cluster API's provider may not run yet, or not any more.
fn tell_provider(triggers: &Triggers, touched: Touched) {
    let _not_there = triggers.provider.send(touched);
}

fn wake_machines(context: &Context, triggers: &Triggers, affected: impl Fn(&VirtualMachine) -> bool) {
    for machine in context.machines(affected) {
        send(&triggers.machines, &machine, context);
    }
}

fn wake_images(context: &Context, triggers: &Triggers, affected: impl Fn(&VirtualMachineImage) -> bool) {
    for image in context.images().iter().filter(|i| affected(i)) {
        send(&triggers.images, &image.name_any(), context);
    }
}

fn note_seen<K: Resource>(context: &Context, touched: &K) {
    let meta = touched.meta();
    if let Some(uid) = &meta.uid {
        context.written.seen(uid, meta.resource_version.as_deref());
    }
}

fn appliance_touched(context: &Context, triggers: &Triggers, touched: &Site) {
    let name = touched.name_any();
    tell_provider(triggers, Touched::Appliance(name.clone()));
    wake_machines(context, triggers, |m| m.spec.appliance == name);
    wake_images(context, triggers, |i| i.spec.appliance == name);
}

fn image_touched(context: &Context, triggers: &Triggers, touched: &Image) {
    let name = touched.name_any();
    tell_provider(triggers, Touched::Image(name.clone()));
    wake_machines(context, triggers, |m| m.spec.image.as_deref() == Some(&name));
    if let Ok(image) = &touched.0 {
        wake_deleting_appliance(context, triggers, &image.spec.appliance);
    }
}

fn machine_touched(context: &Context, triggers: &Triggers, touched: &Machine) {
    tell_provider(triggers, Touched::VirtualMachine(touched.name_any()));
    let Ok(machine) = &touched.0 else { return };
    // Deletions that wait for this machine to go.
    if let Some(image) = machine.spec.image.as_deref().and_then(|name| context.image(name))
        && image.meta().deletion_timestamp.is_some()
    {
        send(&triggers.images, &image.name_any(), context);
    }
    wake_deleting_appliance(context, triggers, &machine.spec.appliance);
}

fn wake_deleting_appliance(context: &Context, triggers: &Triggers, name: &str) {
    if context.appliance(name).is_some_and(|a| a.meta().deletion_timestamp.is_some()) {
        send(&triggers.appliances, name, context);
    }
}

/// Secrets by name and version only: their content is read when a machine needs it.
async fn follow_secrets(client: &Client, context: &Context, triggers: &Triggers) {
    let api: Api<PartialObjectMeta<Secret>> = Api::namespaced(client.clone(), &context.namespace);
    watcher(api, watcher::Config::default())
        .default_backoff()
        .touched_objects()
        .for_each(|touched| async {
            let Ok(secret) = touched else { return };
            let name = secret.name_any();
            tell_provider(triggers, Touched::Secret(name.clone()));
            wake_machines(context, triggers, |m| secrets(&m.spec).any(|s| s == name));
            wake_images(context, triggers, |i| {
                context.appliance(&i.spec.appliance).is_some_and(|a| a.spec.registry.secret_name == name)
            });
        })
        .await;
}

async fn follow_news(mut news: mpsc::UnboundedReceiver<News>, context: Arc<Context>, triggers: Triggers) {
    while let Some(News { uri, what }) = news.recv().await {
        let appliances: Vec<String> = context
            .stores
            .appliances
            .state()
            .iter()
            .filter_map(|guard| guard.0.as_ref().ok())
            .filter(|a| a.spec.libvirt_uri == uri)
            .map(kube::ResourceExt::name_any)
            .collect();
        match what {
            What::Event(HostEvent::Domain(uuid)) => {
                context.memories.with(uuid, |memory| memory.looks = 0);
                let id = uuid.to_string();
                wake_machines(&context, &triggers, |m| m.spec.id == id);
            }
            What::Event(HostEvent::Infrastructure) => {
                for name in &appliances {
                    send(&triggers.appliances, name, &context);
                }
            }
            What::Connected | What::Event(HostEvent::Closed) => {
                // Events may have been missed, and the host may be another one.
                context.forget_facts(&uri);
                for name in &appliances {
                    send(&triggers.appliances, name, &context);
                }
                wake_machines(&context, &triggers, |m| appliances.contains(&m.spec.appliance));
                wake_images(&context, &triggers, |i| appliances.contains(&i.spec.appliance));
            }
        }
    }
}

/// `/healthz`: the runtime answers. `/readyz`: every cache is filled.
async fn serve_health(listener: Option<TcpListener>, context: Arc<Context>) {
    let Some(listener) = listener else { return std::future::pending().await };
    let ready = move || {
        let context = context.clone();
        async move {
            let synced = tokio::time::timeout(Duration::from_millis(500), context.synced()).await;
            if synced.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
        }
    };
    let app = Router::new().route("/healthz", get(|| async { "ok" })).route("/readyz", get(ready));
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "health endpoint");
    }
}
