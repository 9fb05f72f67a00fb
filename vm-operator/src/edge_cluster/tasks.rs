//! What has to be done for a cluster, as a tree of tasks (R-31). Pure.
//!
//! ```text
//!  endpoint ─► image ─► machine …: virtual machine ─► bootstrap ─► join ─► layer …
//! ```
//!
//! They are made anew from what is observed each time; of the tree before, only the times are kept. Of a cluster that is
//! being deleted the tree has what is still there.

use std::fmt;

use edge_api::agent::{Application, StepState};
use edge_api::cluster_api::LABEL_CONTROL_PLANE;
use edge_api::condition::{self, Condition, ConditionStatus};
use edge_api::edge_cluster::{ClusterTask, ClusterTaskPart, TaskState};
use edge_api::virtual_machine::Phase;
use edge_api::{LibvirtCluster, LibvirtMachine, VirtualMachine, VirtualMachineImage};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use crate::cluster_api::machine::bootstrap::FAILED;
use crate::cluster_api::upstream::{Cluster, Machine};

/// Label of a worker's machine with the name of its pool.
const LABEL_POOL: &str = "topology.cluster.x-k8s.io/deployment-name";
/// Characters of a message: as much as is told of a guest's own log.
const LONGEST: usize = 3000;
/// How long a guest may take to become a node: `nodeStartupTimeoutSeconds` of the cluster class. After that Cluster API
/// replaces the machine.
const STARTUP: SignedDuration = SignedDuration::from_mins(60);
/// Reasons of a condition `Ready` that does not hold which only say how far something is, beside `WaitingFor…`. Any other
/// one is an error.
const PROGRESS: [&str; 8] = [
    "ApplianceNotReady",
    "Deleting",
    "Downloading",
    "ImageNotReady",
    "Preparing",
    "Restarting",
    "ShuttingDown",
    "Starting",
];

/// What there is of a cluster.
pub struct Observed<'a> {
    /// Cluster API's `Cluster`.
    pub cluster: Option<&'a Cluster>,
    /// Its infrastructure.
    pub infrastructure: Option<&'a LibvirtCluster>,
    /// The image of its machines.
    pub image: Option<&'a VirtualMachineImage>,
    /// Its machines, in any order.
    pub machines: Vec<ObservedMachine<'a>>,
    /// Its layers, in install order: those of the [`Runner`](super::layers::Runner), and
    /// [`pending`](super::layers::pending) before it has begun.
    pub layers: &'a [Application],
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// What there is of a machine.
#[derive(Clone, Copy)]
pub struct ObservedMachine<'a> {
    /// Cluster API's `Machine`.
    pub machine: &'a Machine,
    /// Its infrastructure.
    pub libvirt: Option<&'a LibvirtMachine>,
    /// What that became.
    pub vm: Option<&'a VirtualMachine>,
}

/// The tasks of a cluster, in order. `previous` is the tree before: a state that is the same keeps its time.
pub fn tree(observed: &Observed<'_>, previous: &[ClusterTask], now: Timestamp) -> Vec<ClusterTask> {
    let Observed { cluster, infrastructure, image, machines, layers, deleting } = observed;
    let mut machines = machines.clone();
    machines.sort_by_cached_key(|m| {
        let labels = m.machine.labels();
        let pool = labels.get(LABEL_POOL).cloned().unwrap_or_default();
        let made = m.machine.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (!labels.contains_key(LABEL_CONTROL_PLANE), pool, made, m.machine.name_any())
    });
    let machines = machines.iter().map(|observed| machine(observed, now));
    let drafts: Vec<Draft> = if *deleting {
        let machines: Vec<Draft> = machines.collect();
        let rest = removal(*cluster, *infrastructure, machines.is_empty());
        machines.into_iter().chain(rest).collect()
    } else {
        let first = [
            Draft::of("endpoint".to_owned(), endpoint(*cluster, *infrastructure)),
            Draft::of("image".to_owned(), image_of_machines(*image)),
        ];
        first.into_iter().chain(machines).chain(layers.iter().map(layer)).collect()
    };
    drafts.into_iter().map(|draft| draft.finish(previous, now)).collect()
}

/// What stands between a cluster and being ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Current<'t> {
    /// The task.
    pub task: &'t ClusterTask,
    /// The part of it, where it has parts.
    pub part: Option<&'t ClusterTaskPart>,
}

