//! The way of a claim: its pool → the lowest free address → `IPAddress` → status. Who gets an address is decided one
//! claim at a time, on what the API server has at that moment.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use edge_api::cluster_api::LABEL_CLUSTER;
use edge_api::names::FINALIZER;
use edge_api::{IPPool, condition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::controller::Action as Next;
use kube::{Resource as _, ResourceExt as _};

use super::allocate;
use super::reconcile::{addresses, endpoints, holder, is_from};
use crate::cluster_api::provider::{
    Finding, Provide, Provider, cluster_label, hold, is_owned, is_paused, outdated, reference, release,
};
use crate::cluster_api::upstream::{IPAddress, IPAddressClaim, IPAddressSpec, Named, PoolReference};
use crate::errors::chain;
use crate::reconcile::Error;
use crate::status::publish;

/// Keeps an address from being deleted while its claim lives.
pub const PROTECT: &str = "ipam.cluster.x-k8s.io/protect-address";

/// Name of the cluster that a claim is for.
pub fn cluster_of(claim: &IPAddressClaim) -> Option<&str> {
    claim.spec.cluster_name.as_deref().or_else(|| cluster_label(&claim.metadata))
}

/// Whether a claim waits for an address.
pub fn is_waiting(claim: &IPAddressClaim) -> bool {
    claim.status.as_ref().is_none_or(|s| s.address_ref.is_none())
}

impl Provide for IPAddressClaim {
    async fn bring(&self, provider: &Provider) -> Result<Next, Error> {
        if !self.spec.pool_ref.is_ours() {
            return Ok(Next::await_change());
        }
        let cluster_name = cluster_of(self);
        let cluster = cluster_name.and_then(|name| provider.get(&provider.stores.owner_clusters, name));
        if is_paused(cluster.as_ref(), &self.metadata) {
            return Ok(Next::await_change());
        }
        if self.metadata.deletion_timestamp.is_some() {
            return give_back(self, provider).await;
        }
        if cluster_name.is_some() && cluster.is_none() {
            return Ok(provider.resync());
        }
        if is_settled(self, provider) {
            return Ok(provider.resync());
        }
        let claim = hold(&provider.context, self, FINALIZER, |_| None).await?;
        let (address, ready) = match settle(&claim, provider).await? {
            Ok(address) => {
                let ready = Finding::yes("Allocated", format!("has {}", address.spec.address));
                (Some(Named { name: address.name_any() }), ready)
            }
            Err(waiting) => (None, waiting),
        };
        publish(&provider.context, &claim, |old, generation| {
            let mut new = old.clone();
            new.address_ref.clone_from(&address);
            ready.put(&mut new.conditions, "Ready", generation);
            new
        })
        .await?;
        Ok(provider.resync())
    }
}

/// Whether everything is as it should be, by the caches.
fn is_settled(claim: &IPAddressClaim, provider: &Provider) -> bool {
    let Some(status) = &claim.status else { return false };
    let name = claim.name_any();
    let address = provider.get(&provider.stores.addresses, &name);
    claim.finalizers().iter().any(|f| f == FINALIZER)
        && condition::is_true(&status.conditions, "Ready")
        && status.address_ref.as_ref().is_some_and(|a| a.name == name)
        && address.is_some_and(|a| is_owned(&a.metadata, claim.uid().as_deref()))
}

/// Finds or makes the address of a claim. The inner error is a state to wait in.
async fn settle(claim: &IPAddressClaim, provider: &Provider) -> Result<Result<IPAddress, Finding>, Error> {
    let context = &provider.context;
    let _one_at_a_time = provider.allocating.lock().await;
    let (name, pool_name) = (claim.name_any(), &claim.spec.pool_ref.name);
    let waiting = |reason: &str, message: String| Ok(Err(Finding::no(reason, message)));
    let all = addresses(provider).await?;
    if let Some(found) = all.iter().find(|a| a.name_any() == name) {
        if is_owned(&found.metadata, claim.uid().as_deref()) {
            return Ok(Ok(found.clone()));
        }
        if !found.spec.pool_ref.is_ours() {
            let message = format!("there is an IPAddress {name} of somebody else; it goes with its own claim");
            return waiting("AllocationFailed", message);
        }
        // Of an earlier claim of this name that is gone without its finalizer having been honoured.
        discard(found, provider).await?;
        return Err(Error::Outdated(format!("IPAddress {name} was of an earlier claim")));
    }
    let Some(pool) = context.api::<IPPool>().get_opt(pool_name).await? else {
        return waiting("PoolNotReady", format!("waits for IPPool {pool_name}, which does not exist"));
    };
    if pool.meta().deletion_timestamp.is_some() {
        return waiting("PoolNotReady", format!("IPPool {pool_name} is being deleted"));
    }
    let valid = match allocate::validate(&pool.spec) {
        Ok(valid) => valid,
        Err(invalid) => {
            return waiting("PoolNotReady", format!("IPPool {pool_name} is invalid: {}", chain(&invalid)));
        }
    };
    let of_pool = || all.iter().filter(|a| is_from(a, pool_name));
    let cluster = cluster_of(claim);
    if valid.single_cluster
        && let Some(other) = holder(of_pool()).filter(|holder| Some(*holder) != cluster)
    {
        let message = format!("IPPool {pool_name} is for one cluster only, and cluster {other} has it");
        return waiting("PoolReserved", message);
    }
    // Pools may overlap, and nobody may get the address of a control plane.
    let mut taken: BTreeSet<Ipv4Addr> = all.iter().filter_map(|a| a.spec.address.parse().ok()).collect();
    taken.extend(endpoints(provider));
    let Some(address) = valid.next(&taken) else {
        let message = format!(
            "no address of IPPool {pool_name} is free ({}, {} given out from it); \
             waits until one is released or the pool grows",
            valid.display(),
            of_pool().count()
        );
        return waiting("PoolExhausted", message);
    };
    let made = IPAddress {
        metadata: ObjectMeta {
            name: Some(name),
            labels: cluster.map(|c| [(LABEL_CLUSTER.to_owned(), c.to_owned())].into()),
            owner_references: Some(vec![reference(claim, true), reference(&pool, false)]),
            finalizers: Some(vec![PROTECT.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            claim_ref: Named { name: claim.name_any() },
            pool_ref: PoolReference::to(pool_name),
            address: address.to_string(),
            prefix: pool.spec.prefix,
            gateway: valid.gateway.map(|g| g.to_string()),
        },
    };
    let made = context.api::<IPAddress>().create(&PostParams::default(), &made).await.map_err(outdated)?;
    Ok(Ok(made))
}

/// Releases the address of a claim, then the claim.
async fn give_back(claim: &IPAddressClaim, provider: &Provider) -> Result<Next, Error> {
    if !claim.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(Next::await_change());
    }
    let _nobody_allocates = provider.allocating.lock().await;
    let found = provider.context.api::<IPAddress>().get_opt(&claim.name_any()).await?;
    if let Some(found) = found.filter(|a| is_owned(&a.metadata, claim.uid().as_deref())) {
        discard(&found, provider).await?;
    }
    release(&provider.context, claim, FINALIZER).await?;
    Ok(Next::await_change())
}

async fn discard(address: &IPAddress, provider: &Provider) -> Result<(), Error> {
    let context = &provider.context;
    // First deleted, then let go: the other way round somebody might see it unprotected and alive.
    match context.api::<IPAddress>().delete(&address.name_any(), &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    release(context, address, PROTECT).await
}
