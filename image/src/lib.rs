//! Builds every artifact of the appliance from pins: Go modules (`pins/*/go.mod`) and Debian packages
//! (`pins/debian.toml`). Nothing is pulled from a container registry.
//!
//! ```text
//! programs ─┬─► kubernetes images ─┬─► node ───┐
//!           │                      └─► guest ──┤
//!           └─► registry, example-web ─────────┤
//! cluster programs ─► images, manifests ───────┼─► bundle
//! container base ─► our programs, busybox ─────┤
//! guest tree ─┬─► router ──────────────────────┤
//!             └─► tiny ────────────────────────┘
//! ```
//!
//! Every artifact is a folder in the [`cache`], named by the digest of all that it is made from.

pub mod add_ons;
pub mod build;
pub mod bundle;
pub mod cache;
pub mod cluster_images;
pub mod containers;
pub mod debian;
pub mod guest;
pub mod kubernetes_guest;
pub mod layer;
pub mod manifests;
pub mod node;
pub mod oci;
pub mod pins;
pub mod process;
pub mod programs;
pub mod progress;
pub mod router_image;
pub mod runc;
pub mod tiny;
