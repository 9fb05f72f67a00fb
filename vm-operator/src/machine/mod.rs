//! `VirtualMachine`: the one way to a libvirt domain.
//!
//! ```text
//!  spec, appliance, image, Secrets ──validate──► ValidatedMachine ─┐
//!  libvirt ──observe──► Observed ──────────────────────────────────┼─plan─► actions ──apply──► libvirt
//!  memory (deadlines) ─────────────────────────────────────────────┘                    └─observe──► status
//! ```

pub mod addresses;
pub mod apply;
pub mod cleanup;
pub mod configdisk;
pub mod memory;
pub mod observe;
pub mod plan;
pub mod reconcile;
pub mod reservations;
pub mod status;
pub mod validate;
