//! libvirt networks: what is wanted, as XML, and what there is, read back into the same shape.
//!
//! <https://libvirt.org/formatnetwork.html>

use std::net::Ipv4Addr;

use edge_api::names::METADATA_NS;
use serde::Deserialize;
use uuid::Uuid;

use super::xml::{self, Element, element, text};
use super::{Error, NetworkFacts};

/// The parts of a network that make a difference to guests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Shape {
    /// Behind the host, which is the gateway. libvirt makes no packet filter of its own for it (`forward mode='open'`):
    /// the agent's masquerades, and lets the system cluster in, which libvirt's NAT would refuse.
    Nat {
        /// Bridge of its own.
        bridge: String,
        /// Host address.
        address: Ipv4Addr,
        /// Prefix length.
        prefix: u8,
        /// First and last address that libvirt's DHCP gives.
        dhcp: Option<(Ipv4Addr, Ipv4Addr)>,
    },
    /// A bridge of its own, without an address, DNS or DHCP.
    Isolated {
        /// Bridge of its own.
        bridge: String,
    },
    /// An existing bridge.
    Bridge {
        /// The host's bridge.
        bridge: String,
    },
    /// Anything else, which is never ours.
    Foreign,
}

impl Shape {
    /// Whether libvirt's DHCP gives this address here.
    pub fn gives(&self, address: Ipv4Addr) -> bool {
        matches!(self, Self::Nat { dhcp: Some((first, last)), .. } if (*first..=*last).contains(&address))
    }
}

/// A network that is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Network {
    /// Name in libvirt.
    pub name: String,
    /// Derived UUID, the mark by which it is known as ours.
    pub uuid: Uuid,
    /// Appliance it belongs to.
    pub appliance: Uuid,
    /// Its shape.
    pub shape: Shape,
    /// What libvirt's DHCP keeps for somebody: noted by the machines, and kept when the network is defined anew.
    pub reservations: Vec<Reservation>,
}

/// An address that libvirt's DHCP gives to one interface and to no other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reservation {
    /// MAC address of the interface, lower case.
    pub mac: String,
    /// The address.
    pub address: Ipv4Addr,
}

impl Reservation {
    fn element(&self) -> Element {
        element("host").attr("mac", &self.mac).attr("ip", self.address.to_string())
    }

    /// XML to add or remove it with.
    pub fn xml(&self) -> String {
        self.element().document()
    }
}

impl Network {
    /// With those of the reservations that its DHCP can still give.
    #[must_use]
    pub fn keeping(&self, reservations: &[Reservation]) -> Self {
        let given = |kept: &&Reservation| self.shape.gives(kept.address);
        Self { reservations: reservations.iter().filter(given).cloned().collect(), ..self.clone() }
    }

    /// XML to define it with.
    pub fn xml(&self) -> String {
        let Self { name, uuid, appliance, shape, reservations } = self;
        // Without spanning tree: a bridge of one host forwards at once instead of after its listening delay.
        let own_bridge = |name: &str| element("bridge").attr("name", name).attr("stp", "off").attr("delay", "0");
        let root = element("network")
            .child(text("name", name))
            .child(text("uuid", uuid.to_string()))
            .child(element("metadata").child(mark(*appliance)));
        match shape {
            Shape::Nat { bridge, address, prefix, dhcp } => {
                let ip = element("ip").attr("address", address.to_string()).attr("prefix", prefix.to_string());
                let ip = match dhcp {
                    Some((start, end)) => ip.child(
                        element("dhcp")
                            .child(element("range").attr("start", start.to_string()).attr("end", end.to_string()))
                            .children(reservations.iter().map(Reservation::element)),
                    ),
                    None => ip,
                };
                root.child(element("forward").attr("mode", "open")).child(own_bridge(bridge)).child(ip)
            }
            Shape::Isolated { bridge } => root.child(own_bridge(bridge)).child(element("dns").attr("enable", "no")),
            Shape::Bridge { bridge } => {
                root.child(element("forward").attr("mode", "bridge")).child(element("bridge").attr("name", bridge))
            }
            Shape::Foreign => root,
        }
        .document()
    }
}

/// For people who look with `virsh net-dumpxml`; the mark that decides is the UUID.
fn mark(appliance: Uuid) -> Element {
    element("pcg:network").attr("xmlns:pcg", METADATA_NS).attr("appliance", appliance.to_string())
}

#[derive(Deserialize)]
struct Document {
    name: String,
    uuid: Uuid,
    #[serde(default, rename = "@connections")]
    connections: u32,
    forward: Option<Forward>,
    bridge: Option<BridgeElement>,
    #[serde(default, rename = "ip")]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Forward {
    #[serde(rename = "@mode")]
    mode: Option<String>,
}

#[derive(Deserialize)]
struct BridgeElement {
    #[serde(rename = "@name")]
    name: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    #[serde(rename = "@family")]
    family: Option<String>,
    #[serde(rename = "@address")]
    address: Option<Ipv4Addr>,
    #[serde(rename = "@prefix")]
    prefix: Option<u8>,
    #[serde(rename = "@netmask")]
    netmask: Option<Ipv4Addr>,
    dhcp: Option<Dhcp>,
}

