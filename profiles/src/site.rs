//! Site properties: what templates of a profile see as `site`.
//!
//! | name | content | defined |
//! |---|---|---|
//! | `site.device_id` | identity of the appliance | always |
//! | `site.instance` | name of the instance, `edge` by default | always |
//! | `site.lan_ip` | the router's address on the LAN, `192.168.200.1` | with `router` |
//! | `site.lan_prefix` | prefix length of the LAN, a number, `24` | with `router` |
//! | `site.lan_netmask` | the same as a mask, `255.255.255.0` | with `router` |
//! | `site.lan_cidr` | address and prefix length, `192.168.200.1/24` | with `router` |
//! | `site.wan_ip`, `site.wan_prefix`, `site.wan_cidr` | the same of the WAN side | with `router` |
//! | `site.wan_gateway` | the router's gateway | with `router` |
//! | `site.dhcp_start`, `site.dhcp_end` | first and last address that the router leases | with `router` |
//! | `site.dns` | list of name servers | always, may be empty |
//! | `site.ntp` | list of time servers | always, may be empty |
//! | `site.ssh_keys` | list of public keys | always, may be empty |
//! | `site.proxy.http`, `.https`, `.no_proxy` | proxy, credentials included | with `proxy` |
//! | `site.proxy.ca_certificates` | list of PEM texts | with `proxy` |
//!
//! A name that is not defined is an error where it is used, with its file and line. `{% if site.proxy is defined %}`
//! asks first.

use std::fmt;

use serde::Serialize;

/// Values of one site; see the table in the module's documentation.
#[derive(Clone, Default, Eq, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the table above is their documentation")]
pub struct SiteProperties {
    pub device_id: String,
    pub instance: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan_ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan_prefix: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan_netmask: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan_cidr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wan_ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wan_prefix: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wan_cidr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wan_gateway: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dhcp_start: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dhcp_end: Option<String>,
    pub dns: Vec<String>,
    pub ntp: Vec<String>,
    pub ssh_keys: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyProperties>,
}

/// Proxy of the site. URLs may hold credentials.
#[derive(Clone, Default, Eq, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the module's table is their documentation")]
pub struct ProxyProperties {
    pub http: String,
    pub https: String,
    pub no_proxy: String,
    pub ca_certificates: Vec<String>,
}

// By hand, so that no credential ends in a log (law 5); a new field is not shown before somebody decides so.
impl fmt::Debug for SiteProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SiteProperties")
            .field("device_id", &self.device_id)
            .field("instance", &self.instance)
            .field("lan_cidr", &self.lan_cidr)
            .field("wan_cidr", &self.wan_cidr)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ProxyProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_credentials() {
        let proxy = ProxyProperties { http: "http://u:hunter2@p:1".into(), ..ProxyProperties::default() };
        let site = SiteProperties { device_id: "store-1".into(), proxy: Some(proxy), ..SiteProperties::default() };
        let shown = format!("{site:?} {:?}", site.proxy);
        assert!(shown.contains("store-1") && !shown.contains("hunter2"), "{shown}");
    }
}
