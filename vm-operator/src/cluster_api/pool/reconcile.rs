//! The way of a pool: validate → count → status; it stays while an address is given out.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use edge_api::IPPool;
use edge_api::ip_pool::IPPoolStatus;
use edge_api::names::FINALIZER;
use kube::ResourceExt as _;
use kube::api::ListParams;
use kube::runtime::controller::Action as Next;

use super::allocate;
use crate::cluster_api::provider::{Finding, Provide, Provider, cluster_label, hold, is_paused, list, names, release};
use crate::cluster_api::upstream::IPAddress;
use crate::errors::chain;
use crate::reconcile::Error;
use crate::status::publish;

/// Whether an address is from this pool.
pub fn is_from(address: &IPAddress, pool: &str) -> bool {
    address.spec.pool_ref.is_ours() && address.spec.pool_ref.name == pool
}

/// Every address in the namespace, as it is now.
pub async fn addresses(provider: &Provider) -> Result<Vec<IPAddress>, kube::Error> {
    Ok(provider.context.api::<IPAddress>().list(&ListParams::default()).await?.items)
}

/// Addresses of control planes, which no machine may get.
pub fn endpoints(provider: &Provider) -> BTreeSet<Ipv4Addr> {
    let clusters = list(&provider.stores.clusters, |c| c.spec.control_plane_endpoint.is_some());
    let hosts = clusters.iter().filter_map(|c| c.spec.control_plane_endpoint.as_ref());
    hosts.filter_map(|endpoint| endpoint.host.parse().ok()).collect()
}

/// Cluster that has a pool for itself: the one of the oldest address.
pub fn holder<'a>(of_pool: impl Iterator<Item = &'a IPAddress>) -> Option<&'a str> {
    let oldest = of_pool.min_by_key(|a| (a.metadata.creation_timestamp.as_ref().map(|t| t.0), a.name_any()))?;
    cluster_label(&oldest.metadata)
}

impl Provide for IPPool {
    async fn bring(&self, provider: &Provider) -> Result<Next, Error> {
        let context = &provider.context;
        if is_paused(None, &self.metadata) {
            return Ok(Next::await_change());
        }
        if self.metadata.deletion_timestamp.is_some() {
            return leave(self, provider).await;
        }
        let held = self.finalizers().iter().any(|f| f == FINALIZER);
        let pool = if held { self.clone() } else { hold(context, self, FINALIZER, |_| None).await? };
        let name = pool.name_any();
        let given = list(&provider.stores.addresses, |a| is_from(a, &name));
        let endpoints = endpoints(provider);
        publish(context, &pool, |old, generation| status(&pool, old, generation, &given, &endpoints)).await?;
        Ok(provider.resync())
    }
}

fn status(
    pool: &IPPool,
    old: &IPPoolStatus,
    generation: Option<i64>,
    given: &[IPAddress],
    endpoints: &BTreeSet<Ipv4Addr>,
) -> IPPoolStatus {
    let mut new = old.clone();
    new.observed_generation = generation;
    new.used = given.len() as u64;
    let ready = match allocate::validate(&pool.spec) {
        Err(invalid) => {
            (new.total, new.free) = (0, 0);
            Finding::no("Invalid", chain(&invalid))
        }
        Ok(valid) => {
            new.total = valid.total() - endpoints.iter().filter(|e| valid.contains(**e)).count() as u64;
            let inside = |a: &&IPAddress| a.spec.address.parse::<Ipv4Addr>().is_ok_and(|ip| valid.contains(ip));
            new.free = new.total.saturating_sub(given.iter().filter(inside).count() as u64);
            let sole = valid.single_cluster.then(|| holder(given.iter())).flatten();
            new.reserved_for = sole.map(ToOwned::to_owned);
            Finding::yes("Valid", format!("addresses from {}", valid.display()))
        }
    };
    ready.put(&mut new.conditions, "Ready", generation);
    new
}

async fn leave(pool: &IPPool, provider: &Provider) -> Result<Next, Error> {
    let context = &provider.context;
    let _nobody_allocates = provider.allocating.lock().await;
    let name = pool.name_any();
    let given: Vec<String> = addresses(provider)
        .await?
        .iter()
        .filter(|a| is_from(a, &name))
        .map(|a| format!("{} ({})", a.spec.address, a.name_any()))
        .collect();
    if given.is_empty() {
        release(context, pool, FINALIZER).await?;
        return Ok(Next::await_change());
    }
    let waiting = Finding::no("InUse", format!("goes when its addresses are released: {}", names(given)));
    publish(context, pool, |old, generation| {
        let mut new = old.clone();
        waiting.put(&mut new.conditions, "Ready", generation);
        new
    })
    .await?;
    Ok(provider.resync())
}
