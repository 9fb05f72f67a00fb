//! System profiles (R-5 to R-7): the folder somebody writes, the archive that carries it, and what becomes of it at a
//! site.
//!
//! ```text
//! folder ──build_archive──► archive ──publish_archive──► store/<digest>/ ──load──► SystemProfile
//!                                                           SystemProfile + RenderContext ──render──► RenderedLayer…
//! ```
//!
//! I/O is reading and writing files; this crate knows neither Kubernetes' API nor libvirt.

pub mod archive;
pub mod digest;
mod error;
mod model;
mod render;
pub mod site;
mod template;
mod vm;
mod xml;
mod yaml;

pub use archive::{
    LayerSummary, Limits, ProfileSummary, Published, Refusal, build_archive, keep_only, publish_archive, verify_archive,
};
pub use digest::Digest;
pub use error::Error;
pub use model::{DEFAULT_TIMEOUT, Layer, LayerKind, PROFILE_FILE, SystemProfile, load};
pub use render::{Content, RenderContext, RenderedLayer, parse_objects, render, render_objects};
pub use site::{ProxyProperties, SiteProperties};
