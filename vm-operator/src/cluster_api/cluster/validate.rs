//! Whether a virtual IP address can be what it is meant to be, and which virtual router ID is free. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use edge_api::appliance::{AddressRange, Network};
use edge_api::cluster_api::ApiEndpoint;
use ipnet::Ipv4Net;

use crate::cluster_api::pool::allocate::ValidatedPool;

/// One of the clusters of an appliance's network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claimant {
    /// Name of the cluster.
    pub name: String,
    /// Host part of its endpoint.
    pub host: Option<String>,
    /// Its virtual router ID.
    pub router_id: Option<u8>,
    /// Whether it has been provisioned.
    pub provisioned: bool,
    /// When it was made, with its UID for those of the same second.
    pub made: (i64, String),
}

impl Claimant {
    /// Of two that want the same, the one that was provisioned has it, else the older.
    fn yields_to(&self, other: &Self) -> bool {
        (!other.provisioned, &other.made) < (!self.provisioned, &self.made)
    }
}

/// Why an endpoint is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Not an IPv4 address.
    #[error("controlPlaneEndpoint.host {0:?} is no IPv4 address")]
    NoAddress(String),
    /// Outside of the subnet.
    #[error("the endpoint {address} is no host address of network {network}, which is {subnet}")]
    OutsideNetwork {
        /// The endpoint.
        address: Ipv4Addr,
        /// The network.
        network: String,
        /// Its subnet.
        subnet: Ipv4Net,
    },
    /// The host's own address.
    #[error("the endpoint {address} is the appliance's own address on network {network}")]
    NetworkAddress {
        /// The endpoint.
        address: Ipv4Addr,
        /// The network.
        network: String,
    },
    /// Given out by DHCP.
    #[error("the endpoint {address} lies in the DHCP range of network {network}, {start} to {end}")]
    InDhcpRange {
        /// The endpoint.
        address: Ipv4Addr,
        /// The network.
        network: String,
        /// First address.
        start: String,
        /// Last address.
        end: String,
    },
    /// Given out by a pool.
    #[error("the endpoint {address} lies in IPPool {pool}, {range}, whose addresses are given to machines")]
    InPool {
        /// The endpoint.
        address: Ipv4Addr,
        /// The pool.
        pool: String,
        /// Its addresses.
        range: String,
    },
    /// Another cluster has it.
    #[error("the endpoint {address} on network {network} is that of cluster {other} already")]
    Taken {
        /// The endpoint.
        address: Ipv4Addr,
        /// The network.
        network: String,
        /// The other cluster.
        other: String,
    },
    /// Another cluster has this virtual router ID.
    #[error("virtualRouterID {id} on network {network} is that of cluster {other} already")]
    RouterIdTaken {
        /// The ID.
        id: u8,
        /// The network.
        network: String,
        /// The other cluster.
        other: String,
    },
    /// No virtual router ID is left.
    #[error("all 255 virtual router IDs of network {0} are in use; waits until a cluster is deleted")]
    NoRouterId(String),
}

impl Refused {
    /// Reason for the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoAddress(_) => "EndpointInvalid",
            Self::OutsideNetwork { .. } => "EndpointOutsideNetwork",
            Self::NetworkAddress { .. } => "EndpointIsNetworkAddress",
            Self::InDhcpRange { .. } => "EndpointInDhcpRange",
            Self::InPool { .. } => "EndpointInPool",
            Self::Taken { .. } => "EndpointTaken",
            Self::RouterIdTaken { .. } => "VirtualRouterIDTaken",
            Self::NoRouterId(_) => "VirtualRouterIDsExhausted",
        }
    }
}

/// What an endpoint is checked against.
#[derive(Clone, Debug)]
pub struct Site<'a> {
    /// The network it lies in.
    pub network: &'a Network,
    /// Pools of that network by name.
    pub pools: &'a [(String, ValidatedPool)],
    /// The other clusters of that network.
    pub others: &'a [Claimant],
}

