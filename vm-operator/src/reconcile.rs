//! What the ways of all kinds share: filled caches before the first look, a finalizer around everything that is made,
//! and what to do after an error: transient ones back off per object, waiting ones are woken by what they wait for.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use edge_api::cluster_api::{ANNOTATION_DELETE_FOR_MOVE, ANNOTATION_PAUSED};
use edge_api::names::FINALIZER;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::controller::Action as Next;
use kube::runtime::finalizer::{self, finalizer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::context::Context;
use crate::errors::chain;
use crate::libvirt;
use crate::status::FIELD_MANAGER;

/// Why an object could not be reconciled; `F` is what can fail with its kind alone.
#[derive(Debug, thiserror::Error)]
pub enum Error<F: std::error::Error + 'static = Infallible> {
    /// The API server refused.
    #[error("API server")]
    Kube(#[from] kube::Error),
    /// libvirt refused.
    #[error("libvirt")]
    Libvirt(#[from] libvirt::Error),
    /// The finalizer could not be set or removed.
    #[error("finalizer: {0}")]
    Finalizer(String),
    /// The object changed since it was read; the change wakes it.
    #[error("changed meanwhile: {0}")]
    Outdated(String),
    /// Waits for something that is watched; the look in between is for what is not.
    #[error("{0}")]
    Waiting(String),
    /// Something of this kind alone.
    #[error(transparent)]
    Own(F),
}

/// A kind that is reconciled.
pub trait Reconcile:
    kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
    /// What can fail with this kind alone.
    type Failure: std::error::Error + Send + 'static;

    /// Brings an object to what its specification says.
    fn ensure(&self, context: &Context) -> impl Future<Output = Result<Next, Error<Self::Failure>>> + Send;

    /// Removes what was made for an object. Idempotent, and never looks at whether the specification is valid.
    fn cleanup(&self, context: &Context) -> impl Future<Output = Result<(), Error<Self::Failure>>> + Send;
}

/// One look at an object.
pub async fn reconcile<K: Reconcile>(
    guard: Arc<DeserializeGuard<K>>,
    context: Arc<Context>,
) -> Result<Next, Error<K::Failure>> {
    let Ok(object) = &guard.0 else { return Ok(Next::await_change()) };
    if object.annotations().contains_key(ANNOTATION_PAUSED) || is_moved(object) {
        return Ok(Next::await_change());
    }
    context.synced().await;
    let next = finalizer(&context.api::<K>(), FINALIZER, Arc::new(object.clone()), |event| async {
        match event {
            finalizer::Event::Apply(object) => object.ensure(&context).await,
            finalizer::Event::Cleanup(object) => {
                object.cleanup(&context).await?;
                if let Some(uid) = object.uid() {
                    context.written.forget(&uid);
                }
                Ok(Next::await_change())
            }
        }
    })
    .await
    .map_err(of_finalizer)?;
    context.backoff.reset(&key(object));
    Ok(next)
}

/// Whether an object only leaves this API server: what was made for it belongs to its copy on another one, and is not
/// to be removed.
pub fn is_moved(object: &impl kube::Resource) -> bool {
    object.meta().deletion_timestamp.is_some() && object.annotations().contains_key(ANNOTATION_DELETE_FOR_MOVE)
}

fn of_finalizer<F: std::error::Error>(error: finalizer::Error<Error<F>>) -> Error<F> {
    use finalizer::Error as Finalizer;
    match error {
        Finalizer::ApplyFailed(own) | Finalizer::CleanupFailed(own) => own,
        // Gone already, or changed meanwhile: the watch brings what is true now.
        Finalizer::AddFinalizer(kube::Error::Api(status)) | Finalizer::RemoveFinalizer(kube::Error::Api(status))
            if matches!(status.code, 404 | 409 | 422) =>
        {
            Error::Outdated(status.message)
        }
        other => Error::Finalizer(chain(&other)),
    }
}

fn key<K: kube::Resource<DynamicType = ()>>(object: &K) -> (Cow<'static, str>, String) {
    (K::kind(&()), object.name_any())
}

/// Says when to look again after an error, and logs the whole chain once.
pub fn after<K, F>(object: &DeserializeGuard<K>, error: &Error<F>, context: &Context) -> Next
where
    K: kube::Resource<DynamicType = ()>,
    F: std::error::Error + 'static,
{
    let (kind, name) = (K::kind(&()), object.name_any());
    match error {
        Error::Waiting(_) => {
            tracing::info!(%kind, name, reason = chain(error), "waiting");
            Next::requeue(Duration::from_mins(1))
        }
        Error::Outdated(_) => {
            tracing::debug!(%kind, name, error = chain(error), "changed meanwhile");
            Next::requeue(Duration::from_secs(5))
        }
        Error::Kube(_) | Error::Libvirt(_) | Error::Finalizer(_) | Error::Own(_) => {
            let wait = context.backoff.fail((kind.clone(), name.clone()));
            tracing::warn!(%kind, name, error = chain(error), retry_seconds = wait.as_secs(), "failed");
            Next::requeue(wait)
        }
    }
}

/// Notes something in an object before it is done, so that removal finds it (law 1).
pub async fn note<K: Reconcile>(
    context: &Context,
    object: &K,
    annotation: &str,
    value: &str,
) -> Result<(), kube::Error> {
    if object.annotations().get(annotation).is_some_and(|noted| noted == value) {
        return Ok(());
    }
    let patch = json!({ "metadata": { "annotations": { annotation: value } } });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    context.api::<K>().patch_metadata(&object.name_any(), &params, &Patch::Merge(&patch)).await?;
    Ok(())
}

/// What an object's annotation lists, separated by spaces.
pub fn noted<'a, K: kube::Resource>(object: &'a K, annotation: &str) -> impl Iterator<Item = &'a str> {
    object.annotations().get(annotation).map(String::as_str).unwrap_or_default().split_whitespace()
}
