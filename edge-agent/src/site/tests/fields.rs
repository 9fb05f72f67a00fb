//! Unknown and wrong fields, and rules about addresses, networks and pools.

use super::*;

#[test]
fn unknown_keys_are_listed_with_what_may_be_meant() {
    for (text, place, field, hint) in [
        ("deviceId: a\n", (1, 1), "deviceId", "did you mean `device_id`?"),
        ("device-id: a\n", (1, 1), "device-id", "did you mean `device_id`?"),
        ("netwoks: []\n", (1, 1), "netwoks", "did you mean `networks`?"),
        ("lan_ip: 192.168.200.1/24\n", (1, 1), "lan_ip", "belongs under `router`"),
        ("host:\n  device_id: a\n", (2, 3), "host.device_id", "belongs to the outermost fields"),
        ("networks:\n  - {name: a, typ: isolated}\n", (2, 5), "networks[0].type", "must be set"),
        ("xyzzy:\n", (1, 1), "xyzzy", ""),
    ] {
        let found = errors(text);
        let first = &found[0];
        assert_eq!((first.line, first.column, first.field.as_str()), (place.0, place.1, field), "{found:#?}");
        assert!(first.hint.as_deref().unwrap_or_default().contains(hint), "{found:#?}");
    }
}

#[test]
fn types_are_told_in_words() {
    for (text, place, field, found, expected) in [
        ("device_id: 4711\n", (1, 12), "device_id", "the number 4711", "lower-case"),
        ("device_id: true\n", (1, 12), "device_id", "`true` or `false`", "lower-case"),
        ("device_id: Store_1\n", (1, 12), "device_id", "`Store_1`", "lower-case"),
        ("ssh_keys: abc\n", (1, 11), "ssh_keys", "`abc`", "a list"),
        ("router: 192.168.1.1\n", (1, 9), "router", "`192.168.1.1`", "fields, indented below it"),
        ("router: []\n", (1, 9), "router", "a list", "fields"),
        ("host: {dns: [192.168.1]}\n", (1, 14), "host.dns[0]", "`192.168.1`", "an IPv4 address"),
        ("networks:\n  name: wan\n", (2, 3), "networks", "fields", "a list"),
        ("networks:\n  - wan\n", (2, 5), "networks[0]", "`wan`", "fields"),
        ("networks:\n  -\n", (2, 4), "networks[0]", "nothing", "fields"),
        ("storage_pools: [{name: p, path: pool}]\n", (1, 33), "storage_pools[0].path", "`pool`", "absolute"),
        ("mode: cluster\n", (1, 7), "mode", "`cluster`", "`standalone`"),
        ("profile: ''\n", (1, 10), "profile", "an empty text", "characters"),
        ("networks: [{name: Wan, type: isolated}]\n", (1, 19), "networks[0].name", "`Wan`", "lower-case"),
        ("networks: [{name: wan, type: NAT}]\n", (1, 30), "networks[0].type", "`NAT`", "one of `nat`"),
    ] {
        let errors = errors(text);
        assert_eq!(errors.len(), 1, "{text} {errors:#?}");
        let error = &errors[0];
        assert_eq!((error.line, error.column, error.field.as_str()), (place.0, place.1, field), "{errors:#?}");
        assert!(error.found.contains(found) && error.expected.contains(expected), "{errors:#?}");
    }
}

#[test]
fn a_field_without_a_value_counts_as_not_set() {
    let site = valid("device_id:\nrouter:\nnetworks: ~\nmode:\nhost:\n  dns:\n");
    assert_eq!(site, SiteConfig::default());
    refused_at(
        "router:\n  lan_ip:\n  wan_ip: 192.168.150.2/24\n",
        &[(1, 1, "router.dhcp_range"), (2, 3, "router.lan_ip")],
    );
}

#[test]
fn address_hints() {
    for (lan, hint) in [
        ("192.168.200.1", "add the prefix length"),
        ("192.168.200.1/255.255.255.0", "192.168.200.1/24"),
        ("192.168.200.01/24", "leading zeros"),
        ("192.168.300.1/24", "at most 255"),
        ("192.168.200.1/40", "at most 32"),
        ("'192.168.200.1 /24'", "spaces"),
        ("'fd00::1/64'", "IPv6"),
    ] {
        let found = errors(&router(lan, "192.168.150.2/24", "192.168.200.100", "192.168.200.150"));
        assert_eq!((found.len(), found[0].line, found[0].column), (1, 2, 11), "{found:#?}");
        assert!(found[0].hint.as_deref().unwrap_or_default().contains(hint), "{found:#?}");
    }
}

