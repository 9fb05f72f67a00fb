//! The way of an `EdgeCluster` that goes, whether it was provisioned, is being provisioned or never made sense: its
//! Cluster → what that left behind → addresses → image → finalizer. Nothing here looks at the specification.

use std::fmt::Debug;
use std::time::Duration;

use edge_api::cluster_api::LABEL_CLUSTER;
use edge_api::names::{ANNOTATION_FORCE_DELETE, FINALIZER};
use edge_api::{EdgeCluster, LibvirtCluster, LibvirtMachine, VirtualMachine};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams};
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::Action as Next;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use super::observe::Scene;
use super::{addresses, image, status};
use crate::cluster_api::pool::claim::PROTECT;
use crate::cluster_api::provider::{Finding, Provider, is_owned, names, release};
use crate::cluster_api::upstream::{Cluster, IPAddress, IPAddressClaim, Machine};
use crate::context::Context;
use crate::reconcile::{Error, is_moved};
use crate::status::publish;

/// Takes a cluster apart, or says what that waits for.
pub async fn leave(edge: &EdgeCluster, provider: &Provider) -> Result<Next, Error> {
    if !edge.finalizers().iter().any(|f| f == FINALIZER) || is_moved(edge) {
        return Ok(Next::await_change());
    }
    let context = &provider.context;
    provider.layers.forget(&edge.uid().unwrap_or_default());
    let cluster = context.api::<Cluster>().get_opt(&edge.name_any()).await?;
    let of_somebody_else = cluster.as_ref().is_some_and(|c| !is_owned(&c.metadata, edge.uid().as_deref()));
    let mut left = Vec::new();
    if !of_somebody_else {
        if let Some(cluster) = &cluster {
            // Cluster API takes machines and control plane away in order, and the Cluster last.
            if cluster.metadata.deletion_timestamp.is_none() {
                delete::<Cluster>(context, &cluster.name_any()).await?;
            }
            left.push(format!("Cluster {}", cluster.name_any()));
        }
        left.extend(parts(edge, cluster.is_none(), context).await?);
    }
    if left.is_empty() {
        addresses::release(edge, provider).await?;
        left = claims(edge, context).await?;
    }
    if left.is_empty() {
        let _nobody_makes = provider.images.lock().await;
        return finish(edge, context).await;
    }
    let until_forced = edge.annotations().contains_key(ANNOTATION_FORCE_DELETE).then(|| until_force(edge, context));
    if until_forced == Some(Duration::ZERO) {
        give_up(edge, left, of_somebody_else, context).await?;
        return Ok(Next::await_change());
    }
    let waits_for = format!("waits for these to go: {}", names(left));
    let scene = Scene::look(edge, cluster.as_ref(), None, provider);
    publish(context, edge, |old, generation| {
        status::leaving(old, generation, &waits_for, scene.tasks(true, &old.tasks))
    })
    .await?;
    Ok(until_forced.map_or_else(|| provider.resync(), Next::requeue))
}

/// As long as Cluster API is not there: says so of every cluster, and takes apart those that go.
pub async fn without_cluster_api(context: &Context) -> Result<(), Error> {
    context.synced().await;
    for edge in image::all::<EdgeCluster>(context).await? {
        if edge.metadata.deletion_timestamp.is_none() {
            let waiting = Finding::no("WaitingForClusterAPI", "waits for Cluster API, whose kinds are not served");
            publish(context, &edge, |old, generation| {
                let mut new = old.clone();
                waiting.put(&mut new.conditions, "Ready", generation);
                new
            })
            .await?;
        } else if edge.finalizers().iter().any(|f| f == FINALIZER) && !is_moved(&edge) {
            // Nobody else takes a machine apart now; its domain goes with its VirtualMachine.
            let machines = labelled::<LibvirtMachine>(&edge, context).await?;
            let mut waits = false;
            for machine in machines.iter().map(kube::ResourceExt::name_any) {
                if context.api::<VirtualMachine>().get_opt(&machine).await?.is_some() {
                    delete::<VirtualMachine>(context, &machine).await?;
                    waits = true;
                } else {
                    let_go::<LibvirtMachine>(context, &machine, FINALIZER).await?;
                }
            }
            if !waits {
                for cluster in labelled::<LibvirtCluster>(&edge, context).await? {
                    let_go::<LibvirtCluster>(context, &cluster.name_any(), FINALIZER).await?;
                }
                finish(&edge, context).await?;
            }
        }
    }
    Ok(())
}

/// Removes what nobody uses any more, and the finalizer.
async fn finish(edge: &EdgeCluster, context: &Context) -> Result<Next, Error> {
    image::remove_unused(context, None, Some(edge)).await?;
    release(context, edge, FINALIZER).await?;
    tracing::info!(cluster = edge.name_any(), "gone");
    Ok(Next::await_change())
}

/// How long until the deletion may be forced.
fn until_force(edge: &EdgeCluster, context: &Context) -> Duration {
    let asked = edge.metadata.deletion_timestamp.as_ref().map_or(i64::MAX, |asked| asked.0.as_second());
    let passed = Timestamp::now().as_second().saturating_sub(asked);
    context.times.force.saturating_sub(Duration::from_secs(u64::try_from(passed).unwrap_or(0)))
}

