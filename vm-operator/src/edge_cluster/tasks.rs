//! What has to be done for a cluster, as a tree of tasks. Pure.

use edge_api::agent::Application;
use edge_api::{LibvirtCluster, LibvirtMachine, VirtualMachine, VirtualMachineImage};

use crate::cluster_api::upstream::{Cluster, Machine};

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
    /// Its layers, in install order.
    pub layers: &'a [Application],
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// What there is of a machine.
pub struct ObservedMachine<'a> {
    /// Cluster API's `Machine`.
    pub machine: &'a Machine,
    /// Its infrastructure.
    pub libvirt: Option<&'a LibvirtMachine>,
    /// What that became.
    pub vm: Option<&'a VirtualMachine>,
}