#[test]
fn router_addresses() {
    let wan = "192.168.150.2/24";
    let (start, end) = ("192.168.200.100", "192.168.200.150");
    valid(&router("192.168.200.1/24", wan, start, end));
    for (text, place, field) in [
        // Network, broadcast, impossible prefix, unusable address.
        (router("192.168.200.0/24", wan, start, end), (2, 11), "router.lan_ip"),
        (router("192.168.200.255/24", wan, start, end), (2, 11), "router.lan_ip"),
        (router("192.168.200.1/31", wan, start, end), (2, 11), "router.lan_ip"),
        (router("192.168.200.1/4", wan, start, end), (2, 11), "router.lan_ip"),
        (router("127.0.0.1/8", wan, start, end), (2, 11), "router.lan_ip"),
        (router("192.168.200.1/24", "192.168.150.255/24", start, end), (3, 11), "router.wan_ip"),
        // DHCP range out of the subnet, upside down, with the LAN IP, at the subnet's ends.
        (router("192.168.200.1/24", wan, "192.168.201.100", "192.168.201.150"), (5, 12), "router.dhcp_range.start"),
        (router("192.168.200.1/24", wan, start, "192.168.201.1"), (6, 10), "router.dhcp_range.end"),
        (router("192.168.200.1/24", wan, end, start), (6, 10), "router.dhcp_range.end"),
        (router("192.168.200.120/24", wan, start, end), (4, 3), "router.dhcp_range"),
        (router("192.168.200.100/24", wan, start, end), (4, 3), "router.dhcp_range"),
        (router("192.168.200.1/24", wan, "192.168.200.0", end), (5, 12), "router.dhcp_range.start"),
        (router("192.168.200.1/24", wan, start, "192.168.200.255"), (6, 10), "router.dhcp_range.end"),
        // WAN and LAN overlap.
        (router("192.168.200.1/24", "192.168.200.2/24", start, end), (2, 11), "router.lan_ip"),
        (router("192.168.200.1/24", "192.168.0.2/16", start, end), (2, 11), "router.lan_ip"),
        // Subnets of the system cluster.
        (router("10.244.3.1/24", wan, "10.244.3.2", "10.244.3.3"), (2, 11), "router.lan_ip"),
        (router("192.168.200.1/24", "10.96.0.2/24", start, end), (3, 11), "router.wan_ip"),
        (router("172.30.99.1/25", wan, "172.30.99.2", "172.30.99.3"), (2, 11), "router.lan_ip"),
    ] {
        let found = errors(&text);
        assert_eq!(
            (found[0].line, found[0].column, found[0].field.as_str()),
            (place.0, place.1, field),
            "{text}{found:#?}"
        );
    }
    let gateway = |address: &str| format!("{ROUTER}  wan_gateway: {address}\n");
    valid(&gateway("192.168.150.254"));
    for bad in ["192.168.151.1", "192.168.150.255", "192.168.150.2"] {
        refused_at(&gateway(bad), &[(5, 16, "router.wan_gateway")]);
    }
}

