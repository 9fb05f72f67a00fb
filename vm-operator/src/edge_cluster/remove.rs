//! The way of an `EdgeCluster` that goes, whether it was provisioned, is being provisioned or never made sense: its
//! Cluster → addresses → image → finalizer. Nothing here looks at the specification.

use std::fmt::Debug;
use std::time::Duration;

use edge_api::agent::FORCE_AFTER_SECONDS;
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
use crate::cluster_api::provider::{Provider, is_owned, names, release};
use crate::cluster_api::upstream::{Cluster, IPAddress, IPAddressClaim, Machine};
use crate::context::Context;
use crate::reconcile::Error;
use crate::status::publish;

/// Takes a cluster apart, or says what that waits for.
pub async fn leave(edge: &EdgeCluster, provider: &Provider) -> Result<Next, Error> {
    if !edge.finalizers().iter().any(|f| f == FINALIZER) {
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
            delete(context, cluster).await?;
            left.push(shown(cluster));
        }
        left.extend(parts(edge, context).await?);
    }
    if left.is_empty() {
        addresses::release(edge, provider).await?;
        left = claims(edge, context).await?;
    }
    if left.is_empty() {
        image::remove_unused(provider, Some(edge)).await?;
        release(context, edge, FINALIZER).await?;
        tracing::info!(cluster = edge.name_any(), "gone");
        return Ok(Next::await_change());
    }
    let until_forced = edge.annotations().contains_key(ANNOTATION_FORCE_DELETE).then(|| until_force(edge));
    if until_forced == Some(Duration::ZERO) {
        give_up(edge, &left, of_somebody_else, provider).await?;
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

/// How long until the deletion may be forced.
fn until_force(edge: &EdgeCluster) -> Duration {
    let asked = edge.metadata.deletion_timestamp.as_ref().map_or(i64::MAX, |asked| asked.0.as_second());
    let passed = Timestamp::now().as_second().saturating_sub(asked);
    Duration::from_secs(u64::try_from(FORCE_AFTER_SECONDS - passed).unwrap_or(0))
}

fn shown<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{} {}", K::kind(&()), object.name_any())
}

/// Deletes an object that is not being deleted yet. What is gone is done.
async fn delete<K>(context: &Context, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    if object.meta().deletion_timestamp.is_some() {
        return Ok(());
    }
    match context.api::<K>().delete(&object.name_any(), &DeleteParams::default()).await {
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
async fn parts(edge: &EdgeCluster, context: &Context) -> Result<Vec<String>, Error> {
    let mut left = shown_all(&labelled::<Machine>(edge, context).await?);
    left.extend(shown_all(&labelled::<LibvirtMachine>(edge, context).await?));
    left.extend(shown_all(&labelled::<LibvirtCluster>(edge, context).await?));
    if !left.is_empty() {
        return Ok(left);
    }
    // Certificates and kubeconfigs belong to Cluster API's objects and go with them, sooner or later: now.
    let secrets = labelled::<Secret>(edge, context).await?;
    let of_cluster_api = |secret: &&PartialObjectMeta<Secret>| {
        secret.owner_references().iter().any(|owner| owner.api_version.contains("cluster.x-k8s.io/"))
    };
    for secret in secrets.iter().filter(of_cluster_api) {
        match context.api::<Secret>().delete(&secret.name_any(), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Vec::new())
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
    left: &[String],
    of_somebody_else: bool,
    provider: &Provider,
) -> Result<(), Error> {
    let context = &provider.context;
    let mut left = left.to_vec();
    if !of_somebody_else {
        let machines = labelled::<LibvirtMachine>(edge, context).await?;
        for machine in &machines {
            if let Some(vm) = context.api::<VirtualMachine>().get_opt(&machine.name_any()).await? {
                left.push(shown(&vm));
            }
        }
    }
    let note = format!("deleted by force; left behind: {}", left.join(", "));
    tracing::warn!(cluster = edge.name_any(), left = left.join(", "), "deleted by force: these are left behind");
    let event = Event {
        type_: EventType::Warning,
        reason: "ForceDeleted".to_owned(),
        note: Some(note.chars().take(1000).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    let recorder = Recorder::new(context.client.clone(), context.reporter.clone());
    if let Err(error) = recorder.publish(&event, &edge.object_ref(&())).await {
        tracing::warn!(%error, "cannot publish what is left behind");
    }
    if !of_somebody_else {
        for machine in labelled::<LibvirtMachine>(edge, context).await? {
            let name = machine.name_any();
            // The domain's object first: its owner's end would delete it anyway.
            let_go::<VirtualMachine>(context, &name, FINALIZER).await?;
            let_go::<LibvirtMachine>(context, &name, FINALIZER).await?;
        }
        for cluster in labelled::<LibvirtCluster>(edge, context).await? {
            let_go::<LibvirtCluster>(context, &cluster.name_any(), FINALIZER).await?;
        }
        for claim in labelled::<IPAddressClaim>(edge, context).await? {
            let_go::<IPAddress>(context, &claim.name_any(), PROTECT).await?;
            let_go::<IPAddressClaim>(context, &claim.name_any(), FINALIZER).await?;
        }
    }
    release(context, edge, FINALIZER).await
}

/// Deletes an object and takes our finalizer off.
async fn let_go<K>(context: &Context, name: &str, finalizer: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let Some(object) = context.api::<K>().get_opt(name).await? else { return Ok(()) };
    delete(context, &object).await?;
    release(context, &object, finalizer).await
}
