//! Takes away what a layer no longer has, and layers that the profile no longer has: only what carries our mark.

use std::collections::BTreeSet;
use std::time::Duration;

use edge_api::names::LABEL_LAYER;
use kube::ResourceExt;
use kube::api::{DeleteParams, DynamicObject, Preconditions, PropagationPolicy};

use crate::cluster::Cluster;
use crate::error::Failure;
use crate::inventory::{Inventory, Item, Key};
use crate::objects::{Live, same};
use crate::release::records;
use crate::{Context, Report};

/// Annotation that Helm puts on what is in a release.
const HELM_RELEASE: &str = "meta.helm.sh/release-name";
/// Helm's annotation with the release's namespace.
const HELM_NAMESPACE: &str = "meta.helm.sh/release-namespace";
/// Annotation by which a chart keeps an object beyond its release.
const HELM_KEEP: &str = "helm.sh/resource-policy";
/// How long hooks of a removal may take.
const UNINSTALL: Duration = Duration::from_mins(5);

/// Removes objects that an inventory lists and the layer no longer has.
pub(crate) async fn objects(
    cluster: &mut Cluster,
    inventory: &mut Inventory,
    live: &[Live],
    wanted: &BTreeSet<Key>,
    report: &mut Report,
) -> Result<(), Failure> {
    let keep: BTreeSet<_> = live.iter().map(|one| one.item.key()).collect();
    let (kept, lost): (Vec<_>, Vec<_>) = inventory.items.iter().cloned().partition(|item| keep.contains(&item.key()));
    for item in lost.iter().rev() {
        remove(cluster, inventory, item, wanted, report).await?;
    }
    inventory.items = kept;
    Ok(())
}

/// Removes a layer that the profile no longer has.
pub(crate) async fn layer(
    ctx: &Context,
    cluster: &mut Cluster,
    mut inventory: Inventory,
    wanted: &BTreeSet<Key>,
    report: &mut Report,
) -> Result<(), Failure> {
    tracing::info!(layer = inventory.layer, "the profile no longer has this layer");
    // What an interrupted upgrade left is known by the inventory alone, so it goes before the release is forgotten.
    let items = inventory.items.clone();
    if inventory.release.is_some() {
        release_itself(ctx, &inventory, report).await?;
    }
    for item in items.iter().rev() {
        remove(cluster, &inventory, item, wanted, report).await?;
    }
    inventory.items.clear();
    inventory.forget(cluster).await
}

/// Removes the release of a layer that is no chart any more, with what is left of it.
pub(crate) async fn release(
    ctx: &Context,
    cluster: &mut Cluster,
    inventory: &mut Inventory,
    report: &mut Report,
) -> Result<(), Failure> {
    release_itself(ctx, inventory, report).await?;
    for item in inventory.items.clone().iter().rev() {
        remove(cluster, inventory, item, &BTreeSet::new(), report).await?;
    }
    inventory.items.clear();
    inventory.release = None;
    Ok(())
}

async fn release_itself(ctx: &Context, inventory: &Inventory, report: &mut Report) -> Result<(), Failure> {
    let Some(release) = &inventory.release else { return Ok(()) };
    let found = records(&ctx.client, &release.name, &release.namespace).await?;
    // Gone already, or taken over by somebody else.
    let Some(newest) = found.last() else { return Ok(()) };
    if newest.label(LABEL_LAYER) != Some(&inventory.layer) {
        return Ok(());
    }
    ctx.helm()?.uninstall(&release.name, &release.namespace, UNINSTALL).await.map_err(Failure::Helm)?;
    report.pruned.push(format!("Release {}/{}", release.namespace, release.name));
    Ok(())
}

/// Removes one object, unless another layer wants it, or it is not (any more) this layer's.
async fn remove(
    cluster: &mut Cluster,
    inventory: &Inventory,
    item: &Item,
    wanted: &BTreeSet<Key>,
    report: &mut Report,
) -> Result<(), Failure> {
    let listed = item.key();
    if wanted.iter().any(|key| same(key, &listed)) {
        return Ok(());
    }
    let kind = match cluster.kind(&item.api_version, &item.kind).await {
        Ok(kind) => kind,
        // With its kind the object went as well, unless the API server only does not serve it now (law 2).
        Err(unknown @ Failure::UnknownKind { .. }) => {
            return if cluster.is_registered(&item.api_version).await? { Err(unknown) } else { Ok(()) };
        }
        Err(other) => return Err(other),
    };
    let api = kind.api(&cluster.client, &item.namespace);
    let shown = item.shown();
    let Some(live) = api.get_metadata_opt(&item.name).await.map_err(Failure::api("read", &shown))? else {
        return Ok(());
    };
    let live = DynamicObject { types: None, metadata: live.metadata, data: serde_json::Value::Null };
    if !is_ours(&live, inventory) || live.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        // Exactly the object that was looked at.
        preconditions: Some(Preconditions { uid: live.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(&item.name, &params).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        result => {
            result.map_err(Failure::api("remove", &shown))?;
            tracing::info!(object = shown, layer = inventory.layer, "removed");
            report.pruned.push(shown);
            Ok(())
        }
    }
}

/// Our label on what we applied; Helm's annotations on what a release of ours brought.
fn is_ours(live: &DynamicObject, inventory: &Inventory) -> bool {
    if live.labels().get(LABEL_LAYER) == Some(&inventory.layer) {
        return true;
    }
    let Some(release) = &inventory.release else { return false };
    let annotation = |key: &str| live.annotations().get(key).map(String::as_str);
    annotation(HELM_RELEASE) == Some(&release.name)
        && annotation(HELM_NAMESPACE) == Some(&release.namespace)
        && annotation(HELM_KEEP) != Some("keep")
}
