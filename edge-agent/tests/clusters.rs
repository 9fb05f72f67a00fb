//! `edgectl cluster` against a real API server through the agent's socket; the test plays `vm-operator`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at once where something is not as it must be")]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use edge_agent::journal::Journal;
use edge_agent::machines::{self, Objects};
use edge_agent::paths::Paths;
use edge_agent::server::Server;
use edge_agent::status::{Board, STEPS};
use edge_api::agent::ClusterRemoval;
use edge_api::names::{ANNOTATION_FORCE_DELETE, NAMESPACE};
use edge_api::{EdgeCluster, Instance};
use edge_client::{Client, Error, Event};
use edge_tests::ControlPlane;
use edge_tests::wait::{Seen, eventually};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);
const SHOP: &str = include_str!("../../examples/site/clusters/shop.yaml");

/// Seconds that the agent's clock is ahead.
static AHEAD: AtomicI64 = AtomicI64::new(0);

/// The part of an agent that answers, on a system cluster that has nothing but the API.
struct Host {
    client: Client,
    objects: Api<EdgeCluster>,
    secrets: Api<Secret>,
    folder: tempfile::TempDir,
    clients: watch::Sender<Option<kube::Client>>,
    plane: ControlPlane,
}

impl Host {
    async fn start() -> Self {
        let plane = ControlPlane::start().await.unwrap();
        plane.install_crds().await.unwrap();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        let namespaces: Api<Namespace> = Api::all(plane.client());
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();

        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::new(folder.path());
        paths.ensure().unwrap();
        let board = Board::new(&Instance::default(), "unattended.yaml".to_owned(), &STEPS);
        let (clients, receiver) = watch::channel(None);
        let objects = Objects::default();
        let server = Server {
            journal: Journal::open(&paths.log()).unwrap(),
            board: board.clone(),
            objects: objects.clone(),
            clients: receiver.clone(),
            bundle: folder.path().join("bundle"),
            wake: mpsc::channel(1).0,
            now: || Timestamp::now() + SignedDuration::from_secs(AHEAD.load(Ordering::Relaxed)),
            cancel: CancellationToken::new(),
            paths: paths.clone(),
        };
        tokio::spawn(server.run());
        tokio::spawn(machines::follow(receiver, objects, board, mpsc::channel(1).0));
        let client = Client::new(paths.socket());
        eventually("the socket", DEADLINE, || async { client.status().await.map(Seen::Done) }).await.unwrap();
        Self {
            client,
            objects: Api::namespaced(plane.client(), NAMESPACE),
            secrets: Api::namespaced(plane.client(), NAMESPACE),
            folder,
            clients,
            plane,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgectl"));
        command.arg("--root").arg(self.folder.path()).arg("cluster").args(arguments).env_remove("PCG_EDGE_SOCKET");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn edgectl(&self, arguments: &[&str]) -> Output {
        let ended = self.command(arguments).output();
        tokio::time::timeout(DEADLINE, ended).await.unwrap_or_else(|_| panic!("{arguments:?} does not end")).unwrap()
    }

    /// Runs a command on a terminal where somebody types.
    async fn typed(&self, arguments: &[&str], keys: &str) -> Output {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let child = self.command(arguments).stdin(terminal.slave).spawn().unwrap();
        std::fs::File::from(terminal.master.try_clone().unwrap()).write_all(keys.as_bytes()).unwrap();
        tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap()
    }

    /// Runs a command that must succeed, for its JSON.
    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.edgectl(&[arguments, &["-o", "json"]].concat()).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a command that must fail, for what it says.
    async fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.edgectl(arguments).await;
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(code), ""), "{arguments:?}");
        text(&output.stderr)
    }

    /// Another way to the agent, on which the events come when they are let go.
    fn slow_events(&self) -> SlowEvents {
        let (socket, go) = (self.folder.path().join("slow.sock"), CancellationToken::new());
        let listener = UnixListener::bind(&socket).unwrap();
        let (agent, wait) = (self.client.socket().to_owned(), go.clone());
        tokio::spawn(async move {
            while let Ok((mut there, _)) = listener.accept().await {
                let (agent, wait) = (agent.clone(), wait.clone());
                tokio::spawn(async move {
                    let mut here = UnixStream::connect(agent).await.unwrap();
                    let mut request = [0; 4096];
                    let read = there.read(&mut request).await.unwrap();
                    if request.starts_with(b"GET /v1/events") {
                        wait.cancelled().await;
                    }
                    here.write_all(&request[..read]).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut there, &mut here).await;
                });
            }
        });
        SlowEvents { socket, go }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Says about the newest spec of the cluster what `vm-operator` would.
    async fn report(&self, name: &str, mut status: Value) {
        status["observedGeneration"] = json!(self.objects.get(name).await.unwrap().metadata.generation);
        let patch = Patch::Merge(json!({"status": status}));
        self.objects.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Waits until the agent's status tells this of the cluster; null where it is not there.
    async fn until(&self, name: &str, field: &str, value: Value) {
        let wait = async {
            let mut events = self.client.events().await.unwrap();
            while let Some(event) = events.next().await.unwrap() {
                let Event::Status(status) = event else { continue };
                let cluster = status.clusters.iter().find(|cluster| cluster.name == name);
                if json!(cluster)[field] == value {
                    return;
                }
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{name}: no {field} {value}"));
    }
}

struct SlowEvents {
    socket: PathBuf,
    go: CancellationToken,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn running() -> Value {
    json!({"phase": "Running", "version": "v1.36.3", "nodes": "2/2", "conditions": [condition("Ready", true, "")],
        "tasks": [{"name": "machine shop-x7k2p", "state": "Done", "since": "2026-01-01T00:00:00Z"}]})
}

fn condition(name: &str, holds: bool, message: &str) -> Value {
    json!({"type": name, "status": if holds { "True" } else { "False" }, "reason": "Test", "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_from_its_file_to_its_end() {
    let host = Host::start().await;
    let file = host.file("shop.yaml", SHOP);
    let shop = file.to_str().unwrap();

    // Before there is a system cluster.
    let early = host.refused(1, &["create", "-f", shop]).await;
    assert!(early.contains("is not ready for workload clusters yet") && early.contains("hint: `edgectl status`"));
    assert_eq!(text(&host.edgectl(&["list"]).await.stdout), "no clusters\n");
    // Nobody knows yet, which is not that there is none.
    assert!(host.refused(1, &["get", "shop"]).await.contains("is not ready for workload clusters yet"));
    host.clients.send_replace(Some(host.plane.client()));

    // A bad file is refused with its places, here and there.
    let bad = SHOP.replace("targetPool:", "targetPol:").replacen("size: 1", "size: one", 1);
    let bad_file = host.file("bad.yaml", &bad);
    let said = host.refused(1, &["create", "-f", bad_file.to_str().unwrap()]).await;
    let line = |part: &str| bad.lines().position(|line| line.contains(part)).unwrap() + 1;
    assert!(said.contains(&format!("bad.yaml:{}:", line("targetPol:"))), "{said}");
    assert!(said.contains("did you mean `targetPool`?") && said.contains("a whole number from 1 to 5"), "{said}");
    let Err(Error::Refused { status: 422, error, .. }) = host.client.create_cluster(bad.into_bytes()).await else {
        panic!("it is refused")
    };
    assert!(error.contains("spec.placements[0].targetPol: found the unknown field `targetPol`"), "{error}");
    assert!(error.starts_with("line ") && error.lines().count() >= 2, "{error}");
    assert!(host.objects.list(&ListParams::default()).await.unwrap().items.is_empty());

    // Made, and found at once.
    let made = host.json(&["create", "-f", shop]).await;
    assert_eq!((&made["metadata"]["name"], &made["metadata"]["namespace"]), (&json!("shop"), &json!(NAMESPACE)));
    let seen = host.edgectl(&["get", "shop"]).await;
    assert!(text(&seen.stdout).contains("vm-operator has not looked at its last change yet"), "{seen:?}");
    let again = host.refused(1, &["create", "-f", shop]).await;
    assert!(
        again.contains("there is a cluster shop already") && again.contains("edgectl cluster scale shop"),
        "{again}"
    );
    assert!(host.refused(1, &["get", "other"]).await.contains("there is no cluster \"other\""));
    assert!(host.refused(1, &["get", "../vms"]).await.contains("`../vms` is no name of a cluster"));
    let early = host.refused(1, &["kubeconfig", "shop"]).await;
    assert!(early.contains("cluster shop has no kubeconfig yet: it is made with the control plane"), "{early}");

    // Changes.
    let unknown = host.refused(1, &["scale", "shop", "--pool", "gpu=2"]).await;
    assert!(unknown.contains("cluster shop has no pool \"gpu\"") && unknown.contains("it has `general`"), "{unknown}");
    let same = host.refused(1, &["scale", "shop", "--pool", "general=1", "--control-plane", "1"]).await;
    assert!(same.contains("already as asked"), "{same}");
    let many = host.refused(1, &["scale", "shop", "--control-plane", "9"]).await;
    assert!(many.contains("spec.controlPlane.size: Invalid value"), "{many}");
    assert!(host.refused(2, &["scale", "shop"]).await.contains("--control-plane"));
    assert!(host.refused(2, &["scale", "shop", "--pool", "general"]).await.contains("general=3"));
    let scaled = host.json(&["scale", "shop", "--pool", "general=3"]).await;
    assert_eq!(
        (&scaled["spec"]["workers"][0]["size"], &scaled["spec"]["controlPlane"]["size"]),
        (&json!(3), &json!(1))
    );
    let version = host.refused(1, &["upgrade", "shop", "--version", "latest"]).await;
    assert!(version.contains("spec.kubernetesVersion: Invalid value"), "{version}");
    let upgraded = host.json(&["upgrade", "shop", "--version", "v1.36.4"]).await;
    assert_eq!(upgraded["spec"]["kubernetesVersion"], "1.36.4");

    // What was never ready is aborted, what was is deleted.
    let never = host.refused(1, &["delete", "shop", "--yes"]).await;
    assert!(never.contains("can only be aborted") && never.contains("edgectl cluster abort shop"), "{never}");
    host.report("shop", running()).await;
    host.until("shop", "ready", json!(true)).await;
    let listed = text(&host.edgectl(&["list"]).await.stdout);
    assert!(listed.contains("Running") && listed.contains("v1.36.3") && listed.contains("2/2"), "{listed}");
    let late = host.refused(1, &["abort", "shop"]).await;
    assert!(late.contains("cannot be aborted any more") && late.contains("edgectl cluster delete shop"), "{late}");

    // Its kubeconfig, in a file for its owner only.
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shop-kubeconfig"},
        "stringData": {"value": "apiVersion: v1\nkind: Config\n"}});
    host.secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    let printed = host.edgectl(&["kubeconfig", "shop"]).await;
    assert_eq!(text(&printed.stdout), "apiVersion: v1\nkind: Config\n");
    let path = host.folder.path().join("shop.conf");
    let written = host.edgectl(&["kubeconfig", "shop", "-o", path.to_str().unwrap()]).await;
    assert_eq!((written.status.code(), text(&written.stdout).as_str()), (Some(0), ""));
    assert_eq!(std::fs::read(&path).unwrap(), printed.stdout);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    // Deletion: confirmed, and forced after a while only.
    assert!(host.refused(2, &["delete", "shop"]).await.contains("hint: give --yes"));
    let other = host.typed(&["delete", "shop"], "other\n").await;
    assert_eq!((other.status.code(), text(&other.stdout).as_str()), (Some(2), ""));
    assert!(text(&other.stderr).contains("that is something else; nothing was removed"), "{other:?}");
    assert!(host.refused(1, &["delete", "shop", "--yes", "--force"]).await.contains("is not being deleted"));
    let finalizers = Patch::Merge(json!({"metadata": {"finalizers": ["pcg-edge.io/test"]}}));
    host.objects.patch("shop", &PatchParams::default(), &finalizers).await.unwrap();
    let deleted = host.typed(&["delete", "shop"], "shop\n").await;
    assert!(text(&deleted.stdout).starts_with("cluster shop is being removed"), "{deleted:?}");
    host.until("shop", "phase", json!("Deleting")).await;
    assert!(text(&host.edgectl(&["get", "shop"]).await.stdout).contains("forcing        it may be forced in 1"));
    assert!(host.refused(1, &["create", "-f", shop]).await.contains("is still being deleted"));
    assert!(host.refused(1, &["scale", "shop", "--control-plane", "3"]).await.contains("is being deleted"));
    let early = host.refused(1, &["delete", "shop", "--yes", "--force"]).await;
    assert!(early.contains("cannot be forced yet, but in 1"), "{early}");
    AHEAD.store(900, Ordering::Relaxed);
    let forced = host.json(&["delete", "shop", "--yes", "--force"]).await;
    AHEAD.store(0, Ordering::Relaxed);
    assert_eq!(forced["metadata"]["annotations"][ANNOTATION_FORCE_DELETE], "true");
    let object = host.objects.get("shop").await.unwrap();
    assert!(object.metadata.annotations.unwrap().contains_key(ANNOTATION_FORCE_DELETE));
    let removal = ClusterRemoval { abort: false, force: true };
    assert!(host.client.remove_cluster("shop", removal).await.is_ok(), "again changes nothing");

    let following = host.command(&["delete", "shop", "--yes", "--wait"]).spawn().unwrap();
    let let_go = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    host.objects.patch("shop", &PatchParams::default(), &let_go).await.unwrap();
    let ended = tokio::time::timeout(DEADLINE, following.wait_with_output()).await.unwrap().unwrap();
    // It may have been gone before it was asked about.
    let gone =
        text(&ended.stdout).contains("cluster shop is gone") || text(&ended.stderr).contains("there is no cluster");
    assert!(gone, "{ended:?}");
    host.until("shop", "name", Value::Null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_with_what_became_of_it() {
    let host = Host::start().await;
    host.clients.send_replace(Some(host.plane.client()));
    let create = |name: &str| host.file(&format!("{name}.yaml"), &SHOP.replace("name: shop", &format!("name: {name}")));
    let begin = |name: &str, more: &[&str]| {
        let file = create(name);
        host.command(&[&["create", "--wait", "-f", file.to_str().unwrap()], more].concat()).spawn().unwrap()
    };
    let end = async |child: tokio::process::Child| {
        let ended = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
        (ended.status.code(), text(&ended.stdout), text(&ended.stderr))
    };

    let good = begin("good", &[]);
    host.until("good", "name", json!("good")).await;
    let task = |state: &str| json!({"name": "machine good-1", "state": state, "message": "kubeadm runs"});
    host.report("good", json!({"phase": "Provisioning", "tasks": [task("Running")]})).await;
    host.until("good", "phase", json!("Provisioning")).await;
    host.report("good", running()).await;
    let (code, out, said) = end(good).await;
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "cluster good is Running: v1.36.3 at 192.168.150.40, 2/2 nodes\n"),
        "{said}"
    );
    assert!(said.contains("cluster good Running"), "{said}");

    // A spec that makes no sense: all errors, each in its line.
    let bad = begin("bad", &[]);
    host.until("bad", "name", json!("bad")).await;
    let errors = "spec.profile: there is no ClusterProfile `edge`\nspec.virtualIP: it is in pool `nodes`";
    let conditions = [condition("Ready", false, errors), condition("Valid", false, errors)];
    host.report("bad", json!({"phase": "Pending", "conditions": conditions})).await;
    let (code, out, said) = end(bad).await;
    assert_eq!((code, out.as_str()), (Some(1), ""), "{said}");
    assert!(
        said.contains("error: spec.profile: there is no") && said.contains("error: spec.virtualIP: it is in"),
        "{said}"
    );

    // Too late, and removed by somebody else.
    let (code, _, said) = end(begin("slow", &["--timeout", "1s"])).await;
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("after 1s cluster slow is still Pending"), "{said}");
    let removed = begin("other", &[]);
    host.until("other", "name", json!("other")).await;
    host.client.remove_cluster("other", ClusterRemoval { abort: true, force: false }).await.unwrap();
    let (code, _, said) = end(removed).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: cluster other was removed"), "{said}");

    // Also by somebody who was faster than its first status.
    let proxy = host.slow_events();
    let mut command = host.command(&["create", "--wait", "-f", create("faster").to_str().unwrap()]);
    let removed = command.env("PCG_EDGE_SOCKET", &proxy.socket).spawn().unwrap();
    host.until("faster", "name", json!("faster")).await;
    host.client.remove_cluster("faster", ClusterRemoval { abort: true, force: false }).await.unwrap();
    host.until("faster", "name", Value::Null).await;
    proxy.go.cancel();
    let (code, _, said) = end(removed).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: cluster faster was removed"), "{said}");
}
