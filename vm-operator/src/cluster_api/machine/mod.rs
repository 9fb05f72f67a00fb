//! `LibvirtMachine`: one Cluster API machine as one `VirtualMachine`.

pub mod bootstrap;
pub mod cleanup;
pub mod node;
pub mod pause;
pub mod reconcile;
pub mod seed;
pub mod status;
