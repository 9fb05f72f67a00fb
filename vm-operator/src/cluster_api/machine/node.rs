//! What a node needs besides its bootstrap data, on a disk labelled `PCGNODE`: the registry with its login, and for
//! control planes keepalived's configuration. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Label of the disk.
pub const DISK_LABEL: &str = "PCGNODE";
/// Name by which guests know the appliance's registry (D6).
pub const REGISTRY_NAME: &str = "registry.pcg-edge.internal";
/// Program in the guest image that succeeds where the API server of this node answers.
pub const CHECK: &str = "/usr/local/bin/pcg-check-apiserver";

/// The appliance's registry.
#[derive(Clone)]
pub struct Registry {
    /// TCP port.
    pub port: u16,
    /// Address of the appliance on the machine's network, where it has one there.
    pub address: Option<Ipv4Addr>,
    /// PEM certificates that it is trusted by.
    pub ca: Vec<u8>,
    /// `user:password` in base64, as HTTP's basic authentication has it.
    pub auth: String,
}

/// The virtual IP address of a control plane.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VirtualAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// Virtual router ID, unique on the network.
    pub router_id: u8,
    /// The guest's interface on the network.
    pub interface: String,
    /// Whether the guest's CPUs are emulated.
    pub emulated: bool,
}

/// The files of the disk.
pub fn files(registry: &Registry, address: Option<&VirtualAddress>) -> BTreeMap<String, Vec<u8>> {
    let Registry { port, address: host, ca, auth } = registry;
    let mut files = BTreeMap::from([
        ("registry-host".to_owned(), format!("{REGISTRY_NAME}:{port}\n").into_bytes()),
        ("registry-ca.crt".to_owned(), ca.clone()),
        ("registry-auth".to_owned(), format!("{auth}\n").into_bytes()),
    ]);
    if let Some(host) = host {
        files.insert("registry-address".to_owned(), format!("{host}\n").into_bytes());
    }
    if let Some(address) = address {
        files.insert("keepalived.conf".to_owned(), keepalived(address).into_bytes());
    }
    files
}

/// keepalived's configuration. All control planes have the same base priority, and a healthy API server adds to it.
///
/// - A node takes the address over only with a higher priority: when its API server is healthy and the holder's is not.
///   Among equals the holder keeps it, so nothing moves back by itself.
/// - A holder that is not healthy lowers its priority and no more: it is never without the address while nobody else
///   could serve it, which `kubeadm init` relies on. A check without `weight` would give the address up.
/// - The address has no subnet (`/32`): the guest is never known by it, nor speaks from it of its own accord.
/// - `nopreempt` would undo this: keepalived then accepts a holder of lower priority, whose API server may be gone for
///   good. Equal priorities bring what it is for.
/// - To ask the API server costs an emulated CPU a second, and takes seven where that has much else to do: emulated guests
///   ask, and announce themselves, less often.
pub fn keepalived(address: &VirtualAddress) -> String {
    let VirtualAddress { address, router_id, interface, emulated } = address;
    let (interval, advertisement) = if *emulated { (20, 5) } else { (5, 1) };
    format!(
        "global_defs {{
    enable_script_security
    script_user nobody nogroup
}}

vrrp_script apiserver {{
    script \"{CHECK}\"
    interval {interval}
    timeout {interval}
    fall 2
    rise 2
    weight 50
    init_fail
}}

vrrp_instance control_plane {{
    state BACKUP
    interface {interface}
    virtual_router_id {router_id}
    priority 100
    advert_int {advertisement}
    virtual_ipaddress {{
        {address}/32 dev {interface}
    }}
    track_script {{
        apiserver
    }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_planes_get_the_address_and_workers_do_not() {
        let registry = Registry { port: 10443, address: None, ca: b"ca".to_vec(), auth: "cHVsbDp4".into() };
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&files(&registry, None)), ["registry-auth", "registry-ca.crt", "registry-host"]);
        let address = VirtualAddress {
            address: Ipv4Addr::new(10, 0, 0, 10),
            router_id: 7,
            interface: "eth1".into(),
            emulated: false,
        };
        let registry = Registry { address: Some(Ipv4Addr::new(10, 0, 0, 1)), ..registry };
        let files = files(&registry, Some(&address));
        assert_eq!(files["registry-host"], b"registry.pcg-edge.internal:10443\n");
        assert_eq!(files["registry-address"], b"10.0.0.1\n");
        let text = String::from_utf8(files["keepalived.conf"].clone()).unwrap();
        for line in ["virtual_router_id 7", "interface eth1", "10.0.0.10/32 dev eth1", "state BACKUP", "weight 50"] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("nopreempt"));
        let times = |text: &str| ["interval 5\n", "timeout 5\n", "advert_int 1\n"].map(|time| text.contains(time));
        assert_eq!(times(&text), [true; 3], "{text}");
        let patient = keepalived(&VirtualAddress { emulated: true, ..address });
        assert_eq!(times(&patient), [false; 3], "{patient}");
    }
}
