//! `VirtualMachineImage`: brought from the registry into an image pool (D13), hashed in flight.

pub mod apply;
pub mod plan;
pub mod qcow2;
pub mod reconcile;
pub mod registry;
pub mod status;
pub mod transfer;
pub mod validate;
