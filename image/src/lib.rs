//! Builds every artifact of the appliance from pins: Go modules (`pins/*/go.mod`) and Debian packages
//! (`pins/debian.toml`). Nothing is pulled from a container registry.
//!
//! ```text
//! programs ─┬─► kubernetes images ─► node ─┐
//!           ├─► registry, example-web ─────┼─► bundle
//! container base ─► vm-operator ───────────┤
//! guest tree ─┬─► router ──────────────────┤
//!             └─► tiny ────────────────────┘
//! ```
//!
//! Every artifact is a folder in the [`cache`], named by the digest of all that it is made from.

pub mod build;
pub mod bundle;
pub mod cache;
pub mod containers;
pub mod debian;
pub mod guest;
pub mod layer;
pub mod node;
pub mod oci;
pub mod pins;
pub mod process;
pub mod programs;
pub mod progress;
pub mod router_image;
pub mod runc;
pub mod tiny;
