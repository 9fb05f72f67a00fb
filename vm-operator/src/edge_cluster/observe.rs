//! What there is of a cluster, by the caches.

use edge_api::agent::Application;
use edge_api::edge_cluster::ClusterTask;
use edge_api::{EdgeCluster, LibvirtCluster, LibvirtMachine, VirtualMachine, VirtualMachineImage};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::image;
use super::layers::pending;
use super::profile::Resolved;
use super::tasks::{self, Observed, ObservedMachine};
use crate::cluster_api::cluster::reconcile::cluster_name;
use crate::cluster_api::provider::{Provider, is_owned, list};
use crate::cluster_api::upstream::{Cluster, Machine};
use crate::context;

/// Everything that belongs to an `EdgeCluster`.
pub struct Scene {
    /// Cluster API's cluster.
    pub cluster: Option<Cluster>,
    /// Its layers.
    pub layers: Vec<Application>,
    infrastructure: Option<LibvirtCluster>,
    image: Option<VirtualMachineImage>,
    machines: Vec<(Machine, Option<LibvirtMachine>, Option<VirtualMachine>)>,
}

impl Scene {
    /// Looks at a cluster whose Cluster may be newer than the cache has it.
    pub fn look(
        edge: &EdgeCluster,
        cluster: Option<&Cluster>,
        resolved: Option<&Resolved>,
        provider: &Provider,
    ) -> Self {
        let (stores, uid, name) = (&provider.stores, edge.uid().unwrap_or_default(), edge.name_any());
        if cluster.is_some_and(|cluster| !is_owned(&cluster.metadata, Some(&uid))) {
            // A cluster of somebody else says nothing of this one.
            let (infrastructure, machines) = (None, Vec::new());
            return Self { cluster: None, layers: Vec::new(), infrastructure, image: None, machines };
        }
        let machine = |machine: Machine| {
            let name = machine.name_any();
            let libvirt = provider.get(&stores.machines, &name);
            let vm = context::get(&provider.context.stores.machines, &provider.context.namespace, &name);
            (machine, libvirt, vm)
        };
        let machines = list(&stores.owner_machines, |machine| machine.spec.cluster_name == name);
        let mut layers = provider.layers.states(&uid);
        if let (true, Some(resolved)) = (layers.is_empty(), resolved) {
            layers = pending(&resolved.layers);
        }
        Self {
            cluster: cluster.cloned(),
            layers,
            infrastructure: list(&stores.clusters, |found| cluster_name(found) == Some(&name)).pop(),
            image: resolved.and_then(|resolved| provider.context.image(&image::name(&resolved.version))),
            machines: machines.into_iter().map(machine).collect(),
        }
    }

    /// What has to be done. `previous` is the tree before.
    pub fn tasks(&self, deleting: bool, previous: &[ClusterTask]) -> Vec<ClusterTask> {
        let Self { cluster, layers, infrastructure, image, machines } = self;
        let machines = machines.iter().map(|(machine, libvirt, vm)| ObservedMachine {
            machine,
            libvirt: libvirt.as_ref(),
            vm: vm.as_ref(),
        });
        let observed = Observed {
            cluster: cluster.as_ref(),
            infrastructure: infrastructure.as_ref(),
            image: image.as_ref(),
            machines: machines.collect(),
            layers,
            deleting,
        };
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        tasks::tree(&observed, previous, now)
    }
}
