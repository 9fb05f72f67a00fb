//! `LibvirtCluster`: the address of a control plane.

pub mod reconcile;
pub mod validate;
