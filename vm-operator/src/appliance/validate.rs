//! From an `Appliance`'s specification to one that can be planned with.

use std::collections::BTreeSet;

use edge_api::appliance::{AddressRange, ApplianceSpec, Network, NetworkType, Registry, StoragePool};
use edge_api::{Instance, instance::InvalidInstance};
use ipnet::Ipv4Net;
use uuid::Uuid;

use crate::identity;
use crate::libvirt::networks::{self, Shape};
use crate::libvirt::xml;

/// A specification that holds together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ValidatedAppliance {
    /// Identity.
    pub id: Uuid,
    /// Instance.
    pub instance: Instance,
    /// Networks as libvirt shall have them.
    pub networks: Vec<networks::Network>,
    /// Pools as libvirt shall have them.
    pub pools: Vec<Pool>,
    /// libvirt name of the pool for images.
    pub image_pool: String,
    /// Registry.
    pub registry: Registry,
    /// Directory for console logs, without a slash at its end.
    pub console_log_dir: String,
}

/// A storage pool as libvirt shall have it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pool {
    /// Name in the specification.
    pub name: String,
    /// Name in libvirt.
    pub libvirt_name: String,
    /// Derived UUID, our mark.
    pub uuid: Uuid,
    /// Directory.
    pub path: String,
}

/// What is wrong with a specification.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// Not a UUID.
    #[error("spec.id {0:?} is no UUID")]
    Id(String),
    /// Not an instance name.
    #[error("spec.instance is invalid")]
    Instance(#[source] InvalidInstance),
    /// Two things with one name.
    #[error("spec.{list} has two entries named {name}")]
    Duplicate {
        /// `networks` or `storagePools`.
        list: &'static str,
        /// The name.
        name: String,
    },
    /// A network whose fields do not fit its type.
    #[error("network {name}: {problem}")]
    Network {
        /// Name.
        name: String,
        /// What does not fit.
        problem: &'static str,
    },
    /// `imagePool` names nothing.
    #[error("spec.imagePool {0:?} names none of spec.storagePools")]
    ImagePool(String),
    /// A directory that is not absolute.
    #[error("{field} {path:?} is no absolute path")]
    Path {
        /// Where it stands.
        field: String,
        /// What was found.
        path: String,
    },
}

/// Checks a specification.
pub fn validate(spec: &ApplianceSpec) -> Result<ValidatedAppliance, Invalid> {
    let ApplianceSpec { id, instance, libvirt_uri: _, networks, storage_pools, image_pool, registry, console_log_dir } =
        spec;
    let id = Uuid::try_parse(id).map_err(|_| Invalid::Id(id.clone()))?;
    let instance: Instance = instance.parse().map_err(Invalid::Instance)?;
    unique("networks", networks.iter().map(|n| &n.name))?;
    unique("storagePools", storage_pools.iter().map(|p| &p.name))?;
    let pools: Vec<Pool> = storage_pools.iter().map(|p| pool(id, &instance, p)).collect::<Result<_, _>>()?;
    let image_pool = pools
        .iter()
        .find(|p| p.name == *image_pool)
        .map(|p| p.libvirt_name.clone())
        .ok_or_else(|| Invalid::ImagePool(image_pool.clone()))?;
    Ok(ValidatedAppliance {
        id,
        networks: networks.iter().map(|n| network(id, &instance, n)).collect::<Result<_, _>>()?,
        pools,
        image_pool,
        registry: registry.clone(),
        console_log_dir: absolute("spec.consoleLogDir".to_owned(), console_log_dir)?,
        instance,
    })
}

fn unique<'a>(list: &'static str, names: impl Iterator<Item = &'a String>) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Invalid::Duplicate { list, name: name.clone() });
        }
    }
    Ok(())
}

fn absolute(field: String, path: &str) -> Result<String, Invalid> {
    if path.starts_with('/') && xml::is_line(path) {
        Ok(path.trim_end_matches('/').to_owned())
    } else {
        Err(Invalid::Path { field, path: path.to_owned() })
    }
}

fn pool(appliance: Uuid, instance: &Instance, pool: &StoragePool) -> Result<Pool, Invalid> {
    let StoragePool { name, path } = pool;
    Ok(Pool {
        libvirt_name: instance.libvirt_name(name),
        uuid: identity::pool_uuid(appliance, name),
        path: absolute(format!("storage pool {name}: path"), path)?,
        name: name.clone(),
    })
}

