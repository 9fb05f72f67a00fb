//! `EdgeCluster`: a Kubernetes cluster on virtual machines of an appliance (R-25 to R-34).

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::appliance::NetworkType;
use crate::cluster_profile::any_map;
use crate::condition::Condition;

/// A Kubernetes cluster: a profile, pools of machines, and where they run. It becomes one Cluster API `Cluster`.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "pcg-edge.io",
    version = "v1alpha1",
    kind = "EdgeCluster",
    namespaced,
    status = "EdgeClusterStatus",
    shortname = "ec",
    category = "pcg-edge",
    label("clusterctl.cluster.x-k8s.io", ""),
    label("clusterctl.cluster.x-k8s.io/move-hierarchy", ""),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".spec.virtualIP"),
    printcolumn(name = "Waits for", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.virtualIP == oldSelf.virtualIP").message("the address of a cluster cannot be changed"))]
#[x_kube(validation = Rule::new("self.placements[0].appliance == oldSelf.placements[0].appliance")
    .message("a cluster cannot change its appliance"))]
pub struct EdgeClusterSpec {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// For people and filters; not propagated to the machines.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Name of the [`ClusterProfile`](crate::ClusterProfile) in the same namespace, of type `Full` or `Infra`.
    #[schemars(length(min = 1, max = 253))]
    pub profile: String,
    /// Kubernetes, `<major>.<minor>.<patch>`; that of the profile's Kubernetes layer where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9]+\.[0-9]+\.[0-9]+$"))]
    pub kubernetes_version: Option<String>,
    /// Values of the profile's parameters: layer, name, value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "any_map")]
    pub parameters: BTreeMap<String, BTreeMap<String, Value>>,
    /// Presets by layer; those that the profile enables where a layer is not named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub presets: BTreeMap<String, Vec<String>>,
    /// Address of the control plane, on the first network of the placement: no machine's, and outside of every DHCP range
    /// and address pool. Also for one control-plane machine, so that it can become three.
    #[serde(rename = "virtualIP")]
    #[schemars(length(min = 7, max = 15))]
    pub virtual_ip: String,
    /// Public keys that may log in on the machines as `edge`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ssh_authorized_keys: Vec<String>,
    /// Time servers of the machines; Debian's where absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ntp_servers: Vec<String>,
    /// Machines of the control plane.
    pub control_plane: ControlPlanePool,
    /// Pools of workers; there may be none where the control plane allows workers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub workers: Vec<WorkerPool>,
    /// Where the machines run; exactly one in this version.
    #[schemars(length(min = 1, max = 16))]
    pub placements: Vec<Placement>,
    /// Addresses for services of type `LoadBalancer`; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
}

/// Machines of the control plane.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlanePool {
    /// 1, 3 or 5; never fewer than before.
    #[schemars(range(min = 1, max = 5))]
    pub size: u32,
    /// Whether ordinary pods may run on it.
    #[serde(default)]
    pub allow_workers: bool,
    /// Labels of the nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Further taints of the nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub taints: Vec<Taint>,
    /// Hardware of each machine.
    pub hardware: Hardware,
    /// How changes are rolled out.
    #[serde(default)]
    pub rollout: Rollout,
}

/// A pool of workers.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPool {
    /// Unique in the cluster.
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Machines.
    #[schemars(range(min = 0, max = 1000))]
    pub size: u32,
    /// Labels of the nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints of the nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub taints: Vec<Taint>,
    /// Hardware of each machine.
    pub hardware: Hardware,
    /// How changes are rolled out.
    #[serde(default)]
    pub rollout: Rollout,
}

/// How a change reaches the machines of a pool (R-29).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Rollout {
    /// A new machine first, then an old one goes.
    #[default]
    ExpandFirst,
    /// An old machine goes first; for a control plane only with three or more.
    ContractFirst,
}

/// A taint of nodes.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Taint {
    /// Key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// Value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Effect.
    pub effect: TaintEffect,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum TaintEffect {
    /// New ones are kept away.
    NoSchedule,
    /// New ones go elsewhere where they can.
    PreferNoSchedule,
    /// All are sent away.
    NoExecute,
}

