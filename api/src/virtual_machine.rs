//! `VirtualMachine`: the one way to a libvirt domain.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;

/// One libvirt domain with its disks, interfaces and guest configuration.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "pcg-edge.io",
    version = "v1alpha1",
    kind = "VirtualMachine",
    namespaced,
    status = "VirtualMachineStatus",
    shortname = "vm",
    category = "pcg-edge",
    label("clusterctl.cluster.x-k8s.io", ""),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "vCPUs", type_ = "integer", json_path = ".spec.vcpus"),
    printcolumn(name = "MemoryMiB", type_ = "integer", json_path = ".spec.memoryMiB"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0].ip"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.id == oldSelf.id").message("id cannot be changed"))]
#[x_kube(validation = Rule::new("self.appliance == oldSelf.appliance").message("a machine cannot change its appliance"))]
#[x_kube(validation = Rule::new("has(self.rootDisk) || has(self.image)")
    .message("a machine needs an image to boot from, or a rootDisk"))]
pub struct VirtualMachineSpec {
    /// Identity, a UUID set at creation, kept by move, backup and restore (D10). Domain UUID, MAC addresses and
    /// volume names derive from it.
    #[schemars(length(min = 36, max = 36), regex(pattern = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub id: String,
    /// Name of the [`Appliance`](crate::Appliance) in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub appliance: String,
    /// Whether it should run. `Running` also means that it starts with the host (D12).
    #[serde(default)]
    pub power_state: PowerState,
    /// Virtual CPUs.
    #[schemars(range(min = 1, max = 512))]
    pub vcpus: u32,
    /// CPUs of the host that it may use, for instance `0-3,6`; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"))]
    pub cpu_set: Option<String>,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    #[schemars(range(min = 64, max = 16_777_216))]
    pub memory_mib: u64,
    /// Name of the [`VirtualMachineImage`](crate::VirtualMachineImage) it boots from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub image: Option<String>,
    /// Kernel command line, where the image has a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub kernel_args: Option<String>,
    /// The disk it boots from: an overlay over the image's disk. Absent for an image that is a kernel and initial RAM
    /// disk only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_disk: Option<RootDisk>,
    /// Further, empty disks; attached in this order after the root disk. One that is taken off the list is detached by
    /// the next start and kept with its data until the machine is deleted; `status.keptDisks` names it. Back on the
    /// list under its name and pool, it is attached again as it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub data_disks: Vec<DataDisk>,
    /// Network interfaces in the order the guest sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub interfaces: Vec<Interface>,
    /// Secret in the same namespace with the `NoCloud` files `user-data`, `meta-data` and `network-config` (each
    /// optional; `meta-data` is made from name and id where absent). Becomes a disk labelled `cidata`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub cloud_init_secret: Option<String>,
    /// Files for the guest on a read-only disk of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_disk: Option<ConfigDisk>,
    /// What to do when the content of `configDisk` or `cloudInitSecret` changes.
    #[serde(default)]
    pub on_config_change: OnConfigChange,
    /// Whether the guest runs qemu-guest-agent: a channel is attached, and addresses are asked from it.
    #[serde(default)]
    pub guest_agent: bool,
}

/// Whether a machine should run.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum PowerState {
    /// On, and on again after a crash, a shutdown from within or a start of the host.
    #[default]
    Running,
    /// Off; disks stay.
    Stopped,
}

/// What to do with a running machine when its configuration disk changes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum OnConfigChange {
    /// Shut the guest down, write the disk, start it.
    Restart,
    /// Leave it running; the condition `ConfigCurrent` says that a restart is due.
    #[default]
    Wait,
}

/// The disk a machine boots from.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RootDisk {
    /// Storage pool of the appliance.
    #[schemars(length(min = 1, max = 63))]
    pub pool: String,
    /// Size in GiB, not less than the image's; that of the image where absent. A larger one makes the disk larger, also
    /// while the machine runs (partitions and file systems are the guest's to grow); a smaller one is refused with
    /// reason `DiskShrink`; without one an existing disk keeps its size.
    #[serde(default, rename = "sizeGiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub size_gib: Option<u64>,
}

/// An additional disk, empty at first.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DataDisk {
    /// Name, unique within the machine; also the disk's serial number in the guest.
    #[schemars(length(min = 1, max = 20), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Storage pool of the appliance.
    #[schemars(length(min = 1, max = 63))]
    pub pool: String,
    /// Size in GiB. A larger one makes the disk larger, also while the machine runs (its file system is the guest's to
    /// grow); a smaller one is refused with reason `DiskShrink`.
    #[serde(rename = "sizeGiB")]
    #[schemars(range(min = 1, max = 65536))]
    pub size_gib: u64,
}

/// A network interface.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Network of the appliance.
    #[schemars(length(min = 1, max = 32))]
    pub network: String,
    /// MAC address, lower case with colons; derived from `spec.id` and the position where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-f]{2}(:[0-9a-f]{2}){5}$"))]
    pub mac: Option<String>,
}

/// Files for the guest on a disk of their own: every key of the Secret is a file of that name.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigDisk {
    /// Secret in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// File system label (VFAT).
    #[serde(default = "default_label")]
    #[schemars(length(min = 1, max = 11), regex(pattern = "^[A-Z0-9_-]+$"))]
    pub label: String,
}

fn default_label() -> String {
    "PCGCONFIG".to_owned()
}

/// What `vm-operator` observed of a machine.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineStatus {
    /// `metadata.generation` this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for lists.
    #[serde(default)]
    pub phase: Phase,
    /// `Ready` (runs as asked; with `guestAgent` the guest has answered and, where it has interfaces, has an address),
    /// `ConfigCurrent`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Name of the libvirt domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// `kvm` or `tcg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// Digest over the content of seed and configuration disk that the guest was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<String>,
    /// Serial console log on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_log: Option<String>,
    /// Addresses the guest has, in the order of the interfaces; loopback and link-local ones are left out.
    #[serde(default)]
    pub addresses: Vec<GuestAddress>,
    /// Disks that the specification no longer names. They are kept with their data until the machine is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_disks: Vec<KeptDisk>,
}

/// One word for lists.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Phase {
    /// Waits for something: the condition `Ready` says what.
    #[default]
    Pending,
    /// Volumes and domain are being made.
    Preparing,
    /// QEMU runs.
    Running,
    /// Off, as asked.
    Stopped,
    /// Wants a change by somebody: the condition `Ready` says which.
    Failed,
    /// Being removed.
    Deleting,
}

/// A disk that the specification no longer names.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptDisk {
    /// Name of the data disk; `root` for the root disk.
    pub name: String,
    /// libvirt's name of the storage pool it lies in.
    pub pool: String,
    /// Name of its volume there.
    pub volume: String,
    /// Whether the guest that runs now still has it; the next start detaches it.
    pub attached: bool,
}

/// An address that a guest has.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestAddress {
    /// Network of the appliance.
    pub network: String,
    /// MAC address of the interface.
    pub mac: String,
    /// The address.
    pub ip: String,
    /// Prefix length.
    pub prefix: u32,
}