/// The first task that failed, else the first that is not done. That a layer fails says more than that the nodes before
/// it wait for what it brings.
pub fn current(tasks: &[ClusterTask]) -> Option<Current<'_>> {
    let states: Vec<TaskState> = tasks.iter().map(|task| task.state).collect();
    let task = &tasks[decisive(&states)?];
    let states: Vec<TaskState> = task.parts.iter().map(|part| part.state).collect();
    Some(Current { task, part: decisive(&states).map(|index| &task.parts[index]) })
}

impl fmt::Display for Current<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ClusterTask { name, state, message, since: _, parts: _ } = self.task;
        let failed = if *state == TaskState::Failed { " failed" } else { "" };
        // The message of a task names its part.
        if message.is_empty() { write!(f, "{name}{failed}") } else { write!(f, "{name}{failed}: {message}") }
    }
}

/// A state with its message, without its time.
type Standing = (TaskState, String);

/// A task without times.
struct Draft {
    name: String,
    standing: Standing,
    parts: Vec<(&'static str, Standing)>,
}

impl Draft {
    fn of(name: String, standing: Standing) -> Self {
        Self { name, standing, parts: Vec::new() }
    }

    fn finish(self, previous: &[ClusterTask], now: Timestamp) -> ClusterTask {
        let Self { name, standing: (state, message), parts } = self;
        let before = previous.iter().find(|task| task.name == name);
        let since = |state: TaskState, before: Option<(TaskState, Option<Timestamp>)>| match (state, before) {
            (TaskState::Pending, _) => None,
            (_, Some((old, since))) if old == state => since.or(Some(now)),
            _ => Some(now),
        };
        let part = |(name, (state, message)): (&str, Standing)| {
            let before = before.and_then(|task| task.parts.iter().find(|part| part.name == name));
            let since = since(state, before.map(|part| (part.state, part.since)));
            ClusterTaskPart { name: name.to_owned(), state, message: line(&message), since }
        };
        let parts: Vec<_> = parts.into_iter().map(part).collect();
        let since = since(state, before.map(|task| (task.state, task.since)));
        ClusterTask { name, state, message: line(&message), since, parts }
    }
}

fn endpoint(cluster: Option<&Cluster>, infrastructure: Option<&LibvirtCluster>) -> Standing {
    let topology = cluster.and_then(|c| c.status.as_ref()).map(|s| s.conditions.as_slice()).unwrap_or_default();
    let failed = condition::find(topology, "TopologyReconciled").filter(|c| c.reason == "ReconcileFailed");
    match (cluster, failed, infrastructure) {
        (None, ..) => (TaskState::Running, "waits for the Cluster of Cluster API to be made".to_owned()),
        (_, Some(failed), _) => (TaskState::Failed, format!("Cluster API cannot go on: {}", line(&failed.message))),
        (_, _, None) => (TaskState::Running, "waits for Cluster API to make the LibvirtCluster".to_owned()),
        (_, _, Some(found)) => {
            let conditions = found.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            ready(conditions, &format!("LibvirtCluster {}", found.name_any()))
        }
    }
}

fn image_of_machines(image: Option<&VirtualMachineImage>) -> Standing {
    let Some(image) = image else {
        return (TaskState::Running, "waits for the VirtualMachineImage to be made".to_owned());
    };
    let conditions = image.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    ready(conditions, &format!("VirtualMachineImage {}", image.name_any()))
}

fn layer(layer: &Application) -> Draft {
    let state = match layer.state {
        StepState::Pending => TaskState::Pending,
        StepState::Running | StepState::Waiting => TaskState::Running,
        StepState::Failed => TaskState::Failed,
        StepState::Ready => TaskState::Done,
    };
    Draft::of(format!("layer {}", layer.name), (state, layer.message.clone()))
}

fn machine(observed: &ObservedMachine<'_>, now: Timestamp) -> Draft {
    let name = format!("machine {}", observed.machine.name_any());
    if observed.machine.metadata.deletion_timestamp.is_some() {
        return Draft::of(name, (TaskState::Running, leaving(observed)));
    }
    let virtual_machine = virtual_machine(observed);
    let bootstrap = bootstrap(observed, virtual_machine.0, now);
    let join = join(observed.machine);
    let parts = vec![("virtual machine", virtual_machine), ("bootstrap", bootstrap), ("join", join)];
    let states: Vec<TaskState> = parts.iter().map(|(_, (state, _))| *state).collect();
    let all = |state| states.iter().all(|s| *s == state);
    let state = match decisive(&states) {
        None => TaskState::Done,
        Some(index) if states[index] == TaskState::Failed => TaskState::Failed,
        Some(_) if all(TaskState::Pending) => TaskState::Pending,
        Some(_) => TaskState::Running,
    };
    let message = match decisive(&states).map(|index| &parts[index]) {
        None => String::new(),
        Some((part, (_, message))) if message.is_empty() => (*part).to_owned(),
        Some((part, (_, message))) => format!("{part}: {message}"),
    };
    Draft { name, standing: (state, message), parts }
}

/// Which one matters most: the first that failed, else the first that is not done.
fn decisive(states: &[TaskState]) -> Option<usize> {
    let failed = states.iter().position(|state| *state == TaskState::Failed);
    failed.or_else(|| states.iter().position(|state| *state != TaskState::Done))
}

/// Conditions of a `LibvirtMachine`.
fn conditions_of(libvirt: Option<&LibvirtMachine>) -> &[Condition] {
    libvirt.and_then(|l| l.status.as_ref()).map(|s| s.conditions.as_slice()).unwrap_or_default()
}

/// A condition of Cluster API's machine.
fn machine_condition<'m>(machine: &'m Machine, type_: &str) -> Option<&'m Condition> {
    condition::find(machine.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default(), type_)
}

