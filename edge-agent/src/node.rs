//! The plan of the kind node: its configuration and the files that are mounted into it. Pure.
//!
//! Mounts and ports are fixed when the node is made, so all are planned at once (D1). Everything that must survive
//! lies below the agent's root. A different plan means a new node on the old data.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use edge_api::SiteConfig;
use edge_api::names::REGISTRY_PORT;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bundle::sha256;

/// Where the node sees `<root>/registry`.
pub const NODE_REGISTRY: &str = "/var/lib/pcg-registry";
/// Where the node sees `<root>/node`.
const NODE_FILES: &str = "/etc/pcg";
/// Where the node sees `<root>/audit`.
const NODE_AUDIT: &str = "/var/lib/pcg-audit";

/// Facts that the plan depends on.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Name of the kind cluster.
    pub cluster: &'a str,
    /// Reference of the node image in docker.
    pub image: &'a str,
    /// Agent's root.
    pub root: &'a Path,
    /// Port of the API server on the host's loopback.
    pub api_port: u16,
    /// Port of the registry on the host.
    pub registry_port: u16,
    /// Whether the host has cgroup v1.
    pub cgroup_v1: bool,
}

/// The kind configuration; JSON, which is YAML.
pub fn kind_config(facts: &Facts<'_>) -> Value {
    let mount = |host: &Path, node: &str| json!({"hostPath": host, "containerPath": node});
    let below = |folder: &str, node: &str| mount(&facts.root.join(folder), node);
    let audit = |file: &str| format!("{NODE_AUDIT}/{file}");
    let mut kubelet = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "resolvConf": format!("{NODE_FILES}/resolv.conf"),
    });
    if facts.cgroup_v1 {
        kubelet["failCgroupV1"] = json!(false);
        kubelet["cgroupDriver"] = json!("cgroupfs");
    }
    let cluster = json!({
        "kind": "ClusterConfiguration",
        "apiServer": {
            // As a map and without a version: kind makes a list of it for Kubernetes 1.36 and later, where kubeadm has one.
            "extraArgs": {
                "service-node-port-range": "10000-32767",
                "audit-policy-file": audit("policy.yaml"),
                "audit-log-path": audit("audit.log"),
                "audit-log-maxsize": "20",
                "audit-log-maxbackup": "3",
                "audit-log-maxage": "30",
            },
            "extraVolumes": [{
                "name": "audit", "hostPath": NODE_AUDIT, "mountPath": NODE_AUDIT, "readOnly": false,
                "pathType": "Directory",
            }],
            "certSANs": ["localhost", "127.0.0.1", "api.pcg-edge.internal", format!("{}-control-plane", facts.cluster)],
        },
    });
    // kind's own token for more nodes is the same on every box, and good for a day. There is one node: a token made of
    // chance that ends at once.
    let init = json!({ "kind": "InitConfiguration", "bootstrapTokens": [{ "ttl": "1s" }] });
    json!({
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": facts.cluster,
        "networking": {
            "disableDefaultCNI": true,
            "podSubnet": "10.244.0.0/16",
            "serviceSubnet": "10.96.0.0/16",
            "apiServerAddress": "127.0.0.1",
            "apiServerPort": facts.api_port,
            // containerd reaches the registry's NodePort on the node's loopback, which only this mode serves.
            "kubeProxyMode": "iptables",
        },
        "nodes": [{
            "role": "control-plane",
            "image": facts.image,
            "extraMounts": [
                // As a folder: libvirtd makes its socket anew at every start.
                mount(Path::new("/run/libvirt"), "/run/libvirt"),
                below("etcd", "/var/lib/etcd"),
                below("pki", "/etc/kubernetes/pki"),
                below("registry", NODE_REGISTRY),
                below("console", "/var/lib/pcg-console"),
                below("certs.d", "/etc/containerd/certs.d"),
                below("node", NODE_FILES),
                below("node/containerd.service.d", "/etc/systemd/system/containerd.service.d"),
                below("audit", NODE_AUDIT),
            ],
            "extraPortMappings": [{
                "containerPort": REGISTRY_PORT, "hostPort": facts.registry_port, "listenAddress": "0.0.0.0",
                "protocol": "TCP",
            }],
        }],
        "kubeadmConfigPatches": [kubelet.to_string(), cluster.to_string(), init.to_string()],
    })
}

