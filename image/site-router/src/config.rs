//! `config.xml` of the site router, validated as a whole: what does not fit is refused before anything is touched.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Deserialize;

/// dnsmasq's own lower limit of a lease.
const SHORTEST_LEASE: u32 = 120;
/// A week.
const LONGEST_LEASE: u32 = 604_800;

/// The configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the XML that was expected.
    #[error("config.xml cannot be read: {0}")]
    Xml(#[from] quick_xml::DeError),
    /// Rules that it breaks, all of them.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename = "router", deny_unknown_fields)]
struct Document {
    #[serde(rename = "@version")]
    version: u32,
    hostname: String,
    wan: Wan,
    lan: Lan,
    dhcp: Dhcp,
    dns: Option<Dns>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wan {
    address: String,
    gateway: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lan {
    address: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Dhcp {
    start: String,
    end: String,
    lease_seconds: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dns {
    #[serde(default)]
    server: Vec<String>,
}

/// A configuration that holds together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// One DNS label.
    pub hostname: String,
    /// Address and network of eth0.
    pub wan: Ipv4Net,
    /// Default gateway, in the WAN's network.
    pub gateway: Ipv4Addr,
    /// Address and network of eth1.
    pub lan: Ipv4Net,
    /// First and last address of the DHCP range, in the LAN's network.
    pub dhcp: (Ipv4Addr, Ipv4Addr),
    /// Length of a lease in seconds.
    pub lease_seconds: u32,
    /// Servers that the LAN's questions are passed on to.
    pub dns: Vec<Ipv4Addr>,
}

/// Reads and checks the text of `config.xml`.
pub fn parse(text: &str) -> Result<Config, Error> {
    let document: Document = quick_xml::de::from_str(text)?;
    let mut problems = Vec::new();
    if document.version != 1 {
        problems.push(format!("version {}: only 1 is known", document.version));
    }
    if !is_label(&document.hostname) {
        problems.push(format!("hostname {:?}: expected letters, digits and hyphens, at most 63", document.hostname));
    }
    let wan = interface("wan address", &document.wan.address, &mut problems);
    let lan = interface("lan address", &document.lan.address, &mut problems);
    let gateway = address("wan gateway", &document.wan.gateway, &mut problems);
    let start = address("dhcp start", &document.dhcp.start, &mut problems);
    let end = address("dhcp end", &document.dhcp.end, &mut problems);
    let servers = document.dns.map(|dns| dns.server).unwrap_or_default();
    let dns: Vec<_> = servers.iter().filter_map(|text| address("dns server", text, &mut problems)).collect();
    let lease = document.dhcp.lease_seconds.trim().parse().ok();
    let lease = lease.filter(|seconds| (SHORTEST_LEASE..=LONGEST_LEASE).contains(seconds));
    if lease.is_none() {
        let found = &document.dhcp.lease_seconds;
        problems.push(format!("dhcp lease-seconds {found:?}: expected {SHORTEST_LEASE} to {LONGEST_LEASE}"));
    }
    if let (Some(wan), Some(gateway)) = (wan, gateway)
        && (!is_host(wan, gateway) || wan.addr() == gateway)
    {
        problems.push(format!("wan gateway {gateway}: expected another host of {}", wan.trunc()));
    }
    if let (Some(wan), Some(lan)) = (wan, lan)
        && (wan.contains(&lan.network()) || lan.contains(&wan.network()))
    {
        problems.push(format!("wan {} and lan {} overlap", wan.trunc(), lan.trunc()));
    }
    if let (Some(lan), Some(start), Some(end)) = (lan, start, end) {
        for (name, at) in [("start", start), ("end", end)] {
            if !is_host(lan, at) {
                problems.push(format!("dhcp {name} {at}: expected a host of {}", lan.trunc()));
            }
        }
        if start > end {
            problems.push(format!("dhcp start {start} lies after its end {end}"));
        } else if (start..=end).contains(&lan.addr()) {
            problems.push(format!("dhcp range {start}-{end} holds the router's own address {}", lan.addr()));
        }
    }
    match (wan, lan, gateway, start, end, lease) {
        (Some(wan), Some(lan), Some(gateway), Some(start), Some(end), Some(lease_seconds)) if problems.is_empty() => {
            Ok(Config { hostname: document.hostname, wan, gateway, lan, dhcp: (start, end), lease_seconds, dns })
        }
        _ => Err(Error::Invalid(problems)),
    }
}

/// Volume label in a FAT boot sector, of FAT12, FAT16 or FAT32.
pub fn fat_label(sector: &[u8; 512]) -> Option<&str> {
    let label = |at: usize, kind: usize| {
        let fat = sector[kind..kind + 3] == *b"FAT" && sector[510..] == [0x55, 0xaa];
        fat.then(|| std::str::from_utf8(&sector[at..at + 11]).ok()).flatten()
    };
    label(43, 54).or_else(|| label(71, 82)).map(str::trim_end)
}

fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// An address that a host of this network can have.
fn is_host(net: Ipv4Net, address: Ipv4Addr) -> bool {
    net.contains(&address) && address != net.network() && address != net.broadcast()
}

fn address(what: &str, text: &str, problems: &mut Vec<String>) -> Option<Ipv4Addr> {
    let parsed = text.trim().parse().ok();
    if parsed.is_none() {
        problems.push(format!("{what} {text:?}: expected an IPv4 address"));
    }
    parsed
}

fn interface(what: &str, text: &str, problems: &mut Vec<String>) -> Option<Ipv4Net> {
    let parsed: Option<Ipv4Net> = text.trim().parse().ok();
    let fits = |net: &Ipv4Net| (8..=30).contains(&net.prefix_len()) && is_host(*net, net.addr());
    let net = parsed.filter(fits);
    if net.is_none() {
        problems.push(format!("{what} {text:?}: expected a host's IPv4 address with prefix length 8 to 30"));
    }
    net
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const EXAMPLE: &str = r#"<?xml version="1.0"?>
<router version="1"><hostname>store-1-router</hostname>
  <wan><address>192.168.150.2/24</address><gateway>192.168.150.1</gateway></wan>
  <lan><address>192.168.200.1/24</address></lan>
  <dhcp><start>192.168.200.100</start><end>192.168.200.150</end><lease-seconds>120</lease-seconds></dhcp>
  <dns><server>192.168.150.1</server><server>192.0.2.53</server></dns></router>"#;

    #[test]
    fn the_example_is_valid() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(config.wan.to_string(), "192.168.150.2/24");
        assert_eq!(config.dhcp.1, Ipv4Addr::new(192, 168, 200, 150));
        assert_eq!((config.lease_seconds, config.dns.len()), (120, 2));
        let without = EXAMPLE.replace("<server>192.168.150.1</server><server>192.0.2.53</server>", "");
        assert_eq!(parse(&without).unwrap().dns, Vec::<Ipv4Addr>::new());
    }

    #[test]
    fn each_rule_is_checked_and_named() {
        for (from, to, problem) in [
            (r#"version="1""#, r#"version="2""#, "version 2: only 1 is known"),
            ("store-1-router", "-store", "hostname"),
            ("store-1-router", "a;reboot", "hostname"),
            ("192.168.150.2/24", "192.168.150.2", "wan address"),
            ("192.168.150.2/24", "192.168.150.0/24", "wan address"),
            ("192.168.150.2/24", "192.168.150.2/31", "wan address"),
            ("<gateway>192.168.150.1<", "<gateway>192.168.151.1<", "wan gateway 192.168.151.1"),
            ("<gateway>192.168.150.1<", "<gateway>192.168.150.2<", "wan gateway 192.168.150.2"),
            ("192.168.200.1/24", "192.168.150.7/25", "overlap"),
            ("200.100<", "201.100<", "dhcp start 192.168.201.100"),
            ("200.150<", "200.255<", "dhcp end 192.168.200.255"),
            ("200.150<", "200.99<", "lies after its end"),
            ("192.168.200.1/24", "192.168.200.120/24", "holds the router's own address"),
            (">120<", ">119<", "lease-seconds"),
            (">120<", ">soon<", "lease-seconds"),
            ("192.0.2.53", "dns.example", "dns server"),
            ("<hostname>store-1-router</hostname>", "", "missing field `hostname`"),
            ("<lan>", "<lan><vlan>1</vlan>", "unknown field `vlan`"),
            ("<lan>", "<lan><address>10.0.0.1/8</address>", "duplicate field `address`"),
            ("</router>", "", "cannot be read"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = parse(&EXAMPLE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(problem), "{to}: {error}");
        }
    }

    #[test]
    fn labels_of_both_layouts_are_read() {
        let sector = |label: usize, kind: usize, magic: u8| {
            let mut sector = [0; 512];
            sector[label..label + 11].copy_from_slice(b"PCGCONFIG  ");
            sector[kind..kind + 8].copy_from_slice(b"FAT16   ");
            sector[510..].copy_from_slice(&[0x55, magic]);
            sector
        };
        assert_eq!(fat_label(&sector(43, 54, 0xaa)), Some("PCGCONFIG"));
        assert_eq!(fat_label(&sector(71, 82, 0xaa)), Some("PCGCONFIG"));
        assert_eq!(fat_label(&sector(43, 54, 0)), None);
        assert_eq!(fat_label(&[0; 512]), None);
    }

    #[test]
    fn all_problems_come_at_once() {
        let broken = EXAMPLE.replace(">120<", ">1<").replace("192.0.2.53", "x");
        let Err(Error::Invalid(problems)) = parse(&broken) else { panic!("accepted") };
        assert_eq!(problems.len(), 2);
    }
}
