//! Step `system-cluster`: one kind node on data that lies below the agent's root (D1).
//!
//! A lost node, a half-made one, another node image, certificates that end: one path, a new node on the old data. The
//! marker `state/cluster.json` is written when a node was made whole; a node without it was interrupted, and is made anew.

pub mod image;
mod pki;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backup::{self, Manifest};
use crate::bundle;
use crate::durable;
use crate::engine::{Failure, Run, Step, Verdict, chain};
use crate::node::{self, Applied};
use crate::objects;
use crate::paths::Paths;
use crate::ports::docker::{Container, Docker};
use crate::upgrade::minor;
use crate::world::World;

/// Longest wait for a node that was made or started. Emulated hosts are slow.
const DEADLINE: Duration = Duration::from_mins(7);
/// Longest wait for the answers of one look.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
/// A node that runs renews its lease every 10 s.
const LEASE_FRESH: i64 = 45;

/// What the one member of etcd calls itself: nobody else asks it.
const PEER: &str = "https://127.0.0.1:2380";

/// See the module.
pub struct SystemCluster {
    world: Arc<World>,
}

/// A node that was made whole.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    container: String,
    plan: String,
    /// What docker keeps for it, and would keep for good if somebody else removed the node.
    #[serde(default)]
    volumes: Vec<String>,
}

fn marker_path(paths: &Paths) -> PathBuf {
    paths.join("state/cluster.json")
}

/// Removes the volumes of the node that was made whole, unless it is there: they go with it then. One that is used for
/// something else stays.
pub async fn remove_volumes_of_lost(docker: &Docker, paths: &Paths, present: Option<&Container>) {
    let marker: Option<Marker> = durable::read_json(&marker_path(paths)).unwrap_or_default();
    let lost = marker.filter(|marker| present.is_none_or(|present| present.id != marker.container));
    for volume in lost.into_iter().flat_map(|marker| marker.volumes) {
        match docker.remove_volume(&volume).await {
            Ok(true) => info!(step = "system-cluster", "removed docker volume {volume} of a node that is gone"),
            Ok(false) => {}
            Err(error) => warn!("docker volume {volume} of a node that is gone stays: {}", chain(&error)),
        }
    }
}

