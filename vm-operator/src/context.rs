//! What every reconciler gets: client, caches, hypervisors, and the triggers by which one kind wakes another.
//!
//! One watch per kind fills one cache. Whatever else can make an object worth a look (another kind, a Secret, a
//! libvirt event) sends its reference to the kind's trigger channel:
//!
//! ```text
//!  Secret metadata ─┐
//!  Appliance ───────┼──► triggers.machines ──► machine controller
//!  image ───────────┤
//!  libvirt events ──┘
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use edge_api::{Appliance, VirtualMachine, VirtualMachineImage};
use kube::core::DeserializeGuard;
use kube::runtime::events::Reporter;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client};
use tokio::sync::{OnceCell, Semaphore, mpsc};

use crate::cluster_api::run::Touched;
use crate::errors::Backoff;
use crate::image::transfer::Locks;
use crate::libvirt::connection::Hosts;
use crate::libvirt::{self, HostFacts};
use crate::machine::memory::Memories;
use crate::status::Written;

/// Times that tests shorten.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long a guest may take to shut down before its power is cut.
    pub shutdown: Duration,
    /// Slow resync behind the events.
    pub resync: Duration,
    /// Between two looks for addresses of a guest that has some.
    pub addresses: Duration,
    /// How long a deletion must be stuck before it may be forced.
    pub force: Duration,
    /// How long it is told that a guest's bootstrap failed before its machine is given up.
    pub bootstrap: Duration,
}

/// Caches of what the API server has.
pub struct Stores {
    /// Appliances.
    pub appliances: Store<DeserializeGuard<Appliance>>,
    /// Images.
    pub images: Store<DeserializeGuard<VirtualMachineImage>>,
    /// Machines.
    pub machines: Store<DeserializeGuard<VirtualMachine>>,
}

/// Sends of the trigger channels.
#[derive(Clone)]
pub struct Triggers {
    /// Appliances to look at.
    pub appliances: mpsc::UnboundedSender<ObjectRef<DeserializeGuard<Appliance>>>,
    /// Images to look at.
    pub images: mpsc::UnboundedSender<ObjectRef<DeserializeGuard<VirtualMachineImage>>>,
    /// Machines to look at.
    pub machines: mpsc::UnboundedSender<ObjectRef<DeserializeGuard<VirtualMachine>>>,
    /// What Cluster API's provider hears of.
    pub provider: mpsc::UnboundedSender<Touched>,
}

/// Everything the reconcilers share.
pub struct Context {
    /// API server.
    pub client: Client,
    /// Namespace that is watched.
    pub namespace: String,
    /// As whom Kubernetes events are published.
    pub reporter: Reporter,
    /// Hypervisors by URI.
    pub hosts: Hosts,
    /// Caches.
    pub stores: Stores,
    /// Set once every cache has been filled.
    pub filled: OnceCell<()>,
    /// What was written last.
    pub written: Written,
    /// Failures by kind and name.
    pub backoff: Backoff<(Cow<'static, str>, String)>,
    /// Locks of image volumes.
    pub locks: Locks,
    /// Images that may be transferred at once: each costs CPU for hashing and disk bandwidth.
    pub transfers: Semaphore,
    /// What is remembered of machines between reconciles; losing it costs time only.
    pub memories: Memories,
    /// Capacity of hosts by URI, read once per connection.
    pub facts: Mutex<HashMap<String, HostFacts>>,
    /// Times.
    pub times: Times,
}

impl Context {
    /// API for a kind in the watched namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// An appliance from the cache.
    pub fn appliance(&self, name: &str) -> Option<Appliance> {
        get(&self.stores.appliances, &self.namespace, name)
    }

    /// An image from the cache.
    pub fn image(&self, name: &str) -> Option<VirtualMachineImage> {
        get(&self.stores.images, &self.namespace, name)
    }

    /// Capacity of a host, read once per connection.
    pub async fn facts(&self, uri: &str) -> Result<HostFacts, libvirt::Error> {
        let known = self.facts.lock().unwrap_or_else(PoisonError::into_inner).get(uri).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let read = self.hosts.get(uri).call(|libvirt| libvirt.host()).await?;
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).insert(uri.to_owned(), read.clone());
        Ok(read)
    }

    /// Forgets the capacity of a host, because it may be another one now.
    pub fn forget_facts(&self, uri: &str) {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).remove(uri);
    }

    /// Waits until every cache is filled: before that, what is missing in one may well exist.
    pub async fn synced(&self) {
        let Stores { appliances, images, machines } = &self.stores;
        // A store wakes only who asked last, and the controllers ask as well: whoever waits here looks again by itself.
        let look = || async {
            // An error means that a watch ended, with which the process ends.
            let all = async {
                tokio::join!(appliances.wait_until_ready(), images.wait_until_ready(), machines.wait_until_ready())
            };
            tokio::time::timeout(Duration::from_millis(100), all).await.map(drop)
        };
        self.filled.get_or_init(|| async { while look().await.is_err() {} }).await;
    }

    /// Names of the machines that can be read and are meant. Names, because there may be thousands, and this is asked
    /// with every event.
    pub fn machines(&self, meant: impl Fn(&VirtualMachine) -> bool) -> Vec<String> {
        let all = self.stores.machines.state();
        let readable = all.iter().filter_map(|guard| guard.0.as_ref().ok());
        readable.filter(|machine| meant(machine)).map(kube::ResourceExt::name_any).collect()
    }

    /// All images that can be read.
    pub fn images(&self) -> Vec<VirtualMachineImage> {
        self.stores.images.state().iter().filter_map(|guard| guard.0.as_ref().ok().cloned()).collect()
    }
}

/// An object of a cache that can be read.
pub fn get<K>(store: &Store<DeserializeGuard<K>>, namespace: &str, name: &str) -> Option<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    let reference = ObjectRef::<DeserializeGuard<K>>::new(name).within(namespace);
    store.get(&reference).and_then(|guard| guard.0.as_ref().ok().cloned())
}