/// The virtual machine: done as soon as the guest has begun to run.
fn virtual_machine(observed: &ObservedMachine<'_>) -> Standing {
    let ObservedMachine { machine, libvirt, vm } = *observed;
    if let Some(vm) = vm {
        let status = vm.status.clone().unwrap_or_default();
        let found = condition::find(&status.conditions, "Ready");
        let is_guests = |c: &Condition| c.reason.starts_with("WaitingFor") || c.reason == "AgentSilent";
        let what = format!("VirtualMachine {}", vm.name_any());
        return match (status.phase, found) {
            (Phase::Running, Some(found)) if is_guests(found) => (TaskState::Done, String::new()),
            (Phase::Failed, Some(found)) if found.status != ConditionStatus::True => {
                (TaskState::Failed, found.message.clone())
            }
            _ => ready(&status.conditions, &what),
        };
    }
    let Some(libvirt) = libvirt else {
        return (TaskState::Pending, "waits for Cluster API to make the LibvirtMachine".to_owned());
    };
    let found = condition::find(conditions_of(Some(libvirt)), "Ready");
    match found.map(|found| found.reason.as_str()) {
        Some("WaitingForBootstrapData") => {
            let why = machine_condition(machine, "BootstrapConfigReady");
            let why = why.filter(|why| why.status != ConditionStatus::True && !why.message.is_empty());
            let message = "waits for the bootstrap data";
            (
                TaskState::Pending,
                why.map_or_else(|| message.to_owned(), |why| format!("{message}: {}", line(&why.message))),
            )
        }
        Some(reason) if reason == "WaitingForIPAddress" || !reason.starts_with("WaitingFor") => {
            ready(conditions_of(Some(libvirt)), &format!("LibvirtMachine {}", libvirt.name_any()))
        }
        _ => {
            let message = found.map(|found| found.message.clone()).unwrap_or_default();
            (TaskState::Pending, message)
        }
    }
}

/// kubeadm in the guest: done as soon as there is a node.
fn bootstrap(observed: &ObservedMachine<'_>, virtual_machine: TaskState, now: Timestamp) -> Standing {
    let ObservedMachine { machine, libvirt, vm } = *observed;
    if node(machine).is_some() {
        return (TaskState::Done, String::new());
    }
    let failed = condition::find(conditions_of(libvirt), "Ready").filter(|ready| ready.reason == FAILED);
    if let Some(failed) = failed {
        return (TaskState::Failed, failed.message.clone());
    }
    if virtual_machine != TaskState::Done {
        return (TaskState::Pending, String::new());
    }
    if vm.is_some_and(|vm| is_late(vm, now)) {
        let log = vm.and_then(|vm| vm.status.as_ref()?.console_log.as_deref()).unwrap_or("its console log");
        let after = STARTUP.as_mins();
        return (TaskState::Failed, format!("the guest is no node after {after} minutes; {log} has what it said last"));
    }
    let guest = vm.and_then(|vm| vm.status.as_ref()).and_then(|status| condition::find(&status.conditions, "Ready"));
    if let Some(guest) = guest.filter(|guest| guest.status != ConditionStatus::True) {
        return (TaskState::Running, format!("the guest boots: {}", guest.message));
    }
    let node = machine_condition(machine, "NodeHealthy").filter(|node| !node.message.is_empty());
    let message = "kubeadm runs in the guest";
    (TaskState::Running, node.map_or_else(|| message.to_owned(), |node| format!("{message}; {}", line(&node.message))))
}

