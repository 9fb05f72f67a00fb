//! Addresses for services of type `LoadBalancer`: one claim each, owned by the `EdgeCluster` and nobody else.

use edge_api::cluster_api::LABEL_CLUSTER;
use edge_api::edge_cluster::LoadBalancer;
use edge_api::names::LABEL_EDGE_CLUSTER;
use edge_api::{EdgeCluster, condition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use kube::api::PostParams;

use super::remove::delete;
use crate::cluster_api::provider::{Finding, Provider, is_owned, list, outdated, reference};
use crate::cluster_api::upstream::{IPAddressClaim, IPAddressClaimSpec, PoolReference};
use crate::reconcile::Error;

/// Makes the claims that are missing and gives back those that are too many. All addresses in the order of their claims,
/// or a state to wait in.
pub async fn ensure(edge: &EdgeCluster, provider: &Provider) -> Result<Result<Vec<String>, Finding>, Error> {
    let cluster = edge.name_any();
    let (pool, count) = match &edge.spec.load_balancer {
        Some(LoadBalancer { address_pool, addresses }) => (address_pool.as_str(), *addresses),
        None => ("", 0),
    };
    let name = |index: u32| format!("{cluster}-lb-{index}");
    let wanted: Vec<String> = (0..count).map(name).collect();
    for claim in own(edge, provider) {
        // A claim cannot change its pool.
        if !wanted.contains(&claim.name_any()) || claim.spec.pool_ref.name != pool {
            give_back(&claim, provider).await?;
        }
    }
    let mut addresses = Vec::new();
    for name in wanted {
        let claim = match provider.get(&provider.stores.claims, &name) {
            Some(claim) => claim,
            None => make(edge, &name, pool, provider).await?,
        };
        if !is_owned(&claim.metadata, edge.uid().as_deref()) {
            let message = format!("there is an IPAddressClaim {name} of somebody else");
            return Ok(Err(Finding::no("NameTaken", message)));
        }
        let ours = claim.metadata.deletion_timestamp.is_none() && claim.spec.pool_ref.name == pool;
        let address = provider.get(&provider.stores.addresses, &name);
        let Some(address) = address.filter(|address| ours && is_owned(&address.metadata, claim.uid().as_deref()))
        else {
            let conditions = claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            let said = condition::find(conditions, "Ready").filter(|ready| !ready.message.is_empty());
            let message = said.map_or_else(|| format!("waits for an address of IPPool {pool}"), |s| s.message.clone());
            return Ok(Err(Finding::no("WaitingForAddress", message)));
        };
        addresses.push(address.spec.address);
    }
    Ok(Ok(addresses))
}

/// Gives back every address.
pub async fn release(edge: &EdgeCluster, provider: &Provider) -> Result<(), Error> {
    for claim in own(edge, provider) {
        give_back(&claim, provider).await?;
    }
    Ok(())
}

fn own(edge: &EdgeCluster, provider: &Provider) -> Vec<IPAddressClaim> {
    let uid = edge.uid();
    list(&provider.stores.claims, |claim| is_owned(&claim.metadata, uid.as_deref()))
}

async fn make(edge: &EdgeCluster, name: &str, pool: &str, provider: &Provider) -> Result<IPAddressClaim, Error> {
    let cluster = edge.name_any();
    let claim = IPAddressClaim {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([LABEL_CLUSTER, LABEL_EDGE_CLUSTER].map(|label| (label.to_owned(), cluster.clone())).into()),
            owner_references: Some(vec![reference(edge, true)]),
            ..ObjectMeta::default()
        },
        spec: IPAddressClaimSpec { cluster_name: Some(cluster), pool_ref: PoolReference::to(pool) },
        status: None,
    };
    provider.context.api::<IPAddressClaim>().create(&PostParams::default(), &claim).await.map_err(outdated)
}

async fn give_back(claim: &IPAddressClaim, provider: &Provider) -> Result<(), Error> {
    if claim.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    delete::<IPAddressClaim>(&provider.context, &claim.name_any()).await
}
