//! The agent's socket API: HTTP/JSON on a UNIX socket, readable and writable by root only.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/events` | server-sent events: `status` with a whole [`Status`] at once and after every change, `log` with a [`LogLine`] |
//! | `GET /v1/logs?lines=N` | array of [`LogLine`], oldest first, the last `N` (default 200) |
//! | `POST /v1/validate` with YAML | [`ValidationReport`] |
//! | `POST /v1/apply` with YAML | [`ValidationReport`]; the file is replaced where it is valid |
//! | `POST /v1/upgrade` with [`UpgradeRequest`] | the [`Upgrade`], which goes on after the answer |
//! | `GET /v1/vms`, `GET /v1/vms/{name}` | array of / one [`VirtualMachine`](crate::VirtualMachine) |
//! | `GET /v1/clusters`, `GET /v1/clusters/{name}` | array of / one [`EdgeCluster`](crate::EdgeCluster) |
//! | `POST /v1/clusters` with YAML of one `EdgeCluster` | the [`EdgeCluster`](crate::EdgeCluster) that was made |
//! | `PATCH /v1/clusters/{name}` with [`ClusterChange`] | the changed [`EdgeCluster`](crate::EdgeCluster) |
//! | `DELETE /v1/clusters/{name}` with [`ClusterRemoval`] as query | the [`EdgeCluster`](crate::EdgeCluster) that goes |
//! | `GET /v1/clusters/{name}/kubeconfig` | the cluster's kubeconfig of an administrator, YAML |
//!
//! Every error answer has a body of [`ApiError`].

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::condition;
use crate::edge_cluster::{ClusterPhase, ClusterTask, EdgeCluster};

/// File name of the socket below the agent's root.
pub const SOCKET: &str = "run/agent.sock";

/// All there is to know about the appliance at one moment.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Instance name (D11).
    pub instance: String,
    /// Device ID; known once a valid site file is there.
    pub device_id: Option<String>,
    /// One word for the whole.
    pub phase: Phase,
    /// Sentence for people: what runs or what is waited for, and what would unblock it (law 4).
    pub message: String,
    /// The site file.
    pub site_file: SiteFile,
    /// `kvm` or `tcg`, with the reason; known after preflight.
    pub accelerator: Option<Accelerator>,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// Layers of the system profile in order.
    pub applications: Vec<Application>,
    /// Virtual machines by name.
    pub machines: Vec<Machine>,
    /// Workload clusters by name.
    #[serde(default)]
    pub clusters: Vec<Cluster>,
    /// The last upgrade of the appliance.
    #[serde(default)]
    pub upgrade: Option<Upgrade>,
}

/// An upgrade of the appliance to another bundle.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// Version before, with that of Kubernetes.
    pub from: String,
    /// Version asked for, with that of Kubernetes.
    pub to: String,
    /// Where it stands.
    pub state: UpgradeState,
    /// What happens, or why it went back.
    pub message: String,
}

/// Where an upgrade stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum UpgradeState {
    /// The bundle is being verified, and the system cluster's data are kept.
    Asked,
    /// The steps carry out the new bundle.
    Running,
    /// Every step was ready with the new bundle.
    Done,
    /// It was not ready in time: data and bundle become what they were.
    Returning,
    /// The bundle is the one before.
    Returned,
}

/// Body of `POST /v1/upgrade`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpgradeRequest {
    /// Absolute path of the bundle's folder.
    pub bundle: String,
    /// Seconds after which the appliance goes back, where it is not ready by then.
    pub deadline_seconds: u64,
}

/// One word for the appliance.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Phase {
    /// No valid site file yet.
    WaitingForSite,
    /// Steps are being carried out.
    Installing,
    /// A step failed and is tried again with back-off.
    Failing,
    /// Every step is ready and every machine runs as asked.
    Ready,
}

/// The site file and what became of its last edit.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteFile {
    /// Where it is looked for.
    pub path: String,
    /// State of the file.
    pub state: SiteFileState,
    /// Errors of the newest content; the last valid one stays in force.
    pub errors: Vec<ValidationError>,
    /// Fields of the last edit that need a reinstall to take effect, for instance `device_id`.
    pub needs_reinstall: Vec<String>,
}

/// State of the site file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum SiteFileState {
    /// Not there.
    Absent,
    /// There, and refused.
    Invalid,
    /// There and in force.
    Applied,
}

/// Hardware acceleration of virtual machines.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Accelerator {
    /// `kvm` or `tcg`.
    pub kind: String,
    /// Why.
    pub reason: String,
}

/// One step of the site installation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// `preflight`, `bundle`, `system-cluster`, `registry`, `operator`, `cluster-api`, `system-applications`.
    pub name: String,
    /// Title for people.
    pub title: String,
    /// Where it stands.
    pub state: StepState,
    /// What it does or waits for now, or why it failed.
    pub message: String,
    /// What to do about a failure.
    pub hint: Option<String>,
    /// 0 to 100 where it can be told.
    pub progress: Option<u8>,
    /// Start of the run that led to this state.
    pub started: Option<Timestamp>,
    /// End of that run.
    pub finished: Option<Timestamp>,
    /// Attempts since it last succeeded; 1 in the first.
    pub attempts: u32,
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum StepState {
    /// Earlier steps come first.
    Pending,
    /// At work.
    Running,
    /// Waits for something outside; `message` names it.
    Waiting,
    /// Failed; tried again with back-off.
    Failed,
    /// Done and probed.
    Ready,
}

