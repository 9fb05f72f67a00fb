//! What may be asked of a cluster as it is now. Pure.

use axum::http::StatusCode;
use edge_api::EdgeCluster;
use edge_api::agent::{Cluster, ClusterChange, ClusterRemoval};
use edge_api::names::ANNOTATION_FORCE_DELETE;
use edge_client::cluster::{never_ready, until_force};
use edge_client::span;
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::Refusal;

/// What is to be done about a removal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Removal {
    /// The object is deleted.
    Delete,
    /// The object, which is being deleted, is marked.
    Force,
    /// It goes already.
    Nothing,
}

/// Decides by.
pub fn removal(object: &EdgeCluster, asked: ClusterRemoval, now: Timestamp) -> Result<Removal, Refusal> {
    let ClusterRemoval { abort, force } = asked;
    let cluster = Cluster::from(object);
    let name = &cluster.name;
    if let Some(since) = cluster.deleting_since {
        if !force || object.annotations().contains_key(ANNOTATION_FORCE_DELETE) {
            return Ok(Removal::Nothing);
        }
        let left = until_force(since, now);
        if left.is_zero() {
            return Ok(Removal::Force);
        }
        let left = span(now, now + left);
        return Err(Refusal::conflict(format!("the deletion of cluster {name} cannot be forced yet, but in {left}"))
            .hint(format!("it goes on by itself; `edgectl cluster get {name}` shows what it waits for")));
    }
    if force {
        return Err(Refusal::conflict(format!("cluster {name} is not being deleted, so there is nothing to force"))
            .hint(format!("`edgectl cluster delete {name}` deletes it")));
    }
    match (never_ready(cluster.phase), abort) {
        (true, false) => Err(Refusal::conflict(format!("cluster {name} has never been ready: it can only be aborted"))
            .hint(format!("`edgectl cluster abort {name}` stops and removes everything of it"))),
        (false, true) => {
            Err(Refusal::conflict(format!("cluster {name} has been ready: it cannot be aborted any more, but deleted"))
                .hint(format!("`edgectl cluster delete {name}` removes it with all its machines and disks")))
        }
        _ => Ok(Removal::Delete),
    }
}

/// The JSON patch of a change; it fails where the object is another one by then.
pub fn change(object: &EdgeCluster, change: &ClusterChange) -> Result<Vec<Value>, Refusal> {
    let ClusterChange { control_plane_size, worker_sizes, kubernetes_version } = change;
    let (name, spec) = (object.name_any(), &object.spec);
    if object.metadata.deletion_timestamp.is_some() {
        return Err(Refusal::conflict(format!("cluster {name} is being deleted, so nothing of it can be changed")));
    }
    let mut operations = Vec::new();
    let mut set = |path: String, is: Value, wanted: Value| {
        if is != wanted {
            operations.push(json!({"op": "add", "path": path, "value": wanted}));
        }
    };
    if let Some(size) = control_plane_size {
        set("/spec/controlPlane/size".to_owned(), json!(spec.control_plane.size), json!(size));
    }
    for (pool, size) in worker_sizes {
        let Some(index) = spec.workers.iter().position(|worker| worker.name == *pool) else {
            return Err(unknown_pool(object, pool));
        };
        set(format!("/spec/workers/{index}/size"), json!(spec.workers[index].size), json!(size));
    }
    if let Some(version) = kubernetes_version {
        set("/spec/kubernetesVersion".to_owned(), json!(spec.kubernetes_version), json!(version));
    }
    if operations.is_empty() {
        return Err(Refusal::conflict(format!("cluster {name} is already as asked, so nothing was changed")));
    }
    operations.push(json!({
        "op": "replace", "path": "/metadata/resourceVersion", "value": object.metadata.resource_version,
    }));
    Ok(operations)
}