/// Port of the registry on the host, from a configuration.
pub fn registry_port(kind_config: &Value) -> Option<u16> {
    let ports = kind_config["nodes"][0]["extraPortMappings"].as_array()?;
    let registry = ports.iter().find(|port| port["containerPort"] == REGISTRY_PORT)?;
    registry["hostPort"].as_u64()?.try_into().ok()
}

/// Name servers for the node and its pods: those of the site file, else the host's that are reachable from elsewhere,
/// else the gateway, where nobody listens and a question fails at once.
pub fn resolv_conf(site: &SiteConfig, host: &str, gateway: Ipv4Addr) -> String {
    let mut servers: Vec<Ipv4Addr> = site.host.dns.clone();
    if servers.is_empty() {
        let of_host = host.lines().filter_map(|l| l.trim().strip_prefix("nameserver")?.trim().parse().ok());
        servers = of_host.filter(|a: &Ipv4Addr| !a.is_loopback() && !a.is_unspecified()).take(3).collect();
    }
    if servers.is_empty() {
        servers.push(gateway);
    }
    servers.iter().fold(String::new(), |text, server| text + "nameserver " + &server.to_string() + "\n")
}

/// Drop-in for containerd's unit with the proxy, in a file of mode 0600: kind would hand it over in arguments.
pub fn containerd_proxy(site: &SiteConfig) -> Option<String> {
    let proxy = site.proxy.as_ref()?;
    let direct = "localhost,127.0.0.0/8,10.96.0.0/16,10.244.0.0/16,.svc,.cluster.local,.internal";
    let no_proxy = match proxy.no_proxy.as_deref() {
        Some(own) if !own.trim().is_empty() => format!("{direct},{own}"),
        _ => direct.to_owned(),
    };
    let mut text = "[Service]\n".to_owned();
    let values = [
        ("HTTP_PROXY", proxy.http.as_ref().map(|s| s.expose().to_owned())),
        ("HTTPS_PROXY", proxy.https.as_ref().map(|s| s.expose().to_owned())),
        ("NO_PROXY", Some(no_proxy)),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            text = text + "Environment=\"" + name + "=" + &unit_quote(&value) + "\"\n";
        }
    }
    Some(text)
}

/// What the node's containerd is given at its start, from the site file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// Content of the drop-in for its unit.
    pub drop_in: Option<String>,
    /// Certificates for the node's trust store: file name, PEM.
    pub certificates: BTreeMap<String, String>,
}

impl Settings {
    /// Those of a site.
    pub fn of(site: &SiteConfig) -> Self {
        let named = |pem: String| {
            let digest = sha256(pem.as_bytes());
            let hex = digest.trim_start_matches("sha256:");
            (format!("pcg-proxy-{}.crt", hex.get(..16).unwrap_or(hex)), pem)
        };
        let certificates = crate::site::proxy_certificates(site).into_iter().map(named).collect();
        Self { drop_in: containerd_proxy(site), certificates }
    }

    /// Digest of all of them.
    pub fn digest(&self) -> String {
        sha256(format!("{self:?}").as_bytes())
    }
}

/// Settings that a node has taken on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Its container, whose file system has the trust store.
    pub container: String,
    /// Digest of the settings.
    pub settings: String,
}

/// Whether a node must still take settings on. One that was just `made` has read the drop-in at its start.
pub fn needs(applied: Option<&Applied>, container: &str, made: bool, wanted: &Settings) -> bool {
    match applied.filter(|applied| applied.container == container) {
        Some(applied) => applied.settings != wanted.digest(),
        None if made => !wanted.certificates.is_empty(),
        None => *wanted != Settings::default(),
    }
}

/// Script that has a node take its settings on: its trust store is made anew of what the system brings and our
/// certificates, and containerd starts anew, which leaves containers alone.
pub const TAKE_ON: &str = "set -e
update-ca-certificates --fresh --localcertsdir /etc/pcg/ca-certificates
systemctl daemon-reload
systemctl restart containerd";

