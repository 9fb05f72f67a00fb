//! Whether an `EdgeCluster` makes sense on its appliance. Pure. Everything that is wrong is found
//! at once, each with its field, what was found and what was expected.

pub mod labels;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use edge_api::appliance::{AddressRange, HostStatus, Network};
use edge_api::cluster_api::ApiEndpoint;
use edge_api::edge_cluster::{Hardware, LoadBalancer, Placement, Rollout, Taint};
use edge_api::names::CLUSTER_IMAGE_PREFIX;
use edge_api::{Appliance, EdgeCluster, IPPool, VirtualMachine, VirtualMachineImage};
use ipnet::Ipv4Net;
use kube::ResourceExt as _;

use super::FieldError;
use super::profile::Resolved;
use crate::cluster_api::cluster::validate::{self as endpoint, Claimant};
use crate::cluster_api::pool::allocate::{self, ValidatedPool};
use crate::cluster_api::upstream::Cluster;
use crate::errors::chain;
use crate::libvirt::capabilities::Accelerator;
use crate::machine::validate::check_cpu_set;

/// Longest host name.
const LONGEST_NAME: usize = 63;
/// What Cluster API appends to a pool's name: of a deployment, of a set and of a machine, each a dash and five characters.
const WORKER_SUFFIX: usize = 18;
/// Of the control plane and of a machine.
const CONTROL_PLANE_SUFFIX: usize = 12;
/// Fewest CPUs of a control plane's machine: what kubeadm asks for.
const CONTROL_PLANE_CPUS: u32 = 2;
/// Fewest of an emulated one. Two emulated CPUs of one machine wait for each other wherever the host has not a CPU for each,
/// and a machine of one is the faster one there.
const EMULATED_CONTROL_PLANE_CPUS: u32 = 1;
/// Least memory of a control plane's machine: kubeadm asks for 1700 MiB of what the guest's kernel leaves.
const CONTROL_PLANE_MEMORY_MIB: u64 = 1800;

/// What a cluster is checked against.
#[derive(Clone, Debug)]
pub struct Site<'a> {
    /// The appliance of its first placement.
    pub appliance: Option<&'a Appliance>,
    /// Every pool of the namespace.
    pub pools: &'a [IPPool],
    /// The cluster itself as one that wants an address.
    pub own: Claimant,
    /// The others on the network of its virtual address.
    pub others: &'a [Claimant],
    /// Every machine of the appliance.
    pub machines: &'a [VirtualMachine],
    /// Names of those that are the cluster's own.
    pub own_machines: &'a BTreeSet<String>,
    /// The Cluster API cluster of its name.
    pub current: Option<&'a Cluster>,
    /// The image that its version boots from, where there is one.
    pub image: Option<&'a VirtualMachineImage>,
    /// Kubernetes versions in the appliance's registry; not looked for where the image is there.
    pub versions: Option<&'a [String]>,
}

struct Check<'a> {
    name: String,
    cluster: &'a EdgeCluster,
    site: &'a Site<'a>,
    errors: Vec<FieldError>,
}

/// Everything that is wrong with a cluster. What follows from its profile is looked at where that could be resolved.
pub fn validate(cluster: &EdgeCluster, resolved: Option<&Resolved>, site: &Site<'_>) -> Vec<FieldError> {
    let mut check = Check { name: cluster.name_any(), cluster, site, errors: Vec::new() };
    check.names();
    check.sizes();
    check.kubeadm();
    check.nodes();
    check.placement();
    check.load_balancer();
    check.access();
    if let Some(resolved) = resolved {
        check.version(resolved);
        check.networks(resolved);
        check.minimum_workers(resolved);
    }
    check.errors
}

/// A pool of machines, the control plane's or workers'.
struct Pool<'a> {
    field: String,
    size: u32,
    hardware: &'a Hardware,
    labels: &'a BTreeMap<String, String>,
    taints: &'a [Taint],
}

