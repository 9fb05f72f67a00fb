//! `Appliance`: one libvirt host, its networks, storage pools and registry.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;

/// One libvirt host with the networks and storage pools that its virtual machines may use.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "pcg-edge.io",
    version = "v1alpha1",
    kind = "Appliance",
    namespaced,
    status = "ApplianceStatus",
    shortname = "appl",
    category = "pcg-edge",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Accelerator", type_ = "string", json_path = ".status.host.accelerator"),
    printcolumn(name = "vCPUs", type_ = "integer", json_path = ".status.host.cpus"),
    printcolumn(name = "MemoryMiB", type_ = "integer", json_path = ".status.host.memoryMiB"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.id == oldSelf.id").message("id cannot be changed"))]
#[x_kube(validation = Rule::new("self.storagePools.exists(p, p.name == self.imagePool)")
    .message("imagePool names none of storagePools"))]
pub struct ApplianceSpec {
    /// Identity, a UUID; marks on this host derive from it and it never changes (D10).
    #[schemars(length(min = 36, max = 36))]
    pub id: String,
    /// Instance whose name everything on the host carries (D11): networks and pools are `<instance>-<name>` there.
    #[schemars(length(min = 1, max = 9), regex(pattern = "^[a-z]([a-z0-9]*)$"))]
    pub instance: String,
    /// libvirt connection URI, for instance `qemu:///system`.
    #[schemars(length(min = 1, max = 512))]
    pub libvirt_uri: String,
    /// Networks that machines may attach to.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub networks: Vec<Network>,
    /// Storage pools that disks may lie in.
    #[schemars(length(min = 1, max = 64))]
    pub storage_pools: Vec<StoragePool>,
    /// Name of the pool of `storagePools` that holds images.
    #[schemars(length(min = 1, max = 63))]
    pub image_pool: String,
    /// Where images come from.
    pub registry: Registry,
    /// Directory on the host for the serial console logs of machines, one file each, capped in size by virtlogd.
    #[schemars(length(min = 1, max = 4096))]
    pub console_log_dir: String,
}

/// A network of the appliance.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Name by which machines refer to it.
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// How it is connected.
    #[serde(rename = "type")]
    pub type_: NetworkType,
    /// Host address with prefix length, for instance `192.168.150.1/24`. `NAT` only: it is the guests' gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    pub address: Option<String>,
    /// `NAT` only: addresses that libvirt's own DHCP serves; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<AddressRange>,
    /// `Bridge` only: the existing host bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub bridge: Option<String>,
}

/// How a network is connected.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum NetworkType {
    /// Behind the host: guests reach out by its address; from outside only the system cluster reaches in.
    #[serde(rename = "NAT")]
    Nat,
    /// A bridge of its own without an address or DHCP of libvirt's.
    Isolated,
    /// An existing bridge of the host.
    Bridge,
}

/// First and last address of a range, both included.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressRange {
    /// First IPv4 address.
    #[schemars(length(max = 15))]
    pub start: String,
    /// Last IPv4 address.
    #[schemars(length(max = 15))]
    pub end: String,
}

/// A storage pool of the appliance: a libvirt `dir` pool.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoragePool {
    /// Name by which disks refer to it.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Absolute directory on the host.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^/"))]
    pub path: String,
}

/// Where the operator fetches images.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    /// `host:port` as reachable from the operator; always HTTPS.
    #[schemars(length(min = 1, max = 255))]
    pub host: String,
    /// Secret in the same namespace with keys `username`, `password` and `ca.crt`.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// What `vm-operator` observed of the host.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplianceStatus {
    /// `metadata.generation` this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Connected`, `NetworksReady`, `StoragePoolsReady`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// The host itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostStatus>,
    /// State of each pool.
    #[serde(default)]
    pub storage_pools: Vec<StoragePoolStatus>,
}

/// Capacity of a libvirt host.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// libvirt's version, `major.minor.release`.
    pub libvirt_version: String,
    /// Hypervisor's version, `major.minor.release`.
    pub hypervisor_version: String,
}

/// State of a storage pool. Free space is not here: it changes all the time, and a status that follows it would be
/// written for nothing.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoragePoolStatus {
    /// Name as in the spec.
    pub name: String,
    /// Size of the file system in GiB.
    #[serde(rename = "capacityGiB")]
    pub capacity_gib: u64,
}
