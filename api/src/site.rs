//! The site file, `unattended.yaml`: the one file that somebody edits at a site.
//!
//! These types are the shape only. Rules across fields (addresses within their subnet, both proxies or none, …) are
//! checked by the agent, which knows the position of every value in the file.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::Deserialize;

/// What one site needs to be told.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct SiteConfig {
    /// Identity of this appliance, unique across all sites. Default: the machine ID. Lower-case letters,
    /// digits, `-` and `.`; at most 63 characters. Needs a reinstall when changed.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub device_id: Option<String>,
    /// How many boxes make the appliance.
    #[serde(default)]
    pub mode: Mode,
    /// Proxy for everything that leaves the site. Credentials may stand in the URLs.
    pub proxy: Option<Proxy>,
    /// Addresses of the site router, a virtual machine of the system profile.
    pub router: Option<Router>,
    /// The box itself.
    #[serde(default)]
    pub host: Host,
    /// Management plane; without it the appliance is managed on the box.
    pub hub: Option<Hub>,
    /// System profile archive, an absolute path or one relative to this file's folder.
    #[schemars(length(min = 1, max = 4096))]
    pub profile: Option<String>,
    /// Directories for disks of virtual machines. Default: one pool `default` below the agent's root.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub storage_pools: Vec<StoragePool>,
    /// Networks for virtual machines. Default: `wan` (NAT) and `lan` (isolated).
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub networks: Vec<Network>,
    /// Public SSH keys (`authorized_keys` lines) for the virtual machines of the profile.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub ssh_keys: Vec<String>,
}

/// How many boxes make the appliance.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One box.
    #[default]
    Standalone,
    /// Several boxes; not in this version.
    Ha,
}

/// Proxy settings: `http` and `https` come together.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// Proxy for plain HTTP, for instance `http://user:password@proxy.example.com:3128`.
    pub http: Option<Secret>,
    /// Proxy for HTTPS.
    pub https: Option<Secret>,
    /// Comma-separated CIDRs, hosts and domains that are reached directly.
    #[schemars(length(max = 4096))]
    pub no_proxy: Option<String>,
    /// Certificates to trust behind the proxy: PEM in base64, with or without padding.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub ca_certificates: Vec<String>,
}

/// Addresses of the site router.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// Its address on the network `lan`, with prefix length: `192.168.200.1/24`.
    #[schemars(with = "String", extend("format" = "ipv4-cidr"))]
    pub lan_ip: Ipv4Net,
    /// Its address on the network `wan`, with prefix length.
    #[schemars(with = "String", extend("format" = "ipv4-cidr"))]
    pub wan_ip: Ipv4Net,
    /// Its gateway. Default: the address of the network `wan`.
    pub wan_gateway: Option<Ipv4Addr>,
    /// Addresses that it leases on the LAN; within the subnet of `lan_ip`, without `lan_ip`.
    pub dhcp_range: DhcpRange,
    /// Name servers that it asks. Default: its gateway.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub dns: Vec<Ipv4Addr>,
}

/// First and last address of a DHCP range, both included.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DhcpRange {
    /// First address.
    pub start: Ipv4Addr,
    /// Last address; not below `start`.
    pub end: Ipv4Addr,
}

/// The box itself.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Name servers handed to the system cluster. Default: those of the host.
    #[serde(default)]
    #[schemars(length(max = 3))]
    pub dns: Vec<Ipv4Addr>,
    /// Time servers, host names or addresses, available to profiles as `site.ntp`.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub ntp: Vec<String>,
}

/// Management plane. Checked now; pairing is not in this version.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    /// Host name or URL; a bare host means https. No trailing slash.
    #[schemars(length(min = 1, max = 255))]
    pub endpoint: String,
    /// One-time code that ties the box to its registration.
    pub pairing_code: Option<Secret>,
    /// Certificate of the hub's authority: PEM in base64.
    pub ca_certificate: Option<String>,
}

/// Directory for disks of virtual machines.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct StoragePool {
    /// Name by which profiles refer to it. The first pool also holds images.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Absolute directory; made where it is missing.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^/"))]
    pub path: String,
}

/// Network for virtual machines.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Name by which profiles refer to it.
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// How it is connected.
    #[serde(rename = "type")]
    pub type_: NetworkType,
    /// `nat`: the host's address on it with prefix length, the gateway of its guests: `192.168.150.1/24`.
    #[schemars(with = "Option<String>", extend("format" = "ipv4-cidr"))]
    pub address: Option<Ipv4Net>,
    /// `nat`: addresses that the host leases to its guests; within the subnet of `address`, without `address`. None
    /// where absent.
    pub dhcp_range: Option<DhcpRange>,
    /// `bridge`: an existing bridge of the host.
    #[schemars(length(min = 1, max = 15))]
    pub bridge: Option<String>,
}

/// How a network is connected.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum NetworkType {
    /// Guests reach out through the host; nobody reaches in.
    Nat,
    /// Guests reach each other only.
    Isolated,
    /// Guests are on an existing bridge of the host.
    Bridge,
}

/// Text that must not be shown: its `Debug` form is `***`.
#[derive(Clone, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for where it is used.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