/// Quoting of systemd unit files inside double quotes; `%` starts a specifier there.
fn unit_quote(value: &str) -> String {
    let mut out = String::new();
    for c in value.chars().filter(|c| !c.is_control()) {
        match c {
            '\\' | '"' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            c => out.push(c),
        }
    }
    out
}

/// Audit policy: who wrote what, without content; leases and events are left out, reads too.
pub fn audit_policy() -> Value {
    let none = |group: &str, resources: &[&str]| json!({"level": "None", "resources": [{"group": group, "resources": resources}]});
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "verbs": ["get", "list", "watch"]},
            none("coordination.k8s.io", &["leases"]),
            none("", &["events"]),
            none("events.k8s.io", &["events"]),
            // Reviews are questions, not writes.
            none("authentication.k8s.io", &["tokenreviews"]),
            none("authorization.k8s.io", &["subjectaccessreviews", "selfsubjectaccessreviews"]),
            {"level": "Metadata"},
        ],
    })
}

/// containerd's `hosts.toml` for one origin host: everything is asked from the local registry.
///
/// Images of our own exist nowhere else; for other hosts the origin stays behind the mirror. Holds the pull login.
pub fn hosts_toml(origin: &str, login: &str) -> String {
    let mirror = format!("https://127.0.0.1:{REGISTRY_PORT}/v2/{origin}");
    let server = if origin == "docker.io" { "registry-1.docker.io" } else { origin };
    format!(
        "server = {server}\n\n\
         [host.{mirror}]\n\
         capabilities = [\"pull\", \"resolve\"]\n\
         ca = \"/etc/containerd/certs.d/ca.crt\"\n\
         override_path = true\n\n\
         [host.{mirror}.header]\n\
         Authorization = {authorization}\n",
        server = toml_string(&format!("https://{server}")),
        mirror = toml_string(&mirror),
        authorization = toml_string(&format!("Basic {login}")),
    )
}

