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

/// The status of a cluster that is left alone.
pub fn paused(old: &EdgeClusterStatus, generation: Option<i64>) -> EdgeClusterStatus {
    let mut new = old.clone();
    let message = "paused, by itself or with its Cluster: nothing is done about it until it is not";
    Finding::no("Paused", message).put(&mut new.conditions, "Ready", generation);
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
            // The status has the generation that one controller has looked at; others may be behind it.
            Some(found) if found.observed_generation != cluster.metadata.generation => {
                return Some(format!("waits for Cluster API to look at Cluster {name}"));
            }
            Some(found) if found.status == edge_api::ConditionStatus::True => {}
            Some(found) => return Some(format!("waits for {type_} of Cluster {name}: {}", found.message)),
            None => return Some(format!("waits for {type_} of Cluster {name}")),
        }
    }
    let parts = [
        ("machines of the control plane", status.control_plane.unwrap_or_default(), spec.control_plane.size),
        ("workers", status.workers.unwrap_or_default(), workers(spec)),
    ];
    let version = format!("v{}", resolved.version);
    for (what, replicas, wanted) in parts {
        if let Some(old) = replicas.versions.iter().find(|found| found.version != version) {
            return Some(format!("waits for the {what} that still have Kubernetes {}", old.version));
        }
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

#[cfg(test)]
mod tests {
    use edge_api::EdgeCluster;
    use jiff::Timestamp;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::edge_cluster::profile::resolve;
    use crate::edge_cluster::validate::tests::{example, object};

    /// The Cluster of the example, with all that Cluster API says of one that is done.
    fn done() -> Value {
        let condition = |type_: &str| json!({ "type": type_, "status": "True", "reason": "Yes", "observedGeneration": 4, "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let replicas =
            |n: u32| json!({ "desiredReplicas": n, "replicas": n, "upToDateReplicas": n, "readyReplicas": n });
        let mut status = json!({
            "observedGeneration": 4, "conditions": [condition("Available"), condition("TopologyReconciled")],
            "controlPlane": replicas(3), "workers": replicas(3),
        });
        for part in ["controlPlane", "workers"] {
            status[part]["versions"] = json!([{ "version": "v1.36.3" }]);
        }
        json!({
            "apiVersion": "cluster.x-k8s.io/v1beta2", "kind": "Cluster",
            "metadata": { "name": "shop", "generation": 4 }, "spec": {}, "status": status,
        })
    }

    fn layers(state: StepState) -> Vec<Application> {
        let layer = |name: &str| Application {
            name: name.to_owned(),
            kind: "manifest".to_owned(),
            state,
            message: "as it is".to_owned(),
            version: None,
            since: Some(Timestamp::UNIX_EPOCH),
        };
        vec![layer("network"), layer("storage")]
    }

    fn seen(old: ClusterPhase, cluster: Option<&Value>, layers: &[Application], valid: bool) -> EdgeClusterStatus {
        let world = example();
        let edge: EdgeCluster = object(&world.edge);
        let resolved = resolve(&object(&world.profile), &edge.spec).unwrap();
        let cluster: Option<Cluster> = cluster.map(object);
        let valid = if valid { Finding::yes("Valid", "") } else { Finding::no("Invalid", "spec.x: wrong") };
        let (waiting, addresses, tasks) = (None, None, Vec::new());
        let seen =
            Seen { valid, waiting, resolved: Some(&resolved), cluster: cluster.as_ref(), layers, addresses, tasks };
        status(&EdgeClusterStatus { phase: old, ..EdgeClusterStatus::default() }, Some(1), &edge.spec, seen)
    }

    fn ready(status: &EdgeClusterStatus) -> (&str, &str) {
        let ready = condition::find(&status.conditions, "Ready").unwrap();
        (&ready.reason, &ready.message)
    }

    #[test]
    fn a_cluster_runs_when_everything_does() {
        let status = seen(ClusterPhase::Provisioning, Some(&done()), &layers(StepState::Ready), true);
        assert_eq!(status.phase, ClusterPhase::Running);
        assert_eq!(ready(&status), ("Running", "all machines and layers are ready"));
        assert_eq!((status.nodes.as_deref(), status.version.as_deref()), (Some("6/6"), Some("v1.36.3")));
    }

    #[test]
    fn whatever_is_missing_is_said() {
        for (path, value, said) in [
            ("/status/observedGeneration", json!(3), "waits for Cluster API to look at Cluster shop"),
            ("/status/conditions/0/status", json!("False"), "waits for Available of Cluster shop"),
            ("/status/conditions/1/observedGeneration", json!(3), "waits for Cluster API to look at Cluster shop"),
            (
                "/status/workers/versions/0/version",
                json!("v1.35.4"),
                "waits for the workers that still have Kubernetes v1.35.4",
            ),
            ("/status/conditions/1/status", json!("False"), "waits for TopologyReconciled of Cluster shop"),
            ("/status/controlPlane/readyReplicas", json!(2), "2 machines of the control plane are ready, 3 are wanted"),
            ("/status/controlPlane/replicas", json!(4), "3 machines of the control plane are ready, 3 are wanted"),
            ("/status/workers/upToDateReplicas", json!(0), "3 workers are ready, 3 are wanted"),
            ("/status/workers", json!(null), "0 workers are ready, 3 are wanted"),
        ] {
            let mut cluster = done();
            *cluster.pointer_mut(path).unwrap() = value;
            for (old, new) in [
                (ClusterPhase::Pending, ClusterPhase::Provisioning),
                (ClusterPhase::Provisioning, ClusterPhase::Provisioning),
                (ClusterPhase::Running, ClusterPhase::Updating),
                (ClusterPhase::Updating, ClusterPhase::Updating),
            ] {
                let status = seen(old, Some(&cluster), &layers(StepState::Ready), true);
                assert_eq!(status.phase, new, "{path}");
                assert!(ready(&status).1.starts_with(said), "{path}: {}", ready(&status).1);
            }
        }
        let status = seen(ClusterPhase::Provisioning, Some(&done()), &layers(StepState::Waiting), true);
        assert_eq!(ready(&status), ("Provisioning", "waits for layer network: as it is"));
        let status = seen(ClusterPhase::Provisioning, Some(&done()), &[], true);
        assert_eq!(ready(&status), ("Provisioning", "waits for layer network"));
    }

    #[test]
    fn a_cluster_has_the_version_that_its_whole_control_plane_has() {
        let mut cluster = done();
        cluster["status"]["controlPlane"]["versions"] = json!([{ "version": "v1.36.10" }, { "version": "v1.36.3" }]);
        let status = seen(ClusterPhase::Updating, Some(&cluster), &layers(StepState::Ready), true);
        assert_eq!((status.phase, status.version.as_deref()), (ClusterPhase::Updating, Some("v1.36.3")));
    }

    #[test]
    fn an_invalid_change_leaves_the_phase() {
        let status = seen(ClusterPhase::Running, Some(&done()), &layers(StepState::Ready), false);
        assert_eq!((status.phase, ready(&status)), (ClusterPhase::Running, ("Invalid", "spec.x: wrong")));
        let status = seen(ClusterPhase::Pending, None, &[], false);
        assert_eq!((status.phase, ready(&status)), (ClusterPhase::Pending, ("Invalid", "spec.x: wrong")));
    }

    proptest! {
        /// Written again without any news, a status has the same bytes.
        #[test]
        fn no_news_is_no_write(available: bool, generation in 3_i64..=4, is_ready: bool, valid: bool) {
            let mut cluster = done();
            cluster["status"]["conditions"][0]["status"] = json!(if available { "True" } else { "False" });
            cluster["status"]["observedGeneration"] = json!(generation);
            let layers = layers(if is_ready { StepState::Ready } else { StepState::Running });
            let first = seen(ClusterPhase::Provisioning, Some(&cluster), &layers, valid);
            let world = example();
            let edge: EdgeCluster = object(&world.edge);
            let resolved = resolve(&object(&world.profile), &edge.spec).unwrap();
            let cluster: Cluster = object(&cluster);
            let again = Seen {
                valid: Finding::of(condition::find(&first.conditions, "Valid").unwrap()),
                waiting: None,
                resolved: Some(&resolved),
                cluster: Some(&cluster),
                layers: &layers,
                addresses: None,
                tasks: Vec::new(),
            };
            prop_assert_eq!(status(&first, Some(1), &edge.spec, again), first);
        }
    }
}