/// Deletes an object. What is gone is done.
pub async fn delete<K>(context: &Context, name: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    match context.api::<K>().delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Metadata of the objects that carry the cluster's label; none where their kind is not served any more.
async fn labelled<K>(edge: &EdgeCluster, context: &Context) -> Result<Vec<PartialObjectMeta<K>>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let params = ListParams::default().labels(&format!("{LABEL_CLUSTER}={}", edge.name_any()));
    match context.api::<K>().list_metadata(&params).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn shown_all<K: Resource<DynamicType = ()>>(objects: &[PartialObjectMeta<K>]) -> Vec<String> {
    objects.iter().map(|object| format!("{} {}", K::kind(&()), object.name_any())).collect()
}

/// What is left of the cluster, other than its Cluster and the addresses of services.
async fn parts(edge: &EdgeCluster, orphaned: bool, context: &Context) -> Result<Vec<String>, Error> {
    let mut left = shown_all(&labelled::<Machine>(edge, context).await?);
    // Their owners are gone, and with them whoever would delete them.
    let orphaned = orphaned && left.is_empty();
    let (machines, clusters) = (labelled::<LibvirtMachine>(edge, context).await?, labelled(edge, context).await?);
    for machine in machines.iter().filter(|machine| orphaned && machine.metadata.deletion_timestamp.is_none()) {
        delete::<LibvirtMachine>(context, &machine.name_any()).await?;
    }
    let is_there = |cluster: &&PartialObjectMeta<LibvirtCluster>| cluster.metadata.deletion_timestamp.is_none();
    for cluster in clusters.iter().filter(|_| orphaned).filter(is_there) {
        delete::<LibvirtCluster>(context, &cluster.name_any()).await?;
    }
    left.extend(shown_all(&machines));
    left.extend(shown_all(&clusters));
    if !(orphaned && left.is_empty()) {
        return Ok(left);
    }
    // Certificates and kubeconfigs belong to Cluster API's objects and go with them, sooner or later: now.
    let of_cluster_api = |secret: &&PartialObjectMeta<Secret>| {
        secret.owner_references().iter().any(|owner| owner.api_version.contains("cluster.x-k8s.io/"))
    };
    for secret in labelled::<Secret>(edge, context).await?.iter().filter(of_cluster_api) {
        delete::<Secret>(context, &secret.name_any()).await?;
    }
    Ok(left)
}

/// Claims of the cluster itself that are left.
async fn claims(edge: &EdgeCluster, context: &Context) -> Result<Vec<String>, Error> {
    let mut claims = labelled::<IPAddressClaim>(edge, context).await?;
    claims.retain(|claim| is_owned(&claim.metadata, edge.uid().as_deref()));
    Ok(shown_all(&claims))
}

/// Gives up on what cannot be removed: it is listed, and what is ours is let go.
async fn give_up(
    edge: &EdgeCluster,
    mut left: Vec<String>,
    of_somebody_else: bool,
    context: &Context,
) -> Result<(), Error> {
    let machines = if of_somebody_else { Vec::new() } else { labelled::<LibvirtMachine>(edge, context).await? };
    for machine in machines.iter().map(kube::ResourceExt::name_any) {
        if context.api::<VirtualMachine>().get_opt(&machine).await?.is_some() {
            left.push(format!("VirtualMachine {machine}"));
        }
    }
    let left = left.join(", ");
    tracing::warn!(cluster = edge.name_any(), left, "deleted by force: these are left behind");
    let event = Event {
        type_: EventType::Warning,
        reason: "ForceDeleted".to_owned(),
        note: Some(format!("deleted by force; left behind: {left}").chars().take(1000).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    let recorder = Recorder::new(context.client.clone(), context.reporter.clone());
    if let Err(error) = recorder.publish(&event, &edge.object_ref(&())).await {
        tracing::warn!(%error, "cannot publish what is left behind");
    }
    for machine in machines.iter().map(kube::ResourceExt::name_any) {
        let_go::<VirtualMachine>(context, &machine, FINALIZER).await?;
        let_go::<LibvirtMachine>(context, &machine, FINALIZER).await?;
    }
    if !of_somebody_else {
        for cluster in labelled::<LibvirtCluster>(edge, context).await? {
            let_go::<LibvirtCluster>(context, &cluster.name_any(), FINALIZER).await?;
        }
        for claim in labelled::<IPAddressClaim>(edge, context).await? {
            let_go::<IPAddress>(context, &claim.name_any(), PROTECT).await?;
            let_go::<IPAddressClaim>(context, &claim.name_any(), FINALIZER).await?;
        }
    }
    finish(edge, context).await?;
    Ok(())
}

/// Deletes an object and takes our finalizer off.
async fn let_go<K>(context: &Context, name: &str, finalizer: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let Some(object) = context.api::<K>().get_opt(name).await? else { return Ok(()) };
    delete::<K>(context, name).await?;
    release(context, &object, finalizer).await
}