impl SystemCluster {
    /// The step.
    pub fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    async fn ensure_system_cluster(&self, run: &Run) -> Result<Verdict, Failure> {
        let world = &self.world;
        let kind = world.kind();
        let begun = Timestamp::now();
        self.ensure_network(run).await?;
        let (image, digest) = image::ensure(world, run).await?;
        let settings = node::Settings::of(&run.site);
        self.ensure_files(run, &settings)?;
        let facts = node::Facts {
            cluster: &world.instance.kind_cluster(),
            image: &image,
            root: world.paths.root(),
            api_port: world.api_port,
            registry_port: world.registry_port,
            cgroup_v1: !Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        };
        let config = node::kind_config(&facts).to_string();
        let plan = bundle::sha256(format!("{digest}\n{config}").as_bytes());
        let config_path = world.paths.kind_config();
        durable::write_if_changed(&config_path, config.as_bytes(), 0o600).map_err(|e| Failure::of(&e))?;

        let marker_path = marker_path(&world.paths);
        let marker: Option<Marker> = durable::read_json(&marker_path).unwrap_or_default();
        let container = world.docker.container(&kind.node()).await.map_err(|e| Failure::of(&e))?;
        let ending = pki::is_ending(&world.paths.join("pki"), &world.clock);
        let whole = match (&container, &marker) {
            (Some(container), Some(marker)) => container.id == marker.container && marker.plan == plan && !ending,
            _ => false,
        };
        if whole {
            if container.as_ref().is_some_and(|c| !c.running) {
                run.working("starts the node");
                world.docker.start(&kind.node()).await.map_err(|e| Failure::of(&e))?;
            }
            if !world.paths.kubeconfig().exists() {
                run.working("writes the kubeconfig again");
                kind.export_kubeconfig().await.map_err(|e| Failure::of(&e))?;
            }
        } else {
            let why = match (&container, &marker) {
                (None, None) => "makes the node",
                (None, Some(_)) => "the node is gone: makes it anew on its data",
                (Some(_), None) => "the node was left half-made: makes it anew",
                (Some(c), Some(m)) if c.id != m.container => "the node was left half-made: makes it anew on its data",
                (Some(_), Some(_)) if ending => "the node's certificates end: makes it anew on its data",
                (Some(_), Some(_)) => "the node's plan has changed: makes it anew on its data",
            };
            run.working(why);
            info!(step = "system-cluster", "{why}");
            remove_volumes_of_lost(&world.docker, &world.paths, container.as_ref()).await;
            durable::remove_file(&marker_path).map_err(|e| Failure::of(&e))?;
            if container.is_some() {
                world.docker.remove_container(&kind.node()).await.map_err(|e| Failure::of(&e))?;
            }
            durable::remove_file(&world.paths.kubeconfig()).map_err(|e| Failure::of(&e))?;
            durable::remove_file(&world.paths.join("kube/admin.conf.lock")).map_err(|e| Failure::of(&e))?;
            self.ensure_restored(run, &kind.node(), &image).await?;
            pki::prepare(&world.paths.join("pki"), world.paths.join("etcd/member").exists())
                .map_err(|e| Failure::new(format!("clean {}: {e}", world.paths.join("pki").display())))?;
            if let Err(e) = kind.create(&config_path).await {
                let logs = world.docker.logs(&kind.node(), 8).await.unwrap_or_default();
                let logs: Vec<&str> = logs.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
                return Err(Failure::new(format!("{e}; the node said: {}", logs.join(" | "))).hint(format!(
                    "the failed node stays until the next attempt: `docker logs {0}`, `docker exec {0} journalctl -b`",
                    kind.node()
                )));
            }
        }
        let started = run.is_working().then_some(begun);
        let stopped = || {
            let message = "the node stopped while it was waited for; it is started again".to_owned();
            Ok(Verdict::Waiting { message, retry: Duration::from_secs(1) })
        };
        if !self.ready(run, &kind.node(), started).await? {
            return stopped();
        }
        let container =
            if whole { container } else { world.docker.container(&kind.node()).await.map_err(|e| Failure::of(&e))? };
        let container = container.ok_or_else(|| Failure::new("the node vanished while it was made"))?;
        let Container { id: container, volumes, .. } = container;
        if !whole {
            let marker = Marker { container: container.clone(), plan, volumes };
            durable::write_json(&marker_path, &marker).map_err(|e| Failure::of(&e))?;
        }
        image::forget_replaced(world, &image).await?;
        if self.ensure_settings(run, container, !whole, &settings).await?
            && !self.ready(run, &kind.node(), None).await?
        {
            return stopped();
        }
        let version = world.index()?.kubernetes_version.clone();
        Ok(Verdict::Ready(format!("Kubernetes {version}, kubeconfig {}", world.paths.kubeconfig().display())))
    }

    async fn ensure_network(&self, run: &Run) -> Result<(), Failure> {
        let world = &self.world;
        let name = world.instance.docker_network();
        if world.docker.network_subnet(&name).await.map_err(|e| Failure::of(&e))?.is_none() {
            run.working(format!("makes docker network {name}"));
            let made =
                world.docker.create_network(&name, world.instance.as_str(), world.instance.docker_subnet()).await;
            made.map_err(|e| Failure::of(&e).hint("`docker network ls` and `ip route` show what is in the way"))?;
        }
        Ok(())
    }

