//! Rules across fields: addresses, networks, storage pools.
//!
//! Each rule reads the tree and is silent where a value that it needs is missing or was refused by the schema.

use std::net::Ipv4Addr;

use edge_api::Instance;
use ipnet::Ipv4Net;

use super::report::Report;
use super::shape::{self, found};
use super::tree::Node;
use super::values;

/// Subnets that the system cluster uses inside; constants of the node image's kubeadm configuration.
const CLUSTER: [(&str, &str); 2] =
    [("10.244.0.0/16", "the pods of the system cluster"), ("10.96.0.0/16", "the services of the system cluster")];

/// Reports everything that the schema cannot say.
pub fn check(root: &Node, report: &mut Report<'_>) {
    mode(root, report);
    values::check(root, report);
    let router = root.get("router").map(|node| Router::read(node, report));
    let networks = networks(root, report);
    if let Some(router) = &router {
        router.check(root, &networks, report);
    }
    subnets(&networks, router.as_ref(), report);
    pools(root, report);
}

fn mode(root: &Node, report: &mut Report<'_>) {
    if let Some(node) = root.get("mode").filter(|node| node.text() == Some("ha")) {
        let hint = "several boxes as one appliance (`ha`) are not in this version";
        report.at(node, "`ha`", "`standalone`", Some(hint));
    }
}

/// An address with its prefix and the node it comes from.
#[derive(Clone, Copy)]
struct Net<'n> {
    node: &'n Node,
    net: Ipv4Net,
}

/// Reads an address with prefix length that a machine can have.
fn host_net<'n>(node: Option<&'n Node>, report: &mut Report<'_>) -> Option<Net<'n>> {
    let node = node?;
    let net = shape::net(node.text()?)?;
    let subnet = net.trunc();
    if !(8..=30).contains(&net.prefix_len()) {
        let hint = "the prefix length tells how big the network is; /24 is the usual one";
        report.at(node, found(node), "a prefix length between 8 and 30", Some(hint));
        return None;
    }
    if net.addr() == net.network() || net.addr() == net.broadcast() {
        let what = if net.addr() == net.network() { "is the network itself" } else { "is its broadcast address" };
        let hint = format!("{} {what}; for instance {} can be used", net.addr(), example(subnet));
        report.at(node, found(node), format!("an address of a machine in {subnet}"), Some(&hint));
        return None;
    }
    if let Some(what) = unusable(net.addr()) {
        report.at(node, found(node), format!("an address that a machine can have, not {what}"), None);
        return None;
    }
    Some(Net { node, net })
}

fn example(subnet: Ipv4Net) -> String {
    subnet.hosts().next().map_or_else(String::new, |address| format!("{address}/{}", subnet.prefix_len()))
}

/// Why no machine can have this address.
pub fn unusable(address: Ipv4Addr) -> Option<&'static str> {
    if address.is_loopback() {
        Some("one of the loopback (127.0.0.0/8)")
    } else if address.is_multicast() {
        Some("one for multicast (224.0.0.0/4)")
    } else if address.is_link_local() {
        Some("a link-local one (169.254.0.0/16)")
    } else if address.octets()[0] == 0 {
        Some("one of 0.0.0.0/8")
    } else if address.octets()[0] >= 240 {
        Some("one of 240.0.0.0/4")
    } else {
        None
    }
}

struct Router<'n> {
    node: &'n Node,
    lan: Option<Net<'n>>,
    wan: Option<Net<'n>>,
}

impl<'n> Router<'n> {
    fn read(node: &'n Node, report: &mut Report<'_>) -> Self {
        Self { node, lan: host_net(node.get("lan_ip"), report), wan: host_net(node.get("wan_ip"), report) }
    }