/// Hardware of a machine (R-27).
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hardware {
    /// Virtual CPUs; of a control plane at least two, or one where guests are emulated.
    #[schemars(range(min = 1, max = 512))]
    pub vcpus: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    #[schemars(range(min = 1024, max = 16_777_216))]
    pub memory_mib: u64,
    /// CPUs of the host that the machine may use, for instance `0-3,6`; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"))]
    pub cpu_set: Option<String>,
    /// Root disk in GiB; at least 10.
    #[serde(rename = "rootDiskGiB")]
    #[schemars(range(min = 10, max = 65536))]
    pub root_disk_gib: u64,
    /// Further, empty disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub data_disks: Vec<ClusterDataDisk>,
}

/// A further, empty disk of every machine of a pool; it lies in the placement's data pool.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterDataDisk {
    /// Unique within the machine; also the disk's serial number in the guest.
    #[schemars(length(min = 1, max = 20), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Size in GiB.
    #[serde(rename = "sizeGiB")]
    #[schemars(range(min = 1, max = 65536))]
    pub size_gib: u64,
}

/// Where machines run (R-28).
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Name of the [`Appliance`](crate::Appliance) in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub appliance: String,
    /// Type that the networks must have; any where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_type: Option<NetworkType>,
    /// Networks of every machine; the first has the default route and the virtual address.
    #[schemars(length(min = 1, max = 16))]
    pub networks: Vec<PlacementNetwork>,
    /// Storage pool of the images: in this version the appliance's own image pool, which is taken where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub image_pool: Option<String>,
    /// Storage pool of the root disks, each an overlay over its image.
    #[schemars(length(min = 1, max = 63))]
    pub target_pool: String,
    /// Storage pool of the data disks; the target pool where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub data_pool: Option<String>,
}

/// A network of every machine.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacementNetwork {
    /// Network of the appliance.
    #[schemars(length(min = 1, max = 32))]
    pub name: String,
    /// [`IPPool`](crate::IPPool) of static addresses; by DHCP where absent, which keeps each machine's address by a
    /// reservation where the appliance itself serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub address_pool: Option<String>,
}

/// Addresses for services of type `LoadBalancer`.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// [`IPPool`](crate::IPPool) that they are claimed from.
    #[schemars(length(min = 1, max = 253))]
    pub address_pool: String,
    /// How many.
    #[schemars(range(min = 1, max = 64))]
    pub addresses: u32,
}

/// What `vm-operator` observed of a cluster.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeClusterStatus {
    /// `metadata.generation` this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for the whole.
    #[serde(default)]
    pub phase: ClusterPhase,
    /// Kubernetes version of the control plane, for instance `v1.36.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Machines that are ready and that are wanted, for instance `1/2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,
    /// Addresses of services of type `LoadBalancer`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_addresses: Vec<String>,
    /// `Ready`, `Valid`. Of an invalid spec, `Valid` has every error with its field in its message, a line each.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What has to be done, in order (R-31).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<ClusterTask>,
}

/// One word for a cluster.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ClusterPhase {
    /// Not looked at, or its spec makes no sense; nothing was made.
    #[default]
    Pending,
    /// It has never been ready.
    Provisioning,
    /// Ready.
    Running,
    /// It was ready, and changes or recovers.
    Updating,
    /// It goes.
    Deleting,
}

/// A task of a cluster, with its parts.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterTask {
    /// For people, for instance `machine shop-general-x7k2p`, `layer network`.
    #[schemars(length(max = 256))]
    pub name: String,
    /// Where it stands.
    pub state: TaskState,
    /// What it waits for, or why it failed; empty where there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,
    /// When it came into this state, RFC 3339 in UTC; absent where it has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub since: Option<Timestamp>,
    /// Its parts, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<ClusterTaskPart>,
}

/// A part of a task: of a machine `virtual machine`, `bootstrap`, `join`.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterTaskPart {
    /// For people.
    #[schemars(length(max = 256))]
    pub name: String,
    /// Where it stands.
    pub state: TaskState,
    /// What it waits for, or why it failed; empty where there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,
    /// When it came into this state, RFC 3339 in UTC; absent where it has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub since: Option<Timestamp>,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum TaskState {
    /// Earlier ones come first.
    #[default]
    Pending,
    /// At work, or waiting for what its message names.
    Running,
    /// Failed; tried again where that can help.
    Failed,
    /// Done.
    Done,
}
