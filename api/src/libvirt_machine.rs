//! `LibvirtMachine`: a Cluster API machine as one [`VirtualMachine`](crate::VirtualMachine), and nothing else.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster_api::{Initialization, MachineAddress, TemplateMetadata};
use crate::condition::Condition;
use crate::virtual_machine::{DataDisk, RootDisk};

/// Infrastructure of one Cluster API `Machine`.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "infrastructure.cluster.x-k8s.io",
    version = "v1alpha1",
    kind = "LibvirtMachine",
    namespaced,
    status = "LibvirtMachineStatus",
    category = "cluster-api",
    label("cluster.x-k8s.io/v1beta2", "v1alpha1"),
    label("clusterctl.cluster.x-k8s.io", ""),
    label("cluster.x-k8s.io/provider", "infrastructure-libvirt"),
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".metadata.labels['cluster\\.x-k8s\\.io/cluster-name']"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "ProviderID", type_ = "string", json_path = ".spec.providerID", priority = 1),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[?(@.type=='InternalIP')].address"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.providerID) || (has(self.providerID) && self.providerID == oldSelf.providerID)")
    .message("providerID cannot be changed"))]
pub struct LibvirtMachineSpec {
    /// `libvirt:///<spec.id of the VirtualMachine>`; set by `vm-operator` before it makes the machine, and by nobody
    /// else.
    #[serde(default, rename = "providerID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub provider_id: Option<String>,
    /// Name of the [`Appliance`](crate::Appliance) in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub appliance: String,
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
    #[schemars(length(min = 1, max = 253))]
    pub image: String,
    /// Kernel command line, where the image has a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub kernel_args: Option<String>,
    /// The disk it boots from.
    pub root_disk: RootDisk,
    /// Further, empty disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub data_disks: Vec<DataDisk>,
    /// Network interfaces in the order the guest sees them; the first has the default route.
    #[schemars(length(min = 1, max = 16))]
    pub interfaces: Vec<LibvirtMachineInterface>,
}

/// A network interface and where its address comes from.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtMachineInterface {
    /// Network of the appliance.
    #[schemars(length(min = 1, max = 32))]
    pub network: String,
    /// Name of the [`IPPool`](crate::IPPool) in the same namespace that its static address is claimed from; by DHCP
    /// where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub address_pool: Option<String>,
}

/// What `vm-operator` observed of a machine.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtMachineStatus {
    /// `metadata.generation` this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How far the first provisioning has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initialization: Option<Initialization>,
    /// Addresses, host name first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<MachineAddress>,
    /// The appliance it was placed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_domain: Option<String>,
    /// `Ready`, `Paused`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// What the machines of a pool are made from.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "infrastructure.cluster.x-k8s.io",
    version = "v1alpha1",
    kind = "LibvirtMachineTemplate",
    namespaced,
    category = "cluster-api",
    label("cluster.x-k8s.io/v1beta2", "v1alpha1"),
    label("clusterctl.cluster.x-k8s.io", ""),
    label("cluster.x-k8s.io/provider", "infrastructure-libvirt")
)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtMachineTemplateSpec {
    /// The template.
    pub template: LibvirtMachineTemplateResource,
}

/// Metadata and spec of what is made.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtMachineTemplateResource {
    /// Labels and annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TemplateMetadata>,
    /// Spec.
    pub spec: LibvirtMachineSpec,
}
