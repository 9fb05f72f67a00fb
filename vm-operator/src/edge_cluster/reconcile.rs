//! The way of an `EdgeCluster`: profile → check → image, Cluster, addresses → layers → status.

use std::collections::BTreeSet;

use edge_api::edge_cluster::Placement;
use edge_api::names::FINALIZER;
use edge_api::{Appliance, EdgeCluster, VirtualMachine};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action as Next;
use serde_json::{Value, json};

use super::layers::{Facts, Login, Wanted};
use super::observe::Scene;
use super::profile::{self, Resolved};
use super::status::{self, Seen};
use super::validate::{self, Site};
use super::{FieldError, addresses, image, pause, remove, topology};
use crate::cluster_api::cluster::reconcile::claimant;
use crate::cluster_api::cluster::validate::Claimant;
use crate::cluster_api::provider::{Finding, Provide, Provider, cluster_label, hold, is_owned, list, names};
use crate::cluster_api::upstream::Cluster;
use crate::errors::chain;
use crate::reconcile::Error;
use crate::status::{FIELD_MANAGER, publish};

/// Longest message of the condition `Valid`; Kubernetes allows no more.
const LONGEST_MESSAGE: usize = 32_000;

/// How far a pass came.
#[derive(Default)]
struct Progress {
    resolved: Option<Resolved>,
    errors: Vec<FieldError>,
    /// Valid so far as could be seen, but not wholly looked at.
    unknown: bool,
    waiting: Option<Finding>,
    cluster: Option<Cluster>,
    addresses: Option<Vec<String>>,
}

impl Provide for EdgeCluster {
    async fn bring(&self, provider: &Provider) -> Result<Next, Error> {
        if self.metadata.deletion_timestamp.is_some() {
            return remove::leave(self, provider).await;
        }
        let held = self.finalizers().iter().any(|f| f == FINALIZER);
        let edge = if held { self.clone() } else { hold(&provider.context, self, FINALIZER, |_| None).await? };
        let cluster = provider.get(&provider.stores.owner_clusters, &self.name_any());
        if pause::follow(&edge, cluster.as_ref(), provider).await? {
            provider.layers.forget(&edge.uid().unwrap_or_default());
            publish(&provider.context, &edge, status::paused).await?;
            return Ok(Next::await_change());
        }
        let mut progress = Progress { cluster, ..Progress::default() };
        let done = advance(&edge, provider, &mut progress).await;
        if let Err(Error::Kube(error)) = &done {
            progress.waiting = Some(Finding::no("Refused", chain(error)));
        }
        show(&edge, provider, &progress).await?;
        done?;
        match progress.waiting {
            // Nobody tells when a registry answers again.
            Some(waiting) if waiting.reason == image::REGISTRY_ERROR => Err(Error::Waiting(waiting.message)),
            _ => Ok(provider.resync()),
        }
    }
}

/// Everything up to the layers, and how far that came.
async fn advance(edge: &EdgeCluster, provider: &Provider, progress: &mut Progress) -> Result<(), Error> {
    let Some(placement) = edge.spec.placements.first() else { return Ok(()) };
    let profile = provider.get(&provider.stores.profiles, &edge.spec.profile);
    let resolved = profile.as_ref().map(|profile| profile::resolve(profile, &edge.spec));
    match resolved {
        Some(Ok(resolved)) => progress.resolved = Some(resolved),
        Some(Err(errors)) => progress.errors = errors,
        None => {
            let known = list(&provider.stores.profiles, |_| true).iter().map(kube::ResourceExt::name_any).collect();
            let message = format!("{:?}: expected a ClusterProfile: {}", edge.spec.profile, names(known));
            progress.errors.push(FieldError::new("spec.profile", message));
        }
    }
    let appliance = provider.context.appliance(&placement.appliance);
    let versions = check(edge, placement, appliance.as_ref(), provider, progress).await?;
    let (Some(resolved), Some(appliance), Some(profile)) = (&progress.resolved, appliance, profile) else {
        return Ok(());
    };
    if let Err(waiting) = versions {
        progress.unknown = true;
        progress.waiting = Some(waiting);
        return Ok(());
    }
    if !progress.errors.is_empty() {
        return Ok(());
    }
    if let Err(waiting) = image::ensure(&appliance, resolved, provider).await? {
        progress.waiting = Some(waiting);
        return Ok(());
    }
    let labels = topology::labels(&profile.spec.tags);
    let wanted = topology::cluster(edge, placement, resolved, &labels);
    match ensure_cluster(edge, &wanted, progress.cluster.take(), provider).await? {
        Ok(cluster) => progress.cluster = Some(cluster),
        Err((cluster, waiting)) => {
            progress.cluster = Some(cluster);
            progress.waiting = Some(waiting);
            return Ok(());
        }
    }
    match addresses::ensure(edge, provider).await? {
        Ok(found) => progress.addresses = Some(found),
        Err(waiting) => progress.waiting = Some(waiting),
    }
    if let (Some(cluster), Some(addresses)) = (&progress.cluster, &progress.addresses) {
        ensure_layers(edge, resolved, &appliance, cluster, addresses, provider).await?;
    }
    let _nobody_makes = provider.images.lock().await;
    image::remove_unused(&provider.context, Some(&image::name(&resolved.version)), None).await
}

