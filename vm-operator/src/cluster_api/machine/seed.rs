//! What a machine boots with: the `NoCloud` files. Pure.
//!
//! kubelet must tell Kubernetes the provider ID that `LibvirtMachine` has. cloud-init fills it in: the bootstrap data of
//! Cluster API's kubeadm provider is a template of its kind, so a `KubeadmConfigTemplate` sets the kubelet argument
//! `provider-id` to `libvirt:///{{ ds.meta_data.instance_id }}`, and the node's `name` to
//! `{{ ds.meta_data.local_hostname }}`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::Serialize;
use serde_json::{Value, json};

/// An interface of a machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nic {
    /// MAC address, derived from identity and position.
    pub mac: String,
    /// Its address; by DHCP where absent.
    pub address: Option<Address>,
}

/// A static address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub name_servers: Vec<Ipv4Addr>,
}

/// Name that the guest gives to the interface at this position.
pub fn interface(position: usize) -> String {
    format!("eth{position}")
}

/// `meta-data`. JSON is YAML, and a writer of it quotes what has to be quoted.
pub fn meta_data(id: &str, hostname: &str) -> String {
    json!({ "instance-id": id, "local-hostname": hostname }).to_string()
}

#[derive(Serialize)]
struct NetworkConfig {
    version: u8,
    ethernets: BTreeMap<String, Value>,
}

/// `network-config`, version 2: every interface by its MAC address, named by its position, the default route through
/// the first alone.
pub fn network_config(nics: &[Nic]) -> String {
    let ethernets = nics.iter().enumerate().map(|(position, nic)| (interface(position), ethernet(position, nic)));
    let config = NetworkConfig { version: 2, ethernets: ethernets.collect() };
    serde_json::to_string_pretty(&config).unwrap_or_default()
}

fn ethernet(position: usize, nic: &Nic) -> Value {
    let Nic { mac, address } = nic;
    let mut value = json!({ "match": { "macaddress": mac }, "set-name": interface(position) });
    match address {
        None => {
            value["dhcp4"] = json!(true);
            // A guest made anew keeps its MAC address, but not its machine ID. netplan reads this; without netplan it is
            // left out, and the DHCP server goes by the MAC address where it has a reservation.
            value["dhcp-identifier"] = json!("mac");
            if position > 0 {
                value["dhcp4-overrides"] = json!({ "use-routes": false });
            }
        }
        Some(Address { ip, prefix, gateway, name_servers }) => {
            value["addresses"] = json!([format!("{ip}/{prefix}")]);
            if let Some(gateway) = gateway.filter(|_| position == 0) {
                value["routes"] = json!([{ "to": "0.0.0.0/0", "via": gateway }]);
            }
            if !name_servers.is_empty() {
                value["nameservers"] = json!({ "addresses": name_servers });
            }
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_found_by_their_mac_address() {
        let address = Address {
            ip: Ipv4Addr::new(10, 0, 0, 20),
            prefix: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
            name_servers: vec![Ipv4Addr::new(10, 0, 0, 2)],
        };
        let nics = [
            Nic { mac: "52:00:00:00:00:01".into(), address: Some(address.clone()) },
            Nic { mac: "52:00:00:00:00:02".into(), address: Some(address) },
            Nic { mac: "52:00:00:00:00:03".into(), address: None },
        ];
        let config: Value = serde_json::from_str(&network_config(&nics)).unwrap();
        let expected = json!({
            "version": 2,
            "ethernets": {
                "eth0": {
                    "match": { "macaddress": "52:00:00:00:00:01" }, "set-name": "eth0",
                    "addresses": ["10.0.0.20/24"], "routes": [{ "to": "0.0.0.0/0", "via": "10.0.0.1" }],
                    "nameservers": { "addresses": ["10.0.0.2"] },
                },
                "eth1": {
                    "match": { "macaddress": "52:00:00:00:00:02" }, "set-name": "eth1",
                    "addresses": ["10.0.0.20/24"], "nameservers": { "addresses": ["10.0.0.2"] },
                },
                "eth2": {
                    "match": { "macaddress": "52:00:00:00:00:03" }, "set-name": "eth2",
                    "dhcp4": true, "dhcp-identifier": "mac", "dhcp4-overrides": { "use-routes": false },
                },
            },
        });
        assert_eq!(config, expected);
        assert_eq!(meta_data("i", "h"), r#"{"instance-id":"i","local-hostname":"h"}"#);
    }
}