/// Checks an endpoint, and says which virtual router ID the cluster has or gets.
pub fn check(own: &Claimant, endpoint: &ApiEndpoint, site: &Site<'_>) -> Result<u8, Refused> {
    let Site { network, pools, others } = site;
    let address: Ipv4Addr = endpoint.host.parse().map_err(|_| Refused::NoAddress(endpoint.host.clone()))?;
    let name = || network.name.clone();
    // The appliance's own controller says what is wrong with a network.
    if let Some(net) = network.address.as_deref().and_then(|a| a.parse::<Ipv4Net>().ok()) {
        if !net.contains(&address) || address == net.network() || address == net.broadcast() {
            return Err(Refused::OutsideNetwork { address, network: name(), subnet: net.trunc() });
        }
        if address == net.addr() {
            return Err(Refused::NetworkAddress { address, network: name() });
        }
    }
    if let Some(AddressRange { start, end }) = &network.dhcp
        && let (Ok(first), Ok(last)) = (start.parse::<Ipv4Addr>(), end.parse::<Ipv4Addr>())
        && (first..=last).contains(&address)
    {
        let (start, end) = (start.clone(), end.clone());
        return Err(Refused::InDhcpRange { address, network: name(), start, end });
    }
    if let Some((pool, valid)) = pools.iter().find(|(_, pool)| pool.contains(address)) {
        return Err(Refused::InPool { address, pool: pool.clone(), range: valid.display() });
    }
    let before = || others.iter().filter(|other| own.yields_to(other));
    if let Some(other) = before().find(|o| o.host.as_deref().and_then(|h| h.parse().ok()) == Some(address)) {
        return Err(Refused::Taken { address, network: name(), other: other.name.clone() });
    }
    let Some(id) = own.router_id else {
        let used: BTreeSet<u8> = others.iter().filter_map(|o| o.router_id).collect();
        return (1..=255).find(|id| !used.contains(id)).ok_or_else(|| Refused::NoRouterId(name()));
    };
    match before().find(|o| o.router_id == Some(id)) {
        Some(other) => Err(Refused::RouterIdTaken { id, network: name(), other: other.name.clone() }),
        None => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use edge_api::appliance::NetworkType;
    use proptest::prelude::*;

    use super::*;
    use crate::cluster_api::pool::allocate::{tests::ranged, validate};

    fn network() -> Network {
        Network {
            name: "nodes".into(),
            type_: NetworkType::Nat,
            address: Some("10.0.0.1/24".into()),
            dhcp: Some(AddressRange { start: "10.0.0.100".into(), end: "10.0.0.120".into() }),
            bridge: None,
        }
    }

    fn claimant(name: &str, host: &str, router_id: Option<u8>, made: i64) -> Claimant {
        let (name, host) = (name.to_owned(), Some(host.to_owned()));
        Claimant { made: (made, name.clone()), name, host, router_id, provisioned: false }
    }

    fn checked(host: &str, others: &[Claimant]) -> Result<u8, Refused> {
        let pool = validate(&ranged("10.0.0.20", "10.0.0.29", 24, Some("10.0.0.1"))).unwrap();
        let pools = [("machines".to_owned(), pool)];
        let site = Site { network: &network(), pools: &pools, others };
        check(&claimant("own", host, None, 5), &ApiEndpoint { host: host.into(), port: 6443 }, &site)
    }

    #[test]
    fn each_refusal_names_both_sides() {
        let other = [claimant("first", "10.0.0.10", Some(1), 1)];
        let cases = [
            ("10.1.0.10", "EndpointOutsideNetwork", ["10.1.0.10", "10.0.0.0/24"]),
            ("10.0.0.0", "EndpointOutsideNetwork", ["10.0.0.0", "nodes"]),
            ("10.0.0.255", "EndpointOutsideNetwork", ["10.0.0.255", "nodes"]),
            ("10.0.0.1", "EndpointIsNetworkAddress", ["10.0.0.1", "nodes"]),
            ("10.0.0.110", "EndpointInDhcpRange", ["10.0.0.110", "10.0.0.100 to 10.0.0.120"]),
            ("10.0.0.25", "EndpointInPool", ["10.0.0.25", "machines, 10.0.0.20 to 10.0.0.29"]),
            ("10.0.0.10", "EndpointTaken", ["10.0.0.10", "first"]),
            ("api.example", "EndpointInvalid", ["api.example", "IPv4"]),
        ];
        for (host, reason, said) in cases {
            let refused = checked(host, &other).unwrap_err();
            assert_eq!(refused.reason(), reason, "{host}");
            for part in said {
                assert!(refused.to_string().contains(part), "{refused} does not say {part}");
            }
        }
        assert_eq!(checked("10.0.0.11", &other), Ok(2));
    }

    #[test]
    fn the_older_has_it_unless_the_younger_was_provisioned() {
        let mut younger = claimant("younger", "10.0.0.10", Some(1), 9);
        assert!(checked("10.0.0.10", std::slice::from_ref(&younger)).is_ok());
        younger.provisioned = true;
        assert_eq!(checked("10.0.0.10", &[younger]).unwrap_err().reason(), "EndpointTaken");
    }

    #[test]
    fn router_ids_run_out() {
        let others: Vec<Claimant> =
            (1..=255_u8).map(|n| claimant(&n.to_string(), &format!("10.0.1.{n}"), Some(n), 0)).collect();
        assert_eq!(checked("10.0.0.11", &others).unwrap_err().reason(), "VirtualRouterIDsExhausted");
        assert_eq!(checked("10.0.0.11", &others[..254]), Ok(255));
    }

    proptest! {
        /// Whoever comes in whatever order: no two clusters of a network have one ID, and the lowest is taken first.
        #[test]
        fn router_ids_are_unique(gone in proptest::collection::vec(any::<bool>(), 1..60)) {
            let mut there: Vec<Claimant> = Vec::new();
            for (n, gone) in gone.into_iter().enumerate() {
                let host = format!("10.0.0.{}", 130 + n);
                let id = checked(&host, &there).unwrap();
                prop_assert!(there.iter().all(|o| o.router_id != Some(id)));
                prop_assert!((1..id).all(|lower| there.iter().any(|o| o.router_id == Some(lower))));
                there.push(claimant(&host, &host, Some(id), n as i64));
                if gone {
                    there.remove(0);
                }
            }
        }
    }
}
