//! Follows the virtual machines, the workload clusters and the appliance in the system cluster: what the status shows of
//! them comes from watches, and a change that a step has to see wakes the engine. While the API is away, what was known
//! stays.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edge_api::agent::{Cluster, Machine};
use edge_api::cluster_api::LABEL_CLUSTER;
use edge_api::names::NAMESPACE;
use edge_api::{Appliance, EdgeCluster, VirtualMachine, condition};
use futures::StreamExt;
use kube::core::NamespaceResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

use crate::status::Board;

/// Pause after a watch broke: long enough not to hammer an API server that starts, short enough for a status.
const PAUSE: Duration = Duration::from_secs(3);

/// The objects of one kind by name, shared with the server.
#[derive(Debug)]
pub struct Known<K>(Arc<Mutex<BTreeMap<String, K>>>);

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> Clone for Known<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Clone> Known<K> {
    /// A copy of all, by name.
    pub fn all(&self) -> Vec<K> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A copy of one.
    pub fn get(&self, name: &str) -> Option<K> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

/// What is known of the objects that are followed.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Virtual machines.
    pub machines: Known<VirtualMachine>,
    /// Workload clusters.
    pub clusters: Known<EdgeCluster>,
}

/// Follows until dropped. `wake` is told of what the engine should look at.
pub async fn follow(
    mut clients: watch::Receiver<Option<kube::Client>>,
    objects: Objects,
    board: Board,
    wake: mpsc::Sender<()>,
) {
    let wake = || {
        let _ = wake.try_send(());
    };
    loop {
        let client = clients.borrow_and_update().clone();
        let Some(client) = client else {
            if clients.changed().await.is_err() {
                return;
            }
            continue;
        };
        let machines = |machines: &BTreeMap<_, _>| board.set_machines(machines.values().map(short).collect());
        let clusters = |clusters: &BTreeMap<_, _>| {
            let clusters: Vec<_> = clusters.values().map(Cluster::from).collect();
            for line in news(&board.get().clusters, &clusters) {
                info!("{line}");
            }
            board.set_clusters(clusters);
        };
        tokio::select! {
            changed = clients.changed() => if changed.is_err() { return },
            () = follow_kind(&client, &objects.machines, machines, wake) => {}
            () = follow_kind(&client, &objects.clusters, clusters, || {}) => {}
            () = follow_appliance(&client, wake) => {}
        }
        // Where a watch breaks the system cluster may be gone.
        wake();
        tokio::time::sleep(PAUSE).await;
    }
}

/// Ends when the watch breaks. `show` gets all objects after every change, `wake` is for those of their specs.
async fn follow_kind<K>(client: &kube::Client, known: &Known<K>, show: impl Fn(&BTreeMap<String, K>), wake: impl Fn())
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let api: Api<K> = Api::namespaced(client.clone(), NAMESPACE);
    // Who wrote which field is as long as the object itself, and is not shown.
    let events = watcher(api, Config::default()).modify(|object| object.meta_mut().managed_fields = None);
    let mut events = std::pin::pin!(events);
    let mut fresh: BTreeMap<String, K> = BTreeMap::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(e) if is_absent(&e) => {
                // The kind is not there yet: the operator's step comes later.
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(e) => {
                debug!("watch of {}: {e}", K::plural(&()));
                return;
            }
        };
        let mut known = known.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wakes = match event {
            Event::Init => {
                fresh.clear();
                continue;
            }
            Event::InitApply(object) => {
                fresh.insert(object.name_any(), object);
                continue;
            }
            Event::InitDone => {
                let changed = known.len() != fresh.len() || known.keys().ne(fresh.keys());
                *known = std::mem::take(&mut fresh);
                changed
            }
            Event::Apply(object) => {
                let generation = object.meta().generation;
                let old = known.insert(object.name_any(), object);
                old.is_none_or(|old| old.meta().generation != generation)
            }
            Event::Delete(object) => known.remove(&object.name_any()).is_some(),
        };
        show(&known);
        drop(known);
        if wakes {
            wake();
        }
    }
}