/// One layer of the system profile.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Application {
    /// Layer name.
    pub name: String,
    /// `chart`, `manifest` or `vm`.
    pub kind: String,
    /// Where it stands.
    pub state: StepState,
    /// What it waits for, or why it failed.
    pub message: String,
    /// Version of the layer, where it has one.
    pub version: Option<String>,
    /// When it entered this state.
    pub since: Option<Timestamp>,
}

/// A virtual machine, in short.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Object name.
    pub name: String,
    /// Phase as in its status.
    pub phase: String,
    /// Whether its condition `Ready` holds.
    pub ready: bool,
    /// Message of that condition.
    pub message: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
    /// Addresses, each `network ip/prefix`.
    pub addresses: Vec<String>,
    /// When its condition `Ready` last changed.
    pub since: Option<Timestamp>,
    /// Workload cluster that it is a machine of.
    #[serde(default)]
    pub cluster: Option<String>,
}

/// A workload cluster, in short.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Object name.
    pub name: String,
    /// Phase as in its status.
    pub phase: ClusterPhase,
    /// Whether its condition `Ready` holds.
    pub ready: bool,
    /// Message of that condition.
    pub message: String,
    /// Machines that are ready and that are wanted, for instance `1/2`.
    pub nodes: Option<String>,
    /// Kubernetes version of the control plane.
    pub version: Option<String>,
    /// Address of the control plane.
    pub endpoint: String,
    /// What has to be done, in order.
    pub tasks: Vec<ClusterTask>,
    /// When its condition `Ready` last changed.
    pub since: Option<Timestamp>,
    /// When its deletion was asked for.
    pub deleting_since: Option<Timestamp>,
}

impl From<&EdgeCluster> for Cluster {
    fn from(object: &EdgeCluster) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let ready = condition::find(&status.conditions, "Ready");
        // A status about an older spec says nothing about this one.
        let current = status.observed_generation == object.metadata.generation;
        let deleting_since = object.metadata.deletion_timestamp.as_ref().map(|time| time.0);
        let message = match (ready, deleting_since) {
            (Some(ready), _) if current => ready.message.as_str(),
            (_, Some(_)) => "vm-operator has not looked at its deletion yet",
            (_, None) => "vm-operator has not looked at its last change yet",
        };
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            phase: if deleting_since.is_some() { ClusterPhase::Deleting } else { status.phase },
            ready: current && deleting_since.is_none() && condition::is_true(&status.conditions, "Ready"),
            message: message.to_owned(),
            nodes: status.nodes,
            version: status.version,
            endpoint: object.spec.virtual_ip.clone(),
            since: ready.map(|ready| ready.last_transition_time),
            tasks: status.tasks,
            deleting_since,
        }
    }
}

/// A change of a cluster; what is absent stays.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterChange {
    /// Machines of the control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane_size: Option<u32>,
    /// Machines of pools of workers, by the pool's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub worker_sizes: BTreeMap<String, u32>,
    /// Kubernetes version, `<major>.<minor>.<patch>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_version: Option<String>,
}

/// How a cluster is removed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ClusterRemoval {
    /// Of a cluster that was never ready; without it such a cluster is refused, and with it one that was.
    #[serde(default)]
    pub abort: bool,
    /// Of a deletion that has been stuck for [`FORCE_AFTER_SECONDS`]: what cannot be removed is left and listed.
    #[serde(default)]
    pub force: bool,
}

/// Seconds that a deletion must have been stuck before it may be forced.
pub const FORCE_AFTER_SECONDS: i64 = 900;

/// One line of `edge.log`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// When.
    pub time: Timestamp,
    /// `error`, `warn` or `info`.
    pub level: String,
    /// Step it belongs to.
    pub step: Option<String>,
    /// Text without line breaks or control characters.
    pub message: String,
}

/// What a check of a site file found.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidationReport {
    /// All errors at once; the file is valid where there are none.
    pub errors: Vec<ValidationError>,
    /// Fields that would be applied to the running appliance.
    pub live: Vec<String>,
    /// Fields that would need a reinstall.
    pub needs_reinstall: Vec<String>,
}

/// One error of a site file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidationError {
    /// Line, from 1; 0 where the error has no place.
    pub line: u32,
    /// Column in characters, from 1; 0 where the error has no place.
    pub column: u32,
    /// Field in dotted form with indexes, for instance `networks[0].address`.
    pub field: String,
    /// What was found; secrets are never repeated.
    pub found: String,
    /// What was expected.
    pub expected: String,
    /// How it may have come about and what to do.
    pub hint: Option<String>,
}

/// Body of an error answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiError {
    /// What went wrong.
    pub error: String,
    /// What to do.
    pub hint: Option<String>,
}
