//! The whole way from text to errors: every kind of bad input with its exact place, and hostile files.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use edge_api::agent::ValidationError;
use edge_api::site::{NetworkType, SiteConfig};
use proptest::prelude::*;

use super::*;

const ROUTER: &str = "router:
  lan_ip: 192.168.200.1/24
  wan_ip: 192.168.150.2/24
  dhcp_range: {start: 192.168.200.100, end: 192.168.200.150}
";

fn errors(text: &str) -> Vec<ValidationError> {
    load(text).expect_err(text)
}

fn valid(text: &str) -> SiteConfig {
    load(text).unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"))
}

/// Line, column and field of each error.
fn places(text: &str) -> Vec<(u32, u32, String)> {
    errors(text).into_iter().map(|error| (error.line, error.column, error.field)).collect()
}

#[track_caller]
fn refused_at(text: &str, expected: &[(u32, u32, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(line, column, field)| (*line, *column, (*field).to_owned())).collect();
    assert_eq!(places(text), expected, "{text}\n{:#?}", errors(text));
}

fn router(lan: &str, wan: &str, start: &str, end: &str) -> String {
    format!("router:\n  lan_ip: {lan}\n  wan_ip: {wan}\n  dhcp_range:\n    start: {start}\n    end: {end}\n")
}

#[test]
fn broken_yaml_has_one_error_at_its_place() {
    for (text, place, hint) in [
        ("router:\n\tlan_ip: 1.2.3.4/24\n", (2, 1), "tab"),
        ("mode: standalone\n  device_id: a\n", (2, 12), "indented"),
        ("device_id: \"abc\nmode: standalone\n", (2, 1), "close the quote"),
        ("device_id: [a, b\n", (1, 12), "quotes"),
        ("```yaml\ndevice_id: a\n```\n", (1, 1), "code fence"),
        ("device_id: a\n```\n", (2, 1), "code fence"),
        ("router:\n\u{a0}\u{a0}lan_ip: 1.2.3.4/24\n", (2, 1), "U+00A0"),
        ("\u{200b}device_id: a\n", (1, 1), "U+200B"),
        ("device_id:\u{a0}a\nmode: standalone\n", (2, 5), "line 1: column 11"),
        ("networks:\n  – name: wan\n    type: nat\n", (3, 9), "line 2: column 3 holds –"),
        ("* device_id: a\n", (1, 1), "Markdown"),
        ("%YAML 1.2\n---\ndevice_id: a\n", (1, 1), "quotes"),
        ("device_id: a\n---\ndevice_id: b\n", (2, 1), "another document"),
        ("device_id: @store\n", (1, 12), "quotes"),
        ("", (1, 1), "template"),
        ("\n# only a comment\n", (1, 1), "template"),
        ("---\n", (1, 1), "template"),
        ("just words\n", (1, 1), ""),
        ("- device_id: a\n", (1, 1), ""),
    ] {
        let found = errors(text);
        assert_eq!(found.len(), 1, "{text:?} {found:#?}");
        assert_eq!((found[0].line, found[0].column), place, "{text:?} {found:#?}");
        assert!(found[0].hint.as_deref().unwrap_or_default().contains(hint), "{text:?} {found:#?}");
    }
}

#[test]
fn paste_damage_within_values_is_named() {
    for (text, hint) in [
        ("device_id: “store-1”\n", "column 12 holds the typographic quote “"),
        ("device_id: store\u{2011}1\n", "column 17 holds"),
        ("device_id: store-1\u{200b}\n", "U+200B"),
        ("device_id: store\u{ad}1\n", "U+00AD"),
        ("\u{201c}device_id\u{201d}: store-1\n", "typographic quote"),
        ("router：\n  lan_ip: 1\n", "colon"),
    ] {
        let found = errors(text);
        assert!(found[0].hint.as_deref().unwrap_or_default().contains(hint), "{text:?} {found:#?}");
    }
    // What is right is not called damage, and comments may hold anything.
    assert!(load("device_id: store-1 # „Filiale“\u{a0}– Süd\n").is_ok());
}

#[test]
fn encodings() {
    assert_eq!(
        load_bytes(b"\xef\xbb\xbfdevice_id: a\r\nmode: standalone\r\n").unwrap().device_id.as_deref(),
        Some("a")
    );
    for (bytes, place, found) in [
        (b"mode: standalone\ndevice_id: caf\xe9\n".as_slice(), (2, 15), "byte 0xe9 at offset 31"),
        (b"\xff\xfed\0".as_slice(), (1, 1), "UTF-16"),
        (b"device_id: \0\n".as_slice(), (1, 12), "zero byte at offset 11"),
    ] {
        let errors = load_bytes(bytes).unwrap_err();
        assert_eq!((errors.len(), errors[0].line, errors[0].column), (1, place.0, place.1), "{errors:?}");
        assert!(errors[0].found.contains(found), "{errors:?}");
    }
}

#[test]
fn anchors_aliases_tags_and_merges_are_refused_each_at_its_place() {
    refused_at(
        "device_id: &id store-1\nprofile: *id\nhost:\n  ntp: !!seq [a]\n",
        &[(1, 16, "device_id"), (2, 10, "profile"), (4, 8, "host.ntp")],
    );
    refused_at("host:\n  <<: *other\n", &[(2, 3, "host.<<"), (2, 7, "host.<<")]);
    refused_at("profile: *unknown\n", &[(1, 10, "profile")]);
    let billion_laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n";
    assert!(errors(billion_laughs).iter().any(|error| error.found.contains("anchor")));
}

#[test]
fn duplicate_keys_name_both_places() {
    let found = errors("device_id: a\nmode: standalone\ndevice_id: b\n");
    assert_eq!((found.len(), found[0].line, found[0].column), (1, 3, 1));
    assert!(found[0].found.contains("line 1, column 1"), "{found:?}");
    refused_at("host:\n  ntp: []\n  dns: []\n  ntp: []\n", &[(4, 3, "host.ntp")]);
}

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
    refused_at("storage_pools: [{name: a, path: /a}, {name: a, path: /b}]\n", &[(1, 45, "storage_pools[1].name")]);
}

