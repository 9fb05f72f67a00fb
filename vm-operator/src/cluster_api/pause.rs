//! Pauses that are passed on, from what Cluster API pauses to what it does not know. They travel with an object that is
//! moved to another API server.

use std::fmt::Debug;

use edge_api::cluster_api::ANNOTATION_PAUSED;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::Context;
use crate::reconcile::Error;
use crate::status::FIELD_MANAGER;

/// Pauses an object, or lets it go on; `mark` is the annotation's value, by which ours is told from somebody else's,
/// which stays. Returns the value that is to be written, where the object differs.
pub fn change(object: &impl Resource, paused: bool, mark: &str) -> Option<Value> {
    match (object.annotations().get(ANNOTATION_PAUSED).map(String::as_str), paused) {
        (None, true) => Some(json!(mark)),
        (Some(value), false) if value == mark => Some(Value::Null),
        _ => None,
    }
}

/// Writes annotations of an object; `null` takes one away.
pub async fn annotate<K>(context: &Context, object: &K, annotations: Value) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let patch = json!({ "metadata": { "uid": object.uid(), "annotations": annotations } });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match context.api::<K>().patch_metadata(&object.name_any(), &params, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        // Gone, or another one by now: its events bring us back.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
