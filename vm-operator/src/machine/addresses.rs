//! Addresses of guests, which have no event: what was found, in the order of the interfaces.

use std::net::IpAddr;

use edge_api::virtual_machine::GuestAddress;

use super::validate::Nic;
use crate::libvirt::FoundAddress;

/// Sorts what was found by interface; loopback, link-local and unknown interfaces are left out. Within an interface, one
/// without a subnet comes last: it is not the guest's own, but moves between guests.
pub fn sort(found: &[FoundAddress], interfaces: &[Nic]) -> Vec<GuestAddress> {
    let mut addresses = Vec::new();
    for nic in interfaces {
        let mut own: Vec<(IpAddr, u32)> = found
            .iter()
            .filter(|f| f.mac == nic.mac)
            .filter_map(|f| Some((f.ip.parse::<IpAddr>().ok()?, f.prefix)))
            .filter(|(ip, _)| is_useful(*ip))
            .collect();
        own.sort_by_key(|(ip, prefix)| (ip.is_ipv4() && *prefix == 32, ip.is_ipv6(), *ip));
        own.dedup();
        addresses.extend(own.into_iter().map(|(ip, prefix)| GuestAddress {
            network: nic.network.clone(),
            mac: nic.mac.clone(),
            ip: ip.to_string(),
            prefix,
        }));
    }
    addresses
}

fn is_useful(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_the_interfaces() {
        let nic = |network: &str, mac: &str| Nic {
            network: network.into(),
            libvirt_network: format!("t-{network}"),
            mac: mac.into(),
        };
        let found = |mac: &str, ip: &str| FoundAddress { mac: mac.into(), ip: ip.into(), prefix: 24 };
        let shared = FoundAddress { prefix: 32, ..found("m1", "10.0.0.1") };
        let found = [
            found("m2", "10.0.1.2"),
            found("m2", "127.0.0.1"),
            found("m1", "fe80::1"),
            found("m1", "fd00::1"),
            found("m1", "10.0.0.2"),
            found("other", "172.17.0.1"),
            shared,
        ];
        let sorted = sort(&found, &[nic("wan", "m1"), nic("lan", "m2")]);
        let texts: Vec<String> = sorted.iter().map(|a| format!("{} {}", a.network, a.ip)).collect();
        assert_eq!(texts, ["wan 10.0.0.2", "wan fd00::1", "wan 10.0.0.1", "lan 10.0.1.2"]);
    }
}
