//! `EdgeCluster`: what a profile and pools of machines become, which is one Cluster API `Cluster` and the layers in it.
//!
//! ```text
//!  ClusterProfile ─┐
//!  EdgeCluster ────┴─► check ──► VirtualMachineImage kubernetes-v<version>      from the appliance's registry
//!                        │  └──► Cluster of class pcg-edge-v1                   everything else is Cluster API's
//!                        ├─────► IPAddressClaim <cluster>-lb-<n>                addresses of services
//!                        └─────► layers, once the cluster answers
//! ```

pub mod addresses;
pub mod artifact;
pub mod image;
pub mod layers;
pub mod observe;
pub mod pause;
pub mod profile;
pub mod reconcile;
pub mod remove;
pub mod run;
pub mod status;
pub mod tasks;
pub mod topology;
pub mod validate;

use std::fmt;

/// What is wrong with a field of an `EdgeCluster`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct FieldError {
    /// Field in dotted form with indexes, for instance `spec.presets.storage[0]`.
    pub field: String,
    /// What was found, and what was expected.
    pub message: String,
}

impl FieldError {
    /// About a field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, message } = self;
        write!(f, "{field}: {message}")
    }
}
