//! Starts the provider's controllers once Cluster API's kinds are served, and says which object wakes which.
//!
//! ```text
//!  Cluster ───────► LibvirtCluster, LibvirtMachine, IPAddressClaim
//!  Machine ───────► LibvirtMachine            Appliance ──► LibvirtCluster, LibvirtMachine
//!  IPPool ────────► IPAddressClaim that waits, LibvirtCluster
//!  IPAddress ─────► IPPool, its claim; when it goes, every claim of its pool that waits
//!  IPAddressClaim, VirtualMachine, Secret ──► LibvirtMachine
//!  LibvirtMachine, LibvirtCluster ──► LibvirtClusters that wait; LibvirtCluster ──► IPPool
//!  every one of them, ClusterProfile, VirtualMachineImage ──► the EdgeCluster that it belongs to
//! ```

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use edge_api::names::{GROUP, VERSION};
use edge_api::{ClusterProfile, EdgeCluster, IPPool, LibvirtCluster, LibvirtMachine, cluster_api, condition};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use kube::runtime::controller::{Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{Predicate as _, PredicateConfig, WatchStreamExt as _, predicates, watcher};
use kube::{Client, Resource, ResourceExt as _};
use tokio::sync::{Mutex, OnceCell, mpsc};
use tokio_util::sync::CancellationToken;

use super::cluster::reconcile::cluster_name;
use super::pool::claim::{cluster_of, is_waiting};
use super::provider::{Guarded, Provide, Provider, Stores, Triggers, cluster_label, list, owner, reconcile};
use super::upstream::{Cluster, IPAddress, IPAddressClaim, Machine};
use crate::context::Context;
use crate::edge_cluster::layers::Runner;
use crate::edge_cluster::remove::without_cluster_api;
use crate::edge_cluster::run as edge;
use crate::reconcile::after;
use crate::run::watch;

/// What other watches saw.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Touched {
    /// An `Appliance`.
    Appliance(String),
    /// A `VirtualMachine`.
    VirtualMachine(String),
    /// A `VirtualMachineImage`.
    Image(String),
    /// A Secret.
    Secret(String),
}

/// Kinds that must be served.
fn kinds() -> [(String, &'static [&'static str]); 4] {
    [
        (format!("{GROUP}/{VERSION}"), &["clusterprofiles", "edgeclusters", "ippools"]),
        (format!("{}/{VERSION}", cluster_api::GROUP), &["libvirtclusters", "libvirtmachines"]),
        ("cluster.x-k8s.io/v1beta2".to_owned(), &["clusters", "machines"]),
        ("ipam.cluster.x-k8s.io/v1beta2".to_owned(), &["ipaddressclaims", "ipaddresses"]),
    ]
}

