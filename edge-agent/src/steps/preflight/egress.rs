//! Whether a hub can be reached: its name resolves, its port answers, and the clock is right enough for its
//! certificate. Behind a proxy it is the proxy that is reached, and that resolves the name.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use edge_api::SiteConfig;
use ipnet::IpNet;
use reqwest::Url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};

use super::{Finding, finding};
use crate::engine::chain;
use crate::ports::process::Program;

/// Longest wait for one answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Tells whether the kernel's clock is synchronised, as adjtimex(2) says it.
const TIMEDATECTL: &str = "timedatectl";

/// All that stands between this host and its hub; nothing where the site names none.
pub(super) async fn findings(site: &SiteConfig) -> Vec<Finding> {
    let Some((host, port)) = site.hub.as_ref().and_then(|hub| endpoint(&hub.endpoint)) else { return Vec::new() };
    let (way, clock) = tokio::join!(reach(site, &host, port), clock(TIMEDATECTL));
    way.err().into_iter().chain(clock).collect()
}

/// Host and port of an endpoint: a bare host means https, and that port 443.
fn endpoint(text: &str) -> Option<(String, u16)> {
    let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = Url::parse(&url).ok()?;
    Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
}

async fn reach(site: &SiteConfig, host: &str, port: u16) -> Result<(), Finding> {
    let proxy = site.proxy.as_ref().filter(|p| !goes_direct(p.no_proxy.as_deref().unwrap_or_default(), host));
    let proxy = proxy.and_then(|p| p.https.as_ref()).and_then(|url| Url::parse(url.expose()).ok());
    match proxy {
        None => open(host, port, "the hub").await.map(drop),
        Some(proxy) => through(&proxy, host, port).await,
    }
}

/// A connection, with what is wrong told apart: the name, or the way.
async fn open(host: &str, port: u16, what: &str) -> Result<TcpStream, Finding> {
    // As a URL shows them, IPv6 addresses stand in brackets.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let unresolved = |why: &str| {
        let hint = "`getent hosts NAME` asks the same; check the name, and the name servers in /etc/resolv.conf";
        finding(format!("the name of {what}, {name}, cannot be resolved: {why}"), hint)
    };
    let found = tokio::time::timeout(DEADLINE, lookup_host((name, port))).await;
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(e)) => return Err(unresolved(&e.to_string())),
        Err(_) => return Err(unresolved("no answer in time")),
    };
    let why = match tokio::time::timeout(DEADLINE, TcpStream::connect(&addresses[..])).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    let hint = format!("let this host out to {name}, TCP port {port}, or name a proxy in the site file");
    Err(finding(format!("{what} cannot be reached at {name}, port {port}: {why}"), hint))
}

