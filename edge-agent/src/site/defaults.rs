//! What a site file means where it says nothing.

use std::path::Path;

use edge_api::site::{Network, NetworkType, Router, SiteConfig, StoragePool};
use ipnet::Ipv4Net;

/// Address of the network `wan` where nothing tells another.
const WAN: Ipv4Net = match Ipv4Net::new(std::net::Ipv4Addr::new(192, 168, 150, 1), 24) {
    Ok(net) => net,
    Err(_) => unreachable!(),
};

/// The networks of a site: those of the file or, where it names none, `wan` (NAT) and `lan` (isolated). The default
/// `wan` is the network that `router.wan_ip` lies in.
pub fn effective_networks(site: &SiteConfig) -> Vec<Network> {
    if !site.networks.is_empty() {
        return site.networks.clone();
    }
    vec![
        Network {
            name: "wan".to_owned(),
            type_: NetworkType::Nat,
            address: Some(site.router.as_ref().map_or(WAN, default_wan)),
            dhcp_range: None,
            bridge: None,
        },
        Network { name: "lan".to_owned(), type_: NetworkType::Isolated, address: None, dhcp_range: None, bridge: None },
    ]
}

/// The host's address on the default network `wan`: the router's gateway, else the first address of its subnet that
/// is not the router's own.
fn default_wan(router: &Router) -> Ipv4Net {
    let own = router.wan_ip.addr();
    let gateway = router.wan_gateway.or_else(|| router.wan_ip.hosts().find(|address| *address != own));
    gateway.and_then(|address| Ipv4Net::new(address, router.wan_ip.prefix_len()).ok()).unwrap_or(WAN)
}

/// The storage pools of a site: those of the file or, where it names none, one below the agent's root.
pub fn effective_pools(site: &SiteConfig, root: &Path) -> Vec<StoragePool> {
    if !site.storage_pools.is_empty() {
        return site.storage_pools.clone();
    }
    let path = root.join("pools").join("default").display().to_string();
    vec![StoragePool { name: "default".to_owned(), path }]
}