async fn served(client: &Client) -> Result<bool, kube::Error> {
    for (version, plurals) in kinds() {
        let resources = match client.list_api_group_resources(&version).await {
            Ok(list) => list.resources,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            Err(error) => return Err(error),
        };
        if !plurals.iter().all(|plural| resources.iter().any(|r| r.name == *plural)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits for Cluster API. It is asked for, ever more slowly, because nobody may be allowed to watch definitions.
async fn wait_for_kinds(context: &Context) {
    const LONGEST: Duration = Duration::from_secs(15);
    let mut pause = Duration::from_secs(1);
    loop {
        match served(&context.client).await {
            Ok(true) => return,
            Ok(false) => {
                tracing::debug!("Cluster API is not there yet");
                if let Err(error) = without_cluster_api(context).await {
                    tracing::debug!(error = crate::errors::chain(&error), "clusters wait for Cluster API");
                }
            }
            Err(error) => {
                tracing::debug!(error = crate::errors::chain(&error), "cannot tell whether Cluster API is there");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}

/// Runs the provider's controllers until `stop` is cancelled.
pub async fn run(context: Arc<Context>, mut touched: mpsc::UnboundedReceiver<Touched>, stop: CancellationToken) {
    let (client, namespace) = (context.client.clone(), context.namespace.clone());
    let waited = async {
        tokio::select! {
            () = wait_for_kinds(&context) => true,
            // Nobody is there to be woken yet, and the queue must not grow.
            () = async { while touched.recv().await.is_some() {} } => false,
        }
    };
    tokio::select! {
        there = waited => if !there { return },
        () = stop.cancelled() => return,
    }
    tracing::info!("Cluster API is there: its infrastructure provider runs");
    let (pools, pool_writer) = store();
    let (claims, claim_writer) = store();
    let (addresses, address_writer) = store();
    let (clusters, cluster_writer) = store();
    let (machines, machine_writer) = store();
    let (owner_clusters, owner_cluster_writer) = store();
    let (owner_machines, owner_machine_writer) = store();
    let (edge_clusters, edge_cluster_writer) = store();
    let (profiles, profile_writer) = store();
    let (pool_triggers, pools_wanted) = mpsc::unbounded_channel();
    let (claim_triggers, claims_wanted) = mpsc::unbounded_channel();
    let (cluster_triggers, clusters_wanted) = mpsc::unbounded_channel();
    let (machine_triggers, machines_wanted) = mpsc::unbounded_channel();
    let (edge_triggers, edge_clusters_wanted) = mpsc::unbounded_channel();
    let (wake_layered, of_namespace, resync) = (edge_triggers.clone(), namespace.clone(), context.times.resync);
    let layers = Runner::new(resync, move |name| {
        let _ending = wake_layered.send(ObjectRef::new(name).within(&of_namespace));
    });
    let provider = Arc::new(Provider {
        context,
        stores: Stores {
            pools,
            claims,
            addresses,
            clusters,
            machines,
            owner_clusters,
            owner_machines,
            edge_clusters,
            profiles,
        },
        filled: OnceCell::new(),
        triggers: Triggers {
            pools: pool_triggers,
            claims: claim_triggers,
            clusters: cluster_triggers,
            machines: machine_triggers,
            edge_clusters: edge_triggers,
        },
        allocating: Mutex::default(),
        endpoints: Mutex::default(),
        images: Mutex::default(),
        layers,
    });
    let pools = seen(watch::<IPPool>(&client, &namespace, pool_writer), &provider, pool_touched);
    let claims = seen(watch::<IPAddressClaim>(&client, &namespace, claim_writer), &provider, claim_touched);
    let addresses = seen(watch::<IPAddress>(&client, &namespace, address_writer), &provider, address_touched);
    let clusters = seen(watch::<LibvirtCluster>(&client, &namespace, cluster_writer), &provider, cluster_touched);
    let machines = seen(watch::<LibvirtMachine>(&client, &namespace, machine_writer), &provider, machine_touched);
    let edge_clusters = seen(watch(&client, &namespace, edge_cluster_writer), &provider, edge::cluster_touched);
    let profiles = seen(watch(&client, &namespace, profile_writer), &provider, edge::profile_touched);
    // Of these only a few fields matter to infrastructure, and Cluster API writes their status all the time.
    let owner_clusters = watch::<Cluster>(&client, &namespace, owner_cluster_writer);
    let owner_clusters = seen(owner_clusters, &provider, edge::owner_cluster_touched)
        .predicate_filter(cluster_facts, PredicateConfig::default());
    let owner_clusters = seen(owner_clusters, &provider, owner_cluster_touched);
    let owner_machines = watch::<Machine>(&client, &namespace, owner_machine_writer);
    let owner_machines = seen(owner_machines, &provider, edge::owner_machine_touched)
        .predicate_filter(machine_facts, PredicateConfig::default());
    let owner_machines = seen(owner_machines, &provider, owner_machine_touched);
    let stores = &provider.stores;
    let controllers = Box::pin(async {
        tokio::join!(
            control(pools, stores.pools.clone(), pools_wanted, &stop, &provider),
            control(claims, stores.claims.clone(), claims_wanted, &stop, &provider),
            control(clusters, stores.clusters.clone(), clusters_wanted, &stop, &provider),
            control(machines, stores.machines.clone(), machines_wanted, &stop, &provider),
            control::<EdgeCluster>(edge_clusters, stores.edge_clusters.clone(), edge_clusters_wanted, &stop, &provider)
        );
    });
    let followers = Box::pin(async {
        tokio::join!(
            addresses.for_each(|_| async {}),
            owner_clusters.for_each(|_| async {}),
            owner_machines.for_each(|_| async {}),
            profiles.for_each(|_: Result<Guarded<ClusterProfile>, _>| async {}),
            async {
                while let Some(touched) = touched.recv().await {
                    other_touched(&provider, &touched);
                }
            }
        );
    });
    tokio::select! {
        () = controllers => {}
        () = followers => {}
    }
}

/// Tells of every object that was touched.
fn seen<K>(
    stream: impl Stream<Item = Result<Guarded<K>, watcher::Error>> + Send + 'static,
    provider: &Arc<Provider>,
    touched: fn(&Provider, &K),
) -> impl Stream<Item = Result<Guarded<K>, watcher::Error>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Send + Sync + 'static,
{
    let provider = provider.clone();
    stream.inspect_ok(move |guard| {
        let meta = guard.meta();
        if let Some(uid) = &meta.uid {
            provider.context.written.seen(uid, meta.resource_version.as_deref());
        }
        if let Ok(object) = &guard.0 {
            touched(&provider, object);
        }
    })
}

/// Owner references come without a new generation, and so does the annotation that pauses.
fn owners<K: Resource>(object: &K) -> u64 {
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    hash(&owners.iter().map(|o| (&o.kind, &o.name, &o.uid)).collect::<Vec<_>>())
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What of a cluster matters to its infrastructure.
fn cluster_facts(guard: &Guarded<Cluster>) -> Option<u64> {
    let cluster = guard.0.as_ref().ok()?;
    let initialization = cluster.status.as_ref().and_then(|s| s.initialization.as_ref());
    let endpoint = cluster.spec.control_plane_endpoint.as_ref().map(|e| (&e.host, e.port));
    Some(hash(&(
        cluster.spec.paused,
        endpoint,
        initialization.and_then(|i| i.infrastructure_provisioned),
        &cluster.metadata.annotations,
        cluster.metadata.deletion_timestamp.is_some(),
    )))
}

/// What of a machine matters to its infrastructure.
fn machine_facts(guard: &Guarded<Machine>) -> Option<u64> {
    let machine = guard.0.as_ref().ok()?;
    let spec = &machine.spec;
    Some(hash(&(
        &spec.cluster_name,
        &spec.bootstrap.data_secret_name,
        &spec.failure_domain,
        &machine.metadata.labels,
        machine.status.as_ref().is_some_and(|s| s.node_ref.is_some()),
        machine.metadata.deletion_timestamp.is_some(),
    )))
}

/// Reconciles what was touched or is wanted for another reason, until it is told to stop.
async fn control<K: Provide>(
    touched: impl Stream<Item = Result<Guarded<K>, watcher::Error>> + Send + 'static,
    reader: Store<Guarded<K>>,
    wanted: mpsc::UnboundedReceiver<ObjectRef<Guarded<K>>>,
    stop: &CancellationToken,
    provider: &Arc<Provider>,
) {
    use kube::runtime::controller::Error;
    let wanted = futures::stream::unfold(wanted, |mut wanted| async {
        let next = wanted.recv().await?;
        Some((next, wanted))
    });
    let stop = stop.clone();
    // Its own status writes do not wake a controller: a failure would be tried again at once instead of with back-off.
    let of_interest = predicates::generation
        .combine(predicates::finalizers)
        .combine(predicates::labels)
        .combine(predicates::annotations)
        .combine(|guard: &Guarded<K>| Some(owners(guard)));
    let touched = touched.predicate_filter(of_interest, PredicateConfig::default());
    Controller::for_stream(touched, reader)
        // Bursts of events about one object are one reconcile.
        .with_config(Config::default().debounce(Duration::from_millis(100)).concurrency(8))
        .reconcile_on(wanted)
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile, |object, error, provider| after(&*object, error, &provider.context), provider.clone())
        .for_each(|done| async {
            match done {
                // Reconcilers' errors are logged already; a deleted object is none.
                Ok(_) | Err(Error::ReconcilerFailed(..) | Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!(error = crate::errors::chain(&error), "watch"),
            }
        })
        .await;
}

fn wake_machines(provider: &Provider, affected: impl Fn(&LibvirtMachine) -> bool) {
    for machine in list(&provider.stores.machines, affected) {
        provider.wake(&provider.triggers.machines, &machine.name_any());
    }
}

fn wake_clusters(provider: &Provider, affected: impl Fn(&LibvirtCluster) -> bool) {
    for cluster in list(&provider.stores.clusters, affected) {
        provider.wake(&provider.triggers.clusters, &cluster.name_any());
    }
}

fn wake_claims(provider: &Provider, affected: impl Fn(&IPAddressClaim) -> bool) {
    for claim in list(&provider.stores.claims, affected) {
        provider.wake(&provider.triggers.claims, &claim.name_any());
    }
}

/// Clusters that may go on when something else changes.
fn is_stuck(cluster: &LibvirtCluster) -> bool {
    let conditions = cluster.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    !condition::is_true(conditions, "Ready")
}

fn is_of_pool(claim: &IPAddressClaim, pool: &str) -> bool {
    claim.spec.pool_ref.is_ours() && claim.spec.pool_ref.name == pool
}

fn pool_touched(provider: &Provider, pool: &IPPool) {
    edge::pool_touched(provider);
    let name = pool.name_any();
    wake_claims(provider, |claim| is_waiting(claim) && is_of_pool(claim, &name));
    wake_clusters(provider, is_stuck);
}

fn address_touched(provider: &Provider, address: &IPAddress) {
    if !address.spec.pool_ref.is_ours() {
        return;
    }
    let (pool, claim) = (&address.spec.pool_ref.name, &address.spec.claim_ref.name);
    provider.wake(&provider.triggers.pools, pool);
    let gone = provider.get(&provider.stores.addresses, &address.name_any()).is_none();
    // Pools may overlap: what one gets back, another may give out.
    wake_claims(provider, |c| c.name_any() == *claim || (gone && is_waiting(c)));
}

fn claim_touched(provider: &Provider, claim: &IPAddressClaim) {
    edge::wake_named(provider, cluster_of(claim));
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    for owner in owners.iter().filter(|o| o.kind == LibvirtMachine::kind(&())) {
        provider.wake(&provider.triggers.machines, &owner.name);
    }
}

fn cluster_touched(provider: &Provider, cluster: &LibvirtCluster) {
    edge::wake_named(provider, cluster_name(cluster));
    let uid = cluster.uid();
    wake_clusters(provider, |other| other.uid() != uid && is_stuck(other));
    // An endpoint is no address that a pool could give out.
    for pool in list(&provider.stores.pools, |_| true) {
        provider.wake(&provider.triggers.pools, &pool.name_any());
    }
    // Control planes wait for the virtual router ID.
    if let Some(name) = cluster_name(cluster) {
        let is_new = |m: &LibvirtMachine| m.status.as_ref().is_none_or(|s| s.initialization.is_none());
        wake_machines(provider, |m| is_new(m) && cluster_label(&m.metadata) == Some(name));
    }
}

fn machine_touched(provider: &Provider, machine: &LibvirtMachine) {
    let cluster = cluster_label(&machine.metadata);
    edge::wake_named(provider, cluster);
    wake_clusters(provider, |c| c.metadata.deletion_timestamp.is_some() && cluster_name(c) == cluster);
}

fn owner_cluster_touched(provider: &Provider, cluster: &Cluster) {
    let name = cluster.name_any();
    wake_clusters(provider, |c| cluster_name(c) == Some(&name));
    wake_claims(provider, |c| cluster_of(c) == Some(&name));
    wake_machines(provider, |m| {
        let machine =
            owner(&m.metadata, "Machine").and_then(|o| provider.get(&provider.stores.owner_machines, &o.name));
        let of_machine = machine.as_ref().map(|m| m.spec.cluster_name.as_str());
        of_machine.or_else(|| cluster_label(&m.metadata)) == Some(&name)
    });
}

fn owner_machine_touched(provider: &Provider, machine: &Machine) {
    let name = machine.name_any();
    wake_machines(provider, |m| owner(&m.metadata, "Machine").is_some_and(|o| o.name == name));
}

fn other_touched(provider: &Provider, touched: &Touched) {
    edge::other_touched(provider, touched);
    match touched {
        Touched::Image(_) => {}
        Touched::Appliance(name) => {
            wake_clusters(provider, |c| c.spec.appliance == *name);
            wake_machines(provider, |m| m.spec.appliance == *name);
        }
        // Machines have the name of what they are made into.
        Touched::VirtualMachine(name) => wake_machines(provider, |m| m.name_any() == *name),
        Touched::Secret(name) => wake_machines(provider, |m| {
            let owner = owner(&m.metadata, "Machine");
            let bootstrap = owner
                .and_then(|o| provider.get(&provider.stores.owner_machines, &o.name))
                .and_then(|m| m.spec.bootstrap.data_secret_name);
            let login = provider.context.appliance(&m.spec.appliance).map(|a| a.spec.registry.secret_name);
            bootstrap.as_ref() == Some(name) || login.as_ref() == Some(name)
        }),
    }
}