    fn check(&self, root: &Node, networks: &[Network<'_>], report: &mut Report<'_>) {
        if let Some(lan) = self.lan {
            dhcp_range(self.node.get("dhcp_range"), lan, "the router", report);
        }
        if let Some(wan) = self.wan {
            self.gateway(wan.net, report);
        }
        if root.get("networks").is_none_or(|list| list.items().is_empty()) {
            return;
        }
        for (name, own) in [("wan", self.wan), ("lan", self.lan)] {
            match networks.iter().find(|network| network.name == name) {
                None => {
                    let node = root.get("networks").unwrap_or(self.node);
                    report.add(
                        node.head,
                        "networks",
                        format!("no network `{name}`"),
                        format!("a network `{name}`, because `router` is set"),
                        Some("without `networks` at all, `wan` (nat) and `lan` (isolated) are made"),
                    );
                }
                Some(network) => {
                    if let (Some(own), Some(host)) = (own, network.net) {
                        within(name, own, host, report);
                        without(network.dhcp_range, own, "the router", report);
                    }
                }
            }
        }
    }

    fn gateway(&self, wan: Ipv4Net, report: &mut Report<'_>) {
        let Some(node) = self.node.get("wan_gateway") else { return };
        let Some(gateway) = node.text().and_then(|text| text.parse::<Ipv4Addr>().ok()) else { return };
        let subnet = wan.trunc();
        if !subnet.contains(&gateway) || gateway == wan.network() || gateway == wan.broadcast() {
            let hint = format!("`router.wan_ip` is {wan}, and a gateway is reached directly");
            report.at(node, found(node), format!("an address of a machine in {subnet}"), Some(&hint));
        } else if gateway == wan.addr() {
            report.at(
                node,
                found(node),
                "another address than `router.wan_ip`",
                Some("the router is not its own gateway"),
            );
        }
    }
}

/// An address with its node, where it is there and can be read.
fn address(node: Option<&Node>) -> Option<(&Node, Ipv4Addr)> {
    let node = node?;
    Some((node, node.text()?.parse().ok()?))
}

/// What is leased on the subnet of `own`, the address of who leases it.
fn dhcp_range(range: Option<&Node>, own: Net<'_>, owner: &str, report: &mut Report<'_>) {
    let Some(range) = range else { return };
    let (subnet, hint) = (own.net.trunc(), format!("`{}` is {}", own.node.path, own.net));
    let (start, end) = (address(range.get("start")), address(range.get("end")));
    let mut usable = true;
    for (node, address) in [start, end].into_iter().flatten() {
        if !subnet.contains(&address) {
            usable = false;
            let expected = format!("an address in {subnet}, the subnet of `{}`", own.node.path);
            report.at(node, found(node), expected, Some(&hint));
        } else if address == subnet.network() || address == subnet.broadcast() {
            let what = if address == subnet.network() { "the network address" } else { "the broadcast address" };
            usable = false;
            let hint = format!("{address} is {what} of {subnet}");
            report.at(node, found(node), format!("an address of a machine in {subnet}"), Some(&hint));
        }
    }
    if let (Some((_, first)), Some((end, last))) = (start, end)
        && first > last
    {
        let hint = "`start` is the first address that is leased, `end` the last";
        report.at(end, found(end), format!("{first} (`start`) or above"), Some(hint));
    } else if usable {
        without(Some(range), own, owner, report);
    }
}

/// A range does not hold an address that somebody has.
fn without(range: Option<&Node>, own: Net<'_>, owner: &str, report: &mut Report<'_>) {
    let Some(range) = range else { return };
    let (Some((_, first)), Some((_, last))) = (address(range.get("start")), address(range.get("end"))) else { return };
    if (first..=last).contains(&own.net.addr()) {
        report.add(
            range.head,
            range.path.clone(),
            format!("{first} to {last}, which holds {}", own.net.addr()),
            format!("a range without {owner}'s own address"),
            Some(&format!("{} is `{}`; it must not be leased to anybody", own.net.addr(), own.node.path)),
        );
    }
}

/// The router's address on a network where the host has one too.
fn within(name: &str, own: Net<'_>, host: Net<'_>, report: &mut Report<'_>) {
    let subnet = host.net.trunc();
    let hint = format!("`{}` is {}", host.node.path, host.net);
    if !subnet.contains(&own.net.addr()) {
        let expected = format!("an address in {subnet}, the subnet of the network `{name}`");
        report.at(own.node, found(own.node), expected, Some(&hint));
    } else if own.net.addr() == host.net.addr() {
        let expected = format!("another address than the host's own on the network `{name}`");
        report.at(own.node, found(own.node), expected, Some(&hint));
    } else if own.net.prefix_len() != host.net.prefix_len() {
        let expected = format!("the prefix length /{}, as the network `{name}`", host.net.prefix_len());
        report.at(own.node, found(own.node), expected, Some(&hint));
    }
}

struct Network<'n> {
    name: &'n str,
    net: Option<Net<'n>>,
    dhcp_range: Option<&'n Node>,
}

