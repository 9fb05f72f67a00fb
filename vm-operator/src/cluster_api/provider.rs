//! What the provider's reconcilers share: caches, triggers, pause, finalizers in one write with what they protect, and
//! conditions.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use edge_api::cluster_api::{ANNOTATION_PAUSED, LABEL_CLUSTER, LABEL_WATCH_FILTER};
use edge_api::condition::{self, Condition, ConditionStatus};
use edge_api::{ClusterProfile, EdgeCluster, IPPool, LibvirtCluster, LibvirtMachine};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::controller::Action as Next;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell, mpsc};

use super::upstream::{Cluster, IPAddress, IPAddressClaim, Machine};
use crate::context::{self, Context};
use crate::edge_cluster::layers::Runner;
use crate::reconcile::{Error, is_moved};
use crate::status::FIELD_MANAGER;

/// Value of the watch-filter label by which an object is ours; one without the label is ours too.
pub const WATCH_FILTER: &str = "vm-operator";

/// An object that may be malformed.
pub type Guarded<K> = DeserializeGuard<K>;

/// Caches of what the API server has.
pub struct Stores {
    /// Pools.
    pub pools: Store<Guarded<IPPool>>,
    /// Claims.
    pub claims: Store<Guarded<IPAddressClaim>>,
    /// Addresses given out.
    pub addresses: Store<Guarded<IPAddress>>,
    /// Infrastructure of clusters.
    pub clusters: Store<Guarded<LibvirtCluster>>,
    /// Infrastructure of machines.
    pub machines: Store<Guarded<LibvirtMachine>>,
    /// Cluster API's clusters.
    pub owner_clusters: Store<Guarded<Cluster>>,
    /// Cluster API's machines.
    pub owner_machines: Store<Guarded<Machine>>,
    /// What people want.
    pub edge_clusters: Store<Guarded<EdgeCluster>>,
    /// Of which layers.
    pub profiles: Store<Guarded<ClusterProfile>>,
}

/// Sends of the trigger channels.
pub struct Triggers {
    /// Pools to look at.
    pub pools: mpsc::UnboundedSender<ObjectRef<Guarded<IPPool>>>,
    /// Claims to look at.
    pub claims: mpsc::UnboundedSender<ObjectRef<Guarded<IPAddressClaim>>>,
    /// Clusters to look at.
    pub clusters: mpsc::UnboundedSender<ObjectRef<Guarded<LibvirtCluster>>>,
    /// Machines to look at.
    pub machines: mpsc::UnboundedSender<ObjectRef<Guarded<LibvirtMachine>>>,
    /// Clusters that people want to look at.
    pub edge_clusters: mpsc::UnboundedSender<ObjectRef<Guarded<EdgeCluster>>>,
}

/// Everything the provider's reconcilers share.
pub struct Provider {
    /// What all reconcilers share.
    pub context: Arc<Context>,
    /// Caches.
    pub stores: Stores,
    /// Set once every cache has been filled.
    pub filled: OnceCell<()>,
    /// Triggers.
    pub triggers: Triggers,
    /// Held while it is decided who gets an address: pools may overlap.
    pub allocating: Mutex<()>,
    /// Held while endpoints are compared and virtual router IDs allocated.
    pub endpoints: Mutex<()>,
    /// Held while images of clusters are made or found to be unused.
    pub images: Mutex<()>,
    /// Keeps the layers of clusters.
    pub layers: Runner,
}

/// A kind that the provider reconciles. Unlike other kinds it may be paused, in which case nothing is written but that.
pub trait Provide:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Brings an object to what its specification says, or on its way out.
    fn bring(&self, provider: &Provider) -> impl Future<Output = Result<Next, Error>> + Send;
}

/// One look at an object.
pub async fn reconcile<K: Provide>(guard: Arc<Guarded<K>>, provider: Arc<Provider>) -> Result<Next, Error> {
    let Ok(object) = &guard.0 else { return Ok(Next::await_change()) };
    if object.labels().get(LABEL_WATCH_FILTER).is_some_and(|value| value != WATCH_FILTER) {
        return Ok(Next::await_change());
    }
    if is_moved(object) {
        return Ok(Next::await_change());
    }
    provider.synced().await;
    let next = object.bring(&provider).await?;
    provider.context.backoff.reset(&(K::kind(&()), object.name_any()));
    Ok(next)
}