#[derive(Deserialize)]
struct Dhcp {
    #[serde(default, rename = "range")]
    ranges: Vec<Range>,
    #[serde(default, rename = "host")]
    hosts: Vec<DhcpHost>,
}

#[derive(Deserialize)]
struct DhcpHost {
    #[serde(rename = "@mac")]
    mac: Option<String>,
    #[serde(rename = "@ip")]
    ip: Option<Ipv4Addr>,
}

#[derive(Deserialize)]
struct Range {
    #[serde(rename = "@start")]
    start: Ipv4Addr,
    #[serde(rename = "@end")]
    end: Ipv4Addr,
}

impl Document {
    fn shape(&self) -> Shape {
        let bridge = self.bridge.as_ref().and_then(|b| b.name.clone());
        let mode = self.forward.as_ref().map(|f| f.mode.as_deref().unwrap_or("nat"));
        match (mode, bridge, self.ips.as_slice()) {
            (Some("open"), Some(bridge), [ip]) if ip.family.as_deref().unwrap_or("ipv4") == "ipv4" => {
                let prefix = ip.prefix.or_else(|| ip.netmask.map(|m| m.to_bits().leading_ones() as u8));
                let dhcp = match ip.dhcp.as_ref().map(|d| d.ranges.as_slice()) {
                    None | Some([]) => None,
                    Some([range]) => Some((range.start, range.end)),
                    Some(_) => return Shape::Foreign,
                };
                match (ip.address, prefix) {
                    (Some(address), Some(prefix)) => Shape::Nat { bridge, address, prefix, dhcp },
                    _ => Shape::Foreign,
                }
            }
            (None, Some(bridge), []) => Shape::Isolated { bridge },
            (Some("bridge"), Some(bridge), []) => Shape::Bridge { bridge },
            _ => Shape::Foreign,
        }
    }

    fn reservations(&self) -> Vec<Reservation> {
        let hosts = self.ips.iter().filter_map(|ip| ip.dhcp.as_ref()).flat_map(|dhcp| &dhcp.hosts);
        hosts
            .filter_map(|host| Some(Reservation { mac: host.mac.as_ref()?.to_lowercase(), address: host.ip? }))
            .collect()
    }
}

/// Reads a network. `config` is the definition that the next start will use, `live` what runs now.
pub fn read(config: &str, live: &str, active: bool, autostart: bool) -> Result<NetworkFacts, Error> {
    let document: Document = xml::read("network", config)?;
    let connections = xml::read::<Document>("network", live)?.connections;
    let (shape, reservations) = (document.shape(), document.reservations());
    Ok(NetworkFacts { name: document.name, uuid: document.uuid, active, autostart, connections, shape, reservations })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> Vec<Shape> {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 10), Ipv4Addr::new(10, 0, 0, 20));
        vec![
            Shape::Nat { bridge: "b0".into(), address: Ipv4Addr::new(10, 0, 0, 1), prefix: 24, dhcp: Some((a, b)) },
            Shape::Nat { bridge: "b0".into(), address: Ipv4Addr::new(10, 0, 0, 1), prefix: 24, dhcp: None },
            Shape::Isolated { bridge: "b1".into() },
            Shape::Bridge { bridge: "br0".into() },
        ]
    }

    #[test]
    fn what_is_written_is_read_back() {
        for shape in shapes() {
            let has_dhcp = matches!(shape, Shape::Nat { dhcp: Some(_), .. });
            let kept = Reservation { mac: "52:00:00:00:00:01".into(), address: Ipv4Addr::new(10, 0, 0, 12) };
            let (name, nobody) = ("t-wan".to_owned(), Uuid::nil());
            let network = Network { name, uuid: nobody, appliance: nobody, shape, reservations: vec![kept.clone()] };
            let facts = read(&network.xml(), &network.xml(), true, true).unwrap();
            assert_eq!((facts.name.as_str(), &facts.shape), ("t-wan", &network.shape));
            assert_eq!(facts.reservations, if has_dhcp { vec![kept] } else { Vec::new() });
        }
    }

    #[test]
    fn libvirts_own_words_are_understood() {
        let live = "<network connections='2'><name>default</name><uuid>8e10e752-4faa-48fe-94a5-4a365294fe76</uuid>\
            <forward mode='open'/>\
            <bridge name='virbr0' stp='on' delay='0'/><mac address='52:54:00:00:00:01'/>\
            <ip address='192.168.122.1' netmask='255.255.255.0'><dhcp>\
            <range start='192.168.122.2' end='192.168.122.254'/></dhcp></ip></network>";
        let facts = read(live, live, true, false).unwrap();
        assert_eq!(facts.connections, 2);
        assert!(matches!(facts.shape, Shape::Nat { prefix: 24, .. }));
        for mode in ["route", "nat"] {
            let other = format!(
                "<network><name>x</name><uuid>8e10e752-4faa-48fe-94a5-4a365294fe76</uuid>\
                <forward mode='{mode}'/><bridge name='v'/><ip address='10.0.0.1' prefix='24'/></network>"
            );
            assert_eq!(read(&other, &other, false, false).unwrap().shape, Shape::Foreign, "{mode}");
        }
    }
}