#[test]
fn proxies_and_their_secrets() {
    let good = "http://proxy.example.com:3128";
    valid(&format!("proxy:\n  http: {good}\n  https: http://u:p%40ss@10.0.0.1:3128/\n  no_proxy: '*'\n"));
    valid(&format!(
        "proxy: {{http: {good}, https: 'https://[fd00::1]:8443', no_proxy: '10.0.0.0/8, .example.com,host:80,1.2.3.4'}}\n"
    ));
    refused_at(&format!("proxy:\n  http: {good}\n"), &[(1, 1, "proxy.https")]);
    refused_at(&format!("mode: standalone\nproxy:\n  https: {good}\n"), &[(2, 1, "proxy.http")]);
    refused_at("proxy:\n  no_proxy: a\n", &[(1, 1, "proxy.http")]);
    for bad in [
        "proxy.s3cret:3128",
        "ftp://u:s3cret@proxy:1",
        "http://u:s3cret@proxy",
        "http://u:s3cret@:3128",
        "http://u:s3cret@proxy:99999",
        "http://u:s3cret@proxy:0",
        "http://u:s3c@ret@proxy:1",
        "http://u:s3/cret@proxy:1",
        "http://:s3cret@proxy:1",
        "http://u:s3cret@proxy:3128/path",
        "'http://u: s3cret@proxy:3128'",
        "http://u:s3cret@10.0.0.256:3128",
        "[s3cret]",
        "12345",
    ] {
        let text = format!("proxy:\n  http: {bad}\n  https: {good}\n");
        let found = errors(&text);
        assert_eq!((found[0].line, found[0].column, found[0].field.as_str()), (2, 9, "proxy.http"), "{text}{found:#?}");
        assert!(!format!("{found:?}").contains("s3c") && !format!("{found:?}").contains("12345"), "{found:#?}");
    }
    for bad in ["a,,b", "a,", "'http://a'", "'a b'", "10.0.0.0/33", "1.2.3.400", "-x"] {
        refused_at(
            &format!("proxy: {{http: {good}, https: {good}, no_proxy: {}}}\n", quoted(bad)),
            &[(1, 94, "proxy.no_proxy")],
        );
    }
    // Misplaced logins are not repeated either.
    for text in [
        "proxy: http://u:s3cret@proxy:1\n",
        "profile: http://u:s3cret@proxy:1/\n",
        "http://u:s3cret@proxy:1: x\n",
        "hub: {endpoint: 'https://u:s3cret@hub', pairing_code: [s3cret]}\n",
        "hub: {endpoint: hub, pairing_code: {s3: cret}}\n",
    ] {
        let found = format!("{:?}", errors(text));
        assert!(!found.contains("s3cret"), "{found}");
    }
    assert!(
        !format!("{:?}", valid(&format!("proxy: {{http: 'http://u:s3cret@p:1', https: {good}}}\n"))).contains("s3cret")
    );
}