/// By `CONNECT`. A proxy that is itself spoken to by TLS is only asked for its port.
async fn through(proxy: &Url, host: &str, port: u16) -> Result<(), Finding> {
    let (Some(name), Some(at)) = (proxy.host_str(), proxy.port_or_known_default()) else { return Ok(()) };
    let mut stream = open(name, at, "the proxy").await?;
    if proxy.scheme() != "http" {
        return Ok(());
    }
    let answer = tokio::time::timeout(DEADLINE, connect(&mut stream, proxy, host, port)).await;
    let why = match answer {
        Ok(Ok(line)) => match line.split(' ').nth(1) {
            Some(code) if code.starts_with('2') => return Ok(()),
            Some("407") => "it wants another login".to_owned(),
            _ => format!("it answers {:?}", line.chars().take(80).collect::<String>()),
        },
        Ok(Err(e)) => e.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    let hint = format!("have the proxy let this host through to {host}, port {port}; check its login in the site file");
    Err(finding(format!("the proxy {name}:{at} does not lead to the hub at {host}, port {port}: {why}"), hint))
}

/// Asks for a tunnel; returns the first line of the answer.
async fn connect(stream: &mut TcpStream, proxy: &Url, host: &str, port: u16) -> std::io::Result<String> {
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if !proxy.username().is_empty() {
        let mut login = decode(proxy.username());
        login.push(b':');
        login.extend(decode(proxy.password().unwrap_or_default()));
        request = request + "Proxy-Authorization: Basic " + &BASE64_STANDARD.encode(login) + "\r\n";
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    while !answer.contains(&b'\n') && answer.len() < 8192 {
        match stream.read(&mut buffer).await? {
            0 => break,
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// `%40` and the like in a login.
fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = text.get(at + 1..at + 3).filter(|_| byte == b'%');
        let decoded = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(decoded.unwrap_or(byte));
        at += if decoded.is_some() { 3 } else { 1 };
    }
    out
}

/// Whether `no_proxy` has a host: its name, a domain above it, its address or a range with that, or `*`.
fn goes_direct(no_proxy: &str, host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').to_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    no_proxy.split(',').map(|entry| entry.trim().to_lowercase()).filter(|entry| !entry.is_empty()).any(|entry| {
        let domain = entry.trim_start_matches("*.").trim_start_matches('.');
        let within = || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        match (address, entry.parse::<IpNet>()) {
            _ if entry == "*" || entry == host => true,
            (Some(address), Ok(range)) => range.contains(&address),
            (None, Err(_)) => host == domain || within(),
            _ => false,
        }
    })
}

/// A clock that is not synchronised. Where nobody can tell, nothing is found.
async fn clock(program: &str) -> Option<Finding> {
    let asked = Program::new(program).args(["show", "--property=NTPSynchronized", "--value"]).deadline(DEADLINE);
    match asked.run().await {
        Ok(output) if output.stdout.trim() == "no" => Some(finding(
            "the clock is not synchronised by NTP, and a hub's certificate is judged by it",
            "`timedatectl timesync-status` or `chronyc tracking` shows why; give the host a time server that it reaches",
        )),
        Ok(_) => None,
        Err(e) => {
            tracing::debug!("whether the clock is synchronised cannot be told: {}", chain(&e));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    use super::*;

    fn site(json: serde_json::Value) -> SiteConfig {
        serde_json::from_value(json).unwrap()
    }

    /// A loopback port that nobody listens on.
    async fn closed() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    }

    /// A proxy for one request, which it hands out.
    async fn proxy(answer: &'static str) -> (u16, oneshot::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            sender.send(String::from_utf8(request).unwrap()).unwrap();
        });
        (port, receiver)
    }

    #[test]
    fn endpoints() {
        let of = |text: &str| endpoint(text).unwrap();
        assert_eq!(of("hub.example.com"), ("hub.example.com".to_owned(), 443));
        assert_eq!(of("hub.example.com:8443"), ("hub.example.com".to_owned(), 8443));
        assert_eq!(of("https://10.0.0.1:6443/api"), ("10.0.0.1".to_owned(), 6443));
        assert_eq!(of("[fd00::1]:443"), ("[fd00::1]".to_owned(), 443));
    }

    #[test]
    fn what_goes_direct() {
        let list = "10.0.0.0/8, .corp.example,hub.site , *.lab";
        for host in ["10.1.2.3", "hub.site", "HUB.site", "a.corp.example", "corp.example", "x.lab", "a.hub.site"] {
            assert!(goes_direct(list, host), "{host}");
        }
        for host in ["11.0.0.1", "example", "xcorp.example", "hub.example.com", "xhub.site"] {
            assert!(!goes_direct(list, host), "{host}");
        }
        assert!(goes_direct("*", "anything") && !goes_direct("", "anything"));
        assert!(goes_direct("fd00::/8", "[fd00::1]"));
    }

    #[tokio::test]
    async fn directly() {
        let hub = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = hub.local_addr().unwrap().port();
        let none = SiteConfig::default();
        assert_eq!(reach(&none, "127.0.0.1", port).await, Ok(()));
        let refused = reach(&none, "127.0.0.1", closed().await).await.unwrap_err();
        assert!(refused.message.starts_with("the hub cannot be reached at 127.0.0.1, port "), "{refused:?}");
        // RFC 6761: no such name, ever.
        let unknown = reach(&none, "hub.invalid", 443).await.unwrap_err();
        assert!(unknown.message.starts_with("the name of the hub, hub.invalid, cannot be resolved: "), "{unknown:?}");
        assert!(unknown.hint.contains("/etc/resolv.conf"));
    }

    #[tokio::test]
    async fn through_a_proxy() {
        let through = |port: u16, no_proxy: &str| {
            let url = format!("http://bob:p%40ss@127.0.0.1:{port}");
            site(serde_json::json!({"proxy": {"http": url, "https": url, "no_proxy": no_proxy}}))
        };
        let (port, request) = proxy("HTTP/1.1 200 Connection established\r\n\r\n").await;
        // The name is the proxy's to resolve.
        assert_eq!(reach(&through(port, ""), "hub.invalid", 443).await, Ok(()));
        let request = request.await.unwrap();
        assert!(request.starts_with("CONNECT hub.invalid:443 HTTP/1.1\r\nHost: hub.invalid:443\r\n"), "{request}");
        assert!(request.contains("Proxy-Authorization: Basic Ym9iOnBAc3M=\r\n"), "{request}");

        for (answer, why) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "it wants another login"),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", "it answers \"HTTP/1.1 403 Forbidden\""),
            ("", "it answers \"\""),
        ] {
            let (port, _request) = proxy(answer).await;
            let refused = reach(&through(port, ""), "hub.invalid", 443).await.unwrap_err();
            assert!(refused.message.ends_with(why), "{refused:?}");
            assert!(!format!("{refused:?}").contains("bob"), "{refused:?}");
        }
        let gone = reach(&through(closed().await, ""), "hub.invalid", 443).await.unwrap_err();
        assert!(gone.message.starts_with("the proxy cannot be reached at 127.0.0.1"), "{gone:?}");

        // Around it.
        let hub = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = hub.local_addr().unwrap().port();
        assert_eq!(reach(&through(closed().await, "127.0.0.0/8"), "127.0.0.1", at).await, Ok(()));
    }

    #[tokio::test]
    async fn the_clock() {
        let folder = tempfile::tempdir().unwrap();
        let says = |text: &str| {
            let path = folder.path().join("timedatectl");
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path.display().to_string()
        };
        assert_eq!(clock(&says("echo yes")).await, None);
        assert_eq!(clock(&says("exit 1")).await, None);
        assert_eq!(clock("/nonexistent/timedatectl").await, None);
        let asked = "[ \"$*\" = 'show --property=NTPSynchronized --value' ] && echo no";
        assert!(clock(&says(asked)).await.unwrap().message.contains("not synchronised"));
    }

    #[tokio::test]
    async fn without_a_hub_nobody_is_asked() {
        assert_eq!(findings(&SiteConfig::default()).await, []);
        let port = closed().await;
        let hub = site(serde_json::json!({"hub": {"endpoint": format!("127.0.0.1:{port}")}}));
        assert!(findings(&hub).await[0].message.contains(&format!("port {port}")));
    }
}