    /// Makes etcd's data of a backup that was restored. The rename is what counts: until then it is made anew.
    async fn ensure_restored(&self, run: &Run, node: &str, image: &str) -> Result<(), Failure> {
        let paths = &self.world.paths;
        let (snapshot, member) = (paths.join(backup::SNAPSHOT), paths.join("etcd/member"));
        let record: Option<Manifest> = durable::read_json(&paths.join(backup::RECORD)).map_err(|e| Failure::of(&e))?;
        let Some(record) = record.filter(|_| snapshot.exists() && !member.exists()) else { return Ok(()) };
        let version = &self.world.index()?.kubernetes_version;
        if minor(&record.kubernetes_version) > minor(version) {
            return Err(Failure::new(format!(
                "the backup is of Kubernetes {}, this box has {version}, which cannot read its data",
                record.kubernetes_version
            ))
            .hint("give the agent a bundle of that minor or the next"));
        }
        run.working("makes the system cluster's data of the backup");
        info!(step = "system-cluster", "restores {} as of {}", record.of_what(), record.made);
        let (container, made) = (format!("{node}-restore"), paths.join("etcd/restored"));
        self.world.docker.remove_container(&container).await.map_err(|e| Failure::of(&e))?;
        durable::remove_folder(&made).map_err(|e| Failure::of(&e))?;
        let etcd = paths.join("etcd").display().to_string();
        // Whoever has read a later state must not take the restored one for a continuation of it.
        let words = [
            "etcdutl",
            "snapshot",
            "restore",
            "/var/lib/etcd/backup.db",
            "--data-dir=/var/lib/etcd/restored",
            "--bump-revision=1000000000",
            "--mark-compacted",
            &format!("--name={node}"),
            &format!("--initial-cluster={node}={PEER}"),
            &format!("--initial-advertise-peer-urls={PEER}"),
        ];
        let restored = self.world.docker.run_once(&container, image, (&etcd, "/var/lib/etcd"), &words).await;
        restored.map_err(|e| Failure::of(&e).hint("`edgectl restore` takes another backup after `edgectl reset`"))?;
        durable::rename(&made.join("member"), &member).map_err(|e| Failure::of(&e))?;
        durable::remove_folder(&made).map_err(|e| Failure::of(&e))?;
        durable::remove_file(&snapshot).map(drop).map_err(|e| Failure::of(&e))
    }

    /// Has the node take on what the site file says about proxy and trust; tells whether it had to. The record comes
    /// after: a kill in between costs one more start of containerd.
    async fn ensure_settings(
        &self,
        run: &Run,
        container: String,
        made: bool,
        settings: &node::Settings,
    ) -> Result<bool, Failure> {
        let world = &self.world;
        let record = world.paths.join("state/node-settings.json");
        let applied: Option<Applied> = durable::read_json(&record).unwrap_or_default();
        let needed = node::needs(applied.as_ref(), &container, made, settings);
        if needed {
            run.working("gives the node its proxy and trust");
            info!(
                step = "system-cluster",
                "containerd starts anew with the proxy and the certificates of the site file"
            );
            let node = world.kind().node();
            let taken = world.docker.run_in(&node, node::TAKE_ON).await;
            let hint = format!("`docker exec {node} journalctl -b -u containerd` shows what holds it up");
            taken.map_err(|e| Failure::of(&e).hint(hint))?;
        }
        let now = Applied { container, settings: settings.digest() };
        if applied.as_ref() != Some(&now) {
            durable::write_json(&record, &now).map_err(|e| Failure::of(&e))?;
        }
        Ok(needed)
    }

    /// Files that are mounted into the node.
    fn ensure_files(&self, run: &Run, settings: &node::Settings) -> Result<(), Failure> {
        let paths = &self.world.paths;
        let [a, b, c, _] = self.world.instance.docker_subnet().octets();
        let upstream = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
        let host = upstream.iter().find_map(|p| std::fs::read_to_string(p).ok()).unwrap_or_default();
        let write = |path: &str, content: &str, mode| {
            durable::write_if_changed(&paths.join(path), content.as_bytes(), mode).map_err(|e| Failure::of(&e))
        };
        write("node/resolv.conf", &node::resolv_conf(&run.site, &host, [a, b, c, 1].into()), 0o644)?;
        write("audit/policy.yaml", &format!("{:#}\n", node::audit_policy()), 0o600)?;
        let drop_in = "node/containerd.service.d/proxy.conf";
        match &settings.drop_in {
            Some(text) => write(drop_in, text, 0o600).map(drop)?,
            None => durable::remove_file(&paths.join(drop_in)).map(drop).map_err(|e| Failure::of(&e))?,
        }
        let folder = paths.join("node/ca-certificates");
        durable::only_files(&folder, &settings.certificates, 0o644).map_err(|e| Failure::of(&e))
    }

