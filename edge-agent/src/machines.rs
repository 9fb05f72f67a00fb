//! Follows the virtual machines and the appliance in the system cluster: what the status shows of them comes from a
//! watch, and a change that a step has to see wakes the engine. While the API is away, what was known stays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edge_api::agent::Machine;
use edge_api::names::NAMESPACE;
use edge_api::{Appliance, VirtualMachine, condition};
use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::{mpsc, watch};
use tracing::debug;

use crate::status::Board;

/// Pause after a watch broke: long enough not to hammer an API server that starts, short enough for a status.
const PAUSE: Duration = Duration::from_secs(3);

/// The machines by name, shared with the server.
pub type Machines = Arc<Mutex<BTreeMap<String, VirtualMachine>>>;

/// A copy of all machines, by name.
pub fn all(machines: &Machines) -> Vec<VirtualMachine> {
    machines.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
}

/// Follows until dropped. `wake` is told of what the engine should look at.
pub async fn follow(
    mut clients: watch::Receiver<Option<kube::Client>>,
    machines: Machines,
    board: Board,
    wake: mpsc::Sender<()>,
) {
    loop {
        let client = clients.borrow_and_update().clone();
        let Some(client) = client else {
            if clients.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            changed = clients.changed() => if changed.is_err() { return },
            () = follow_machines(&client, &machines, &board, &wake) => {}
            () = follow_appliance(&client, &wake) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Ends when the watch breaks.
async fn follow_machines(client: &kube::Client, machines: &Machines, board: &Board, wake: &mpsc::Sender<()>) {
    let api: Api<VirtualMachine> = Api::namespaced(client.clone(), NAMESPACE);
    // Who wrote which field is as long as the object itself, and is not shown.
    let events = watcher(api, Config::default()).modify(|machine| machine.metadata.managed_fields = None);
    let mut events = std::pin::pin!(events);
    let mut fresh: BTreeMap<String, VirtualMachine> = BTreeMap::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(e) if is_absent(&e) => {
                // The kind is not there yet: the operator's step comes later.
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(e) => {
                debug!("watch of virtual machines: {e}");
                let _ = wake.try_send(());
                return;
            }
        };
        let mut known = machines.lock().unwrap_or_else(PoisonError::into_inner);
        let wakes = match event {
            Event::Init => {
                fresh.clear();
                continue;
            }
            Event::InitApply(machine) => {
                fresh.insert(machine.name_any(), machine);
                continue;
            }
            Event::InitDone => {
                let changed = known.len() != fresh.len() || known.keys().ne(fresh.keys());
                *known = std::mem::take(&mut fresh);
                changed
            }
            Event::Apply(machine) => {
                let generation = machine.metadata.generation;
                let old = known.insert(machine.name_any(), machine);
                old.is_none_or(|old| old.metadata.generation != generation)
            }
            Event::Delete(machine) => known.remove(&machine.name_any()).is_some(),
        };
        board.set_machines(known.values().map(short).collect());
        drop(known);
        if wakes {
            let _ = wake.try_send(());
        }
    }
}

/// Wakes the engine when the appliance is no longer what it was. Ends when the watch breaks.
async fn follow_appliance(client: &kube::Client, wake: &mpsc::Sender<()>) {
    let api: Api<Appliance> = Api::namespaced(client.clone(), NAMESPACE);
    let mut events = std::pin::pin!(watcher(api, Config::default()));
    let mut last: Option<(Option<i64>, bool)> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(appliance) | Event::InitApply(appliance)) => {
                let ready = appliance.status.as_ref().is_some_and(|s| condition::is_true(&s.conditions, "Ready"));
                let now = (appliance.metadata.generation, ready);
                if last.replace(now).is_some_and(|last| last != now) {
                    let _ = wake.try_send(());
                }
            }
            Ok(Event::Delete(_)) => {
                let _ = wake.try_send(());
            }
            Ok(_) => {}
            Err(e) if is_absent(&e) => tokio::time::sleep(PAUSE).await,
            Err(_) => return,
        }
    }
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
    fn a_status_of_an_older_spec_is_not_ready() {
        let current = short(&machine(2));
        assert!(current.ready);
        assert_eq!((current.phase.as_str(), current.addresses[0].as_str()), ("Running", "wan 10.0.0.2/24"));
        assert!(!short(&machine(1)).ready);
    }
}
