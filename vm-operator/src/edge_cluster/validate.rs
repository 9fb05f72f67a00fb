//! Whether an `EdgeCluster` makes sense on its appliance. Pure. Everything that is wrong is found
//! at once, each with its field, what was found and what was expected.

pub mod labels;
mod placement;

use std::collections::{BTreeMap, BTreeSet};

use edge_api::edge_cluster::{Hardware, Placement, Rollout, Taint};
use edge_api::names::CLUSTER_IMAGE_PREFIX;
use edge_api::{Appliance, EdgeCluster, IPPool, VirtualMachine, VirtualMachineImage};
use ipnet::Ipv4Net;
use kube::ResourceExt as _;

use super::FieldError;
use super::profile::Resolved;
use crate::appliance::status::emulates;
use crate::cluster_api::cluster::validate::Claimant;
use crate::cluster_api::upstream::Cluster;

/// Longest host name.
const LONGEST_NAME: usize = 63;
/// What Cluster API appends to a pool's name: of a deployment, of a set and of a machine, each a dash and five characters.
const WORKER_SUFFIX: usize = 18;
/// Of the control plane and of a machine.
const CONTROL_PLANE_SUFFIX: usize = 12;
/// Fewest CPUs of a control plane's machine: what kubeadm asks for. An emulated one may have one: two wait for each other
/// wherever the host has not a CPU for each.
const CONTROL_PLANE_CPUS: u32 = 2;
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
        if vcpus < CONTROL_PLANE_CPUS && !self.site.appliance.is_some_and(emulates) {
            let message =
                format!("{vcpus}: expected at least {CONTROL_PLANE_CPUS}, which kubeadm asks of a control plane");
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
