//! Whether the appliance has what a cluster wants of it: networks and address pools, storage pools, CPUs and memory, the
//! virtual address.

use std::net::Ipv4Addr;

use edge_api::appliance::{AddressRange, HostStatus, Network};
use edge_api::cluster_api::ApiEndpoint;
use edge_api::edge_cluster::{LoadBalancer, Placement};
use edge_api::{Appliance, IPPool, VirtualMachine};
use kube::ResourceExt as _;

use super::{Check, Pool};
use crate::cluster_api::cluster::validate as endpoint;
use crate::cluster_api::pool::allocate::{self, ValidatedPool};
use crate::errors::chain;
use crate::machine::validate::check_cpu_set;

impl<'a> Check<'a> {
    pub(super) fn placement(&mut self) {
        let placements = &self.cluster.spec.placements;
        if placements.len() != 1 {
            let found = placements.len();
            self.error(
                "spec.placements",
                format!("{found}: expected one; a second appliance is not possible in this version"),
            );
        }
        let Some(placement) = self.placement_of() else { return };
        let Some(appliance) = self.site.appliance else {
            let message =
                format!("{:?}: expected the name of an Appliance; there is none of this name", placement.appliance);
            self.error("spec.placements[0].appliance", message);
            return;
        };
        self.placement_networks(placement, appliance);
        self.storage(placement, appliance);
        self.capacity();
        self.virtual_ip(placement, appliance);
    }

    fn placement_networks(&mut self, placement: &Placement, appliance: &Appliance) {
        let known: Vec<&str> = appliance.spec.networks.iter().map(|n| n.name.as_str()).collect();
        for (index, wanted) in placement.networks.iter().enumerate() {
            let field = format!("spec.placements[0].networks[{index}]");
            match appliance.spec.networks.iter().find(|n| n.name == wanted.name) {
                None => {
                    let message =
                        format!("{:?}: expected a network of the appliance: {}", wanted.name, known.join(", "));
                    self.error(format!("{field}.name"), message);
                }
                Some(Network { name, type_, .. }) => {
                    if let Some(expected) = placement.network_type.filter(|expected| expected != type_) {
                        let message =
                            format!("{name} is of type {type_:?}: expected {expected:?}, as networkType says");
                        self.error(format!("{field}.name"), message);
                    }
                }
            }
            if let Some(pool) = &wanted.address_pool {
                self.usable_pool(&format!("{field}.addressPool"), pool);
            }
        }
    }

    /// A valid pool, none of whose addresses a network of the appliance leases by DHCP.
    fn usable_pool(&mut self, field: &str, name: &str) -> Option<ValidatedPool> {
        let pool = self.valid_pool(field, name)?;
        for network in self.site.appliance.map(|a| a.spec.networks.as_slice()).unwrap_or_default() {
            let Some(AddressRange { start, end }) = &network.dhcp else { continue };
            let range = start.parse::<Ipv4Addr>().ok().zip(end.parse::<Ipv4Addr>().ok());
            if range.is_some_and(|(first, last)| pool.overlaps(first, last)) {
                let message = format!(
                    "IPPool {name}, {}, overlaps with the DHCP range of network {}, {start} to {end}: expected \
                     addresses apart",
                    pool.display(),
                    network.name
                );
                self.error(field, message);
            }
        }
        Some(pool)
    }

    /// A pool that exists and makes sense.
    fn valid_pool(&mut self, field: &str, name: &str) -> Option<ValidatedPool> {
        let Some(pool) = self.site.pools.iter().find(|pool| pool.name_any() == name) else {
            let mut known: Vec<String> = self.site.pools.iter().map(kube::ResourceExt::name_any).collect();
            known.sort();
            let known = if known.is_empty() { "there is none".to_owned() } else { known.join(", ") };
            self.error(field, format!("{name:?}: expected an IPPool: {known}"));
            return None;
        };
        match allocate::validate(&pool.spec) {
            Ok(valid) => Some(valid),
            Err(invalid) => {
                self.error(field, format!("IPPool {name} is invalid: {}", chain(&invalid)));
                None
            }
        }
    }

