//! What can go wrong with a layer.

use crate::helm::HelmError;

/// A layer could not be applied.
#[derive(Debug, thiserror::Error)]
#[error("layer {layer}")]
pub struct Error {
    /// Name of the layer.
    pub layer: String,
    /// Why.
    #[source]
    pub failure: Failure,
}

/// Why a layer could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no layer at all: that is never a reason to remove everything.
    #[error("the profile has no layers")]
    NoLayers,
    /// The API server did not answer, or refused.
    #[error("cannot {action} {object}: {reason}")]
    Api {
        /// For instance `read`, `write`, `remove`.
        action: &'static str,
        /// Kind, namespace and name.
        object: String,
        /// The API server's own words, or what became of the connection.
        reason: String,
        /// HTTP status, 0 without an answer.
        code: u16,
    },
    /// A kind that the cluster does not have.
    #[error("the cluster has no kind {kind} in {api_version}; the layer that brings it has to come earlier")]
    UnknownKind {
        /// Kind.
        kind: String,
        /// Group and version.
        api_version: String,
    },
    /// An object of that name exists and carries no mark of ours (law 2).
    #[error(
        "{object} exists and belongs to somebody else: it has no label {}. Rename it in the profile, or remove it",
        edge_api::names::LABEL_LAYER
    )]
    NotOurs {
        /// Kind, namespace and name.
        object: String,
    },
    /// A release of that name exists and carries no mark of ours (law 2).
    #[error("a Helm release {name} in namespace {namespace} exists and belongs to somebody else")]
    ReleaseNotOurs {
        /// Release.
        name: String,
        /// Its namespace.
        namespace: String,
    },
    /// Not healthy in time.
    #[error("not healthy after {seconds} s: {waited_for}")]
    Unhealthy {
        /// How long it was waited for.
        seconds: u64,
        /// The object and what it lacks.
        waited_for: String,
    },
    /// An object that will not become healthy by waiting.
    #[error("{object} failed: {reason}")]
    Broken {
        /// Kind, namespace and name.
        object: String,
        /// Its own words.
        reason: String,
    },
    /// A chart, and no Helm.
    #[error("is a Helm chart; in this cluster layers are manifests")]
    NoHelm,
    /// Helm said no.
    #[error("helm: {0}")]
    Helm(HelmError),
    /// Something in the cluster that we wrote, or Helm wrote, cannot be read.
    #[error("{object} cannot be understood: {reason}")]
    Malformed {
        /// Kind, namespace and name.
        object: String,
        /// Why.
        reason: String,
    },
}

impl Failure {
    /// Whether the cluster may answer otherwise in a while: it was not reached, or was busy or broken.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Api { code: 0 | 429 | 500..=599, .. })
    }

    /// Whether a webhook could not be asked. Its pods may still be starting, or it may not have its certificate yet.
    pub(crate) fn is_silent_webhook(&self) -> bool {
        matches!(self, Self::Api { code: 500, reason, .. } if reason.contains("webhook"))
    }

    /// From an error of the client; what a Secret holds does not get into the text (law 5).
    pub(crate) fn api(action: &'static str, object: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let object = object.into();
        move |error| {
            let (reason, code) = match &error {
                // Validation repeats what it found.
                kube::Error::Api(status) if object.starts_with("Secret ") && status.code == 422 => {
                    ("its content is not valid".to_owned(), status.code)
                }
                kube::Error::Api(status) => (status.message.clone(), status.code),
                other => (chain(other), 0),
            };
            Self::Api { action, object, reason, code }
        }
    }
}

/// An error and its sources in one line; a source that its error already shows is not repeated.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let shown = cause.to_string();
        if !text.contains(&shown) {
            text = format!("{text}: {shown}");
        }
        source = cause.source();
    }
    text
}
