//! The way of a cluster: owner → pause → endpoint → check → virtual router ID → probe → status. It stays while a machine
//! of it is there.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use edge_api::cluster_api::{FailureDomain, Initialization, LABEL_CONTROL_PLANE};
use edge_api::libvirt_cluster::LibvirtClusterStatus;
use edge_api::names::FINALIZER;
use edge_api::{LibvirtCluster, LibvirtMachine};
use kube::ResourceExt as _;
use kube::api::ListParams;
use kube::runtime::controller::Action as Next;
use serde_json::json;

use super::probe;
use super::validate::{self, Claimant, Site};
use crate::cluster_api::pool::allocate::{self, ValidatedPool};
use crate::cluster_api::provider::{
    Finding, Provide, Provider, cluster_label, hold, is_paused, list, names, owner, release,
};
use crate::cluster_api::upstream::{Cluster, PartialEndpoint};
use crate::errors::chain;
use crate::reconcile::Error;
use crate::status::publish;

/// Label of infrastructure that another system looks after.
const LABEL_MANAGED_BY: &str = "cluster.x-k8s.io/managed-by";

/// Name of the cluster that an object is the infrastructure of.
pub fn cluster_name(object: &LibvirtCluster) -> Option<&str> {
    owner(&object.metadata, "Cluster").map(|o| o.name.as_str()).or_else(|| cluster_label(&object.metadata))
}

impl Provide for LibvirtCluster {
    async fn bring(&self, provider: &Provider) -> Result<Next, Error> {
        if self.labels().contains_key(LABEL_MANAGED_BY) {
            return Ok(Next::await_change());
        }
        let cluster = cluster_name(self).and_then(|name| provider.get(&provider.stores.owner_clusters, name));
        if is_paused(cluster.as_ref(), &self.metadata) {
            publish(&provider.context, self, |old, generation| {
                let mut new = old.clone();
                Finding::paused(true).put(&mut new.conditions, "Paused", generation);
                new
            })
            .await?;
            return Ok(Next::await_change());
        }
        if self.metadata.deletion_timestamp.is_some() {
            return leave(self, provider).await;
        }
        let mut next = provider.resync();
        let (object, ready) = match ensure(self, cluster.as_ref(), provider).await? {
            Ok(object) if let Some((occupied, again)) = occupied(&object, provider).await => {
                next = again;
                (object, occupied)
            }
            Ok(object) => {
                let message = format!(
                    "the control plane answers at {}, virtual router {}",
                    object.spec.control_plane_endpoint.as_ref().map_or("?", |e| &e.host),
                    object.spec.virtual_router_id.unwrap_or_default()
                );
                (object, Finding::yes("Provisioned", message))
            }
            Err((object, waiting)) => (object, waiting),
        };
        let appliance = object.spec.appliance.clone();
        publish(&provider.context, &object, |old, generation| status(old, generation, &ready, &appliance)).await?;
        Ok(next)
    }
}

/// Whether somebody has the endpoint's address who cannot be the cluster, and when to ask again: no event tells when the
/// address is free. Once a machine of the control plane is there, whoever answers may be that.
async fn occupied(object: &LibvirtCluster, provider: &Provider) -> Option<(Finding, Next)> {
    const REASON: &str = "AddressInUse";
    let endpoint = object.spec.control_plane_endpoint.as_ref()?;
    let address: Ipv4Addr = endpoint.host.parse().ok()?;
    let is_begun = || {
        let name = cluster_name(object);
        let of_control_plane = |m: &LibvirtMachine| m.labels().contains_key(LABEL_CONTROL_PLANE);
        let machines = list(&provider.stores.machines, |m| cluster_label(&m.metadata) == name && of_control_plane(m));
        !machines.is_empty()
    };
    if claimant(object).provisioned || is_begun() {
        return None;
    }
    let key = (Cow::Borrowed(REASON), object.name_any());
    if !probe::is_answered(address, endpoint.port).await {
        provider.context.backoff.reset(&key);
        return None;
    }
    let message = format!(
        "somebody answers at {address} already, the virtual IP address of the control plane; choose another one, or \
         turn that off"
    );
    Some((Finding::no(REASON, message), Next::requeue(provider.context.backoff.fail(key))))
}

fn status(
    old: &LibvirtClusterStatus,
    generation: Option<i64>,
    ready: &Finding,
    appliance: &str,
) -> LibvirtClusterStatus {
    let mut new = old.clone();
    new.observed_generation = generation;
    ready.put(&mut new.conditions, "Ready", generation);
    Finding::paused(false).put(&mut new.conditions, "Paused", generation);
    if ready.status == edge_api::ConditionStatus::True {
        new.initialization = Some(Initialization { provisioned: Some(true) });
        let (name, attributes) = (appliance.to_owned(), std::collections::BTreeMap::new());
        new.failure_domains = vec![FailureDomain { name, control_plane: Some(true), attributes }];
    }
    new
}

