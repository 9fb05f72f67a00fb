//! Rules about single values with a grammar of their own: proxy, hub, certificates, keys, servers.

use std::net::{IpAddr, Ipv4Addr};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ipnet::IpNet;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::report::Report;
use super::rules::unusable;
use super::shape::found;
use super::tree::{Content, Node, shown};

/// Base64 with or without padding.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reports wrong values below `root`.
pub fn check(root: &Node, report: &mut Report<'_>) {
    if let Some(node) = root.get("proxy") {
        proxy(node, report);
    }
    if let Some(node) = root.get("hub") {
        hub(node, report);
    }
    if let Some(host) = root.get("host") {
        host.get("dns").map(Node::items).unwrap_or_default().iter().for_each(|node| server(node, report));
        host.get("ntp").map(Node::items).unwrap_or_default().iter().for_each(|node| ntp(node, report));
    }
    if let Some(router) = root.get("router") {
        router.get("dns").map(Node::items).unwrap_or_default().iter().for_each(|node| server(node, report));
    }
    if let Some(node) = root.get("profile") {
        profile(node, report);
    }
    root.get("ssh_keys").map(Node::items).unwrap_or_default().iter().for_each(|node| ssh_key(node, report));
}

fn proxy(node: &Node, report: &mut Report<'_>) {
    if !matches!(node.content, Content::Map(_)) {
        return;
    }
    for (key, other) in [("http", "https"), ("https", "http")] {
        if node.get(key).is_none() && (node.get(other).is_some() || key == "http") {
            let expected = "a proxy, for instance http://proxy.example.com:3128";
            let hint = "`http` and `https` come together; both may name the same proxy";
            report.add(node.head, format!("proxy.{key}"), "nothing", expected, Some(hint));
        }
        if let Some(node) = node.get(key)
            && let Some(text) = node.text()
            && let Err(wrong) = proxy_url(text)
        {
            let expected = "http://host:port or https://host:port, with user:password@ before the host where needed";
            report.at(node, wrong, expected, None);
        }
    }
    if let Some(list) = node.get("no_proxy") {
        no_proxy(list, report);
    }
    for node in node.get("ca_certificates").map(Node::items).unwrap_or_default() {
        certificates(node, report);
    }
}

/// Says what is wrong with a proxy's URL without repeating any part that may hold a password.
fn proxy_url(text: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(what.to_owned());
    let Some((scheme, rest)) = text.split_once("://") else {
        return wrong("text without http:// or https:// (not shown here)");
    };
    if !["http", "https"].contains(&scheme) {
        return Err(format!("the scheme {}://", shown(&scheme.chars().take(10).collect::<String>())));
    }
    if rest.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong("a URL with spaces in it (not shown here)");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (login, address) = match rest.rsplit_once('@') {
        Some((login, address)) => (Some(login), address),
        None => (None, rest),
    };
    if let Some(login) = login {
        if login.contains(['@', '/', '?', '#', '[', ']']) {
            return wrong("a login with one of @ / ? # [ ] in it; write these as %40 %2F %3F %23 %5B %5D");
        }
        if login.split(':').next().is_none_or(str::is_empty) {
            return wrong("a login without a user");
        }
    }
    if address.contains(['/', '?', '#']) {
        return wrong("a URL that goes on behind host and port");
    }
    match host_port(address) {
        Some((_, Some(_))) => Ok(()),
        Some((_, None)) => wrong("a URL without a port"),
        None => wrong("a URL without a valid host and port"),
    }
}

/// Splits `host`, `host:port`, `[ipv6]` or `[ipv6]:port`; `None` where either part is invalid.
fn host_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        return match rest.strip_prefix(':') {
            None => rest.is_empty().then_some((address, None)),
            Some(number) => Some((address, Some(port(number)?))),
        };
    }
    let (host, number) = match text.split_once(':') {
        Some((host, number)) => (host, Some(port(number)?)),
        None => (text, None),
    };
    is_host(host).then_some((host, number))
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|port| *port > 0)
}

/// A DNS name or an IPv4 address. A name whose last label is a number is an address that went wrong.
fn is_host(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if numeric { text.parse::<Ipv4Addr>().is_ok() } else { name.len() <= 253 && name.split('.').all(label) }
}

fn no_proxy(node: &Node, report: &mut Report<'_>) {
    let Some(text) = node.text() else { return };
    for (index, entry) in text.split(',').enumerate() {
        if report.is_full() {
            return;
        }
        let entry = entry.trim();
        let domain = entry.strip_prefix("*.").or_else(|| entry.strip_prefix('.')).unwrap_or(entry);
        let valid = entry == "*"
            || entry.parse::<IpNet>().is_ok()
            || entry.parse::<IpAddr>().is_ok()
            || host_port(domain).is_some();
        if valid {
            continue;
        }
        let found = if entry.is_empty() { "nothing".to_owned() } else { format!("`{}`", shown(entry)) };
        let hint = match entry {
            "" => "two commas follow each other, or one stands at an end",
            _ if entry.contains("://") => "write the host alone, without http:// or https://",
            _ if entry.contains(char::is_whitespace) => "part the entries by commas",
            _ => "for instance: 10.0.0.0/8,192.168.1.5,server.example.com,.example.com",
        };
        let expected = "a CIDR, an address, a host, or a domain with a leading dot";
        report.add(node.place, "proxy.no_proxy", format!("{found} as entry {}", index + 1), expected, Some(hint));
    }
}

