//! Files and rules from a validated configuration. Every value in them is an address, a number or a host name that
//! was checked, so nothing needs quoting.

use std::fmt::Write as _;

use super::config::Config;

/// WAN's interface, the first of the machine.
pub const WAN: &str = "eth0";
/// LAN's interface, the second.
pub const LAN: &str = "eth1";
/// The packet filter's rules.
pub const RULES: &str = "/run/site-router/rules.nft";

/// Path and content of every file, all below `/run` but the resolver's.
pub fn files(config: &Config) -> Vec<(&'static str, String)> {
    vec![
        ("/run/systemd/network/10-wan.network", wan(config)),
        ("/run/systemd/network/10-lan.network", lan(config)),
        ("/run/site-router/dnsmasq.conf", dnsmasq(config)),
        (RULES, rules(config)),
        ("/etc/resolv.conf", resolver(config)),
    ]
}

fn resolver(config: &Config) -> String {
    config.dns.iter().fold(String::new(), |mut text, server| {
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}

fn wan(config: &Config) -> String {
    format!(
        "[Match]\nName={WAN}\n\n[Network]\nAddress={}\nGateway={}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
        config.wan, config.gateway
    )
}

fn lan(config: &Config) -> String {
    format!(
        "[Match]\nName={LAN}\n\n[Network]\nAddress={}\nConfigureWithoutCarrier=yes\nLinkLocalAddressing=no\n\
         IPv6AcceptRA=no\n",
        config.lan
    )
}

/// Authoritative: a client that asks for a foreign address, for instance one of the range before a change, is refused
/// and asks anew. `no-ping`: nobody else gives out addresses here, and the probe costs three seconds per lease.
fn dnsmasq(config: &Config) -> String {
    let (start, end) = config.dhcp;
    let (router, netmask, lease) = (config.lan.addr(), config.lan.netmask(), config.lease_seconds);
    let mut text = format!(
        "interface={LAN}\nexcept-interface=lo\nbind-dynamic\nno-resolv\nno-hosts\nno-ping\ndhcp-authoritative\n\
         dhcp-range={start},{end},{netmask},{lease}\ndhcp-option=option:router,{router}\n\
         dhcp-option=option:dns-server,{router}\ndhcp-leasefile=/var/lib/misc/dnsmasq.leases\n"
    );
    for server in &config.dns {
        let _ = writeln!(text, "server={server}");
    }
    text
}

/// LAN may go out, WAN may not come in. Applied as one transaction.
fn rules(config: &Config) -> String {
    format!(
        "table inet site_router\n\
         delete table inet site_router\n\
         table inet site_router {{\n\
         \x20 chain input {{\n\
         \x20   type filter hook input priority filter; policy drop;\n\
         \x20   ct state established,related accept\n\
         \x20   iifname \"lo\" accept\n\
         \x20   icmp type echo-request accept\n\
         \x20   iifname \"{LAN}\" udp dport {{ 53, 67 }} accept\n\
         \x20   iifname \"{LAN}\" tcp dport 53 accept\n\
         \x20 }}\n\
         \x20 chain forward {{\n\
         \x20   type filter hook forward priority filter; policy drop;\n\
         \x20   ct state established,related accept\n\
         \x20   iifname \"{LAN}\" oifname \"{WAN}\" ip saddr {} accept\n\
         \x20 }}\n\
         \x20 chain postrouting {{\n\
         \x20   type nat hook postrouting priority srcnat; policy accept;\n\
         \x20   oifname \"{WAN}\" masquerade\n\
         \x20 }}\n\
         }}\n",
        config.lan.trunc()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{parse, tests::EXAMPLE};

    #[test]
    fn the_example_gives_these_files() {
        let files = files(&parse(EXAMPLE).unwrap());
        let text = |path: &str| files.iter().find(|(name, _)| *name == path).map(|(_, text)| text.as_str()).unwrap();
        assert!(
            text("/run/systemd/network/10-wan.network").contains("Address=192.168.150.2/24\nGateway=192.168.150.1\n")
        );
        assert!(text("/run/systemd/network/10-lan.network").contains("Address=192.168.200.1/24\n"));
        let dnsmasq = text("/run/site-router/dnsmasq.conf");
        assert!(dnsmasq.contains("dhcp-range=192.168.200.100,192.168.200.150,255.255.255.0,120\n"));
        assert!(dnsmasq.ends_with("server=192.168.150.1\nserver=192.0.2.53\n"));
        let rules = text(RULES);
        assert!(rules.contains("iifname \"eth1\" oifname \"eth0\" ip saddr 192.168.200.0/24 accept"));
        assert!(rules.contains("    type filter hook forward priority filter; policy drop;\n"));
        assert_eq!(text("/etc/resolv.conf"), "nameserver 192.168.150.1\nnameserver 192.0.2.53\n");
    }
}