fn is_late(vm: &VirtualMachine, now: Timestamp) -> bool {
    vm.metadata.creation_timestamp.as_ref().is_some_and(|made| now.duration_since(made.0) >= STARTUP)
}

/// The node: done when it is healthy.
fn join(machine: &Machine) -> Standing {
    let Some(node) = node(machine) else { return (TaskState::Pending, String::new()) };
    match machine_condition(machine, "NodeHealthy") {
        Some(healthy) if healthy.status == ConditionStatus::True => (TaskState::Done, String::new()),
        Some(lost) if lost.reason == "NodeDeleted" => (TaskState::Failed, line(&lost.message)),
        Some(other) if !other.message.is_empty() => (TaskState::Running, line(&other.message)),
        _ => (TaskState::Running, format!("waits for Node {node} to be healthy")),
    }
}

fn node(machine: &Machine) -> Option<&str> {
    machine.status.as_ref().and_then(|status| status.node_ref.as_ref()).map(|node| node.name.as_str())
}

/// What a machine that goes waits for.
fn leaving(observed: &ObservedMachine<'_>) -> String {
    let ObservedMachine { machine, libvirt, vm: _ } = *observed;
    let of_infrastructure = libvirt.filter(|libvirt| libvirt.metadata.deletion_timestamp.is_some());
    let of_infrastructure = condition::find(conditions_of(of_infrastructure), "Ready");
    let why = of_infrastructure.filter(|c| c.reason == "Deleting").or_else(|| machine_condition(machine, "Deleting"));
    match why.map(|why| line(&why.message)).filter(|message| !message.is_empty()) {
        Some(message) => format!("is being removed: {message}"),
        None => "is being removed".to_owned(),
    }
}

/// What is still there of a cluster that goes, besides its machines.
fn removal(cluster: Option<&Cluster>, infrastructure: Option<&LibvirtCluster>, machines_are_gone: bool) -> Vec<Draft> {
    let standing = |waits_for: &str| (TaskState::Pending, format!("waits for {waits_for} to go"));
    let endpoint = infrastructure.map(|_| {
        let going = || (TaskState::Running, "is being given up".to_owned());
        Draft::of("endpoint".to_owned(), if machines_are_gone { going() } else { standing("the machines") })
    });
    let rest = cluster.map(|cluster| {
        let removed =
            || (TaskState::Running, format!("waits for Cluster API to remove Cluster {}", cluster.name_any()));
        let standing = match (machines_are_gone, infrastructure) {
            (false, _) => standing("the machines"),
            (true, Some(_)) => standing("the endpoint"),
            (true, None) => removed(),
        };
        Draft::of("cluster".to_owned(), standing)
    });
    endpoint.into_iter().chain(rest).collect()
}

/// By a condition `Ready` of one of our kinds.
fn ready(conditions: &[Condition], what: &str) -> Standing {
    match condition::find(conditions, "Ready") {
        None => (TaskState::Running, format!("{what} was not looked at yet")),
        Some(found) if found.status == ConditionStatus::True => (TaskState::Done, String::new()),
        Some(found) if found.reason.starts_with("WaitingFor") || PROGRESS.contains(&found.reason.as_str()) => {
            (TaskState::Running, found.message.clone())
        }
        Some(found) => (TaskState::Failed, found.message.clone()),
    }
}

/// A message in one line: Cluster API's are lists with a line for each condition, and hold what was reported of a node.
fn line(message: &str) -> String {
    let mut text = String::new();
    for part in message.lines().map(|line| line.trim().trim_start_matches("* ")).filter(|line| !line.is_empty()) {
        if !text.is_empty() {
            text.push_str(if text.ends_with(':') { " " } else { "; " });
        }
        text.push_str(part);
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

#[cfg(test)]
mod tests;
