//! A guest that has its address from libvirt's DHCP keeps it for as long as its machine exists: what it was given once
//! is reserved for its interface. etcd and kubeadm know a control plane by its address, which may never change.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use edge_api::virtual_machine::{GuestAddress, VirtualMachineSpec};
use uuid::Uuid;

use super::validate::Nic;
use crate::identity;
use crate::libvirt::networks::Reservation;
use crate::libvirt::{Error, Hypervisor, NetworkFacts};

/// As many interfaces as the schema allows.
const MAX_INTERFACES: usize = 16;

/// Reserves what the guest's interfaces have and libvirt's DHCP gave.
pub fn keep(libvirt: &dyn Hypervisor, interfaces: &[Nic], addresses: &[GuestAddress]) -> Result<(), Error> {
    for nic in interfaces {
        let Some(network) = libvirt.network(&nic.libvirt_network)? else { continue };
        if let Some(reservation) = missing(nic, addresses, &network) {
            libvirt.reserve_address(&network.name, &reservation)?;
            tracing::info!(network = network.name, mac = reservation.mac, address = %reservation.address, "reserved");
        }
    }
    Ok(())
}

/// What is to be reserved for an interface: its first address that the network's DHCP gives, unless one is reserved for
/// it already, or that one for another.
fn missing(nic: &Nic, addresses: &[GuestAddress], network: &NetworkFacts) -> Option<Reservation> {
    let address = addresses
        .iter()
        .filter(|found| found.mac == nic.mac && found.prefix < Ipv4Addr::BITS)
        .find_map(|found| found.ip.parse().ok().filter(|address| network.shape.gives(*address)))?;
    let is_free = network.reservations.iter().all(|r| r.mac != nic.mac && r.address != address);
    is_free.then(|| Reservation { mac: nic.mac.clone(), address })
}

/// Gives up what is reserved for a machine on the networks whose names begin like those of its instance.
pub fn release(libvirt: &dyn Hypervisor, macs: &BTreeSet<String>, of_instance: &str) -> Result<(), Error> {
    for network in libvirt.networks()?.into_iter().filter(|network| network.name.starts_with(of_instance)) {
        for reservation in network.reservations.iter().filter(|reservation| macs.contains(&reservation.mac)) {
            libvirt.release_address(&network.name, reservation)?;
        }
    }
    Ok(())
}

/// MAC addresses that a machine's interfaces have or, at another time, had.
pub fn macs(id: Uuid, spec: &VirtualMachineSpec) -> BTreeSet<String> {
    let derived = (0..MAX_INTERFACES).map(|position| identity::mac(id, position));
    derived.chain(spec.interfaces.iter().filter_map(|interface| interface.mac.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::networks::Shape;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn network(reservations: Vec<Reservation>) -> NetworkFacts {
        let dhcp = Some((Ipv4Addr::new(10, 0, 0, 100), Ipv4Addr::new(10, 0, 0, 120)));
        NetworkFacts {
            name: "t-wan".into(),
            uuid: Uuid::nil(),
            active: true,
            autostart: true,
            connections: 1,
            shape: Shape::Nat { bridge: "b".into(), address: GATEWAY, prefix: 24, dhcp },
            reservations,
        }
    }

    fn nic() -> Nic {
        Nic { network: "wan".into(), libvirt_network: "t-wan".into(), mac: "m1".into() }
    }

    fn has(ip: &str, prefix: u32) -> GuestAddress {
        GuestAddress { network: "wan".into(), mac: "m1".into(), ip: ip.into(), prefix }
    }

    #[test]
    fn what_dhcp_gave_is_reserved_once() {
        let given = Reservation { mac: "m1".into(), address: Ipv4Addr::new(10, 0, 0, 101) };
        let addresses = [has("fd00::1", 64), has("10.0.0.101", 24), has("10.0.0.102", 32)];
        assert_eq!(missing(&nic(), &addresses, &network(Vec::new())), Some(given.clone()));
        assert_eq!(missing(&nic(), &addresses, &network(vec![given.clone()])), None);
        assert_eq!(missing(&nic(), &[has("10.0.0.103", 24)], &network(vec![given.clone()])), None, "it never moves");
        let of_another = Reservation { mac: "m2".into(), ..given };
        assert_eq!(missing(&nic(), &addresses, &network(vec![of_another])), None);
    }

    #[test]
    fn other_addresses_are_not() {
        for (ip, prefix) in [("10.0.0.50", 24), ("10.0.0.102", 32), ("10.0.1.101", 24)] {
            assert_eq!(missing(&nic(), &[has(ip, prefix)], &network(Vec::new())), None, "{ip}");
        }
        let elsewhere = GuestAddress { mac: "m2".into(), ..has("10.0.0.101", 24) };
        assert_eq!(missing(&nic(), &[elsewhere], &network(Vec::new())), None);
    }
}
