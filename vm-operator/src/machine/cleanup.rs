//! Removes a machine by identity: its domain and the volumes that carry its name, and nothing else. Whether the
//! specification makes sense does not matter any more.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::plan::is_ours;
use super::reservations;
use crate::identity;
use crate::libvirt::{Error, Hypervisor};

/// Removes domain and volumes, and what is reserved for the MAC addresses. Idempotent: what is gone is done. A domain
/// without our mark stays.
pub fn remove(libvirt: &dyn Hypervisor, id: Uuid, macs: &BTreeSet<String>, instance: &str) -> Result<(), Error> {
    if let Some(domain) = libvirt.domain(id)? {
        if is_ours(&domain, id) {
            libvirt.destroy_domain(id)?;
            libvirt.undefine_domain(id)?;
        } else {
            tracing::warn!(%id, domain = domain.name, "a domain with this UUID does not carry our mark and stays");
        }
    }
    let of_instance = format!("{instance}-");
    reservations::release(libvirt, macs, &of_instance)?;
    let prefix = identity::volume_prefix(id);
    for pool in libvirt.pools()?.into_iter().filter(|p| p.active && p.name.starts_with(&of_instance)) {
        let left = libvirt.volumes(&pool.name)?.into_iter().filter(|v| v.name.starts_with(&prefix));
        for volume in left {
            libvirt.delete_volume(&pool.name, &volume.name)?;
        }
    }
    Ok(())
}
