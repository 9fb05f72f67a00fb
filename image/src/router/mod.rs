//! The site router's inside: `config.xml` in, network configuration out. Used by the guest's program `site-router`
//! and tested here; the image itself is built by [`crate::router_image`].
//!
//! ```text
//! config.xml ─► config::parse ─► Config (validated) ─► render::files ─► /run, nft, dnsmasq
//! ```

pub mod config;
pub mod render;
