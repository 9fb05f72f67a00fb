//! What libvirt has of a machine.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::validate::{ImageVolumes, ValidatedMachine};
use crate::identity;
use crate::libvirt::{DomainFacts, DomainState, Error, Hypervisor, VolumeFacts};
use crate::space::{self, Space};

/// A volume and the pool it lies in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// libvirt name of the pool.
    pub pool: String,
    /// The volume.
    pub volume: VolumeFacts,
}

/// What there is of a machine.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Observed {
    /// Its domain.
    pub domain: Option<DomainFacts>,
    /// Another domain that has its name.
    pub name_taken: Option<Uuid>,
    /// Its volumes by role: `root`, `data-…`, `seed`, `config`.
    pub volumes: BTreeMap<String, Found>,
    /// Volumes of disks that were made and that the specification no longer names, by role.
    pub kept: BTreeMap<String, Found>,
    /// Paths of image volumes by name.
    pub image: BTreeMap<String, String>,
    /// Space in the pools of its disks, looked at only while it is paused for want of it.
    pub space: Vec<Space>,
}

impl Observed {
    /// Looks. A volume that libvirt's list lacks is looked for on disk before it is called missing: files come and go
    /// behind libvirt's back.
    pub fn look(libvirt: &dyn Hypervisor, machine: &ValidatedMachine) -> Result<Self, Error> {
        let domain = libvirt.domain(machine.id)?;
        let name_taken = libvirt.domain_named(&machine.domain)?.filter(|uuid| *uuid != machine.id);
        let mut refreshed = BTreeSet::new();
        let mut volumes = BTreeMap::new();
        let roles = machine.definition.disks.iter().map(|d| (d.role.as_str(), d.pool.as_str()));
        let roles = roles.chain([("seed", machine.config_pool.as_str()), ("config", machine.config_pool.as_str())]);
        for (role, pool) in roles {
            let needed = !matches!(role, "seed" | "config");
            if let Some(found) = find(libvirt, machine, role, pool, needed, &mut refreshed)? {
                volumes.insert(role.to_owned(), found);
            }
        }
        let wanted: BTreeSet<&str> = machine.definition.disks.iter().map(|d| d.role.as_str()).collect();
        let mut kept = BTreeMap::new();
        for role in domain.iter().flat_map(made).filter(|role| !wanted.contains(role)) {
            if let Some(found) = find(libvirt, machine, role, &machine.config_pool, false, &mut refreshed)? {
                kept.insert(role.to_owned(), found);
            }
        }
        let mut image = BTreeMap::new();
        for name in machine.image.iter().flat_map(ImageVolumes::names) {
            if let Some(volume) = libvirt.volume(&machine.image_pool, name)? {
                image.insert(name.to_owned(), volume.path);
            }
        }
        let space = match &domain {
            Some(domain) if domain.state == DomainState::NoSpace => space::look(libvirt, machine.disk_pools())?,
            _ => Vec::new(),
        };
        Ok(Self { domain, name_taken, volumes, kept, image, space })
    }
}

/// Roles of the disks that a domain's mark says were made.
pub fn made(domain: &DomainFacts) -> impl Iterator<Item = &str> {
    let descriptions = std::iter::once(&domain.config).chain(&domain.live);
    descriptions.filter_map(|d| d.marks.as_ref()).flat_map(|marks| marks.disks.split_whitespace())
}

fn find(
    libvirt: &dyn Hypervisor,
    machine: &ValidatedMachine,
    role: &str,
    home: &str,
    needed: bool,
    refreshed: &mut BTreeSet<String>,
) -> Result<Option<Found>, Error> {
    let name = identity::volume(machine.id, role);
    let others = machine.pools.iter().map(String::as_str).filter(|p| *p != home);
    let pools: Vec<&str> = std::iter::once(home).chain(others).collect();
    for pass in 0..2 {
        for pool in &pools {
            if let Some(volume) = libvirt.volume(pool, &name)? {
                return Ok(Some(Found { pool: (*pool).to_owned(), volume }));
            }
        }
        if pass == 1 || !needed {
            break;
        }
        for pool in &pools {
            if refreshed.insert((*pool).to_owned()) {
                libvirt.refresh_pool(pool)?;
            }
        }
    }
    Ok(None)
}
