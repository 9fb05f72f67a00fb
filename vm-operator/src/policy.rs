//! What to do after an error: transient ones back off per object, waiting ones are woken by what they wait for.

use std::error::Error;
use std::time::Duration;

use kube::runtime::controller::Action as Next;

use crate::context::Context;
use crate::errors::chain;
use crate::{appliance, image, machine};

/// How an error is to be treated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Waits for something that is watched; the look in between is for what is not.
    Waiting,
    /// Worked on an object that has changed since; the change wakes it.
    Outdated,
    /// Tried again, ever more slowly.
    Transient,
}

/// Errors that say how they are to be treated.
pub trait Classify: Error {
    /// How.
    fn kind(&self) -> Kind;
}

macro_rules! classify {
    ($error:ty, $waiting:pat) => {
        impl Classify for $error {
            fn kind(&self) -> Kind {
                use kube::runtime::finalizer::Error as Finalizer;
                match self {
                    $waiting => Kind::Waiting,
                    Self::Finalizer(wrapped) => match &**wrapped {
                        Finalizer::ApplyFailed(inner) | Finalizer::CleanupFailed(inner) => inner.kind(),
                        // Gone already, or changed meanwhile: the watch brings what is true now.
                        Finalizer::RemoveFinalizer(kube::Error::Api(status))
                        | Finalizer::AddFinalizer(kube::Error::Api(status))
                            if matches!(status.code, 404 | 409 | 422) =>
                        {
                            Kind::Outdated
                        }
                        _ => Kind::Transient,
                    },
                    _ => Kind::Transient,
                }
            }
        }
    };
}

classify!(appliance::reconcile::Error, Self::InUse(_));
classify!(image::reconcile::Error, Self::InUse(_));
classify!(machine::reconcile::Error, Self::Waiting(_));

/// Decides, and logs the whole chain once.
pub fn after(error: &impl Classify, kind: &'static str, name: &str, context: &Context) -> Next {
    match error.kind() {
        Kind::Waiting => {
            tracing::info!(kind, name, reason = chain(error), "waiting");
            Next::requeue(Duration::from_mins(1))
        }
        Kind::Outdated => {
            tracing::debug!(kind, name, error = chain(error), "changed meanwhile");
            Next::requeue(Duration::from_secs(5))
        }
        Kind::Transient => {
            let wait = context.backoff.fail((kind, name.to_owned()));
            tracing::warn!(kind, name, error = chain(error), retry_seconds = wait.as_secs(), "failed");
            Next::requeue(wait)
        }
    }
}
