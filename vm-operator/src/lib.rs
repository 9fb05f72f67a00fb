//! vm-operator: turns `Appliance`, `VirtualMachineImage` and `VirtualMachine` objects into libvirt networks, pools,
//! volumes and domains, and reports what became of them.

pub mod errors;
pub mod libvirt;
