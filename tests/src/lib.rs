//! What tests of several rooms share: a real Kubernetes API, waiting for states, reading the audit log, a disk that is
//! full, a program that ends at every point, bundles to upgrade to, taking stock of a host, and the ledger of faults.
//!
//! Depends on the types of `edge-api` only, so that every other crate can use it as a development dependency.

pub mod audit;
pub mod bundles;
pub mod control_plane;
pub mod crashes;
pub mod faults;
pub mod inventory;
pub mod small_disk;
pub mod wait;

pub use control_plane::ControlPlane;
pub use faults::Fault;
pub use inventory::Inventory;
pub use small_disk::SmallDisk;
pub use wait::eventually;