fn unknown_pool(object: &EdgeCluster, pool: &str) -> Refusal {
    let name = object.name_any();
    let pools: Vec<_> = object.spec.workers.iter().map(|worker| format!("`{}`", worker.name)).collect();
    let refusal = Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("cluster {name} has no pool {pool:?}"));
    if pools.is_empty() {
        return refusal.hint("it has no pools of workers");
    }
    refusal.hint(format!("it has {}", pools.join(", ")))
}

#[cfg(test)]
mod tests {
    use edge_api::edge_cluster::ClusterPhase;
    use jiff::SignedDuration;

    use super::*;
    use crate::clusters::file;

    fn shop(phase: ClusterPhase) -> EdgeCluster {
        let mut shop = file::load(include_bytes!("../../../examples/site/clusters/shop.yaml")).unwrap();
        shop.metadata.resource_version = Some("7".to_owned());
        shop.status.get_or_insert_default().phase = phase;
        shop
    }

    fn asked(abort: bool, force: bool) -> ClusterRemoval {
        ClusterRemoval { abort, force }
    }

    #[test]
    fn abort_is_for_what_was_never_ready_and_delete_for_the_rest() {
        let now = Timestamp::UNIX_EPOCH;
        for (phase, never) in [
            (ClusterPhase::Pending, true),
            (ClusterPhase::Provisioning, true),
            (ClusterPhase::Running, false),
            (ClusterPhase::Updating, false),
        ] {
            let shop = shop(phase);
            assert_eq!(removal(&shop, asked(never, false), now), Ok(Removal::Delete), "{phase:?}");
            let refused = removal(&shop, asked(!never, false), now).unwrap_err();
            let other = if never { "cluster abort shop" } else { "cluster delete shop" };
            assert!(refused.hint.unwrap().contains(other), "{phase:?}");
            assert!(removal(&shop, asked(never, true), now).unwrap_err().error.contains("not being deleted"));
        }
    }

    #[test]
    fn force_waits_for_fifteen_minutes() {
        let mut shop = shop(ClusterPhase::Running);
        let since = Timestamp::UNIX_EPOCH;
        shop.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(since));
        let at = |shop: &EdgeCluster, seconds, force| {
            removal(shop, asked(false, force), since + SignedDuration::from_secs(seconds))
        };
        assert_eq!(at(&shop, 10_000, false), Ok(Removal::Nothing));
        assert!(at(&shop, 880, true).unwrap_err().error.ends_with("cannot be forced yet, but in 20s"));
        assert_eq!(at(&shop, 900, true), Ok(Removal::Force));
        shop.annotations_mut().insert(ANNOTATION_FORCE_DELETE.to_owned(), "true".to_owned());
        assert_eq!(at(&shop, 901, true), Ok(Removal::Nothing), "it was forced before");
        assert!(change(&shop, &ClusterChange::default()).unwrap_err().error.contains("is being deleted"));
    }

    #[test]
    fn a_change_says_only_what_differs() {
        let shop = shop(ClusterPhase::Running);
        let wanted = ClusterChange {
            control_plane_size: Some(1),
            worker_sizes: [("general".to_owned(), 3)].into(),
            kubernetes_version: Some("1.36.4".to_owned()),
        };
        assert_eq!(
            change(&shop, &wanted).unwrap(),
            [
                json!({"op": "add", "path": "/spec/workers/0/size", "value": 3}),
                json!({"op": "add", "path": "/spec/kubernetesVersion", "value": "1.36.4"}),
                json!({"op": "replace", "path": "/metadata/resourceVersion", "value": "7"}),
            ]
        );
        let same = ClusterChange { control_plane_size: Some(1), ..ClusterChange::default() };
        assert!(change(&shop, &same).unwrap_err().error.contains("already as asked"));
        let unknown = ClusterChange { worker_sizes: [("gpu".to_owned(), 1)].into(), ..ClusterChange::default() };
        let refused = change(&shop, &unknown).unwrap_err();
        assert_eq!(
            (refused.error.as_str(), refused.hint.as_deref()),
            ("cluster shop has no pool \"gpu\"", Some("it has `general`"))
        );
    }
}
