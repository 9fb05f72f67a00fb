//! The way of a machine that goes: its `VirtualMachine`, then its addresses, then its Secrets, then itself. What is gone
//! is done, and nothing here asks whether the specification makes sense.

use edge_api::names::FINALIZER;
use edge_api::{LibvirtMachine, VirtualMachine, condition};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::controller::Action as Next;
use kube::{Resource, ResourceExt as _};

use super::reconcile::{node_secret, seed_secret};
use crate::cluster_api::provider::{Finding, Provider, is_owned, names, release};
use crate::cluster_api::upstream::IPAddressClaim;
use crate::context::Context;
use crate::reconcile::Error;
use crate::status::publish;

/// One step on the way out.
pub async fn leave(machine: &LibvirtMachine, provider: &Provider) -> Result<Next, Error> {
    let context = &provider.context;
    if !machine.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(Next::await_change());
    }
    let uid = machine.uid();
    let vm = context.api::<VirtualMachine>().get_opt(&machine.name_any()).await?;
    if let Some(vm) = vm.filter(|vm| is_owned(&vm.metadata, uid.as_deref())) {
        if vm.metadata.deletion_timestamp.is_none() {
            delete::<VirtualMachine>(context, &vm.name_any()).await?;
        }
        let conditions = vm.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let why = condition::find(conditions, "Ready").filter(|_| vm.metadata.deletion_timestamp.is_some());
        let message = match why {
            Some(why) => format!("waits for VirtualMachine {} to go: {}", vm.name_any(), why.message),
            None => format!("waits for VirtualMachine {} to go", vm.name_any()),
        };
        return waiting(machine, provider, message).await;
    }
    let claims = context.api::<IPAddressClaim>().list_metadata(&ListParams::default()).await?.items;
    let claims: Vec<_> = claims.iter().filter(|c| is_owned(&c.metadata, uid.as_deref())).collect();
    for claim in claims.iter().filter(|c| c.metadata.deletion_timestamp.is_none()) {
        delete::<IPAddressClaim>(context, &claim.name_any()).await?;
    }
    if !claims.is_empty() {
        let left = claims.iter().map(|c| c.name_any()).collect();
        return waiting(machine, provider, format!("waits for IPAddressClaims to go: {}", names(left))).await;
    }
    for secret in [seed_secret(machine), node_secret(machine)] {
        let found = context.api::<Secret>().get_metadata_opt(&secret).await?;
        if found.is_some_and(|s| is_owned(&s.metadata, uid.as_deref())) {
            delete::<Secret>(context, &secret).await?;
        }
    }
    release(context, machine, FINALIZER).await?;
    Ok(Next::await_change())
}

async fn waiting(machine: &LibvirtMachine, provider: &Provider, message: String) -> Result<Next, Error> {
    let deleting = Finding::no("Deleting", message);
    publish(&provider.context, machine, |old, generation| {
        let mut new = old.clone();
        deleting.put(&mut new.conditions, "Ready", generation);
        Finding::paused(false).put(&mut new.conditions, "Paused", generation);
        new
    })
    .await?;
    Ok(provider.resync())
}

async fn delete<K>(context: &Context, name: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug,
    K: serde::de::DeserializeOwned,
{
    match context.api::<K>().delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