impl Provider {
    /// Waits until every cache is filled: before that, what is missing in one may well exist.
    pub async fn synced(&self) {
        self.context.synced().await;
        let Stores {
            pools,
            claims,
            addresses,
            clusters,
            machines,
            owner_clusters,
            owner_machines,
            edge_clusters,
            profiles,
        } = &self.stores;
        let look = || async {
            let all = async {
                tokio::join!(
                    pools.wait_until_ready(),
                    claims.wait_until_ready(),
                    addresses.wait_until_ready(),
                    clusters.wait_until_ready(),
                    machines.wait_until_ready(),
                    owner_clusters.wait_until_ready(),
                    owner_machines.wait_until_ready(),
                    edge_clusters.wait_until_ready(),
                    profiles.wait_until_ready()
                )
            };
            // A store wakes only who asked last: whoever waits here looks again by itself.
            tokio::time::timeout(Duration::from_millis(100), all).await.map(drop)
        };
        self.filled.get_or_init(|| async { while look().await.is_err() {} }).await;
    }

    /// An object from a cache.
    pub fn get<K>(&self, store: &Store<Guarded<K>>, name: &str) -> Option<K>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        context::get(store, &self.context.namespace, name)
    }

    /// Sends a trigger. The receiver is gone only while the process ends.
    pub fn wake<K: Resource<DynamicType = ()>>(&self, to: &mpsc::UnboundedSender<ObjectRef<K>>, name: &str) {
        let _ending = to.send(ObjectRef::new(name).within(&self.context.namespace));
    }

    /// When to look again behind the events.
    pub fn resync(&self) -> Next {
        Next::requeue(self.context.times.resync)
    }
}

/// Objects of a cache that can be read and are wanted.
pub fn list<K>(store: &Store<Guarded<K>>, wanted: impl Fn(&K) -> bool) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let all = store.state();
    all.iter().filter_map(|guard| guard.0.as_ref().ok()).filter(|object| wanted(object)).cloned().collect()
}

/// The owner of a kind of Cluster API's core.
pub fn owner<'a>(meta: &'a ObjectMeta, kind: &str) -> Option<&'a OwnerReference> {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.kind == kind && o.api_version.starts_with("cluster.x-k8s.io/"))
}

/// Name of the cluster that an object belongs to, by its label.
pub fn cluster_label(meta: &ObjectMeta) -> Option<&str> {
    meta.labels.as_ref()?.get(LABEL_CLUSTER).map(String::as_str)
}

/// Whether an object has an owner with this UID.
pub fn is_owned(meta: &ObjectMeta, uid: Option<&str>) -> bool {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    uid.is_some() && owners.iter().any(|o| Some(o.uid.as_str()) == uid)
}

/// Whether nobody may act on an object: its cluster is paused, or one of both carries the annotation.
pub fn is_paused(cluster: Option<&Cluster>, object: &ObjectMeta) -> bool {
    let annotated = |meta: &ObjectMeta| meta.annotations.as_ref().is_some_and(|a| a.contains_key(ANNOTATION_PAUSED));
    annotated(object) || cluster.is_some_and(|c| c.spec.paused == Some(true) || annotated(&c.metadata))
}

/// Reference from what an object makes to the object itself.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K, controller: bool) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        controller: Some(controller),
        block_owner_deletion: Some(true),
    }
}

/// An error of a write that only tells that the object is another one by now.
pub fn outdated(error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) if matches!(status.code, 404 | 409) => Error::Outdated(status.message),
        other => other.into(),
    }
}

/// Puts a finalizer and what `spec` asks for into an object, in one write and only where something is missing. What is
/// returned is the object as it is now.
pub async fn hold<K>(
    context: &Context,
    object: &K,
    finalizer: &str,
    spec: impl FnOnce(&K) -> Option<Value>,
) -> Result<K, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let (api, name) = (context.api::<K>(), object.name_any());
    let live = api.get_opt(&name).await?.filter(|live| live.uid() == object.uid());
    let Some(live) = live.filter(|live| live.meta().deletion_timestamp.is_none()) else {
        return Err(Error::Outdated(format!("{} {name} is going", K::kind(&()))));
    };
    let change = spec(&live);
    let mut finalizers = live.finalizers().to_vec();
    let held = finalizers.iter().any(|f| f == finalizer);
    if held && change.is_none() {
        return Ok(live);
    }
    if !held {
        finalizers.push(finalizer.to_owned());
    }
    let mut patch = json!({ "metadata": { "resourceVersion": live.resource_version(), "finalizers": finalizers } });
    if let Some(change) = change {
        patch["spec"] = change;
    }
    api.patch(&name, &updating(), &Patch::Merge(&patch)).await.map_err(outdated)
}

