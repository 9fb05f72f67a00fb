//! A real Kubernetes API for tests: etcd and kube-apiserver of the pinned versions, on free ports of the loopback, in a
//! temporary folder, gone when dropped.
//!
//! No controller manager and no kubelet run: nothing else writes, and what a controller does is seen alone. Objects
//! that only a controller would make (default service accounts, pods of a Deployment) do not appear.
//!
//! A thread of its own starts both programs and holds them: the kernel kills them (`PR_SET_PDEATHSIG`, set by
//! `setpriv`) when that thread ends, also when a test aborts.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kube::api::{ListParams, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::json;

use crate::audit::AuditLog;
use crate::wait::{Seen, eventually};

/// Environment variable with the folder of the pinned programs.
pub const PROGRAMS: &str = "PCG_EDGE_PROGRAMS";
/// User of [`ControlPlane::client`], member of `system:masters`.
pub const ADMIN: &str = "test-admin";

/// Both programs answer long before that, also on a busy host.
const START_DEADLINE: Duration = Duration::from_mins(2);
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
";

/// A running Kubernetes API.
pub struct ControlPlane {
    client: Client,
    config: Config,
    url: String,
    audit: AuditLog,
    keeper: Keeper,
    dir: tempfile::TempDir,
}

impl ControlPlane {
    /// Starts etcd and kube-apiserver and waits until the API is ready.
    ///
    /// # Errors
    /// `PCG_EDGE_PROGRAMS` is not set or lacks a program; a program ended or did not answer in time: then with the end
    /// of its output.
    pub async fn start() -> Result<Self> {
        let programs = programs_dir()?;
        let dir = tempfile::Builder::new().prefix("edge-tests-").tempdir()?;
        let material = Material::write(dir.path())?;
        // A port that was free a moment ago may be taken by another test: then once more.
        let mut last = anyhow!("no attempt");
        for _ in 0..3 {
            match Self::attempt(&programs, dir.path(), &material).await {
                Ok((keeper, config, url)) => {
                    let client = Client::try_from(config.clone())?;
                    let audit = AuditLog::new(dir.path().join("audit.log"));
                    return Ok(Self { client, config, url, audit, keeper, dir });
                }
                Err(error) if format!("{error:#}").contains("address already in use") => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn attempt(programs: &Path, dir: &Path, material: &Material) -> Result<(Keeper, Config, String)> {
        let [etcd, peer, api] = free_ports()?;
        let data = tempfile::Builder::new().prefix("etcd-").tempdir_in(dir)?.keep();
        let keeper = Keeper::start(vec![
            etcd_command(programs, dir, &data, etcd, peer)?,
            apiserver_command(programs, dir, api, etcd)?,
        ])?;
        let url = format!("https://127.0.0.1:{api}");
        material.kubeconfig(dir, &url)?;
        let config = config_from(&dir.join("kubeconfig")).await?;
        let client = Client::try_from(config.clone())?;
        let ready = eventually("the Kubernetes API", START_DEADLINE, || async {
            if let Some(ended) = keeper.ended() {
                // Not an error, which would be looked at again: the outcome is known.
                return Ok(Seen::Done(Err(ended)));
            }
            let request = Request::new("/readyz").list(&ListParams::default()).map_err(kube::Error::BuildRequest)?;
            client.request_text(request).await.map(|_| Seen::Done(Ok(())))
        })
        .await;
        match ready {
            Ok(Ok(())) => Ok((keeper, config, url)),
            Ok(Err(ended)) => bail!("{ended}\n{}", tails(dir)),
            Err(error) => bail!("{error}\n{}", tails(dir)),
        }
    }

    /// Client with every right.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Client that acts as another user, for rules of access and for telling writers apart in the audit log.
    pub fn client_as(&self, user: &str, groups: &[&str]) -> Result<Client> {
        let mut config = self.config.clone();
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(groups.iter().map(|&g| g.to_owned()).collect());
        Ok(Client::try_from(config)?)
    }

    /// Kubeconfig file with every right, for programs; mode 0600.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Address of the API server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Log of every write.
    pub fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// Folder that lives as long as this.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Process IDs of etcd and kube-apiserver.
    pub fn pids(&self) -> &[u32] {
        &self.keeper.pids
    }

    /// Stops the API server without ending it, or lets it go on. It hangs meanwhile, as behind a line that is cut.
    pub fn hang(&self, hangs: bool) -> Result<()> {
        let server = *self.pids().last().context("there is no API server")?;
        let signal = if hangs { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(Pid::from_raw(i32::try_from(server)?), signal)?)
    }

    /// Puts the generated CRDs of `deploy/crds` into the cluster and waits until they are served.
    pub async fn install_crds(&self) -> Result<()> {
        use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
        let api = kube::Api::<CustomResourceDefinition>::all(self.client());
        let params = kube::api::PatchParams::apply("edge-tests").force();
        for crd in edge_api::definitions() {
            let name = crd.metadata.name.clone().unwrap_or_default();
            api.patch(&name, &params, &kube::api::Patch::Apply(&crd)).await?;
            eventually(&format!("CRD {name} to be established"), Duration::from_secs(30), || async {
                let conditions = api.get(&name).await?.status.and_then(|s| s.conditions).unwrap_or_default();
                let established = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
                Ok::<_, kube::Error>(Seen::when(established, conditions))
            })
            .await?;
        }
        Ok(())
    }
}

/// Holds the child processes; ends them when dropped, the last started first.
struct Keeper {
    pids: Vec<u32>,
    ended: mpsc::Receiver<String>,
    stop: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    fn start(commands: Vec<Command>) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (tell, ended) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::Builder::new().name("control-plane".into()).spawn(move || {
            let mut children: Vec<Child> = Vec::new();
            let mut failure = None;
            for mut command in commands {
                match command.spawn() {
                    Ok(child) => children.push(child),
                    Err(error) => failure = Some(anyhow!(error).context(format!("{command:?}"))),
                }
            }
            let pids = children.iter().map(Child::id).collect::<Vec<_>>();
            let give_up = failure.is_some() || ready.send(Ok(pids)).is_err();
            if let Some(failure) = failure {
                let _ = ready.send(Err(failure));
            }
            while !give_up
                && matches!(stopped.recv_timeout(Duration::from_millis(100)), Err(mpsc::RecvTimeoutError::Timeout))
            {
                for child in &mut children {
                    if let Ok(Some(status)) = child.try_wait() {
                        let _ = tell.send(format!("a program of the control plane ended: {status}"));
                    }
                }
            }
            for child in children.iter_mut().rev() {
                let _ = child.kill();
                let _ = child.wait();
            }
        })?;
        let pids = started.recv().context("control plane thread")??;
        Ok(Self { pids, ended, stop, thread: Some(thread) })
    }

    /// What became of a program that is no longer there.
    fn ended(&self) -> Option<String> {
        self.ended.try_recv().ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Certificates, keys and the token.
struct Material {
    ca: String,
    token: String,
}

impl Material {
    fn write(dir: &Path) -> Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "edge-tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(params, ca_key);

        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "kubernetes.default.svc".to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        private(&dir.join("apiserver.crt"), &params.signed_by(&key, &issuer)?.pem())?;
        private(&dir.join("apiserver.key"), &key.serialize_pem())?;

        let accounts = KeyPair::generate()?;
        private(&dir.join("sa.key"), &accounts.serialize_pem())?;
        private(&dir.join("sa.pub"), &accounts.public_key_pem())?;

        // A random number that is at hand: the serialised key of a pair made for nothing else.
        let token = BASE64_STANDARD.encode(&KeyPair::generate()?.serialize_der()[..48]).replace(['+', '/', '='], "x");
        private(&dir.join("tokens.csv"), &format!("{token},{ADMIN},1,system:masters\n"))?;
        private(&dir.join("audit-policy.yaml"), AUDIT_POLICY)?;
        Ok(Self { ca, token })
    }

    fn kubeconfig(&self, dir: &Path, url: &str) -> Result<()> {
        let ca = BASE64_STANDARD.encode(&self.ca);
        let text = serde_json::to_string_pretty(&json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority-data": ca}}],
            "users": [{"name": "test", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }))?;
        private(&dir.join("kubeconfig"), &text)
    }
}

/// The folder of the pinned programs.
///
/// # Errors
/// Says how to get it, where it is unknown.
pub fn programs_dir() -> Result<PathBuf> {
    let dir = std::env::var_os(PROGRAMS).map(PathBuf::from).with_context(|| {
        format!("{PROGRAMS} is not set: run `cargo xtask test`, or set it to what `edge-image build programs` prints")
    })?;
    for name in ["etcd", "kube-apiserver"] {
        let path = dir.join(name);
        anyhow::ensure!(path.is_file(), "{PROGRAMS} is {}, which has no {name}", dir.display());
    }
    Ok(dir)
}

async fn config_from(path: &Path) -> Result<Config> {
    let mut config =
        Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(config)
}

fn etcd_command(programs: &Path, dir: &Path, data: &Path, client: u16, peer: u16) -> Result<Command> {
    let mut command = tied(&programs.join("etcd"), &dir.join("etcd.log"))?;
    let peer = format!("http://127.0.0.1:{peer}");
    command.arg(format!("--data-dir={}", data.display())).args([
        &format!("--listen-client-urls=http://127.0.0.1:{client}"),
        &format!("--advertise-client-urls=http://127.0.0.1:{client}"),
        &format!("--listen-peer-urls={peer}"),
        &format!("--initial-advertise-peer-urls={peer}"),
        &format!("--initial-cluster=default={peer}"),
        // The data is thrown away.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]);
    Ok(command)
}

fn apiserver_command(programs: &Path, dir: &Path, port: u16, etcd: u16) -> Result<Command> {
    let mut command = tied(&programs.join("kube-apiserver"), &dir.join("kube-apiserver.log"))?;
    let file = |flag: &str, name: &str| format!("--{flag}={}", dir.join(name).display());
    command
        .args([
            file("tls-cert-file", "apiserver.crt"),
            file("tls-private-key-file", "apiserver.key"),
            file("service-account-key-file", "sa.pub"),
            file("service-account-signing-key-file", "sa.key"),
            file("token-auth-file", "tokens.csv"),
            file("audit-policy-file", "audit-policy.yaml"),
            file("audit-log-path", "audit.log"),
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            format!("--secure-port={port}"),
        ])
        .args([
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            "--anonymous-auth=false",
            // No controller makes service accounts here, and pods would be refused without.
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            "--shutdown-delay-duration=0s",
        ]);
    Ok(command)
}

/// A command whose process dies with the thread that starts it.
fn tied(program: &Path, log: &Path) -> Result<Command> {
    let log = fs::File::create(log).with_context(|| log.display().to_string())?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All are held at once, so that they differ.
    let held = (0..N).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<Vec<_>, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

fn private(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())
}

/// The last lines of both logs.
fn tails(dir: &Path) -> String {
    let tail = |name: &str| {
        let log = fs::read(dir.join(name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
    };
    ["etcd.log", "kube-apiserver.log"].map(tail).concat()
}
