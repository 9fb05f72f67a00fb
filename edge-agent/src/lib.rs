//! The agent: installs one appliance from its site file, step by step, and keeps it so.
//!
//! `site` reads `unattended.yaml`, `ctl` is the people's command line, everything else is the daemon.

pub mod backup;
pub mod bundle;
pub mod ca;
pub mod clock;
pub mod clusters;
pub mod console_logs;
pub mod ctl;
pub mod daemon;
pub mod dirwatch;
pub mod durable;
pub mod effects;
pub mod engine;
pub mod image_load;
pub mod journal;
pub mod machines;
pub mod node;
pub mod objects;
pub mod paths;
pub mod ports;
pub mod provider_manifest;
pub mod redact;
pub mod registry;
pub mod remove;
pub mod server;
pub mod site;
pub mod site_follow;
pub mod status;
pub mod steps;
pub mod upgrade;
pub mod world;