/// Takes a finalizer off. What is gone is done.
pub async fn release<K>(context: &Context, object: &K, finalizer: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let (api, name) = (context.api::<K>(), object.name_any());
    let live = api.get_metadata_opt(&name).await?.filter(|live| live.uid() == object.uid());
    let Some(live) = live.filter(|live| live.finalizers().iter().any(|f| f == finalizer)) else { return Ok(()) };
    let left: Vec<&String> = live.finalizers().iter().filter(|f| *f != finalizer).collect();
    let patch = json!({ "metadata": { "resourceVersion": live.resource_version(), "finalizers": left } });
    match api.patch(&name, &updating(), &Patch::Merge(&patch)).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(outdated(error)),
    }
    if let Some(uid) = object.uid() {
        context.written.forget(&uid);
    }
    Ok(())
}

fn updating() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// What a condition says. Unlike [`Verdict`](crate::status::Verdict) it may pass on a reason of another object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Reason in `CamelCase`.
    pub reason: String,
    /// What a person reads.
    pub message: String,
}

impl Finding {
    /// It holds.
    pub fn yes(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::True, reason: reason.into(), message: message.into() }
    }

    /// It does not hold.
    pub fn no(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::False, reason: reason.into(), message: message.into() }
    }

    /// What another object's condition says.
    pub fn of(condition: &Condition) -> Self {
        let Condition { type_: _, status, reason, message, last_transition_time: _, observed_generation: _ } =
            condition;
        Self { status: *status, reason: reason.clone(), message: message.clone() }
    }

    /// Whether an object is paused.
    pub fn paused(paused: bool) -> Self {
        if paused {
            Self::yes("Paused", "the cluster or this object is paused; nothing is done about it until it is not")
        } else {
            Self::no("NotPaused", "")
        }
    }

    /// Puts it into a list of conditions.
    pub fn put(&self, conditions: &mut Vec<Condition>, type_: &str, generation: Option<i64>) {
        let Self { status, reason, message } = self;
        condition::set(
            conditions,
            Condition {
                type_: type_.to_owned(),
                status: *status,
                reason: reason.clone(),
                message: message.clone(),
                last_transition_time: Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default(),
                observed_generation: generation,
            },
        );
    }
}

/// Names for a message: a few, and how many more.
pub fn names(mut names: Vec<String>) -> String {
    const SHOWN: usize = 5;
    names.sort();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let shown = names.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_pause() {
        let cluster = |spec: Value, annotations: Value| -> Cluster {
            serde_json::from_value(json!({
                "apiVersion": "cluster.x-k8s.io/v1beta2", "kind": "Cluster",
                "metadata": { "name": "c", "annotations": annotations }, "spec": spec,
            }))
            .unwrap()
        };
        let meta = |annotations: Value| -> ObjectMeta {
            serde_json::from_value(json!({ "annotations": annotations })).unwrap()
        };
        let paused = json!({ ANNOTATION_PAUSED: "" });
        let running = cluster(json!({}), json!({}));
        assert!(!is_paused(Some(&running), &meta(json!({}))));
        assert!(!is_paused(None, &meta(json!({}))));
        assert!(is_paused(Some(&running), &meta(paused.clone())));
        assert!(is_paused(Some(&cluster(json!({ "paused": true }), json!({}))), &meta(json!({}))));
        assert!(is_paused(Some(&cluster(json!({}), paused)), &meta(json!({}))));
    }

    #[test]
    fn many_names_are_cut_short() {
        assert_eq!(names(vec!["b".into(), "a".into()]), "a, b");
        assert_eq!(names((0..9).map(|n| n.to_string()).collect()), "0, 1, 2, 3, 4 and 4 more");
    }
}
