//! What an `EdgeCluster`'s status says of what was seen. Pure.

use edge_api::agent::{Application, StepState};
use edge_api::condition;
use edge_api::edge_cluster::{ClusterPhase, ClusterTask, EdgeClusterSpec, EdgeClusterStatus};
use kube::ResourceExt as _;

use super::profile::Resolved;
use super::tasks::current;
use crate::cluster_api::provider::Finding;
use crate::cluster_api::upstream::{Cluster, ReplicaVersion};

/// What was seen of a cluster.
pub struct Seen<'a> {
    /// Whether its specification makes sense.
    pub valid: Finding,
    /// What keeps it from going on, other than Cluster API and its machines.
    pub waiting: Option<Finding>,
    /// Its profile, where that could be resolved.
    pub resolved: Option<&'a Resolved>,
    /// Cluster API's cluster.
    pub cluster: Option<&'a Cluster>,
    /// Layers in it.
    pub layers: &'a [Application],
    /// Addresses for services; `None` where they are not all known.
    pub addresses: Option<Vec<String>>,
    /// What has to be done.
    pub tasks: Vec<ClusterTask>,
}

/// The status of a cluster that is not being deleted.
pub fn status(
    old: &EdgeClusterStatus,
    generation: Option<i64>,
    spec: &EdgeClusterSpec,
    seen: Seen<'_>,
) -> EdgeClusterStatus {
    let Seen { valid, waiting, resolved, cluster, layers, addresses, tasks } = seen;
    let is_valid = valid.status == edge_api::ConditionStatus::True;
    let unsettled = match (&waiting, resolved, cluster) {
        _ if !is_valid => Some("its specification is to be corrected".to_owned()),
        (Some(waiting), ..) => Some(waiting.message.clone()),
        (None, Some(resolved), Some(cluster)) => unsettled(spec, resolved, cluster, layers),
        (None, ..) => Some("waits for its Cluster".to_owned()),
    };
    let mut new = old.clone();
    new.observed_generation = generation;
    if is_valid || cluster.is_none() {
        new.phase = phase(old.phase, cluster.is_some(), unsettled.is_none());
    }
    new.version = cluster.and_then(version).or_else(|| new.version.take());
    new.nodes = cluster.map(|cluster| nodes(spec, cluster));
    if let Some(addresses) = addresses {
        new.load_balancer_addresses = addresses;
    }
    let ready = match (unsettled, waiting) {
        _ if !is_valid => Finding { status: edge_api::ConditionStatus::False, ..valid.clone() },
        (None, _) => Finding::yes("Running", "all machines and layers are ready"),
        (Some(_), Some(waiting)) => waiting,
        (Some(why), None) => {
            Finding::no(format!("{:?}", new.phase), current(&tasks).map_or(why, |current| current.to_string()))
        }
    };
    valid.put(&mut new.conditions, "Valid", generation);
    ready.put(&mut new.conditions, "Ready", generation);
    new.tasks = tasks;
    new
}

/// The status of a cluster that goes.
pub fn leaving(
    old: &EdgeClusterStatus,
    generation: Option<i64>,
    waits_for: &str,
    tasks: Vec<ClusterTask>,
) -> EdgeClusterStatus {
    let mut new = old.clone();
    new.observed_generation = generation;
    new.phase = ClusterPhase::Deleting;
    Finding::no("Deleting", waits_for).put(&mut new.conditions, "Ready", generation);
    new.tasks = tasks;
    new
}

fn phase(old: ClusterPhase, exists: bool, settled: bool) -> ClusterPhase {
    match (exists, settled, old) {
        (true, true, _) => ClusterPhase::Running,
        (_, _, ClusterPhase::Running | ClusterPhase::Updating) => ClusterPhase::Updating,
        (true, false, _) => ClusterPhase::Provisioning,
        (false, ..) => ClusterPhase::Pending,
    }
}

/// The version that the whole control plane has by now.
fn version(cluster: &Cluster) -> Option<String> {
    let versions = &cluster.status.as_ref()?.control_plane.as_ref()?.versions;
    let key = |version: &str| -> Vec<u64> {
        version.trim_start_matches('v').split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    versions.iter().min_by_key(|v| key(&v.version)).map(|ReplicaVersion { version }| version.clone())
}

fn nodes(spec: &EdgeClusterSpec, cluster: &Cluster) -> String {
    let status = cluster.status.as_ref();
    let parts = [status.and_then(|s| s.control_plane.as_ref()), status.and_then(|s| s.workers.as_ref())];
    let ready: u32 = parts.into_iter().flatten().filter_map(|part| part.ready_replicas).sum();
    format!("{ready}/{}", spec.control_plane.size + workers(spec))
}

fn workers(spec: &EdgeClusterSpec) -> u32 {
    spec.workers.iter().map(|pool| pool.size).sum()
}

/// What is not yet as it should be; `None` where all is.
fn unsettled(spec: &EdgeClusterSpec, resolved: &Resolved, cluster: &Cluster, layers: &[Application]) -> Option<String> {
    let name = cluster.name_any();
    let status = cluster.status.clone().unwrap_or_default();
    if status.observed_generation != cluster.metadata.generation {
        return Some(format!("waits for Cluster API to look at Cluster {name}"));
    }
    for type_ in ["TopologyReconciled", "Available"] {
        match condition::find(&status.conditions, type_) {
            Some(found) if found.status == edge_api::ConditionStatus::True => {}
            Some(found) => return Some(format!("waits for {type_} of Cluster {name}: {}", found.message)),
            None => return Some(format!("waits for {type_} of Cluster {name}")),
        }
    }
    let parts = [
        ("machines of the control plane", status.control_plane.unwrap_or_default(), spec.control_plane.size),
        ("workers", status.workers.unwrap_or_default(), workers(spec)),
    ];
    for (what, replicas, wanted) in parts {
        if !replicas.are_all(wanted) {
            let ready = replicas.ready_replicas.unwrap_or(0);
            return Some(format!("{ready} {what} are ready, {wanted} are wanted, each of the present specification"));
        }
    }
    let is_ready = |name: &str| layers.iter().any(|layer| layer.name == name && layer.state == StepState::Ready);
    resolved.layers.iter().find(|layer| !is_ready(&layer.name)).map(|layer| {
        let said = layers.iter().find(|known| known.name == layer.name).map_or("", |known| known.message.as_str());
        format!("waits for layer {}: {said}", layer.name).trim_end_matches([':', ' ']).to_owned()
    })
}