#[test]
fn networks_and_the_router_on_them() {
    let networks =
        |wan: &str, more: &str| format!("{ROUTER}networks:\n  - {{name: wan, type: nat, address: {wan}}}\n{more}");
    let lan = "  - {name: lan, type: isolated}\n";
    valid(&networks("192.168.150.1/24", lan));
    refused_at(&networks("192.168.150.1/24", ""), &[(5, 1, "networks")]);
    refused_at(&networks("192.168.151.1/24", lan), &[(3, 11, "router.wan_ip")]);
    refused_at(&networks("192.168.150.2/24", lan), &[(3, 11, "router.wan_ip")]);
    refused_at(&networks("192.168.150.1/25", lan), &[(3, 11, "router.wan_ip")]);
    let range = "192.168.150.1/24, dhcp_range: {start: 192.168.150.2, end: 192.168.150.9}";
    refused_at(&networks(range, lan), &[(6, 55, "networks[0].dhcp_range")]);
    refused_at(&networks("192.168.150.0/24", lan), &[(6, 37, "networks[0].address")]);
    refused_at(
        &networks("192.168.200.9/24", "  - {name: lan, type: isolated}\n"),
        &[(2, 11, "router.lan_ip"), (3, 11, "router.wan_ip")],
    );
    for (text, expected) in [
        ("networks: [{name: a, type: nat}]\n", vec![(1, 12, "networks[0].address")]),
        ("networks: [{name: a, type: bridge}]\n", vec![(1, 12, "networks[0].bridge")]),
        ("networks: [{name: a, type: isolated, address: 10.0.0.1/24}]\n", vec![(1, 38, "networks[0].address")]),
        (
            "networks: [{name: a, type: bridge, bridge: br0, address: 10.0.0.1/24}]\n",
            vec![(1, 49, "networks[0].address")],
        ),
        ("networks: [{name: a, type: nat, address: 10.0.0.1/24, bridge: br0}]\n", vec![(1, 55, "networks[0].bridge")]),
        (
            "networks: [{name: a, type: isolated, dhcp_range: {start: 10.0.0.5, end: 10.0.0.9}}]\n",
            vec![(1, 38, "networks[0].dhcp_range")],
        ),
        (
            "networks:\n  - {name: a, type: nat, address: 10.0.0.7/24, dhcp_range: {start: 10.0.0.5, end: 10.0.0.9}}\n",
            vec![(2, 48, "networks[0].dhcp_range")],
        ),
        (
            "networks:\n  - {name: a, type: nat, address: 10.0.0.1/24, dhcp_range: {start: 10.0.0.9, end: 10.0.0.5}}\n",
            vec![(2, 83, "networks[0].dhcp_range.end")],
        ),
        (
            "networks:\n  - {name: a, type: nat, address: 10.0.0.1/24, dhcp_range: {start: 9.0.0.5, end: 10.0.0.9}}\n",
            vec![(2, 68, "networks[0].dhcp_range.start")],
        ),
        ("networks: [{name: a, type: bridge, bridge: ../etc}]\n", vec![(1, 44, "networks[0].bridge")]),
        ("networks: [{name: a, type: isolated}, {name: a, type: isolated}]\n", vec![(1, 46, "networks[1].name")]),
        (
            "networks:\n  - {name: a, type: nat, address: 10.0.0.1/16}\n  - {name: b, type: nat, address: 10.0.5.1/24}\n",
            vec![(3, 35, "networks[1].address")],
        ),
        ("networks: [{name: a, type: nat, address: 10.244.1.1/24}]\n", vec![(1, 42, "networks[0].address")]),
        ("networks: [{name: a, type: nat, address: 10.0.0.1/8}]\n", vec![(1, 42, "networks[0].address")]),
    ] {
        refused_at(text, &expected);
    }
}

#[test]
fn storage_pools() {
    let pools = |first: &str, second: &str| {
        format!("storage_pools:\n  - {{name: a, path: {first}}}\n  - {{name: b, path: {second}}}\n")
    };
    valid(&pools("/data/a", "/data/ab"));
    for (first, second) in [("/data", "/data"), ("/data", "/data/b"), ("/data/b", "/data"), ("/data/", "/./data")] {
        refused_at(&pools(first, second), &[(3, 21, "storage_pools[1].path")]);
    }
    refused_at(&pools("/data/../etc", "/b"), &[(2, 21, "storage_pools[0].path")]);
    refused_at(&pools("/", "/b"), &[(2, 21, "storage_pools[0].path")]);
    refused_at(&pools("\"/a\\uFFFE\"", "/b"), &[(2, 21, "storage_pools[0].path")]);
    refused_at("storage_pools: [{name: a, path: /a}, {name: a, path: /b}]\n", &[(1, 45, "storage_pools[1].name")]);
}

#[test]
fn all_errors_at_once_and_in_order() {
    let text = format!("{ROUTER}  dns: [300.1.1.1]\nmode: ha\nnetwoks: []\nproxy:\n  http: http://p:1\nhub: {{endpoint: hub/}}\nssh_keys: [x]\n")
        .replace("192.168.200.1/24", "192.168.200.120/24");
    refused_at(
        &text,
        &[
            (4, 3, "router.dhcp_range"),
            (5, 9, "router.dns[0]"),
            (6, 7, "mode"),
            (7, 1, "netwoks"),
            (8, 1, "proxy.https"),
            (10, 17, "hub.endpoint"),
            (11, 12, "ssh_keys[0]"),
        ],
    );
}