    /// Ready means probed: the API server says so, the node's kubelet is alive, and names resolve. False where the node
    /// stopped meanwhile.
    async fn ready(&self, run: &Run, node: &str, started: Option<Timestamp>) -> Result<bool, Failure> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(100);
        loop {
            let missing = match self.world.connect().await {
                Ok(client) => match tokio::time::timeout(PROBE_DEADLINE, probe(&client, node, started)).await {
                    Ok(Ok(None)) => return Ok(true),
                    Ok(Ok(Some(missing))) => missing,
                    Ok(Err(e)) => {
                        self.world.disconnect();
                        format!("the API server ({})", short(&e))
                    }
                    Err(_) => {
                        self.world.disconnect();
                        "the API server (no answer in time)".to_owned()
                    }
                },
                Err(e) => e.reason,
            };
            if begun.elapsed() > DEADLINE {
                return Err(Failure::new(format!("after {} s: still waits for {missing}", DEADLINE.as_secs()))
                    .hint(format!("`docker exec {node} journalctl -b -u kubelet` shows what holds it up")));
            }
            // A probe that fails once after a restart of the agent is not worth a word.
            if begun.elapsed() > Duration::from_secs(2) {
                run.working(format!("waits for {missing}"));
                // It may have been on its way down when we looked first, with its API server gone before it.
                let container = self.world.docker.container(node).await.map_err(|e| Failure::of(&e))?;
                if !container.is_some_and(|c| c.running) {
                    return Ok(false);
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }
}

impl Step for SystemCluster {
    fn name(&self) -> &'static str {
        "system-cluster"
    }

    fn ensure<'a>(&'a self, run: &'a Run) -> LocalBoxFuture<'a, Result<Verdict, Failure>> {
        Box::pin(self.ensure_system_cluster(run))
    }
}

/// What is still missing, or nothing. A node that was `started` must have shown a sign of life since then.
async fn probe(client: &kube::Client, node: &str, started: Option<Timestamp>) -> Result<Option<String>, kube::Error> {
    let request = hyper::Request::get("/readyz").body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request_text(request).await?;
    let lease = Api::<Lease>::namespaced(client.clone(), "kube-node-lease").get_opt(node).await?;
    let renewed = lease.and_then(|l| l.spec).and_then(|s| s.renew_time).map(|t| t.0);
    let now = Timestamp::now();
    let fresh = renewed.is_some_and(|t| now.as_second() - t.as_second() < LEASE_FRESH && started.is_none_or(|s| t > s));
    let object = Api::<Node>::all(client.clone()).get_opt(node).await?;
    let conditions = object.and_then(|n| n.status).and_then(|s| s.conditions).unwrap_or_default();
    match conditions.iter().find(|c| c.type_ == "Ready") {
        Some(ready) if ready.status == "True" && fresh => {}
        Some(ready) if ready.status == "True" => return Ok(Some("the node's kubelet to report".to_owned())),
        Some(ready) => return Ok(Some(format!("the node: {}", ready.message.as_deref().unwrap_or("not ready")))),
        None => return Ok(Some("the node to register".to_owned())),
    }
    let dns = Api::<Deployment>::namespaced(client.clone(), "kube-system").get_opt("coredns").await?;
    let available = dns.and_then(|d| d.status).and_then(|s| s.available_replicas).unwrap_or(0);
    // Its plugin `ready` answers when it can answer questions.
    let answers =
        available > 0 && objects::pod_answers(client, "kube-system", "k8s-app=kube-dns", 8181, "/ready").await;
    Ok((!answers).then(|| "coredns to answer".to_owned()))
}

fn short(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} {}", status.code, status.message.chars().take(80).collect::<String>()),
        _ => "it does not answer yet".to_owned(),
    }
}
