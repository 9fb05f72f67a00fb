//! What an edit of the site file touches, and whether the running appliance can follow it.

use std::collections::BTreeMap;

use edge_api::site::{Host, SiteConfig};

use super::defaults::effective_networks;

/// What a change of the site file touches: fields in dotted form, in the order of the file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// Fields that are applied to the running appliance.
    pub live: Vec<String>,
    /// Fields that need a reinstall.
    pub needs_reinstall: Vec<String>,
}

impl Changes {
    /// True where nothing changed.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.needs_reinstall.is_empty()
    }

    fn live(&mut self, changed: bool, field: impl Into<String>) {
        if changed {
            self.live.push(field.into());
        }
    }

    fn reinstall(&mut self, changed: bool, field: impl Into<String>) {
        if changed {
            self.needs_reinstall.push(field.into());
        }
    }
}

/// Compares two valid site files.
///
/// A reinstall is needed for what the system cluster or a disk was made with: identity, mode, proxy and name servers
/// of the node container, the path of a pool, the kind or address of a network that guests are on.
pub fn diff(old: &SiteConfig, new: &SiteConfig) -> Changes {
    // No `..`: a new field must be decided here.
    let SiteConfig { device_id, mode, proxy, router, host, hub, profile, storage_pools: _, networks: _, ssh_keys } =
        new;
    let Host { dns, ntp } = host;
    let mut changes = Changes::default();
    changes.reinstall(old.device_id != *device_id, "device_id");
    changes.reinstall(old.mode != *mode, "mode");
    changes.reinstall(old.proxy != *proxy, "proxy");
    match (&old.router, router) {
        (Some(old), Some(new)) => {
            changes.live(old.lan_ip != new.lan_ip, "router.lan_ip");
            changes.live(old.wan_ip != new.wan_ip, "router.wan_ip");
            changes.live(old.wan_gateway != new.wan_gateway, "router.wan_gateway");
            changes.live(old.dhcp_range.start != new.dhcp_range.start, "router.dhcp_range.start");
            changes.live(old.dhcp_range.end != new.dhcp_range.end, "router.dhcp_range.end");
            changes.live(old.dns != new.dns, "router.dns");
        }
        (old, new) => changes.live(old != new, "router"),
    }
    changes.reinstall(old.host.dns != *dns, "host.dns");
    changes.live(old.host.ntp != *ntp, "host.ntp");
    changes.live(old.hub != *hub, "hub");
    changes.live(old.profile != *profile, "profile");
    pools(&mut changes, old, new);
    networks(&mut changes, old, new);
    changes.live(old.ssh_keys != *ssh_keys, "ssh_keys");
    changes
}

fn pools(changes: &mut Changes, old: &SiteConfig, new: &SiteConfig) {
    let by_name = |site: &SiteConfig| -> BTreeMap<String, String> {
        site.storage_pools.iter().map(|pool| (pool.name.clone(), pool.path.clone())).collect()
    };
    let (before, after) = (by_name(old), by_name(new));
    // Naming pools at all takes the place of the default pool, and the first one holds the images.
    let first = |site: &SiteConfig| site.storage_pools.first().map(|pool| pool.name.clone());
    changes.reinstall(first(old) != first(new), "storage_pools");
    for (name, path) in &after {
        match before.get(name) {
            None => changes.live(!before.is_empty(), format!("storage_pools.{name}")),
            Some(old) => changes.reinstall(old != path, format!("storage_pools.{name}.path")),
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        changes.reinstall(!after.is_empty(), format!("storage_pools.{name}"));
    }
}

fn networks(changes: &mut Changes, old: &SiteConfig, new: &SiteConfig) {
    let (before, after) = (effective_networks(old), effective_networks(new));
    for network in &after {
        let name = &network.name;
        match before.iter().find(|other| other.name == *name) {
            None => changes.live(true, format!("networks.{name}")),
            Some(other) => {
                changes.reinstall(other.type_ != network.type_, format!("networks.{name}.type"));
                changes.reinstall(other.address != network.address, format!("networks.{name}.address"));
                changes.reinstall(other.bridge != network.bridge, format!("networks.{name}.bridge"));
            }
        }
    }
    for network in before.iter().filter(|network| !after.iter().any(|other| other.name == network.name)) {
        changes.live(true, format!("networks.{}", network.name));
    }
}
