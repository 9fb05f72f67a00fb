//! `Appliance`: networks and storage pools of one libvirt host.

pub mod apply;
pub mod plan;
pub mod reconcile;
pub mod status;
pub mod validate;
