//! `IPPool` and `IPAddressClaim`: Cluster API's IPAM contract.

pub mod allocate;
pub mod claim;
pub mod reconcile;
