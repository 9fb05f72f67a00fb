//! No secret lies where it does not belong (law 5): values of the system cluster's Secrets are searched for in all that
//! others may read, and in all that people are asked to send.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use aho_corasick::AhoCorasick;
use anyhow::{Context, Result};
use edge_tests::inventory::{run, virsh};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::discovery::{Discovery, verbs};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use crate::appliance::Appliance;

/// What the secret is called that lies open.
const CANARY: &str = "e2e-canary";
/// Of the proxy in the site file, where [`plant`] put it.
const PROXY_PASSWORD: &str = "e2e-proxy-password";
/// Cluster API's bootstrap provider keeps the join token in its own object, where its manager looks for it.
const OF_UPSTREAM: &str = "KubeadmConfig";
/// What is told to others, so that nothing in it may be a secret, whatever its mode.
const TOLD: [&str; 4] = ["audit", "console", "edge.log", "edge.log.1"];

/// Gives the site file a proxy that wants a password, and that nothing goes through.
pub fn plant(appliance: &Appliance) -> Result<()> {
    let url = format!("http://edge:{PROXY_PASSWORD}@127.0.0.1:9");
    let proxy = format!("proxy: {{http: '{url}', https: '{url}', no_proxy: 0.0.0.0/0}}\n");
    appliance.site.edit("device_id:", &format!("{proxy}device_id:"))
}

/// Searches everywhere; every place with a secret is in the error.
pub async fn stay_secret(appliance: &Appliance) -> Result<()> {
    let client = appliance.client().await?;
    let mut secrets = secrets(&client).await?;
    // One that does lie open, which shows that such are found.
    let canary = format!("e2e-canary-{}", std::process::id());
    secrets.insert(canary.clone(), CANARY.to_owned());
    secrets.insert(PROXY_PASSWORD.to_owned(), "site file/proxy".to_owned());
    let mut search = Search::new(secrets)?;
    let maps = Api::<ConfigMap>::default_namespaced(client.clone());
    let data = serde_json::from_value(json!({ "metadata": { "name": CANARY }, "data": { "text": canary } }))?;
    maps.create(&PostParams::default(), &data).await?;
    let looked = search.objects(&client).await;
    maps.delete(CANARY, &DeleteParams::default()).await?;
    looked?;
    search.files(&appliance.root, true, false)?;
    search.processes()?;
    let ours = appliance.instance.libvirt_name("");
    for domain in virsh(&["list", "--all", "--name"])?.lines().filter(|name| name.starts_with(&ours)) {
        search.text(&format!("domain {domain}"), &virsh(&["dumpxml", domain])?)?;
    }
    let node = appliance.node();
    search.text("docker inspect", &run("docker", &["inspect", &node])?)?;
    search.text("docker logs", &run("docker", &["logs", &node])?)?;
    println!("    {} secrets in none of {} places, {} MiB", search.names.len(), search.places, search.bytes >> 20);
    let (found, leaks): (Vec<_>, Vec<_>) = search.leaks.into_iter().partition(|leak| leak.starts_with(CANARY));
    anyhow::ensure!(found == [format!("{CANARY} in ConfigMap {CANARY}")], "the canary was found here: {found:?}");
    anyhow::ensure!(leaks.is_empty(), "secrets lie open:\n{}", leaks.join("\n"));
    Ok(())
}

/// Values that nobody else may see, each with the Secret that it is from.
async fn secrets(client: &Client) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for secret in Api::<Secret>::all(client.clone()).list(&ListParams::default()).await? {
        let name = secret.name_any();
        for (key, value) in secret.data.unwrap_or_default() {
            let Ok(text) = String::from_utf8(value.0) else { continue };
            for value in values(&key, &text) {
                found.insert(value, format!("{name}/{key}"));
            }
        }
    }
    Ok(found)
}

/// Of a Secret's text what is secret: passwords, bootstrap tokens, and lines of private keys.
fn values(key: &str, text: &str) -> Vec<String> {
    if ["password", "registry-auth", "htpasswd"].contains(&key) {
        return vec![text.trim().to_owned()];
    }
    let mut values = Vec::new();
    let mut in_key = false;
    for line in text.lines().map(str::trim) {
        if line.contains("PRIVATE KEY-----") {
            in_key = line.contains("BEGIN");
        } else if in_key && line.len() >= 60 {
            values.push(line.to_owned());
        }
        values.extend(line.strip_prefix("client-key-data: ").map(ToOwned::to_owned));
        values.extend(line.split(['"', '\'', ' ']).filter(|word| is_token(word)).map(ToOwned::to_owned));
    }
    values
}