/// Checks base64 of PEM with one or more certificates.
fn certificates(node: &Node, report: &mut Report<'_>) {
    const EXPECTED: &str = "one or more certificates: PEM in base64";
    const COMMAND: &str = "on Linux: base64 -w0 ca.pem";
    let Some(text) = node.text() else { return };
    if text.contains("-----BEGIN") {
        let what = if text.contains("PRIVATE KEY") { "a private key" } else { "PEM that is not in base64" };
        return report.at(node, what, EXPECTED, Some(COMMAND));
    }
    let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let Ok(bytes) = BASE64.decode(&compact) else {
        let hint = format!("it may have been cut off, or changed by copying; {COMMAND}");
        return report.at(node, "text that is no base64", EXPECTED, Some(&hint));
    };
    let mut count = 0;
    for pem in Pem::iter_from_buffer(&bytes) {
        let place = count + 1;
        match pem {
            Ok(pem) if pem.label.contains("PRIVATE KEY") => {
                let hint = "a private key belongs to nobody but its owner; export the certificate alone";
                return report.at(node, "a private key", EXPECTED, Some(hint));
            }
            Ok(pem) if pem.label == "CERTIFICATE" && X509Certificate::from_der(&pem.contents).is_ok() => count += 1,
            Ok(pem) if pem.label == "CERTIFICATE" => {
                let found = format!("a certificate that cannot be read (number {place})");
                return report.at(node, found, EXPECTED, Some("export it again; it may have been changed by copying"));
            }
            Ok(pem) => {
                let found = format!("PEM of the kind {}", shown(&pem.label));
                return report.at(node, found, EXPECTED, None);
            }
            Err(_) => {
                return report.at(node, format!("PEM that breaks off (number {place})"), EXPECTED, Some(COMMAND));
            }
        }
    }
    if count == 0 {
        let der = X509Certificate::from_der(&bytes).is_ok();
        let (found, hint) = if der {
            ("a certificate in DER form", "convert it first: openssl x509 -inform der -in ca.der -out ca.pem")
        } else {
            ("base64 of something else", COMMAND)
        };
        report.at(node, found, EXPECTED, Some(hint));
    }
}

fn hub(node: &Node, report: &mut Report<'_>) {
    if let Some(node) = node.get("ca_certificate") {
        certificates(node, report);
    }
    let Some(node) = node.get("endpoint") else { return };
    let Some(text) = node.text() else { return };
    let expected = "a host name, or https://host, without a slash at the end";
    let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
    let (address, path) = rest.split_once('/').map_or((rest, None), |(address, path)| (address, Some(path)));
    let wrong = if scheme != "https" {
        Some((
            format!("the scheme {}://", shown(&scheme.chars().take(10).collect::<String>())),
            "a hub is reached by https only",
        ))
    } else if rest.contains('@') {
        Some(("a URL with a login (not shown here)".to_owned(), "a box shows itself by its pairing code"))
    } else if rest.ends_with('/') {
        Some((found(node), "remove the slash at the end"))
    } else if rest.contains(['?', '#']) || path.is_some_and(|p| p.chars().any(char::is_whitespace)) {
        Some((found(node), "remove what follows the host"))
    } else if host_port(address).is_none() {
        Some((found(node), "for instance hub.example.com, or hub.example.com:8443"))
    } else {
        None
    };
    if let Some((found, hint)) = wrong {
        report.at(node, found, expected, Some(hint));
    }
}

/// A name server that the box, its cluster and its guests can all reach.
fn server(node: &Node, report: &mut Report<'_>) {
    let Some(address) = node.text().and_then(|text| text.parse::<Ipv4Addr>().ok()) else { return };
    if let Some(what) = unusable(address) {
        let hint = address.is_loopback().then_some("127.… is each machine itself; name the server behind it");
        report.at(node, found(node), format!("the address of a name server, not {what}"), hint);
    }
}

fn ntp(node: &Node, report: &mut Report<'_>) {
    let Some(text) = node.text() else { return };
    if !is_host(text) && text.parse::<IpAddr>().is_err() {
        report.at(node, found(node), "a host name or address, for instance pool.ntp.org", None);
    }
}

fn profile(node: &Node, report: &mut Report<'_>) {
    let Some(text) = node.text() else { return };
    let expected = "the path of a profile archive, absolute or from this file's folder";
    if text.contains("://") {
        report.at(node, found(node), expected, Some("archives are not downloaded in this version; copy it to the box"));
    } else if text.ends_with('/') || text.chars().any(char::is_control) {
        report.at(node, found(node), expected, Some("name the archive itself, for instance profile.tar"));
    }
}

/// `[options] type base64 [comment]`, the base64 starting with the type's own name.
fn ssh_key(node: &Node, report: &mut Report<'_>) {
    const TYPES: [&str; 7] = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    let expected = "a line of a public key file, for instance `ssh-ed25519 AAAA… name`";
    let Some(text) = node.text() else { return };
    if text.contains("PRIVATE KEY") {
        let hint = "never put a private key here; take the file that ends in .pub, and make a new pair";
        return report.at(node, "a private key", expected, Some(hint));
    }
    if text.lines().count() > 1 {
        return report.at(node, "several lines", expected, Some("make each key a list item of its own"));
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let Some(index) = words.iter().position(|word| TYPES.contains(word)) else {
        let hint =
            if text.starts_with("ssh-dss") { "DSA keys are not accepted any more" } else { "the file ends in .pub" };
        return report.at(node, found(node), expected, Some(hint));
    };
    let blob = words.get(index + 1).and_then(|word| BASE64.decode(word).ok());
    let sound = blob.is_some_and(|blob| {
        let name = words[index].as_bytes();
        let length = blob.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize);
        length == Some(name.len()) && blob.get(4..4 + name.len()) == Some(name) && blob.len() > 4 + name.len() + 4
    });
    if !sound {
        let found = format!("a key of type {} that cannot be read", words[index]);
        report.at(node, found, expected, Some("it may have been cut off or broken over two lines; copy it again"));
    }
}
