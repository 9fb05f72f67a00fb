//! The site router's inside: `config.xml` in, network configuration out. A package of its own and small, because it is
//! built for the guest in release mode; the image around it is made by `edge-image`.
//!
//! ```text
//! config.xml ─► config::parse ─► Config (validated) ─► render::files ─► /run, nft, dnsmasq
//! ```

pub mod config;
pub mod render;
