//! Instances (D11): everything made on a host carries an instance's name, so that several appliances, for instance a
//! test's, live side by side and one can be removed without touching another.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use uuid::Uuid;

use crate::names::{DEFAULT_INSTANCE, DEFAULT_ROOT, ID_NAMESPACE, REGISTRY_PORT};

/// A valid instance name: 1 to 9 lower-case letters and digits, a letter first.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Instance(String);

/// The text is no instance name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidInstance(String);

impl fmt::Display for InvalidInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance name {:?}: expected 1 to 9 lower-case letters and digits, a letter first", self.0)
    }
}

impl std::error::Error for InvalidInstance {}

impl FromStr for Instance {
    type Err = InvalidInstance;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if text.len() <= 9 && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(letters) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidInstance(text.to_owned()))
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self(DEFAULT_INSTANCE.to_owned())
    }
}

impl Instance {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Root of the agent's state: [`DEFAULT_ROOT`] for the default instance, `<DEFAULT_ROOT>-<name>` for others.
    pub fn default_root(&self) -> PathBuf {
        if self.0 == DEFAULT_INSTANCE {
            PathBuf::from(DEFAULT_ROOT)
        } else {
            PathBuf::from(format!("{DEFAULT_ROOT}-{}", self.0))
        }
    }

    /// Name of the kind cluster; its one node is the container `<name>-control-plane`.
    pub fn kind_cluster(&self) -> String {
        format!("pcg-{}", self.0)
    }

    /// Name of the docker network of the kind node.
    pub fn docker_network(&self) -> String {
        self.kind_cluster()
    }

    /// Pinned subnet of that network, always a /24: `172.30.99.0` for the default instance.
    pub fn docker_subnet(&self) -> Ipv4Addr {
        if self.0 == DEFAULT_INSTANCE { Ipv4Addr::new(172, 30, 99, 0) } else { Ipv4Addr::new(172, 31, self.slot(), 0) }
    }

    /// Port of the system cluster's API server on the host's loopback.
    pub fn api_port(&self) -> u16 {
        if self.0 == DEFAULT_INSTANCE { 6443 } else { 16_000 + u16::from(self.slot()) }
    }

    /// Port of the local registry on the host; inside the cluster it is always [`REGISTRY_PORT`].
    pub fn registry_port(&self) -> u16 {
        if self.0 == DEFAULT_INSTANCE { REGISTRY_PORT } else { 17_000 + u16::from(self.slot()) }
    }

    /// Name on the host of a libvirt network, storage pool or domain of this instance.
    pub fn libvirt_name(&self, name: &str) -> String {
        format!("{}-{name}", self.0)
    }

    /// Name of the bridge of a libvirt network of this instance: at most 15 characters.
    pub fn bridge(&self, network: &str) -> String {
        let hash = derive(&format!("bridge/{}/{network}", self.0)).simple().to_string();
        format!("{}-{}", self.0, &hash[..5])
    }

    /// 1 to 254, from the name.
    fn slot(&self) -> u8 {
        derive(&format!("slot/{}", self.0)).as_bytes()[0] % 254 + 1
    }
}

/// UUID version 5 of a text below this project's namespace.
pub fn derive(text: &str) -> Uuid {
    Uuid::new_v5(&Uuid::try_parse(ID_NAMESPACE).unwrap_or(Uuid::NAMESPACE_URL), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_their_limits() {
        let longest: Instance = "abcdefghi".parse().unwrap();
        assert!(longest.bridge("a-network-with-a-long-name").len() <= 15);
        assert_eq!(Instance::default().registry_port(), 10443);
        assert_ne!(Instance::default().docker_subnet(), longest.docker_subnet());
        for bad in ["", "1a", "Edge", "abcdefghij", "a-b"] {
            assert!(bad.parse::<Instance>().is_err(), "{bad}");
        }
    }
}
