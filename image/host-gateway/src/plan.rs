//! What this node's network has to be, from the cluster's Nodes. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;

/// Destination, and the gateway to it.
pub type Routes = BTreeMap<Ipv4Net, Ipv4Addr>;

/// The network of one node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// Addresses of this node's pods; none before the controller manager has given it some.
    pub pod_cidr: Option<Ipv4Net>,
    /// Pods of every other node that has both a podCIDR and an address.
    pub routes: Routes,
}

/// What has to change for the routes to be as planned.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// No longer wanted.
    pub remove: Routes,
    /// Missing, or by another gateway.
    pub set: Routes,
}

/// The plan for the node of this name.
pub fn plan<'a>(own: &str, nodes: impl IntoIterator<Item = &'a Node>) -> Plan {
    let mut plan = Plan::default();
    for node in nodes {
        let Some(pod_cidr) = pod_cidr(node) else { continue };
        if node.metadata.name.as_deref() == Some(own) {
            plan.pod_cidr = Some(pod_cidr);
        } else if let Some(address) = internal_ip(node) {
            plan.routes.insert(pod_cidr, address);
        }
    }
    plan
}

/// From the routes that there are to those that are wanted.
pub fn changes(found: &Routes, wanted: &Routes) -> Changes {
    let without = |one: &Routes, other: &Routes, same: fn(Option<&Ipv4Addr>, &Ipv4Addr) -> bool| {
        one.iter().filter(|(net, via)| !same(other.get(net), via)).map(|(net, via)| (*net, *via)).collect()
    };
    Changes {
        remove: without(found, wanted, |there, _| there.is_some()),
        set: without(wanted, found, |there, via| there == Some(via)),
    }
}

fn pod_cidr(node: &Node) -> Option<Ipv4Net> {
    let spec = node.spec.as_ref()?;
    spec.pod_cidrs
        .iter()
        .flatten()
        .chain(&spec.pod_cidr)
        .find_map(|text| text.parse::<Ipv4Net>().ok())
        .map(|n| n.trunc())
}

fn internal_ip(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.iter().flatten();
    addresses.filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, pod_cidrs: &[&str], addresses: &[(&str, &str)]) -> Node {
        let addresses: Vec<_> = addresses.iter().map(|(kind, ip)| json!({"type": kind, "address": ip})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs},
            "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    fn routes(list: &[(&str, &str)]) -> Routes {
        list.iter().map(|(net, via)| (net.parse().unwrap(), via.parse().unwrap())).collect()
    }

    #[test]
    fn every_other_node_is_a_route() {
        let nodes = [
            node("a", &["10.240.0.0/24"], &[("InternalIP", "192.0.2.1")]),
            node("b", &["fd00::/64", "10.240.1.0/24"], &[("Hostname", "b"), ("InternalIP", "192.0.2.2")]),
            node("c", &["10.240.2.0/24"], &[("InternalIP", "fd00::3"), ("InternalIP", "192.0.2.3")]),
            node("no-cidr", &[], &[("InternalIP", "192.0.2.4")]),
            node("no-address", &["10.240.5.0/24"], &[("ExternalIP", "192.0.2.5")]),
        ];
        let a = plan("a", &nodes);
        assert_eq!(a.pod_cidr, "10.240.0.0/24".parse().ok());
        assert_eq!(a.routes, routes(&[("10.240.1.0/24", "192.0.2.2"), ("10.240.2.0/24", "192.0.2.3")]));
        let b = plan("b", &nodes);
        assert_eq!(b.pod_cidr, "10.240.1.0/24".parse().ok());
        assert_eq!(b.routes, routes(&[("10.240.0.0/24", "192.0.2.1"), ("10.240.2.0/24", "192.0.2.3")]));
        assert_eq!(plan("no-cidr", &nodes).pod_cidr, None);
        assert_eq!(plan("unknown", &nodes).pod_cidr, None);
    }

    #[test]
    fn only_what_differs_changes() {
        let found =
            routes(&[("10.240.1.0/24", "192.0.2.2"), ("10.240.2.0/24", "192.0.2.3"), ("10.240.3.0/24", "192.0.2.4")]);
        let wanted =
            routes(&[("10.240.1.0/24", "192.0.2.2"), ("10.240.2.0/24", "192.0.2.9"), ("10.240.7.0/24", "192.0.2.7")]);
        let Changes { remove, set } = changes(&found, &wanted);
        assert_eq!(remove, routes(&[("10.240.3.0/24", "192.0.2.4")]));
        assert_eq!(set, routes(&[("10.240.2.0/24", "192.0.2.9"), ("10.240.7.0/24", "192.0.2.7")]));
        assert_eq!(changes(&wanted, &wanted), Changes::default());
    }
}