impl<'a> Check<'a> {
    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(field, message));
    }

    fn pools(&self) -> Vec<Pool<'a>> {
        let spec = &self.cluster.spec;
        let control_plane = &spec.control_plane;
        let mut pools = vec![Pool {
            field: "spec.controlPlane".to_owned(),
            size: control_plane.size,
            hardware: &control_plane.hardware,
            labels: &control_plane.labels,
            taints: &control_plane.taints,
        }];
        pools.extend(spec.workers.iter().enumerate().map(|(index, pool)| Pool {
            field: format!("spec.workers[{index}]"),
            size: pool.size,
            hardware: &pool.hardware,
            labels: &pool.labels,
            taints: &pool.taints,
        }));
        pools
    }

    fn placement_of(&self) -> Option<&'a Placement> {
        self.cluster.spec.placements.first()
    }

    fn host(&self) -> Option<&'a HostStatus> {
        self.site.appliance?.status.as_ref()?.host.as_ref()
    }

    fn names(&mut self) {
        let name = self.name.clone();
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !plain || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            let message = format!("{name:?}: expected lower-case letters, digits and dashes, the first a letter");
            self.error("metadata.name", message);
        }
        let longest = LONGEST_NAME - CONTROL_PLANE_SUFFIX;
        if name.len() > longest {
            let message = format!("{name:?} has {} characters: expected at most {longest}", name.len());
            self.error("metadata.name", format!("{message}, because machines' names grow from it"));
        }
        let mut seen = BTreeSet::new();
        for (index, pool) in self.cluster.spec.workers.iter().enumerate() {
            let field = format!("spec.workers[{index}].name");
            if !seen.insert(&pool.name) {
                self.error(&field, format!("{:?}: expected a name that no other pool has", pool.name));
            }
            let longest = LONGEST_NAME - WORKER_SUFFIX - 1;
            let both = name.len() + pool.name.len();
            if both > longest {
                let message = format!("{:?} and the cluster's name have {both} characters", pool.name);
                self.error(
                    field,
                    format!("{message}: expected at most {longest}, because machines' names grow from them"),
                );
            }
        }
        if let Some(current) = self.site.current
            && !crate::cluster_api::provider::is_owned(&current.metadata, self.cluster.uid().as_deref())
        {
            self.error(
                "metadata.name",
                format!("{name:?}: there is a Cluster of this name that belongs to nobody here"),
            );
        }
    }

    fn sizes(&mut self) {
        let spec = &self.cluster.spec;
        let size = spec.control_plane.size;
        if !matches!(size, 1 | 3 | 5) {
            self.error("spec.controlPlane.size", format!("{size}: expected 1, 3 or 5"));
        }
        if let Some(before) = self.site.current.and_then(|current| current.spec.control_plane_replicas())
            && u64::from(size) < before
        {
            let message = format!("{size}: expected at least {before}, because a control plane cannot shrink");
            self.error("spec.controlPlane.size", message);
        }
        if size == 1 && spec.control_plane.rollout == Rollout::ContractFirst {
            let message = "ContractFirst with one machine: expected ExpandFirst, or three machines or more";
            self.error("spec.controlPlane.rollout", message);
        }
        if !spec.control_plane.allow_workers && spec.workers.iter().all(|pool| pool.size == 0) {
            let message = "no machines: expected at least one worker, or spec.controlPlane.allowWorkers: true";
            self.error("spec.workers", message);
        }
    }

    /// What kubeadm asks of the machines of a control plane.
    fn kubeadm(&mut self) {
        let Hardware { vcpus, memory_mib, .. } = &self.cluster.spec.control_plane.hardware;
        let (vcpus, memory_mib) = (*vcpus, *memory_mib);
        let emulated = self.host().is_some_and(|host| host.accelerator == Accelerator::Tcg.as_str());
        let least = if emulated { EMULATED_CONTROL_PLANE_CPUS } else { CONTROL_PLANE_CPUS };
        if vcpus < least {
            let message = format!("{vcpus}: expected at least {least}, which kubeadm asks of a control plane");
            self.error("spec.controlPlane.hardware.vcpus", message);
        }
        if memory_mib < CONTROL_PLANE_MEMORY_MIB {
            let message = format!(
                "{memory_mib}: expected at least {CONTROL_PLANE_MEMORY_MIB}, of which kubeadm sees the 1700 that it asks of a control plane"
            );
            self.error("spec.controlPlane.hardware.memoryMiB", message);
        }
    }

    fn nodes(&mut self) {
        for Pool { field, hardware, labels, taints, .. } in self.pools() {
            for (key, value) in labels {
                if let Some(problem) = labels::problem(key, value) {
                    self.error(format!("{field}.labels.{key}"), problem);
                }
            }
            let mut seen = Vec::new();
            for (index, taint) in taints.iter().enumerate() {
                let Taint { key, value, effect } = taint;
                let field = format!("{field}.taints[{index}]");
                if seen.contains(&(key, effect)) {
                    self.error(&field, format!("{key}:{effect:?}: expected a key and effect that no other has"));
                }
                seen.push((key, effect));
                if !labels::is_key(key) || value.as_deref().is_some_and(|value| !labels::is_value(value)) {
                    let shown = value.as_deref().unwrap_or_default();
                    self.error(field, format!("{key}={shown}: expected a key and value as labels have them"));
                }
            }
            let mut names = BTreeSet::new();
            for (index, disk) in hardware.data_disks.iter().enumerate() {
                if !names.insert(&disk.name) {
                    let field = format!("{field}.hardware.dataDisks[{index}].name");
                    self.error(field, format!("{:?}: expected a name that no other disk of the pool has", disk.name));
                }
            }
        }
    }

    fn placement(&mut self) {
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

    fn load_balancer(&mut self) {
        let Some(LoadBalancer { address_pool, addresses }) = &self.cluster.spec.load_balancer else { return };
        let valid = self.usable_pool("spec.loadBalancer.addressPool", address_pool);
        if let Some(total) = valid.map(|pool| pool.total()).filter(|total| u64::from(*addresses) > *total) {
            let message = format!("{addresses}: expected at most {total}, which IPPool {address_pool} has");
            self.error("spec.loadBalancer.addresses", message);
        }
    }

    fn access(&mut self) {
        let spec = &self.cluster.spec;
        for (index, key) in spec.ssh_authorized_keys.iter().enumerate() {
            let parts = key.split_whitespace().count();
            if parts < 2 || key.contains(char::is_control) || key.len() > 2048 {
                let message = "expected one line of at most 2048 characters as in an authorized_keys file";
                self.error(format!("spec.sshAuthorizedKeys[{index}]"), message);
            }
        }
        for (index, server) in spec.ntp_servers.iter().enumerate() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':');
            if server.is_empty() || server.len() > 253 || !server.bytes().all(plain) {
                self.error(
                    format!("spec.ntpServers[{index}]"),
                    format!("{server:?}: expected a host name or an address"),
                );
            }
        }
    }

    fn version(&mut self, resolved: &Resolved) {
        let wanted = &resolved.version;
        let field = "spec.kubernetesVersion";
        let repository = &resolved.os.image;
        if let Some(versions) = self.site.versions.filter(|versions| !versions.contains(wanted)) {
            let known = if versions.is_empty() { "there is none".to_owned() } else { versions.join(", ") };
            let message = format!("{wanted}: expected a tag of {repository} in the appliance's registry: {known}");
            self.error(field, message);
        }
        if let Some(image) = self.site.image {
            let artifact = image.spec.artifact.split_once('@').map_or(image.spec.artifact.as_str(), |(name, _)| name);
            let appliance = self.placement_of().map_or("", |placement| placement.appliance.as_str());
            if artifact != repository || image.spec.appliance != appliance {
                let message = format!(
                    "VirtualMachineImage {CLUSTER_IMAGE_PREFIX}v{wanted} is {artifact} on Appliance {}: expected {repository} on \
                     Appliance {appliance}, which the profile {} names",
                    image.spec.appliance, resolved.profile
                );
                self.error("spec.profile", message);
            }
        }
        let current = self.site.current.and_then(|current| current.spec.version());
        let Some(current) = current.map(|v| v.trim_start_matches('v')) else { return };
        let (Some(from), Some(to)) = (numbers(current), numbers(wanted)) else { return };
        if to < from {
            self.error(
                field,
                format!("{wanted}: expected at least {current}, which the cluster has; there is no way back"),
            );
        } else if to.0 != from.0 || to.1 > from.1 + 1 {
            let message = format!(
                "{wanted}: expected at most {}.{}, because a minor version cannot be skipped from {current}",
                from.0,
                from.1 + 1
            );
            self.error(field, message);
        }
    }

    fn networks(&mut self, resolved: &Resolved) {
        let kubernetes = &resolved.kubernetes;
        let mut subnets: Vec<(String, Ipv4Net)> = Vec::new();
        for (name, text) in [("podCIDR", &kubernetes.pod_cidr), ("serviceCIDR", &kubernetes.service_cidr)] {
            match text.parse::<Ipv4Net>() {
                Ok(net) => subnets.push((name.to_owned(), net.trunc())),
                Err(_) => self.error(
                    "spec.profile",
                    format!("{name} {text:?} of the Kubernetes layer: expected a subnet, a.b.c.d/n"),
                ),
            }
        }
        let own = subnets.len();
        for network in self.site.appliance.map(|a| a.spec.networks.as_slice()).unwrap_or_default() {
            let net = network.address.as_deref().and_then(|address| address.parse::<Ipv4Net>().ok());
            subnets.extend(net.map(|net| (format!("network {} of the appliance", network.name), net.trunc())));
        }
        for (index, (name, net)) in subnets.iter().enumerate().take(own) {
            for (other, taken) in &subnets[index + 1..] {
                if net.contains(&taken.network()) || taken.contains(&net.network()) {
                    let message = format!(
                        "{name} {net} of the Kubernetes layer overlaps with {other}, {taken}: expected subnets apart"
                    );
                    self.error("spec.profile", message);
                }
            }
        }
    }

    fn minimum_workers(&mut self, resolved: &Resolved) {
        let workers: u32 = self.cluster.spec.workers.iter().map(|pool| pool.size).sum();
        if let Some((minimum, preset)) = resolved.minimum_workers.as_ref().filter(|(minimum, _)| workers < *minimum) {
            self.error(
                "spec.workers",
                format!("{workers} machines: expected at least {minimum}, which preset {preset} needs"),
            );
        }
    }
}

/// `<major>.<minor>.<patch>`.
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
pub(crate) mod tests;
