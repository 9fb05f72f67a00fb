//! Passes the pause of a machine on to its `VirtualMachine`, which is then left alone as well. It travels with the object
//! when that is moved to another API server.

use edge_api::cluster_api::ANNOTATION_PAUSED;
use edge_api::{LibvirtMachine, VirtualMachine};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster_api::provider::{Provider, is_owned};
use crate::context;
use crate::reconcile::Error;
use crate::status::FIELD_MANAGER;

/// Value of the annotation that was put on here. One with another value is somebody else's, and stays.
const VALUE: &str = "LibvirtMachine";

/// Pauses the `VirtualMachine` of a machine, or lets it go on. Writes only where that differs.
pub async fn pass_on(machine: &LibvirtMachine, paused: bool, provider: &Provider) -> Result<(), Error> {
    let context = &provider.context;
    let name = machine.name_any();
    let vm: Option<VirtualMachine> = context::get(&context.stores.machines, &context.namespace, &name);
    let Some(vm) = vm.filter(|vm| is_owned(&vm.metadata, machine.uid().as_deref())) else { return Ok(()) };
    let value = match (vm.annotations().get(ANNOTATION_PAUSED).map(String::as_str), paused) {
        (None, true) => json!(VALUE),
        (Some(VALUE), false) => Value::Null,
        _ => return Ok(()),
    };
    let patch = json!({ "metadata": { "uid": vm.uid(), "annotations": { ANNOTATION_PAUSED: value } } });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match context.api::<VirtualMachine>().patch_metadata(&name, &params, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        // Gone, or another one by now: its events wake the machine.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
