//! Every type that crosses a process boundary in PCG-Edge: the site file, the Kubernetes kinds and the agent's socket
//! API. Types only: no I/O and no decisions.

pub mod agent;
pub mod appliance;
pub mod bundle;
pub mod cluster_api;
pub mod cluster_profile;
pub mod condition;
pub mod edge_cluster;
pub mod instance;
pub mod ip_pool;
pub mod libvirt_cluster;
pub mod libvirt_machine;
pub mod names;
pub mod site;
pub mod virtual_machine;
pub mod virtual_machine_image;

pub use appliance::{Appliance, ApplianceSpec, ApplianceStatus};
pub use cluster_profile::{ClusterProfile, ClusterProfileSpec};
pub use condition::{Condition, ConditionStatus};
pub use edge_cluster::{EdgeCluster, EdgeClusterSpec, EdgeClusterStatus};
pub use instance::Instance;
pub use ip_pool::{IPPool, IPPoolSpec, IPPoolStatus};
pub use libvirt_cluster::{LibvirtCluster, LibvirtClusterSpec, LibvirtClusterStatus, LibvirtClusterTemplate};
pub use libvirt_machine::{LibvirtMachine, LibvirtMachineSpec, LibvirtMachineStatus, LibvirtMachineTemplate};
pub use site::SiteConfig;
pub use virtual_machine::{VirtualMachine, VirtualMachineSpec, VirtualMachineStatus};
pub use virtual_machine_image::{VirtualMachineImage, VirtualMachineImageSpec, VirtualMachineImageStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// The definitions of all kinds.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![
        Appliance::crd(),
        VirtualMachine::crd(),
        VirtualMachineImage::crd(),
        ClusterProfile::crd(),
        EdgeCluster::crd(),
        IPPool::crd(),
        LibvirtCluster::crd(),
        LibvirtClusterTemplate::crd(),
        LibvirtMachine::crd(),
        LibvirtMachineTemplate::crd(),
    ]
}
