//! The agent: installs one appliance from its site file, step by step, and keeps it so.
//!
//! `site` reads `unattended.yaml`, `ctl` is the people's command line, everything else is the daemon.

pub mod ctl;
pub mod dirwatch;
pub mod durable;
pub mod engine;
pub mod journal;
pub mod paths;
pub mod ports;
pub mod redact;
pub mod site;
pub mod status;
