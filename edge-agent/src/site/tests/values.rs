//! Values with a grammar of their own, and secrets.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::*;

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
