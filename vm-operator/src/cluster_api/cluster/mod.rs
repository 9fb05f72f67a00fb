//! `LibvirtCluster`: the address of a control plane.

pub mod probe;
pub mod reconcile;
pub mod validate;