/// Has the layers kept, once the cluster answers.
async fn ensure_layers(
    edge: &EdgeCluster,
    resolved: &Resolved,
    appliance: &Appliance,
    cluster: &Cluster,
    addresses: &[String],
    provider: &Provider,
) -> Result<(), Error> {
    let initialization = cluster.status.as_ref().and_then(|status| status.initialization.as_ref());
    if initialization.and_then(|i| i.control_plane_initialized) != Some(true) {
        return Ok(());
    }
    let (name, secrets) = (edge.name_any(), provider.context.api::<Secret>());
    let Some(kubeconfig) = secrets.get_opt(&format!("{name}-kubeconfig")).await? else { return Ok(()) };
    let Some(kubeconfig) = kubeconfig.data.and_then(|mut data| data.remove("value")) else { return Ok(()) };
    let login = &appliance.spec.registry;
    let Some(secret) = secrets.get_opt(&login.secret_name).await? else { return Ok(()) };
    provider.layers.ensure(Wanted {
        uid: edge.uid().unwrap_or_default(),
        kubeconfig: kubeconfig.0,
        profile: resolved.profile.clone(),
        layers: resolved.layers.clone(),
        facts: Facts {
            name,
            namespace: provider.context.namespace.clone(),
            version: resolved.version.clone(),
            pod_cidr: resolved.kubernetes.pod_cidr.clone(),
            service_cidr: resolved.kubernetes.service_cidr.clone(),
            virtual_ip: edge.spec.virtual_ip.clone(),
            load_balancer_addresses: addresses.iter().map(|address| format!("{address}/32")).collect(),
        },
        registry: Login { host: login.host.clone(), secret_name: login.secret_name.clone(), secret },
    });
    Ok(())
}

/// Checks the specification. The inner error is a state to wait in: then not everything could be looked at.
async fn check(
    edge: &EdgeCluster,
    placement: &Placement,
    appliance: Option<&Appliance>,
    provider: &Provider,
    progress: &mut Progress,
) -> Result<Result<(), Finding>, Error> {
    let name = edge.name_any();
    let resolved = progress.resolved.as_ref();
    let image = resolved.and_then(|resolved| provider.context.image(&image::name(&resolved.version)));
    let (versions, waiting) = match (resolved, appliance, &image) {
        (Some(resolved), Some(appliance), None) => match image::versions(appliance, resolved, provider).await? {
            Ok(versions) => (Some(versions), None),
            Err(waiting) => (None, Some(waiting)),
        },
        _ => (None, None),
    };
    let own_machines = list(&provider.stores.machines, |machine| cluster_label(&machine.metadata) == Some(&name));
    let own_machines: BTreeSet<String> = own_machines.iter().map(kube::ResourceExt::name_any).collect();
    let (own, others) = claimants(edge, placement, provider);
    let site = Site {
        appliance,
        pools: &list(&provider.stores.pools, |_| true),
        own,
        others: &others,
        machines: &machines(placement, provider),
        own_machines: &own_machines,
        current: progress.cluster.as_ref(),
        image: image.as_ref(),
        versions: versions.as_deref(),
    };
    progress.errors.extend(validate::validate(edge, resolved, &site));
    Ok(waiting.map_or(Ok(()), Err))
}

fn machines(placement: &Placement, provider: &Provider) -> Vec<VirtualMachine> {
    let all = provider.context.stores.machines.state();
    let readable = all.iter().filter_map(|guard| guard.0.as_ref().ok());
    readable.filter(|vm| vm.spec.appliance == placement.appliance).cloned().collect()
}