fn network(appliance: Uuid, instance: &Instance, network: &Network) -> Result<networks::Network, Invalid> {
    let Network { name, type_, address, dhcp, bridge } = network;
    let wrong = |problem| Invalid::Network { name: name.clone(), problem };
    if address.is_some() && *type_ != NetworkType::Nat {
        return Err(wrong("address is for type NAT only"));
    }
    if dhcp.is_some() && *type_ != NetworkType::Nat {
        return Err(wrong("dhcp is for type NAT only"));
    }
    if bridge.is_some() && *type_ != NetworkType::Bridge {
        return Err(wrong("bridge is for type Bridge only"));
    }
    let shape = match type_ {
        NetworkType::Nat => {
            let address = address.as_deref().ok_or_else(|| wrong("type NAT needs an address"))?;
            let net: Ipv4Net = address.parse().map_err(|_| wrong("address is not of the form 192.168.150.1/24"))?;
            if net.prefix_len() > 30 || net.addr() == net.network() || net.addr() == net.broadcast() {
                return Err(wrong("address is no host address of a subnet with room for guests"));
            }
            let dhcp = dhcp.as_ref().map(|range| dhcp_range(net, range).map_err(wrong)).transpose()?;
            Shape::Nat { bridge: instance.bridge(name), address: net.addr(), prefix: net.prefix_len(), dhcp }
        }
        NetworkType::Isolated => Shape::Isolated { bridge: instance.bridge(name) },
        NetworkType::Bridge => {
            Shape::Bridge { bridge: bridge.clone().ok_or_else(|| wrong("type Bridge needs the name of a bridge"))? }
        }
    };
    let uuid = identity::network_uuid(appliance, name);
    let name = instance.libvirt_name(name);
    Ok(networks::Network { name, uuid, appliance, shape, reservations: Vec::new() })
}

fn dhcp_range(net: Ipv4Net, range: &AddressRange) -> Result<(std::net::Ipv4Addr, std::net::Ipv4Addr), &'static str> {
    let AddressRange { start, end } = range;
    let start = start.parse().map_err(|_| "dhcp.start is no IPv4 address")?;
    let end = end.parse().map_err(|_| "dhcp.end is no IPv4 address")?;
    if start > end {
        Err("dhcp.start comes after dhcp.end")
    } else if !net.contains(&start) || !net.contains(&end) {
        Err("the dhcp range leaves the subnet")
    } else if (start..=end).contains(&net.addr()) {
        Err("the dhcp range holds the host's own address")
    } else {
        Ok((start, end))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn spec() -> ApplianceSpec {
        let network = |name: &str, type_, address: Option<&str>| Network {
            name: name.to_owned(),
            type_,
            address: address.map(ToOwned::to_owned),
            dhcp: None,
            bridge: None,
        };
        ApplianceSpec {
            id: Uuid::from_u128(9).to_string(),
            instance: "optest".into(),
            libvirt_uri: "qemu:///system".into(),
            networks: vec![
                network("wan", NetworkType::Nat, Some("192.168.201.1/24")),
                network("lan", NetworkType::Isolated, None),
            ],
            storage_pools: vec![StoragePool { name: "default".into(), path: "/pool/".into() }],
            image_pool: "default".into(),
            registry: Registry { host: "r:1".into(), secret_name: "s".into() },
            console_log_dir: "/logs/".into(),
        }
    }

    #[test]
    fn names_carry_the_instance() {
        let valid = validate(&spec()).unwrap();
        assert_eq!(valid.networks[0].name, "optest-wan");
        assert_eq!((valid.image_pool.as_str(), valid.pools[0].path.as_str()), ("optest-default", "/pool"));
        assert_eq!(valid.console_log_dir, "/logs");
    }

    #[test]
    fn fields_must_fit_the_type() {
        type Edit = fn(&mut ApplianceSpec);
        let cases: [(&str, Edit); 10] = [
            ("no UUID", |s| s.id = "x".into()),
            ("instance", |s| s.instance = "A-b".into()),
            ("two entries", |s| s.networks[1].name = "wan".into()),
            ("needs an address", |s| s.networks[0].address = None),
            ("host address", |s| s.networks[0].address = Some("10.0.0.0/24".into())),
            ("NAT only", |s| s.networks[1].address = Some("10.0.0.1/24".into())),
            ("name of a bridge", |s| s.networks[1].type_ = NetworkType::Bridge),
            ("holds the host's own", |s| {
                let (start, end) = ("192.168.201.1".into(), "192.168.201.9".into());
                s.networks[0].dhcp = Some(AddressRange { start, end });
            }),
            ("names none", |s| s.image_pool = "other".into()),
            ("no absolute path", |s| s.storage_pools[0].path = "/pool\u{ffff}".into()),
        ];
        for (expected, edit) in cases {
            let mut spec = spec();
            edit(&mut spec);
            let error = validate(&spec).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not say {expected}");
        }
    }
}