fn toml_string(text: &str) -> String {
    // JSON's escapes are TOML's.
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(root: &Path) -> Facts<'_> {
        Facts {
            cluster: "pcg-edge",
            image: "pcg-edge.io/node:v1.36.3-edge",
            root,
            api_port: 6443,
            registry_port: 10443,
            cgroup_v1: true,
        }
    }

    fn site(json: Value) -> SiteConfig {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_configuration_has_every_mount_and_port() {
        insta::assert_snapshot!(format!("{:#}", kind_config(&facts(Path::new("/opt/spectrocloud")))));
    }

    #[test]
    fn cgroup_v2_leaves_the_driver_to_the_node() {
        let root = Path::new("/r");
        let config = kind_config(&Facts { cgroup_v1: false, ..facts(root) });
        let kubelet = config["kubeadmConfigPatches"][0].as_str().unwrap();
        assert!(!kubelet.contains("cgroupDriver") && !kubelet.contains("failCgroupV1"));
    }

    #[test]
    fn name_servers_come_from_the_site_then_the_host() {
        let gateway = Ipv4Addr::new(172, 30, 99, 1);
        let host = "search x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\n";
        assert_eq!(resolv_conf(&SiteConfig::default(), host, gateway), "nameserver 10.0.0.2\n");
        assert_eq!(resolv_conf(&SiteConfig::default(), "nameserver 127.0.0.53", gateway), "nameserver 172.30.99.1\n");
        let own = site(json!({"host": {"dns": ["9.9.9.9", "1.1.1.1"]}}));
        assert_eq!(resolv_conf(&own, host, gateway), "nameserver 9.9.9.9\nnameserver 1.1.1.1\n");
    }

    #[test]
    fn the_proxy_is_quoted_for_systemd() {
        assert_eq!(containerd_proxy(&SiteConfig::default()), None);
        let proxy = json!({"proxy": {"http": "http://u:p%40\"x@h:1", "https": "http://h:1", "no_proxy": "10.0.0.0/8"}});
        let text = containerd_proxy(&site(proxy)).unwrap();
        assert!(text.contains("Environment=\"HTTP_PROXY=http://u:p%%40\\\"x@h:1\"\n"), "{text}");
        assert!(text.contains(".internal,10.0.0.0/8\"\n"), "{text}");
    }

    #[test]
    fn settings_are_taken_on_once_for_every_edit() {
        use base64::Engine as _;
        let pem = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let base64 = |text: String| base64::prelude::BASE64_STANDARD.encode(text);
        let with = |certificates: Vec<String>| {
            let proxy = json!({"http": "http://h:1", "https": "http://h:1", "ca_certificates": certificates});
            Settings::of(&site(json!({"proxy": proxy})))
        };
        let none = Settings::of(&SiteConfig::default());
        assert_eq!(none, Settings::default());
        let proxy = with(Vec::new());
        // A chain in one entry, with words for people, is as good as two entries.
        let both = with(vec![base64(format!("# root\n{}# issuing\n{}", pem("AA"), pem("BB")))]);
        assert_eq!(both, with(vec![base64(pem("BB")), base64(pem("AA")).trim_end_matches('=').to_owned()]));
        assert_eq!(both.certificates.values().collect::<Vec<_>>().len(), 2);
        assert!(both.certificates.values().all(|text| *text == pem("AA") || *text == pem("BB")), "{both:?}");
        assert!(both.certificates.keys().all(|name| name.starts_with("pcg-proxy-")));

        let applied = |settings: &Settings| Applied { container: "c1".to_owned(), settings: settings.digest() };
        // Just made: the drop-in was there before containerd, the trust store was not.
        assert!(!needs(None, "c1", true, &none) && !needs(None, "c1", true, &proxy) && needs(None, "c1", true, &both));
        // Made by a version that kept no record.
        assert!(!needs(None, "c1", false, &none) && needs(None, "c1", false, &proxy));
        for (had, wanted) in [(&none, &both), (&both, &proxy), (&both, &none), (&proxy, &none), (&none, &proxy)] {
            assert!(needs(Some(&applied(had)), "c1", false, wanted), "an edit is followed, also back");
            assert!(!needs(Some(&applied(wanted)), "c1", false, wanted), "and once");
        }
        assert!(needs(Some(&applied(&both)), "c2", true, &both), "a new container has the image's trust store");
    }

    #[test]
    fn the_script_stops_where_something_fails() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            use std::os::unix::fs::PermissionsExt;
            let path = folder.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho \"${{0##*/}} $*\"\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let run = || {
            let script =
                std::process::Command::new("/bin/sh").args(["-c", TAKE_ON]).env("PATH", folder.path()).output();
            let script = script.unwrap();
            (script.status.success(), String::from_utf8(script.stdout).unwrap())
        };
        put("update-ca-certificates", "");
        put("systemctl", "");
        let all = "update-ca-certificates --fresh --localcertsdir /etc/pcg/ca-certificates\n\
                   systemctl daemon-reload\nsystemctl restart containerd\n";
        assert_eq!(run(), (true, all.to_owned()));
        put("update-ca-certificates", "exit 1");
        assert_eq!(run(), (false, all.lines().next().unwrap().to_owned() + "\n"));
    }

    #[test]
    fn hosts_toml_names_mirror_authority_and_login() {
        insta::assert_snapshot!(hosts_toml("registry.k8s.io", "cHVsbDp4"));
        assert!(hosts_toml("docker.io", "x").starts_with("server = \"https://registry-1.docker.io\"\n"));
    }

    #[test]
    fn patches_are_strings_and_for_every_kubernetes_version() {
        let config = kind_config(&facts(Path::new("/r")));
        for patch in config["kubeadmConfigPatches"].as_array().unwrap() {
            let patch: Value = serde_json::from_str(patch.as_str().unwrap()).unwrap();
            // kubeadm's are of v1beta3 before Kubernetes 1.36, and of v1beta4 from there on: one that names neither is for
            // both, and its arguments are a map.
            if patch["kind"] == "ClusterConfiguration" {
                assert_eq!(patch["apiVersion"], Value::Null);
                assert!(patch["apiServer"]["extraArgs"].is_object());
            }
        }
    }
}
