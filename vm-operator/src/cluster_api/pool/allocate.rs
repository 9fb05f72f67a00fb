//! Which addresses a pool has, and which of them is next. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use edge_api::appliance::AddressRange;
use edge_api::ip_pool::IPPoolSpec;
use ipnet::Ipv4Net;

/// A pool's specification that makes sense.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ValidatedPool {
    /// First address, included.
    first: u32,
    /// Last address, included.
    last: u32,
    /// The network that machines configure.
    network: Ipv4Net,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub name_servers: Vec<Ipv4Addr>,
    /// Whether one cluster has it for itself.
    pub single_cluster: bool,
}

/// What is wrong with a pool's specification.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// Neither or both of the two ways to name addresses.
    #[error("give either spec.range or spec.subnet")]
    Source,
    /// Not an IPv4 address.
    #[error("{field} {value:?} is no IPv4 address")]
    Address {
        /// Where it stands.
        field: &'static str,
        /// What was found.
        value: String,
    },
    /// Not a subnet.
    #[error("spec.subnet {0:?} is no IPv4 subnet, for instance 192.168.150.0/24")]
    Subnet(String),
    /// The range ends before it begins.
    #[error("spec.range starts at {start} and ends before that, at {end}")]
    Backwards {
        /// First address.
        start: Ipv4Addr,
        /// Last address.
        end: Ipv4Addr,
    },
    /// Not a prefix length.
    #[error("spec.prefix {0} is not between 8 and 30")]
    Prefix(u8),
    /// Addresses of more than one network.
    #[error("{what} {from} is outside of {network}, the network of the first address with spec.prefix")]
    Outside {
        /// What.
        what: &'static str,
        /// The address.
        from: Ipv4Addr,
        /// The network.
        network: Ipv4Net,
    },
}

fn address(field: &'static str, value: &str) -> Result<Ipv4Addr, Invalid> {
    value.parse().map_err(|_| Invalid::Address { field, value: value.to_owned() })
}

/// Checks a specification.
pub fn validate(spec: &IPPoolSpec) -> Result<ValidatedPool, Invalid> {
    let IPPoolSpec { range, subnet, prefix, gateway, name_servers, restrict_to_single_cluster } = spec;
    if !(8..=30).contains(prefix) {
        return Err(Invalid::Prefix(*prefix));
    }
    let (first, last) = match (range, subnet) {
        (Some(AddressRange { start, end }), None) => {
            (address("spec.range.start", start)?, address("spec.range.end", end)?)
        }
        (None, Some(subnet)) => {
            let net: Ipv4Net = subnet.parse().map_err(|_| Invalid::Subnet(subnet.clone()))?;
            (net.network(), net.broadcast())
        }
        _ => return Err(Invalid::Source),
    };
    if last < first {
        return Err(Invalid::Backwards { start: first, end: last });
    }
    let network = Ipv4Net::new(first, *prefix).map_err(|_| Invalid::Prefix(*prefix))?.trunc();
    let inside = |what, from| {
        if network.contains(&from) { Ok(from) } else { Err(Invalid::Outside { what, from, network }) }
    };
    inside("the last address", last)?;
    let gateway = gateway.as_deref().map(|g| address("spec.gateway", g)).transpose()?;
    let gateway = gateway.map(|g| inside("spec.gateway", g)).transpose()?;
    let name_servers = name_servers.iter().map(|n| address("spec.nameServers", n)).collect::<Result<_, _>>()?;
    Ok(ValidatedPool {
        first: first.to_bits(),
        last: last.to_bits(),
        network,
        gateway,
        name_servers,
        single_cluster: *restrict_to_single_cluster,
    })
}