    fn storage(&mut self, placement: &Placement, appliance: &Appliance) {
        let Placement { image_pool, target_pool, data_pool, .. } = placement;
        let known: Vec<&str> = appliance.spec.storage_pools.iter().map(|p| p.name.as_str()).collect();
        for (field, pool) in
            [("imagePool", image_pool), ("targetPool", &Some(target_pool.clone())), ("dataPool", data_pool)]
        {
            let Some(pool) = pool else { continue };
            let field = format!("spec.placements[0].{field}");
            if !known.contains(&pool.as_str()) {
                let message = format!("{pool:?}: expected a storage pool of the appliance: {}", known.join(", "));
                self.error(field, message);
            } else if field.ends_with("imagePool") && *pool != appliance.spec.image_pool {
                let own = &appliance.spec.image_pool;
                self.error(field, format!("{pool:?}: expected {own:?}, the appliance's image pool; another one is not possible in this version"));
            }
        }
    }

    fn capacity(&mut self) {
        let Some(HostStatus { cpus, memory_mib: has, .. }) = self.host() else { return };
        let pools = self.pools();
        for Pool { field, hardware, .. } in &pools {
            if hardware.vcpus > *cpus {
                let message = format!("{}: expected at most {cpus}, which the host has", hardware.vcpus);
                self.error(format!("{field}.hardware.vcpus"), message);
            }
            let checked = hardware.cpu_set.as_deref().map_or(Ok(()), |set| check_cpu_set(set, Some(*cpus)));
            if let Err(invalid) = checked {
                self.error(format!("{field}.hardware.cpuSet"), chain(&invalid));
            }
        }
        let wanted: u64 = pools.iter().map(|pool| u64::from(pool.size) * pool.hardware.memory_mib).sum();
        let (own, others): (Vec<_>, Vec<_>) =
            self.site.machines.iter().partition(|vm| self.site.own_machines.contains(&vm.name_any()));
        let sum = |machines: &[&VirtualMachine]| machines.iter().map(|vm| vm.spec.memory_mib).sum::<u64>();
        // What runs already is nobody's mistake now.
        if wanted > sum(&own) && wanted + sum(&others) > *has {
            let left = has.saturating_sub(sum(&others));
            let message = format!(
                "{wanted} MiB of memory for all machines: expected at most {left} MiB, which other machines leave of the \
                 host's {has} MiB"
            );
            self.error("spec", message);
        }
    }

    fn virtual_ip(&mut self, placement: &Placement, appliance: &Appliance) {
        let host = self.cluster.spec.virtual_ip.clone();
        let field = "spec.virtualIP";
        if host.parse::<Ipv4Addr>().is_err() {
            self.error(field, format!("{host:?}: expected an IPv4 address"));
            return;
        }
        // That the network is missing is said already.
        let first = placement.networks.first();
        let Some(network) = first.and_then(|f| appliance.spec.networks.iter().find(|n| n.name == f.name)) else {
            return;
        };
        let named = |pool: &IPPool| Some((pool.name_any(), allocate::validate(&pool.spec).ok()?));
        let pools: Vec<(String, ValidatedPool)> = self.site.pools.iter().filter_map(named).collect();
        let site = endpoint::Site { network, pools: &pools, others: self.site.others };
        let endpoint = ApiEndpoint { host: host.clone(), port: 6443 };
        if let Err(refused) = endpoint::check(&self.site.own, &endpoint, &site) {
            self.error(field, format!("{host}: {}", chain(&refused)));
        }
    }

    pub(super) fn load_balancer(&mut self) {
        let Some(LoadBalancer { address_pool, addresses }) = &self.cluster.spec.load_balancer else { return };
        let valid = self.usable_pool("spec.loadBalancer.addressPool", address_pool);
        if let Some(total) = valid.map(|pool| pool.total()).filter(|total| u64::from(*addresses) > *total) {
            let message = format!("{addresses}: expected at most {total}, which IPPool {address_pool} has");
            self.error("spec.loadBalancer.addresses", message);
        }
    }

    fn host(&self) -> Option<&'a HostStatus> {
        self.site.appliance?.status.as_ref()?.host.as_ref()
    }
}
