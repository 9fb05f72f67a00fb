//! What an appliance's status says.

use edge_api::Appliance;
use edge_api::appliance::{ApplianceStatus, HostStatus, StoragePoolStatus};

use super::plan::Obstacle;
use super::validate::ValidatedAppliance;
use crate::libvirt::capabilities::Accelerator;
use crate::libvirt::{HostFacts, PoolFacts};
use crate::status::{Verdict, set};

/// What was found out in one reconcile.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Whether libvirt is connected.
    pub connected: Verdict,
    /// Whether all networks are as wanted.
    pub networks: Verdict,
    /// Whether all pools are as wanted.
    pub pools: Verdict,
    /// The host, where it could be read.
    pub host: Option<HostStatus>,
    /// Pools, where they could be read.
    pub storage_pools: Option<Vec<StoragePoolStatus>>,
}

impl Findings {
    /// libvirt could not be asked.
    pub fn unreachable(message: &str) -> Self {
        let unknown = || Verdict::unknown("NotConnected", "libvirt cannot be asked");
        Self {
            connected: Verdict::no("NotConnected", message),
            networks: unknown(),
            pools: unknown(),
            host: None,
            storage_pools: None,
        }
    }

    /// libvirt answers, and not as it should.
    pub fn failing(message: &str) -> Self {
        let failed = || Verdict::unknown("LibvirtError", message);
        Self {
            connected: Verdict::yes("Connected", "libvirt answers"),
            networks: failed(),
            pools: failed(),
            host: None,
            storage_pools: None,
        }
    }

    /// The specification is wrong.
    pub fn invalid(message: &str) -> Self {
        let wrong = || Verdict::no("Invalid", message);
        Self { connected: wrong(), networks: wrong(), pools: wrong(), host: None, storage_pools: None }
    }
}

/// The new status.
pub fn status(old: &ApplianceStatus, generation: Option<i64>, findings: &Findings) -> ApplianceStatus {
    let Findings { connected, networks, pools, host, storage_pools } = findings;
    let mut new = old.clone();
    new.observed_generation = generation;
    let ready = [connected, networks, pools].into_iter().find(|verdict| !verdict.holds()).map_or_else(
        || Verdict::yes("Ready", "networks and storage pools are there"),
        |broken| Verdict::no(broken.reason, broken.message.clone()),
    );
    set(&mut new.conditions, "Ready", &ready, generation);
    set(&mut new.conditions, "Connected", connected, generation);
    set(&mut new.conditions, "NetworksReady", networks, generation);
    set(&mut new.conditions, "StoragePoolsReady", pools, generation);
    if let Some(host) = host {
        new.host = Some(host.clone());
    }
    if let Some(pools) = storage_pools {
        new.storage_pools.clone_from(pools);
    }
    new
}

/// A verdict about networks or pools from what stands in their way.
pub fn verdict(obstacles: &[Obstacle], all_well: &str) -> Verdict {
    match obstacles.first() {
        None => Verdict::yes("AsSpecified", all_well),
        Some(first) => {
            let messages: Vec<&str> = obstacles.iter().map(|o| o.message.as_str()).collect();
            Verdict::no(first.reason, messages.join("; "))
        }
    }
}

/// The host as status has it.
pub fn host(facts: &HostFacts) -> HostStatus {
    let HostFacts { cpus, memory_mib, accelerator, libvirt_version, hypervisor_version } = facts;
    HostStatus {
        cpus: *cpus,
        memory_mib: *memory_mib,
        accelerator: accelerator.as_str().to_owned(),
        libvirt_version: libvirt_version.clone(),
        hypervisor_version: hypervisor_version.clone(),
    }
}

/// Whether guests are emulated, as far as the status says.
pub fn emulates(appliance: &Appliance) -> bool {
    let host = appliance.status.as_ref().and_then(|status| status.host.as_ref());
    host.is_some_and(|host| host.accelerator == Accelerator::Tcg.as_str())
}

/// Pools as status has them, in the specification's order.
pub fn storage_pools(wanted: &ValidatedAppliance, pools: &[PoolFacts]) -> Vec<StoragePoolStatus> {
    let size = |name: &str| pools.iter().find(|p| p.name == name).map(|p| p.capacity >> 30);
    wanted
        .pools
        .iter()
        .filter_map(|p| Some(StoragePoolStatus { name: p.name.clone(), capacity_gib: size(&p.libvirt_name)? }))
        .collect()
}
