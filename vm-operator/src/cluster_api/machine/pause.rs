//! Passes the pause of a machine on to its `VirtualMachine`, which is then left alone as well.

use edge_api::cluster_api::ANNOTATION_PAUSED;
use edge_api::{LibvirtMachine, VirtualMachine};
use kube::ResourceExt as _;
use serde_json::json;

use crate::cluster_api::pause::{annotate, change};
use crate::cluster_api::provider::{Provider, is_owned};
use crate::context;
use crate::reconcile::Error;

/// Value of the annotation that is put on here.
const MARK: &str = "LibvirtMachine";

/// Pauses the `VirtualMachine` of a machine, or lets it go on. Writes only where that differs.
pub async fn pass_on(machine: &LibvirtMachine, paused: bool, provider: &Provider) -> Result<(), Error> {
    let context = &provider.context;
    let vm: Option<VirtualMachine> = context::get(&context.stores.machines, &context.namespace, &machine.name_any());
    let Some(vm) = vm.filter(|vm| is_owned(&vm.metadata, machine.uid().as_deref())) else { return Ok(()) };
    match change(&vm, paused, MARK) {
        Some(value) => annotate(context, &vm, json!({ ANNOTATION_PAUSED: value })).await,
        None => Ok(()),
    }
}