/// Whether a word is a bootstrap token of kubeadm.
fn is_token(word: &str) -> bool {
    let is_part = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    word.split_once('.').is_some_and(|(id, rest)| id.len() == 6 && rest.len() == 16 && is_part(id) && is_part(rest))
}

/// What is searched for, and what was found.
struct Search {
    matcher: AhoCorasick,
    /// Where each pattern is from.
    names: Vec<String>,
    places: usize,
    bytes: u64,
    leaks: Vec<String>,
}

impl Search {
    fn new(secrets: BTreeMap<String, String>) -> Result<Self> {
        let matcher = AhoCorasick::new(secrets.keys())?;
        let names: Vec<String> = secrets.into_values().collect();
        for kind in ["/password", "/tls.key"] {
            anyhow::ensure!(names.iter().any(|name| name.ends_with(kind)), "no {kind} to look for: {names:?}");
        }
        Ok(Self { matcher, names, places: 0, bytes: 0, leaks: Vec::new() })
    }

    fn text(&mut self, place: &str, text: &str) -> Result<()> {
        self.stream(place, text.as_bytes())
    }

    fn stream(&mut self, place: &str, reader: impl Read) -> Result<()> {
        let mut reader = Counted { reader, bytes: 0 };
        for found in self.matcher.stream_find_iter(&mut reader) {
            let found = found.with_context(|| place.to_owned())?;
            let leak = format!("{} in {place}", self.names[found.pattern().as_usize()]);
            if !self.leaks.contains(&leak) {
                self.leaks.push(leak);
            }
        }
        self.places += 1;
        self.bytes += reader.bytes;
        Ok(())
    }

    /// Every object of the system cluster but Secrets, with statuses and events.
    async fn objects(&mut self, client: &Client) -> Result<()> {
        let discovery = Discovery::new(client.clone()).run().await?;
        for (resource, capabilities) in discovery.groups().flat_map(kube::discovery::ApiGroup::recommended_resources) {
            if !capabilities.supports_operation(verbs::LIST)
                || ["Secret", OF_UPSTREAM].contains(&resource.kind.as_str())
            {
                continue;
            }
            let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
            for object in api.list(&ListParams::default()).await.with_context(|| resource.kind.clone())? {
                let place = format!("{} {}", resource.kind, object.name_any());
                self.text(&place, &serde_json::to_string(&object)?)?;
            }
        }
        Ok(())
    }

    /// Files below a folder: those that everybody can come at, where it is `open`, and those that are `told`.
    fn files(&mut self, dir: &Path, open: bool, told: bool) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            let path = entry.path();
            // Sockets and what is being replaced come and go.
            let Ok(metadata) = entry.metadata() else { continue };
            let mode = metadata.permissions().mode();
            let told = told || entry.file_name().to_str().is_some_and(|name| TOLD.contains(&name));
            if metadata.is_dir() {
                self.files(&path, open && mode & 0o001 != 0, told)?;
            } else if metadata.is_file() && (told || (open && mode & 0o004 != 0)) {
                match File::open(&path) {
                    Ok(file) => self.stream(&path.display().to_string(), file)?,
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error).with_context(|| path.display().to_string()),
                }
            }
        }
        Ok(())
    }

    /// Arguments and environment of everything that runs. Only containerd has its proxy in its environment, as Go programs
    /// want it, and hands it on to its shims.
    fn processes(&mut self) -> Result<()> {
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            let whats: &[_] = if name.starts_with("containerd") { &["cmdline"] } else { &["cmdline", "environ"] };
            for what in whats {
                // What is no process has neither; one that has just ended has nothing to read.
                let Ok(text) = fs::read(path.join(what)) else { continue };
                self.stream(&path.join(what).display().to_string(), text.as_slice())?;
            }
        }
        Ok(())
    }
}

/// Counts what is read.
struct Counted<R> {
    reader: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}
