//! What tests of several rooms share: a real Kubernetes API, waiting for states, reading the audit log, a disk that is
//! full, and taking stock of a host.
//!
//! Depends on the types of `edge-api` only, so that every other crate can use it as a development dependency.

pub mod audit;
pub mod control_plane;
pub mod inventory;
pub mod small_disk;
pub mod wait;

pub use control_plane::ControlPlane;
pub use inventory::Inventory;
pub use small_disk::SmallDisk;
pub use wait::eventually;