/// Brings endpoint and virtual router ID into the specification. The inner error is a state to wait in.
async fn ensure(
    object: &LibvirtCluster,
    cluster: Option<&Cluster>,
    provider: &Provider,
) -> Result<Result<LibvirtCluster, (LibvirtCluster, Finding)>, Error> {
    let context = &provider.context;
    let Some(cluster) = cluster.filter(|_| owner(&object.metadata, "Cluster").is_some()) else {
        let message = "waits for Cluster API to make a Cluster the owner of this object (its spec.infrastructureRef)";
        return Ok(Err((object.clone(), Finding::no("WaitingForCluster", message))));
    };
    let of_cluster = cluster.spec.control_plane_endpoint.as_ref().and_then(PartialEndpoint::whole);
    let held = object.finalizers().iter().any(|f| f == FINALIZER);
    let object = if held && (object.spec.control_plane_endpoint.is_some() || of_cluster.is_none()) {
        object.clone()
    } else {
        let missing = |live: &LibvirtCluster| {
            let endpoint = of_cluster.as_ref().filter(|_| live.spec.control_plane_endpoint.is_none())?;
            Some(json!({ "controlPlaneEndpoint": endpoint }))
        };
        hold(context, object, FINALIZER, missing).await?
    };
    let wait = |reason: &str, message: String| Ok(Err((object.clone(), Finding::no(reason, message))));
    let Some(endpoint) = &object.spec.control_plane_endpoint else {
        let message = "waits for spec.controlPlaneEndpoint, here or in the Cluster: the virtual IP address of the \
                       control plane"
            .to_owned();
        return wait("WaitingForControlPlaneEndpoint", message);
    };
    let Some(appliance) = context.appliance(&object.spec.appliance) else {
        return wait("ApplianceNotFound", format!("waits for Appliance {}", object.spec.appliance));
    };
    let Some(network) = appliance.spec.networks.iter().find(|n| n.name == object.spec.network) else {
        let known = appliance.spec.networks.iter().map(|n| n.name.clone()).collect();
        let message = format!(
            "spec.network is {}, which Appliance {} does not have; it has {}",
            object.spec.network,
            object.spec.appliance,
            names(known)
        );
        return wait("NetworkNotFound", message);
    };
    let _one_at_a_time = provider.endpoints.lock().await;
    let own = claimant(&object);
    let all = if own.provisioned && own.router_id.is_some() {
        list(&provider.stores.clusters, |_| true)
    } else {
        context.api::<LibvirtCluster>().list(&ListParams::default()).await?.items
    };
    let others: Vec<Claimant> = all
        .iter()
        .filter(|o| o.uid() != object.uid())
        .filter(|o| o.spec.appliance == object.spec.appliance && o.spec.network == object.spec.network)
        .map(claimant)
        .collect();
    let pools = pools(&object, provider);
    match validate::check(&own, endpoint, &Site { network, pools: &pools, others: &others }) {
        Err(refused) => wait(refused.reason(), chain(&refused)),
        Ok(_) if own.router_id.is_some() => Ok(Ok(object)),
        Ok(id) => {
            let missing =
                |live: &LibvirtCluster| live.spec.virtual_router_id.is_none().then(|| json!({ "virtualRouterID": id }));
            Ok(Ok(hold(context, &object, FINALIZER, missing).await?))
        }
    }
}

/// An object as one that wants an address.
pub fn claimant(object: &LibvirtCluster) -> Claimant {
    let made = object.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second()).unwrap_or_default();
    let initialization = object.status.as_ref().and_then(|s| s.initialization.as_ref());
    Claimant {
        name: cluster_name(object).map_or_else(|| object.name_any(), ToOwned::to_owned),
        host: object.spec.control_plane_endpoint.as_ref().map(|e| e.host.clone()),
        router_id: object.spec.virtual_router_id,
        provisioned: initialization.and_then(|i| i.provisioned) == Some(true),
        made: (made, object.uid().unwrap_or_default()),
    }
}

/// Pools that give out addresses on the cluster's network: all but those that are used on other networks only.
fn pools(object: &LibvirtCluster, provider: &Provider) -> Vec<(String, ValidatedPool)> {
    let machines = list(&provider.stores.machines, |_| true);
    let used_on = |pool: &str| {
        let interfaces = machines.iter().flat_map(|m| m.spec.interfaces.iter().map(|i| (&m.spec.appliance, i)));
        let of_pool = interfaces.filter(|(_, i)| i.address_pool.as_deref() == Some(pool));
        of_pool.map(|(appliance, i)| (appliance.clone(), i.network.clone())).collect::<Vec<_>>()
    };
    let here = (object.spec.appliance.clone(), object.spec.network.clone());
    let pools = list(&provider.stores.pools, |pool| {
        let used = used_on(&pool.name_any());
        used.is_empty() || used.contains(&here)
    });
    pools.iter().filter_map(|pool| Some((pool.name_any(), allocate::validate(&pool.spec).ok()?))).collect()
}

async fn leave(object: &LibvirtCluster, provider: &Provider) -> Result<Next, Error> {
    let context = &provider.context;
    if !object.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(Next::await_change());
    }
    let machines = match cluster_name(object) {
        None => Vec::new(),
        Some(cluster) => {
            let all = context.api::<LibvirtMachine>().list_metadata(&ListParams::default()).await?.items;
            all.iter()
                .filter(|m| cluster_label(&m.metadata) == Some(cluster))
                .map(kube::ResourceExt::name_any)
                .collect()
        }
    };
    if machines.is_empty() {
        release(context, object, FINALIZER).await?;
        return Ok(Next::await_change());
    }
    let waiting = Finding::no("Deleting", format!("waits for LibvirtMachines to go: {}", names(machines)));
    publish(context, object, |old, generation| {
        let mut new = old.clone();
        waiting.put(&mut new.conditions, "Ready", generation);
        Finding::paused(false).put(&mut new.conditions, "Paused", generation);
        new
    })
    .await?;
    Ok(provider.resync())
}
