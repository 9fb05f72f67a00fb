//! Workload clusters on the socket: the objects in the system cluster are made, changed and deleted here, and nothing
//! else. `vm-operator` makes clusters of them.
//!
//! ```text
//! YAML ─ file ─► EdgeCluster ─ create ─┐
//! ClusterChange ─ rules ─► patch ──────┼─► API server of the system cluster
//! ClusterRemoval ─ rules ─► deletion ──┘
//! ```
//!
//! What a rule decided holds for the object it looked at: every write names its version, and is tried again on another.

pub mod file;
mod requests;
mod rules;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

pub use requests::routes;

use crate::server;

/// A request was refused or failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    status: StatusCode,
    error: String,
    hint: Option<String>,
}

impl Refusal {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), hint: None }
    }

    /// What is asked for does not go together with how the cluster is now.
    fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        server::error(self.status, self.error, self.hint.as_deref())
    }
}
