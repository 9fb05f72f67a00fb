//! Which object wakes which `EdgeCluster`. The watches are those of Cluster API's provider.

use edge_api::cluster_api::LABEL_CLUSTER;
use edge_api::names::CLUSTER_IMAGE_PREFIX;
use edge_api::{ClusterProfile, EdgeCluster, condition};
use kube::ResourceExt as _;

use crate::cluster_api::provider::{Provider, list};
use crate::cluster_api::run::Touched;
use crate::cluster_api::upstream::{Cluster, Machine};

fn wake(provider: &Provider, affected: impl Fn(&EdgeCluster) -> bool) {
    for cluster in list(&provider.stores.edge_clusters, affected) {
        provider.wake(&provider.triggers.edge_clusters, &cluster.name_any());
    }
}

/// Wakes the cluster that something belongs to.
pub fn wake_named(provider: &Provider, cluster: Option<&str>) {
    if let Some(name) = cluster.filter(|name| provider.get(&provider.stores.edge_clusters, name).is_some()) {
        provider.wake(&provider.triggers.edge_clusters, name);
    }
}

/// Clusters that may become valid when something else changes.
fn is_invalid(cluster: &EdgeCluster) -> bool {
    let conditions = cluster.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    !condition::is_true(conditions, "Valid")
}

/// A cluster came, changed or went: an address or an image may be free.
pub fn cluster_touched(provider: &Provider, cluster: &EdgeCluster) {
    let uid = cluster.uid();
    wake(provider, |other| other.uid() != uid && is_invalid(other));
}

/// A profile changed.
pub fn profile_touched(provider: &Provider, profile: &ClusterProfile) {
    let name = profile.name_any();
    wake(provider, |cluster| cluster.spec.profile == name);
}

/// A pool changed, which any cluster's address may lie in.
pub fn pool_touched(provider: &Provider) {
    wake(provider, is_invalid);
}

/// Cluster API's cluster changed.
pub fn owner_cluster_touched(provider: &Provider, cluster: &Cluster) {
    wake_named(provider, Some(&cluster.name_any()));
}

/// A machine of Cluster API's changed.
pub fn owner_machine_touched(provider: &Provider, machine: &Machine) {
    wake_named(provider, Some(&machine.spec.cluster_name));
}

/// Something that other watches saw.
pub fn other_touched(provider: &Provider, touched: &Touched) {
    match touched {
        Touched::Appliance(name) => wake(provider, |c| c.spec.placements.iter().any(|p| p.appliance == *name)),
        Touched::VirtualMachine(name) => {
            // Machines have the name of what they are made into.
            let machine = provider.get(&provider.stores.machines, name);
            wake_named(provider, machine.and_then(|m| m.labels().get(LABEL_CLUSTER).cloned()).as_deref());
            // Its memory may be free.
            wake(provider, is_invalid);
        }
        Touched::Image(name) if name.starts_with(CLUSTER_IMAGE_PREFIX) => wake(provider, |_| true),
        Touched::Image(_) => {}
        // A cluster's Secrets have its name, a dash and what they hold.
        Touched::Secret(name) => wake(provider, |cluster| {
            let appliance = cluster.spec.placements.first().and_then(|p| provider.context.appliance(&p.appliance));
            let login = appliance.is_some_and(|appliance| appliance.spec.registry.secret_name == *name);
            login || name.strip_prefix(&cluster.name_any()).is_some_and(|rest| rest.starts_with('-'))
        }),
    }
}