fn quoted(text: &str) -> String {
    if text.starts_with('\'') { text.to_owned() } else { format!("'{text}'") }
}

fn certificate() -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(vec!["ca.example.com".to_owned()]).unwrap()
}

#[test]
fn certificates() {
    let made = certificate();
    let pem = made.cert.pem();
    let text = |ca: &str| format!("hub: {{endpoint: hub.example.com, ca_certificate: {ca}}}\n");
    valid(&text(&STANDARD.encode(&pem)));
    valid(&text(&STANDARD_NO_PAD.encode(&pem)));
    valid(&text(&STANDARD.encode(format!("{pem}{pem}"))));
    // Folded over lines, as `base64` prints it.
    let mut folded = "hub:\n  endpoint: hub.example.com\n  ca_certificate: |\n".to_owned();
    for part in STANDARD.encode(&pem).as_bytes().chunks(76) {
        let _ = writeln!(folded, "    {}", str::from_utf8(part).unwrap());
    }
    valid(&folded);
    let key = made.signing_key.serialize_pem();
    let broken = pem.replacen("MII", "MIJ", 1);
    for (ca, found) in [
        (STANDARD.encode(made.cert.der()), "DER"),
        (STANDARD.encode(&key), "a private key"),
        (STANDARD.encode(format!("{pem}{key}")), "a private key"),
        (STANDARD.encode("hello"), "something else"),
        (STANDARD.encode(&broken), "cannot be read"),
        (STANDARD.encode(&pem[..pem.len() / 2]), "breaks off"),
        (STANDARD.encode(&pem)[..101].to_owned(), "no base64"),
        ("'*not base64*'".to_owned(), "no base64"),
        ("'-----BEGIN CERTIFICATE-----'".to_owned(), "not in base64"),
        ("'-----BEGIN PRIVATE KEY----- MC4C'".to_owned(), "a private key"),
    ] {
        let errors = errors(&text(&ca));
        assert_eq!((errors.len(), errors[0].line, errors[0].column), (1, 1, 50), "{errors:#?}");
        assert_eq!(errors[0].field, "hub.ca_certificate");
        assert!(errors[0].found.contains(found) && !errors[0].found.contains("MC4C"), "{errors:#?}");
    }
    let list = format!(
        "proxy:\n  http: http://p:1\n  https: http://p:1\n  ca_certificates:\n    - {}\n    - x\n",
        STANDARD.encode(&pem)
    );
    refused_at(&list, &[(6, 7, "proxy.ca_certificates[1]")]);
}

#[test]
fn hubs() {
    for good in
        ["hub.example.com", "hub.example.com:8443", "https://hub", "https://10.0.0.1:6443/api", "'[fd00::1]:443'"]
    {
        assert_eq!(notes(&valid(&format!("hub: {{endpoint: {good}}}\n"))).len(), 1);
    }
    for bad in
        ["hub.example.com/", "https://hub/", "http://hub", "hub:0", "hub:x", "'https://'", "hub/?a", "'a b'", "-a"]
    {
        refused_at(&format!("hub: {{endpoint: {bad}}}\n"), &[(1, 17, "hub.endpoint")]);
    }
    refused_at("hub: {}\n", &[(1, 1, "hub.endpoint")]);
}

