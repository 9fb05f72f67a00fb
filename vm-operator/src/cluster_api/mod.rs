//! The infrastructure and IPAM provider of Cluster API, contract `v1beta2`.
//!
//! ```text
//!  Cluster ──owns──► LibvirtCluster        endpoint checked, virtual router ID allocated
//!     │
//!  Machine ──owns──► LibvirtMachine ──► IPAddressClaim ──► IPAddress      one per interface with a pool
//!     │ bootstrap data        ├──────► Secret <machine>-seed              NoCloud files, written once
//!     └───────────────────────┤──────► Secret <machine>-node              registry, keepalived
//!                             └──────► VirtualMachine                     and nothing else of libvirt
//! ```
//!
//! These controllers start when Cluster API's kinds are served, and never keep the others from working.

pub mod cluster;
pub mod machine;
pub mod pause;
pub mod pool;
pub mod provider;
pub mod run;
pub mod upstream;
