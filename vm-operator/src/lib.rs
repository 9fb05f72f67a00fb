//! vm-operator: turns `Appliance`, `VirtualMachineImage` and `VirtualMachine` objects into libvirt networks, pools,
//! volumes and domains, and reports what became of them.

pub mod appliance;
pub mod cluster_api;
pub mod context;
pub mod edge_cluster;
pub mod effects;
pub mod errors;
pub mod identity;
pub mod image;
pub mod libvirt;
pub mod machine;
pub mod reconcile;
pub mod run;
pub mod space;
pub mod status;
