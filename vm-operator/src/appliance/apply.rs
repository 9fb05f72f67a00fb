//! Carries a plan out, and removes everything of an appliance.

use edge_api::Instance;
use uuid::Uuid;

use super::plan::{Action, own_networks, own_pools};
use crate::identity::IMAGE_PREFIX;
use crate::libvirt::{Error, Hypervisor, volumes};

/// Does what the plan says, in order. Stops at the first failure; the next reconcile plans anew.
pub fn apply(libvirt: &dyn Hypervisor, actions: &[Action]) -> Result<(), Error> {
    for action in actions {
        tracing::info!(?action, "appliance");
        match action {
            Action::DefineNetwork(network) => libvirt.define_network(&network.xml())?,
            Action::StartNetwork(name) => libvirt.start_network(name)?,
            Action::AutostartNetwork(name) => libvirt.autostart_network(name)?,
            Action::StopNetwork(name) => libvirt.stop_network(name)?,
            Action::UndefineNetwork(name) => libvirt.undefine_network(name)?,
            Action::DefinePool(pool) => {
                libvirt.define_pool(&volumes::pool_xml(&pool.libvirt_name, pool.uuid, &pool.path))?;
            }
            Action::StartPool(name) => libvirt.start_pool(name)?,
            Action::AutostartPool(name) => libvirt.autostart_pool(name)?,
            Action::RemovePool(name) => libvirt.remove_pool(name)?,
        }
    }
    Ok(())
}

/// Removes networks, pools and image volumes that carry the appliance's mark. Comes after its last machine.
/// Directories, and files in them that are not ours, stay.
pub fn remove(libvirt: &dyn Hypervisor, id: Uuid, instance: &Instance) -> Result<(), Error> {
    for network in own_networks(id, instance, &libvirt.networks()?) {
        if network.active {
            libvirt.stop_network(&network.name)?;
        }
        libvirt.undefine_network(&network.name)?;
    }
    for pool in own_pools(id, instance, &libvirt.pools()?) {
        if pool.active {
            for volume in libvirt.volumes(&pool.name)? {
                if volume.name.starts_with(IMAGE_PREFIX) {
                    libvirt.delete_volume(&pool.name, &volume.name)?;
                }
            }
        }
        libvirt.remove_pool(&pool.name)?;
    }
    Ok(())
}
