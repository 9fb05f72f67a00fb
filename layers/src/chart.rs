//! Chart layers: a Helm release is brought up to date only when its digest or its state says so (D14).
//!
//! | newest record | then |
//! |---|---|
//! | none | install |
//! | `deployed`, our digest, every object there | nothing |
//! | `deployed` otherwise, `failed`, `superseded` | upgrade |
//! | `pending-…`: Helm was killed at work | forget that record, upgrade; what it had made is adopted |
//! | `uninstalling`: the same | finish that, install |

use std::path::Path;

use edge_api::agent::StepState;
use edge_api::names::{ANNOTATION_DIGEST, LABEL_LAYER, LABEL_PROFILE};
use serde_json::Value;

use crate::Pass;
use crate::cluster::Kind;
use crate::error::Failure;
use crate::helm::Upgrade;
use crate::inventory::{Inventory, Item, Release};
use crate::objects::{Live, with_types};
use crate::release::{ChartObject, Record, records};

/// Sees to it that a release is as wanted.
pub(crate) async fn ensure(
    pass: &mut Pass<'_>,
    inventory: &mut Inventory,
    chart: &Path,
    release: &str,
    namespace: &str,
    values: &Value,
) -> Result<Vec<Live>, Failure> {
    let ctx = pass.ctx;
    let helm = ctx.helm()?;
    let digest = label_digest(&pass.layer.digest);
    let client = pass.cluster.client.clone();
    let found = records(&client, release, namespace).await?;
    let newest = found.last();
    if newest.is_some_and(|record| record.label(LABEL_LAYER).is_none()) {
        return Err(Failure::ReleaseNotOurs { name: release.to_owned(), namespace: namespace.to_owned() });
    }
    if let Some(record) = newest
        && record.status == "deployed"
        && record.label(ANNOTATION_DIGEST) == Some(&digest)
        && let (live, true) = look(pass, record, namespace).await?
    {
        list(inventory, release, namespace, &live);
        inventory.save(pass.cluster).await?;
        return Ok(live);
    }

    // Intent before the act (law 1).
    inventory.release = Some(Release { name: release.to_owned(), namespace: namespace.to_owned() });
    inventory.save(pass.cluster).await?;
    if let Some(record) = newest
        && record.is_unfinished()
    {
        recover(pass, inventory, record, release, namespace).await?;
    }
    pass.tell(StepState::Running, &format!("upgrades the release {release} in namespace {namespace}"));
    let labels = [
        (LABEL_LAYER, pass.layer.name.clone()),
        (LABEL_PROFILE, pass.layer.profile.clone()),
        (ANNOTATION_DIGEST, digest),
    ];
    let upgrade = Upgrade { release, namespace, chart, values, labels: &labels, timeout: pass.layer.timeout };
    helm.upgrade(&upgrade).await.map_err(Failure::Helm)?;
    tracing::info!(release, namespace, layer = pass.layer.name, "release written");
    pass.report.written.push(format!("Release {namespace}/{release}"));

    let found = records(&client, release, namespace).await?;
    let Some(record) = found.last() else {
        let object = format!("release {release}");
        return Err(Failure::Malformed { object, reason: "Helm left no record".to_owned() });
    };
    let (live, _) = look(pass, record, namespace).await?;
    list(inventory, release, namespace, &live);
    inventory.save(pass.cluster).await?;
    Ok(live)
}

/// The objects of a release that are there, and whether all are.
async fn look(pass: &mut Pass<'_>, record: &Record, namespace: &str) -> Result<(Vec<Live>, bool), Failure> {
    let mut live = Vec::new();
    let mut complete = true;
    for object in record.objects()? {
        let Some((kind, item)) = item(pass, object, namespace).await? else {
            complete = false;
            continue;
        };
        let api = kind.api(&pass.cluster.client, &item.namespace);
        match api.get_opt(&item.name).await.map_err(Failure::api("read", item.shown()))? {
            Some(object) => live.push(Live { kind, object: with_types(object, &item), item }),
            None => complete = false,
        }
    }
    Ok((live, complete))
}

/// The kind of a chart's object and its place; nothing where the cluster does not have that kind (any more).
async fn item(pass: &mut Pass<'_>, object: ChartObject, default: &str) -> Result<Option<(Kind, Item)>, Failure> {
    let ChartObject { api_version, kind, namespace, name } = object;
    let found = match pass.cluster.kind(&api_version, &kind).await {
        Ok(found) => found,
        Err(Failure::UnknownKind { .. }) => return Ok(None),
        Err(other) => return Err(other),
    };
    let namespace = if found.namespaced { namespace.unwrap_or_else(|| default.to_owned()) } else { String::new() };
    Ok(Some((found, Item { api_version, kind, namespace, name, fields: None })))
}

/// Helm was killed in the middle.
async fn recover(
    pass: &mut Pass<'_>,
    inventory: &mut Inventory,
    record: &Record,
    release: &str,
    namespace: &str,
) -> Result<(), Failure> {
    tracing::warn!(
        release,
        namespace,
        status = record.status,
        revision = record.revision,
        "release was left unfinished"
    );
    pass.tell(StepState::Running, &format!("recovers the release {release}, left {}", record.status));
    if record.status == "uninstalling" {
        return pass.ctx.helm()?.uninstall(release, namespace, pass.layer.timeout).await.map_err(Failure::Helm);
    }
    // What this revision may have made stays known, so that what the next one lacks is pruned; only then it goes.
    for object in record.objects()? {
        if let Some((_, item)) = item(pass, object, namespace).await?
            && inventory.find(&item.key()).is_none()
        {
            inventory.put(item);
        }
    }
    inventory.save(pass.cluster).await?;
    record.forget(&pass.cluster.client).await
}

/// Takes the objects of a release into the inventory; those that it lost stay until they are pruned.
fn list(inventory: &mut Inventory, release: &str, namespace: &str, live: &[Live]) {
    inventory.release = Some(Release { name: release.to_owned(), namespace: namespace.to_owned() });
    for one in live {
        inventory.put(one.item.clone());
    }
}

/// A label's value has at most 63 characters; that of the digest has one more.
fn label_digest(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(63).collect()
}
