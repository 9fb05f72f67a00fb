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

    /// Live, unless the network that the field is about stays as it was installed.
    fn either(&mut self, stays: bool, changed: bool, field: &str) {
        if stays { self.reinstall(changed, field) } else { self.live(changed, field) }
    }

    fn reinstall(&mut self, changed: bool, field: impl Into<String>) {
        if changed {
            self.needs_reinstall.push(field.into());
        }
    }
}

/// Compares two valid site files.
///
/// A reinstall is needed for what the system cluster or a disk was made with: identity, mode, name servers of the
/// node container, the path of a pool, the kind, address or DHCP range of a network that guests are on.
pub fn diff(old: &SiteConfig, new: &SiteConfig) -> Changes {
    // No `..`: a new field must be decided here.
    let SiteConfig { device_id, mode, proxy, router, host, hub, profile, storage_pools: _, networks: _, ssh_keys } =
        new;
    let Host { dns, ntp } = host;
    let mut changes = Changes::default();
    changes.reinstall(old.device_id != *device_id, "device_id");
    changes.reinstall(old.mode != *mode, "mode");
    changes.live(old.proxy != *proxy, "proxy");
    let (wan, lan) = (stays(old, new, "wan"), stays(old, new, "lan"));
    match (&old.router, router) {
        (Some(old), Some(new)) => {
            changes.either(lan, old.lan_ip != new.lan_ip, "router.lan_ip");
            changes.either(wan, old.wan_ip != new.wan_ip, "router.wan_ip");
            changes.either(wan, old.wan_gateway != new.wan_gateway, "router.wan_gateway");
            changes.either(lan, old.dhcp_range.start != new.dhcp_range.start, "router.dhcp_range.start");
            changes.either(lan, old.dhcp_range.end != new.dhcp_range.end, "router.dhcp_range.end");
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

/// True where a network is to change in a way that needs a reinstall: until then the router must fit the old one.
fn stays(old: &SiteConfig, new: &SiteConfig, name: &str) -> bool {
    let find = |site| effective_networks(site).into_iter().find(|network| network.name == name);
    matches!((find(old), find(new)), (Some(old), Some(new)) if old != new)
}

/// What a running appliance follows of `new`: the fields that need a reinstall stay as they were `installed`.
pub fn as_installed(installed: &SiteConfig, new: &SiteConfig) -> SiteConfig {
    // No `..`: a new field must be decided here, as in `diff`.
    let SiteConfig { device_id: _, mode: _, proxy, router, host, hub, profile, storage_pools, networks: _, ssh_keys } =
        new;
    let Host { dns: _, ntp } = host;
    let before = effective_networks(installed);
    let networks = effective_networks(new).into_iter();
    let networks = networks.map(|n| before.iter().find(|old| old.name == n.name).cloned().unwrap_or(n)).collect();
    let mut router = router.clone();
    if let (Some(router), Some(old)) = (&mut router, &installed.router) {
        if stays(installed, new, "wan") {
            (router.wan_ip, router.wan_gateway) = (old.wan_ip, old.wan_gateway);
        }
        if stays(installed, new, "lan") {
            (router.lan_ip, router.dhcp_range) = (old.lan_ip, old.dhcp_range);
        }
    }
    // Pools are neither moved nor taken away; new ones come behind them. The default pool holds the images and stays
    // the only one.
    let mut pools = installed.storage_pools.clone();
    if !pools.is_empty() {
        let known = |name: &str| installed.storage_pools.iter().any(|pool| pool.name == name);
        pools.extend(storage_pools.iter().filter(|pool| !known(&pool.name)).cloned());
    }
    SiteConfig {
        device_id: installed.device_id.clone(),
        mode: installed.mode,
        proxy: proxy.clone(),
        router,
        host: Host { dns: installed.host.dns.clone(), ntp: ntp.clone() },
        hub: hub.clone(),
        profile: profile.clone(),
        storage_pools: pools,
        networks,
        ssh_keys: ssh_keys.clone(),
    }
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
                changes.reinstall(other.dhcp_range != network.dhcp_range, format!("networks.{name}.dhcp_range"));
                changes.reinstall(other.bridge != network.bridge, format!("networks.{name}.bridge"));
            }
        }
    }
    for network in before.iter().filter(|network| !after.iter().any(|other| other.name == network.name)) {
        changes.live(true, format!("networks.{}", network.name));
    }
}