impl ValidatedPool {
    /// Whether an address may ever be given out.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address.to_bits())
            && Some(address) != self.gateway
            && address != self.network.network()
            && address != self.network.broadcast()
    }

    /// Whether an address lies between the first and the last.
    pub fn spans(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address.to_bits())
    }

    /// Whether it has addresses between these two, both included.
    pub fn overlaps(&self, first: Ipv4Addr, last: Ipv4Addr) -> bool {
        self.first <= last.to_bits() && first.to_bits() <= self.last
    }

    /// How many addresses may be given out.
    pub fn total(&self) -> u64 {
        let all = u64::from(self.last - self.first) + 1;
        let mut never = BTreeSet::from([self.network.network(), self.network.broadcast()]);
        never.extend(self.gateway);
        all - never.into_iter().filter(|a| self.spans(*a)).count() as u64
    }

    /// The lowest address that nobody has.
    pub fn next(&self, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        (self.first..=self.last).map(Ipv4Addr::from_bits).find(|a| self.contains(*a) && !taken.contains(a))
    }

    /// First and last address, for people.
    pub fn display(&self) -> String {
        format!("{} to {}", Ipv4Addr::from_bits(self.first), Ipv4Addr::from_bits(self.last))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn ranged(start: &str, end: &str, prefix: u8, gateway: Option<&str>) -> IPPoolSpec {
        IPPoolSpec {
            range: Some(AddressRange { start: start.into(), end: end.into() }),
            subnet: None,
            prefix,
            gateway: gateway.map(ToOwned::to_owned),
            name_servers: Vec::new(),
            restrict_to_single_cluster: false,
        }
    }

    fn subnet(subnet: &str, prefix: u8, gateway: Option<&str>) -> IPPoolSpec {
        IPPoolSpec { range: None, subnet: Some(subnet.into()), ..ranged("0.0.0.0", "0.0.0.0", prefix, gateway) }
    }

    #[test]
    fn network_broadcast_and_gateway_are_never_given_out() {
        let pool = validate(&subnet("10.0.0.0/29", 29, Some("10.0.0.1"))).unwrap();
        assert_eq!(pool.total(), 5);
        let mut taken = BTreeSet::new();
        while let Some(next) = pool.next(&taken) {
            taken.insert(next);
        }
        let expected: BTreeSet<Ipv4Addr> = (2..=6).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
        assert_eq!(taken, expected);
        // A smaller part of a larger network has no broadcast address of its own.
        let part = validate(&subnet("10.0.0.8/29", 24, None)).unwrap();
        assert_eq!(part.total(), 8);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            (ranged("10.0.0.9", "10.0.0.2", 24, None), "ends before that"),
            (ranged("10.0.0.9", "10.0.1.2", 24, None), "the last address 10.0.1.2 is outside of 10.0.0.0/24"),
            (ranged("10.0.0.9", "10.0.0.20", 24, Some("10.1.0.1")), "spec.gateway 10.1.0.1 is outside"),
            (ranged("10.0.0", "10.0.0.20", 24, None), "spec.range.start \"10.0.0\" is no IPv4 address"),
            (ranged("10.0.0.1", "10.0.0.20", 31, None), "spec.prefix 31"),
            (subnet("10.0.0.0/33", 24, None), "no IPv4 subnet"),
            (subnet("10.0.0.0/16", 24, None), "the last address 10.0.255.255 is outside"),
            (IPPoolSpec { range: None, ..ranged("", "", 24, None) }, "either"),
        ];
        for (spec, part) in cases {
            let said = validate(&spec).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
    }

    proptest! {
        #[test]
        fn all_addresses_differ_and_are_as_many_as_said(
            start in 0_u32..250, length in 0_u32..60, gateway in proptest::option::of(0_u32..256), prefix in 8_u8..=24
        ) {
            let of = |n: u32| Ipv4Addr::from_bits(0x0a00_0000 + n.min(255)).to_string();
            let gateway = gateway.map(of);
            let pool = validate(&ranged(&of(start), &of(start + length), prefix, gateway.as_deref())).unwrap();
            let mut taken = BTreeSet::new();
            let mut last = None;
            while let Some(next) = pool.next(&taken) {
                prop_assert!(pool.contains(next) && pool.spans(next));
                prop_assert!(last < Some(next), "the lowest first");
                prop_assert!(taken.insert(next));
                last = Some(next);
            }
            prop_assert_eq!(taken.len() as u64, pool.total());
            // What is released is given out again.
            if let Some(back) = taken.first().copied() {
                taken.remove(&back);
                prop_assert_eq!(pool.next(&taken), Some(back));
            }
        }
    }
}