#[test]
fn keys_servers_and_the_rest() {
    refused_at("mode: ha\n", &[(1, 7, "mode")]);
    assert!(errors("mode: ha\n")[0].hint.as_deref().unwrap().contains("not in this version"));
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    valid(&format!("ssh_keys:\n  - {key}\n  - {key} someone@example.com\n  - 'restrict,command=\"x\" {key} a b'\n"));
    for bad in [
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
        "hello world",
        "'-----BEGIN OPENSSH PRIVATE KEY----- s3cret'",
    ] {
        let text = format!("ssh_keys:\n  - {bad}\n");
        refused_at(&text, &[(2, 5, "ssh_keys[0]")]);
        assert!(!format!("{:?}", errors(&text)).contains("s3cret"));
    }
    valid("host: {dns: [1.1.1.1], ntp: [pool.ntp.org, 10.0.0.1, 'fd00::1']}\n");
    refused_at("host: {dns: [127.0.0.53, 0.0.0.0]}\n", &[(1, 14, "host.dns[0]"), (1, 26, "host.dns[1]")]);
    refused_at(
        "host: {ntp: [a b, 'http://ntp', '']}\n",
        &[(1, 14, "host.ntp[0]"), (1, 19, "host.ntp[1]"), (1, 33, "host.ntp[2]")],
    );
    refused_at("host: {dns: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4]}\n", &[(1, 13, "host.dns")]);
    refused_at("profile: https://example.com/p.tar\n", &[(1, 10, "profile")]);
    refused_at("profile: conf/\n", &[(1, 10, "profile")]);
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

#[test]
fn columns_count_characters() {
    refused_at("host: {ntp: ['ä ö', '日 本']}\n", &[(1, 14, "host.ntp[0]"), (1, 21, "host.ntp[1]")]);
}

#[test]
fn defaults() {
    let networks = |text: &str| {
        let networks = effective_networks(&valid(text));
        assert_eq!((networks[0].name.as_str(), networks[1].name.as_str()), ("wan", "lan"));
        assert_eq!((networks[0].type_, networks[1].type_), (NetworkType::Nat, NetworkType::Isolated));
        networks[0].address.unwrap().to_string()
    };
    assert_eq!(networks("mode: standalone\n"), "192.168.150.1/24");
    assert_eq!(networks(ROUTER), "192.168.150.1/24");
    assert_eq!(networks(&ROUTER.replace("150.2/24", "150.1/24")), "192.168.150.2/24");
    assert_eq!(networks(&format!("{ROUTER}  wan_gateway: 192.168.150.254\n")), "192.168.150.254/24");
    let pools = effective_pools(&SiteConfig::default(), Path::new("/opt/x"));
    assert_eq!((pools.len(), pools[0].path.as_str()), (1, "/opt/x/pools/default"));
}

#[test]
fn differences() {
    let base = valid(ROUTER);
    assert!(diff(&base, &base).is_empty());
    let check = |new: &str, live: &[&str], reinstall: &[&str]| {
        let changes = diff(&base, &valid(new));
        assert_eq!(
            (changes.live, changes.needs_reinstall),
            (live.iter().map(|f| (*f).to_owned()).collect(), reinstall.iter().map(|f| (*f).to_owned()).collect(),),
            "{new}"
        );
    };
    check(&ROUTER.replace("200.150", "200.140"), &["router.dhcp_range.end"], &[]);
    check(
        &format!("{ROUTER}device_id: b\nhost: {{dns: [1.1.1.1], ntp: [a]}}\n"),
        &["host.ntp"],
        &["device_id", "host.dns"],
    );
    check(&format!("{ROUTER}profile: p.tar\nhub: {{endpoint: h}}\n"), &["hub", "profile"], &[]);
    check(&format!("{ROUTER}proxy: {{http: 'http://p:1', https: 'http://p:1'}}\n"), &[], &["proxy"]);
    // The default network follows the router.
    check(&ROUTER.replace("192.168.150.2", "192.168.160.2"), &[], &["router.wan_ip", "networks.wan.address"]);
    // Naming the defaults changes nothing.
    let named = format!(
        "{ROUTER}networks:\n  - {{name: wan, type: nat, address: 192.168.150.1/24}}\n  - {{name: lan, type: isolated}}\n"
    );
    check(&named, &[], &[]);
    check(&format!("{named}  - {{name: x, type: isolated}}\n"), &["networks.x"], &[]);
    check(&named.replace("isolated", "bridge, bridge: br0"), &[], &["networks.lan.type", "networks.lan.bridge"]);
    check("mode: standalone\n", &["router"], &[]);
    let pools = |text: &str| valid(&format!("storage_pools: [{text}]\n"));
    let (one, two) = (pools("{name: a, path: /a}"), pools("{name: a, path: /a}, {name: b, path: /b}"));
    assert_eq!(diff(&one, &two).live, ["storage_pools.b"]);
    assert_eq!(diff(&two, &one).needs_reinstall, ["storage_pools.b"]);
    assert_eq!(diff(&one, &pools("{name: a, path: /c}")).needs_reinstall, ["storage_pools.a.path"]);
    assert_eq!(diff(&SiteConfig::default(), &one).needs_reinstall, ["storage_pools"]);
}

#[test]
fn what_needs_a_reinstall_stays_as_installed() {
    let installed = valid(&format!("{ROUTER}device_id: a\n"));
    for text in [
        format!("{ROUTER}device_id: b\nhost: {{dns: [1.1.1.1], ntp: [a]}}\nprofile: p\n"),
        ROUTER.replace("192.168.150.2", "192.168.160.2"),
        format!("{ROUTER}storage_pools: [{{name: a, path: /a}}]\n"),
        format!(
            "{ROUTER}networks: [{{name: wan, type: isolated}}, {{name: lan, type: bridge, bridge: b}}, {{name: x, type: isolated}}]\n"
        ),
        ROUTER.replace("200.150", "200.140"),
        "mode: standalone\n".to_owned(),
    ] {
        let new = valid(&text);
        let followed = as_installed(&installed, &new);
        // Nothing of what is followed needs a reinstall, and following it again changes nothing.
        assert_eq!(diff(&installed, &followed).needs_reinstall, Vec::<String>::new(), "{text}");
        assert_eq!(diff(&installed, &followed).live, diff(&installed, &new).live, "{text}");
        assert!(diff(&followed, &as_installed(&installed, &followed)).is_empty(), "{text}");
    }
}

#[test]
fn the_template_is_valid_as_it_is_and_with_every_line() {
    assert_eq!(TEMPLATE.lines().next(), Some("# yaml-language-server: $schema=unattended.schema.json"));
    assert_eq!(valid(TEMPLATE), SiteConfig::default());
    // A setting is commented by `#` right before it, or before its indentation; an explanation by `# `.
    let setting = |line: &str| {
        let rest = line.strip_prefix('#')?;
        (!rest.is_empty() && (!rest.starts_with(' ') || rest.starts_with("  "))).then(|| rest.to_owned())
    };
    let full: String = TEMPLATE.lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned()) + "\n").collect();
    let site = valid(&full);
    assert!(diff(&SiteConfig::default(), &site).needs_reinstall.contains(&"device_id".to_owned()));
    // Every field of the schema is in it.
    let schema = schema();
    let mut fields: Vec<String> = Vec::new();
    let mut collect = |node: &serde_json::Value| {
        fields.extend(node["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
    };
    collect(&schema);
    schema["$defs"].as_object().unwrap().values().for_each(&mut collect);
    for field in fields {
        assert!(
            full.lines().any(|line| line.trim_start_matches([' ', '-']).starts_with(&format!("{field}:"))),
            "{field}"
        );
    }
}

#[test]
fn the_field_reference_is_complete() {
    let docs = include_str!("../../../docs/site-file.md");
    let schema = schema();
    for (name, node) in schema["properties"].as_object().unwrap() {
        assert!(docs.contains(&format!("| `{name}` |")) || docs.contains(&format!("| `{name}.")), "{name}");
        let list = node.pointer("/items/$ref").is_some();
        let reference = node.pointer("/items/$ref").or(node.get("$ref")).or(node.pointer("/anyOf/0/$ref"));
        let Some(reference) = reference.and_then(|r| r.as_str()) else { continue };
        let below = schema.pointer(&format!("{}/properties", reference.trim_start_matches('#')));
        for field in below.and_then(|fields| fields.as_object()).into_iter().flatten().map(|(name, _)| name) {
            let path = if list { format!("`{name}[].{field}`") } else { format!("`{name}.{field}`") };
            assert!(docs.contains(&path), "{path}");
        }
    }
    // Its example is valid.
    let example = docs.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    valid(example);
}

#[test]
fn the_schema_for_editors_accepts_the_template() {
    let json: serde_json::Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    assert!(jsonschema::is_valid(&schema(), &json));
    assert!(!jsonschema::is_valid(&schema(), &serde_json::json!({"device-id": "a"})));
}

/// Limits hold before anything is built: no hostile file takes long.
#[test]
fn hostile_files_are_refused_quickly() {
    let mib = MAX_BYTES;
    let mut nested = String::new();
    (0..MAX_BYTES / 300).for_each(|depth| nested.push_str(&format!("{}a:\n", " ".repeat(depth.min(250)))));
    for (name, text) in [
        ("brackets", "[".repeat(mib)),
        ("braces", "{a: ".repeat(mib / 4)),
        ("indentation", nested),
        ("dashes", "- ".repeat(mib / 2)),
        ("items", "- x\n".repeat(mib / 4)),
        ("one key", format!("{}: x\n", "k".repeat(mib - 4))),
        ("one value", format!("device_id: {}\n", "v".repeat(mib - 20))),
        ("keys", (0..9000).fold(String::new(), |all, n| all + &format!("k{n}: 1\n"))),
        ("same key", "device_id: x\n".repeat(9000)),
        ("anchors", (0..20000).fold(String::new(), |all, n| all + &format!("- &a{n} x\n"))),
        ("aliases", "- *a\n".repeat(mib / 5)),
        ("comments", "# x\n".repeat(mib / 4)),
        ("line breaks", "\n".repeat(mib)),
        ("quotes", "\"".repeat(mib)),
        ("question marks", "? ".repeat(mib / 2)),
        ("spaces before text", "\u{a0}x\n".repeat(mib / 4)),
        ("tags", "- !!str x\n".repeat(mib / 10)),
        ("networks", "networks:\n".to_owned() + &"  - {name: a, type: isolated}\n".repeat(4500)),
        (
            "pools",
            (0..4500).fold("storage_pools:\n".to_owned(), |all, n| all + &format!("  - {{name: a, path: /{n}}}\n")),
        ),
        ("no_proxy", format!("proxy: {{no_proxy: '{}'}}\n", ",".repeat(mib / 2))),
    ] {
        let start = Instant::now();
        let found = load(&text).expect_err(name);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "{name} took {took:?}");
        assert!(!found.is_empty() && found.len() <= 101, "{name}");
        assert!(found.iter().all(|error| error.found.len() < 1000 && error.field.len() < 1000), "{name} {found:?}");
    }
    assert_eq!(load(&"x".repeat(mib + 1)).unwrap_err()[0].found, "a bigger file");
}