/// Wakes the engine when the appliance is no longer what it was. Ends when the watch breaks.
async fn follow_appliance(client: &kube::Client, wake: impl Fn()) {
    let api: Api<Appliance> = Api::namespaced(client.clone(), NAMESPACE);
    let mut events = std::pin::pin!(watcher(api, Config::default()));
    let mut last: Option<(Option<i64>, bool)> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(appliance) | Event::InitApply(appliance)) => {
                let ready = appliance.status.as_ref().is_some_and(|s| condition::is_true(&s.conditions, "Ready"));
                let now = (appliance.metadata.generation, ready);
                if last.replace(now).is_some_and(|last| last != now) {
                    wake();
                }
            }
            Ok(Event::Delete(_)) => wake(),
            Ok(_) => {}
            Err(e) if is_absent(&e) => tokio::time::sleep(PAUSE).await,
            Err(_) => return,
        }
    }
}

/// What the log tells of clusters: where they are now, and that they are gone.
fn news(old: &[Cluster], new: &[Cluster]) -> Vec<String> {
    let of = |clusters: &[Cluster], name: &str| clusters.iter().find(|c| c.name == name).map(|c| c.phase);
    let moved = new.iter().filter(|cluster| of(old, &cluster.name) != Some(cluster.phase));
    let moved = moved.map(|cluster| format!("cluster {} is {:?}", cluster.name, cluster.phase));
    let gone = old.iter().filter(|cluster| of(new, &cluster.name).is_none());
    moved.chain(gone.map(|cluster| format!("cluster {} is gone", cluster.name))).collect()
}

fn is_absent(error: &kube::runtime::watcher::Error) -> bool {
    use kube::runtime::watcher::Error;
    matches!(error, Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

/// What the status shows of a machine.
fn short(machine: &VirtualMachine) -> Machine {
    let status = machine.status.clone().unwrap_or_default();
    let ready = condition::find(&status.conditions, "Ready");
    // A status about an older spec says nothing about this one.
    let current = status.observed_generation == machine.metadata.generation;
    let deleting = machine.metadata.deletion_timestamp.is_some();
    Machine {
        name: machine.name_any(),
        phase: if deleting { "Deleting".to_owned() } else { format!("{:?}", status.phase) },
        ready: current && !deleting && condition::is_true(&status.conditions, "Ready"),
        message: match ready {
            Some(ready) if current => ready.message.clone(),
            _ => "vm-operator has not looked at its last change yet".to_owned(),
        },
        vcpus: machine.spec.vcpus,
        memory_mib: machine.spec.memory_mib,
        addresses: status.addresses.iter().map(|a| format!("{} {}/{}", a.network, a.ip, a.prefix)).collect(),
        since: ready.map(|r| r.last_transition_time),
        cluster: machine.labels().get(LABEL_CLUSTER).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(observed: i64) -> VirtualMachine {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "pcg-edge.io/v1alpha1", "kind": "VirtualMachine",
            "metadata": {"name": "router", "generation": 2},
            "spec": {"id": "6d3a7c1e-0000-4000-8000-000000000000", "appliance": "local", "vcpus": 1,
                "memoryMiB": 256, "image": "i"},
            "status": {"observedGeneration": observed, "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True", "reason": "Running", "message": "runs",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "addresses": [{"network": "wan", "mac": "52:54:00:00:00:01", "ip": "10.0.0.2", "prefix": 24}]},
        }))
        .unwrap()
    }

    #[test]
    fn the_log_tells_of_phases() {
        let cluster = |name: &str, phase: &str, message: &str| -> Cluster {
            serde_json::from_value(serde_json::json!({"name": name, "phase": phase, "ready": false, "message": message,
                "endpoint": "192.168.150.40", "tasks": []}))
            .unwrap()
        };
        let old =
            [cluster("shop", "Provisioning", "a"), cluster("tills", "Running", ""), cluster("trial", "Deleting", "")];
        let new =
            [cluster("shop", "Provisioning", "b"), cluster("tills", "Updating", ""), cluster("web", "Pending", "")];
        assert_eq!(news(&old, &new), ["cluster tills is Updating", "cluster web is Pending", "cluster trial is gone"]);
        assert!(news(&new, &new).is_empty());
    }

    #[test]
    fn a_status_of_an_older_spec_is_not_ready() {
        let current = short(&machine(2));
        assert!(current.ready);
        assert_eq!((current.phase.as_str(), current.addresses[0].as_str()), ("Running", "wan 10.0.0.2/24"));
        assert!(!short(&machine(1)).ready);
    }
}