/// The cluster itself and all others as those that want an address of the network. What belongs to an `EdgeCluster` is
/// asked for by that.
fn claimants(edge: &EdgeCluster, placement: &Placement, provider: &Provider) -> (Claimant, Vec<Claimant>) {
    let network = |placement: &Placement| placement.networks.first().map(|network| network.name.clone());
    let here = (Some(placement.appliance.as_str()), network(placement));
    let infrastructure = list(&provider.stores.clusters, |cluster| {
        cluster.spec.appliance == placement.appliance && here.1.as_ref() == Some(&cluster.spec.network)
    });
    let found: Vec<Claimant> = infrastructure.iter().map(claimant).collect();
    let edges = list(&provider.stores.edge_clusters, |other| {
        let placement = other.spec.placements.first();
        (placement.map(|p| p.appliance.as_str()), placement.and_then(network)) == here
    });
    let of_edge = |edge: &EdgeCluster| {
        let name = edge.name_any();
        let made = edge.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second()).unwrap_or_default();
        Claimant {
            host: Some(edge.spec.virtual_ip.clone()),
            router_id: None,
            provisioned: found.iter().any(|cluster| cluster.name == name && cluster.provisioned),
            made: (made, edge.uid().unwrap_or_default()),
            name,
        }
    };
    let own = of_edge(edge);
    let mut others: Vec<Claimant> = edges.iter().map(of_edge).collect();
    let strangers = found.iter().filter(|cluster| others.iter().all(|other| other.name != cluster.name));
    others.extend(strangers.cloned().collect::<Vec<_>>());
    others.retain(|other| other.name != own.name);
    (own, others)
}

/// Applies the Cluster where it differs. The inner error is a state to wait in.
async fn ensure_cluster(
    edge: &EdgeCluster,
    wanted: &Value,
    cached: Option<Cluster>,
    provider: &Provider,
) -> Result<Result<Cluster, (Cluster, Finding)>, Error> {
    let api = provider.context.api::<Cluster>();
    if let Some(cluster) = cached.filter(|cluster| is_as_wanted(cluster, wanted)) {
        return Ok(Ok(cluster));
    }
    let name = edge.name_any();
    // The cache may be late.
    if let Some(live) = api.get_opt(&name).await? {
        if live.metadata.deletion_timestamp.is_some() {
            let message = format!("waits for Cluster {name} to go, which somebody deleted; it is made anew then");
            return Ok(Err((live, Finding::no("WaitingForCluster", message))));
        }
        if !is_owned(&live.metadata, edge.uid().as_deref()) {
            return Err(Error::Outdated(format!("Cluster {name} belongs to nobody here")));
        }
        if is_as_wanted(&live, wanted) {
            return Ok(Ok(live));
        }
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let cluster = api.patch(&name, &params, &Patch::Apply(wanted)).await?;
    tracing::info!(cluster = name, "Cluster written");
    Ok(Ok(cluster))
}

fn is_as_wanted(cluster: &Cluster, wanted: &Value) -> bool {
    let live = json!({
        "metadata": { "annotations": cluster.metadata.annotations, "labels": cluster.metadata.labels },
        "spec": { "clusterNetwork": cluster.spec.cluster_network, "topology": cluster.spec.topology },
    });
    let wanted = json!({
        "metadata": { "annotations": wanted["metadata"]["annotations"], "labels": wanted["metadata"]["labels"] },
        "spec": wanted["spec"],
    });
    cluster.metadata.deletion_timestamp.is_none() && topology::covers(&live, &wanted)
}

/// Writes the status, where it differs.
async fn show(edge: &EdgeCluster, provider: &Provider, progress: &Progress) -> Result<(), Error> {
    let Progress { resolved, errors, unknown, waiting, cluster, addresses } = progress;
    let valid = if !errors.is_empty() {
        let mut message = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
        Finding::no("Invalid", message)
    } else if *unknown {
        let message = waiting.as_ref().map(|waiting| waiting.message.clone()).unwrap_or_default();
        Finding { status: edge_api::ConditionStatus::Unknown, reason: "RegistryNotRead".to_owned(), message }
    } else {
        Finding::yes("Valid", "")
    };
    let scene = Scene::look(edge, cluster.as_ref(), resolved.as_ref(), provider);
    publish(&provider.context, edge, |old, generation| {
        // Where nothing is being made there is nothing to be done.
        let tasks = if scene.cluster.is_some() { scene.tasks(false, &old.tasks) } else { Vec::new() };
        let seen = Seen {
            valid: valid.clone(),
            waiting: waiting.clone(),
            resolved: resolved.as_ref(),
            cluster: scene.cluster.as_ref(),
            layers: &scene.layers,
            addresses: addresses.clone(),
            tasks,
        };
        status::status(old, generation, &edge.spec, seen)
    })
    .await?;
    Ok(())
}
