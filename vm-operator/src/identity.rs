//! Names and marks, all derived from identities (D10) and the instance (D11).

use edge_api::Instance;
use edge_api::instance::derive;
use uuid::Uuid;

/// UUID of a network of an appliance: the mark by which it is known as ours.
pub fn network_uuid(appliance: Uuid, name: &str) -> Uuid {
    derive(&format!("network/{appliance}/{name}"))
}

/// UUID of a storage pool of an appliance: the mark by which it is known as ours. Pools keep no metadata.
pub fn pool_uuid(appliance: Uuid, name: &str) -> Uuid {
    derive(&format!("pool/{appliance}/{name}"))
}

/// Our name of a libvirt network or pool, where its UUID carries our mark.
pub fn own_name<'a>(
    instance: &Instance,
    name: &'a str,
    uuid: Uuid,
    expected: impl Fn(&str) -> Uuid,
) -> Option<&'a str> {
    let own = name.strip_prefix(instance.as_str())?.strip_prefix('-')?;
    (expected(own) == uuid).then_some(own)
}

/// Prefix of the names of all volumes of a machine.
pub fn volume_prefix(machine: Uuid) -> String {
    format!("pcg-{machine}-")
}

/// Name of a volume of a machine: `root`, `seed`, `config` or `data-<name>`.
pub fn volume(machine: Uuid, role: &str) -> String {
    format!("pcg-{machine}-{role}")
}

/// Prefix of the names of image volumes.
pub const IMAGE_PREFIX: &str = "pcg-img-";

/// Name of an image volume; `digest` is `sha256:<hex>`.
pub fn image_volume(digest: &str) -> String {
    format!("{IMAGE_PREFIX}{}", digest.trim_start_matches("sha256:"))
}

/// MAC address of an interface: locally administered, unicast, the rest from machine and position.
pub fn mac(machine: Uuid, position: usize) -> String {
    let hash = derive(&format!("mac/{machine}/{position}"));
    let octets: Vec<String> = hash.as_bytes()[..5].iter().map(|octet| format!("{octet:02x}")).collect();
    format!("52:{}", octets.join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_differ_by_machine_and_position() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(mac(one, 0), mac(one, 0));
        assert_ne!(mac(one, 0), mac(one, 1));
        assert_ne!(mac(one, 0), mac(two, 0));
        // 0x52: bit 0 (multicast) clear, bit 1 (locally administered) set.
        assert_eq!(0x52 & 0b11, 0b10);
    }

    #[test]
    fn only_a_derived_uuid_is_ours() {
        let instance: Instance = "t".parse().unwrap();
        let appliance = Uuid::from_u128(1);
        let expected = |name: &str| network_uuid(appliance, name);
        let ours = network_uuid(appliance, "wan");
        assert_eq!(own_name(&instance, "t-wan", ours, expected), Some("wan"));
        assert_eq!(own_name(&instance, "t-lan", ours, expected), None);
        assert_eq!(own_name(&instance, "x-wan", ours, expected), None);
        assert_eq!(own_name(&instance, "default", Uuid::nil(), expected), None);
    }
}