#[test]
fn a_huge_file_is_refused_without_being_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(100 * 1024 * 1024).unwrap();
    let bytes = read(file.path()).unwrap();
    assert_eq!(bytes.len(), MAX_BYTES + 1);
    assert_eq!(load_bytes(&bytes).unwrap_err()[0].found, "a bigger file");
}

#[test]
fn only_regular_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    assert!(read(dir.path()).is_err());
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(read(&fifo).is_err());
    assert!(read(Path::new("/dev/zero")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = load_bytes(&bytes);
    }

    #[test]
    fn no_text_panics(text in "([ -~\u{a0}\u{200b}“”–\t\n日]|device_id|router:|- |: |\n  ){0,120}") {
        if let Err(errors) = load(&text) {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.is_sorted_by_key(|error| (error.line == 0, error.line, error.column)));
        }
    }

    #[test]
    fn no_edit_of_a_valid_file_panics(at in 0usize..3000, insert in "[ -~\n\t“\u{a0}]{0,3}", cut in 0usize..4) {
        let full: String = TEMPLATE.lines().map(|line| line.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(line).to_owned() + "\n").collect();
        let mut chars: Vec<char> = full.chars().collect();
        let at = at.min(chars.len());
        let end = (at + cut).min(chars.len());
        chars.splice(at..end, insert.chars());
        let text: String = chars.into_iter().collect();
        if let Err(errors) = load(&text) {
            let lines = text.lines().count() as u32;
            prop_assert!(errors.iter().all(|error| error.line <= lines + 1), "{:?}", errors);
        }
    }
}