fn networks<'n>(root: &'n Node, report: &mut Report<'_>) -> Vec<Network<'n>> {
    let items = root.get("networks").map(Node::items).unwrap_or_default();
    unique(items, "name", "network", report);
    let mut networks = Vec::new();
    for item in items {
        let Some(name) = item.get("name").and_then(Node::text) else { continue };
        let (address, dhcp, bridge) = (item.get("address"), item.get("dhcp_range"), item.get("bridge"));
        let kind = item.get("type").and_then(Node::text).unwrap_or_default();
        let missing = |key: &str, expected: &str, report: &mut Report<'_>| {
            let hint = format!("a network of type `{kind}` needs `{key}`");
            report.add(item.place, format!("{}.{key}", item.path), "nothing", expected, Some(&hint));
        };
        match kind {
            "nat" if address.is_none() => {
                missing("address", "the host's address with prefix length, for instance 192.168.150.1/24", report);
            }
            "bridge" if bridge.is_none() => missing("bridge", "the name of a bridge of the host", report),
            _ => {}
        }
        let known = ["nat", "isolated", "bridge"].contains(&kind);
        for (key, node, owner) in
            [("address", address, "nat"), ("dhcp_range", dhcp, "nat"), ("bridge", bridge, "bridge")]
        {
            if let Some(node) = node.filter(|_| known && kind != owner) {
                let hint = format!("only a network of type `{owner}` has `{key}`; this one is `{kind}`");
                report.add(node.head, node.path.clone(), found(node), format!("no `{key}`"), Some(&hint));
            }
        }
        if let Some(node) = bridge
            && let Some(text) = node.text()
            && (text.contains('/') || text.contains(char::is_whitespace) || text == "." || text == "..")
        {
            report.at(node, found(node), "the name of a bridge of the host, for instance br0", None);
        }
        let net = if kind == "nat" { host_net(address, report) } else { None };
        if let Some(net) = net {
            dhcp_range(dhcp, net, "the host", report);
        }
        networks.push(Network { name, net, dhcp_range: dhcp });
    }
    networks
}

/// No two subnets of the site may overlap, nor may one overlap what the system cluster uses.
fn subnets(networks: &[Network<'_>], router: Option<&Router<'_>>, report: &mut Report<'_>) {
    let mut taken: Vec<(String, Ipv4Net)> =
        CLUSTER.iter().filter_map(|(net, owner)| Some(((*owner).to_owned(), net.parse().ok()?))).collect();
    if let Ok(docker) = Ipv4Net::new(Instance::default().docker_subnet(), 24) {
        taken.push(("the network of the system cluster's node".to_owned(), docker));
    }
    let mut claim = |net: Net<'_>, report: &mut Report<'_>| {
        let subnet = net.net.trunc();
        let clash = taken.iter().find(|(_, other)| other.contains(&subnet) || subnet.contains(other));
        match clash {
            Some((owner, other)) => {
                let hint = format!("{subnet} overlaps {other}, {owner}");
                report.at(net.node, found(net.node), "a subnet that nothing else uses", Some(&hint));
            }
            None => taken.push((format!("`{}`", net.node.path), subnet)),
        }
    };
    for net in networks.iter().filter_map(|network| network.net) {
        claim(net, report);
    }
    let Some(router) = router else { return };
    let has_address = |name| networks.iter().any(|network| network.name == name && network.net.is_some());
    // On a network with an address of the host's, the router shares that network's subnet.
    for (name, net) in [("wan", router.wan), ("lan", router.lan)] {
        if let Some(net) = net.filter(|_| !has_address(name)) {
            claim(net, report);
        }
    }
}

fn pools(root: &Node, report: &mut Report<'_>) {
    let items = root.get("storage_pools").map(Node::items).unwrap_or_default();
    unique(items, "name", "storage pool", report);
    let mut seen: Vec<(&Node, Vec<&str>)> = Vec::new();
    for node in items.iter().filter_map(|item| item.get("path")) {
        let Some(text) = node.text().filter(|text| text.starts_with('/')) else { continue };
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        // Neither has libvirt's XML a way to write the last two.
        let odd = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
        if parts.contains(&"..") || parts.is_empty() || text.contains(odd) {
            let expected = "a folder of its own, without `..`, for instance /var/lib/pool";
            report.at(node, found(node), expected, None);
            continue;
        }
        let clash = seen.iter().find(|(_, other)| other.starts_with(&parts) || parts.starts_with(other));
        if let Some((other, _)) = clash {
            let hint = format!("`{}` is the same folder, or one lies in the other", other.path);
            report.at(node, found(node), "a folder apart from those of the other pools", Some(&hint));
        }
        seen.push((node, parts));
    }
}

/// Reports items whose field repeats that of an earlier one.
fn unique(items: &[Node], key: &str, what: &str, report: &mut Report<'_>) {
    let mut seen: Vec<&Node> = Vec::new();
    for node in items.iter().filter_map(|item| item.get(key)) {
        let Some(text) = node.text() else { continue };
        if let Some(first) = seen.iter().find(|other| other.text() == Some(text)) {
            let hint = format!("line {} has a {what} of that name already", first.place.line);
            report.at(node, found(node), format!("a name that no other {what} has"), Some(&hint));
        } else {
            seen.push(node);
        }
    }
}
