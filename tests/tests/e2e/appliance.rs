//! The appliance under test: the commands that bring it up and down, its agent, its cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use edge_api::agent::Status;
use edge_api::{EdgeCluster, Instance, VirtualMachine, names};
use edge_tests::audit::AuditLog;
use edge_tests::inventory::{run, virsh};
use edge_tests::wait::{Seen, eventually};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::process::Command;

use crate::site::{Site, replace};

/// An instance and the site it is for.
pub struct Appliance {
    pub instance: Instance,
    pub root: PathBuf,
    pub site: Site,
    /// Third byte of the WAN's and the LAN's addresses.
    pub wan: u8,
    pub lan: u8,
    /// What `cargo xtask up` is told of the bundle's Kubernetes minors.
    pub minors: Option<&'static str>,
}

impl Appliance {
    /// Nothing is started yet.
    pub fn new(instance: &str, wan: u8, lan: u8) -> Result<Self> {
        let instance: Instance = instance.parse()?;
        let root = instance.default_root();
        anyhow::ensure!(
            !root.exists(),
            "{} is left from an earlier run: `cargo xtask down --instance {instance}`",
            root.display()
        );
        let site = Site::new(&format!("store-{instance}"), wan, lan)?;
        Ok(Self { instance, root, site, wan, lan, minors: None })
    }

    /// `cargo xtask up --plain --no-cluster` for this instance; its output is shown.
    pub fn up(&self) -> Result<Command> {
        let mut up = self.up_with_clusters()?;
        up.arg("--no-cluster");
        Ok(up)
    }

    /// `cargo xtask up --plain` for this instance; its output is shown.
    pub fn up_with_clusters(&self) -> Result<Command> {
        let mut up = xtask()?;
        up.args(["up", "--plain", "--instance", self.instance.as_str(), "--site"])
            .arg(self.site.dir())
            .args(self.minors);
        Ok(up)
    }

    /// `cargo xtask down` for this instance.
    pub async fn down(&self) -> Result<()> {
        let status = xtask()?.args(["down", "--instance", self.instance.as_str()]).status().await?;
        anyhow::ensure!(status.success(), "xtask down: {status}");
        Ok(())
    }

    /// What the agent says.
    pub async fn status(&self) -> Result<Status> {
        Ok(edge_client::Client::new(self.root.join(edge_api::agent::SOCKET)).status().await?)
    }

    /// Runs `edgectl` against this agent.
    pub async fn edgectl(&self, arguments: &[&str]) -> Result<Output> {
        let mut ctl = Command::new(self.root.join("bin/edgectl"));
        let output = ctl.arg("--root").arg(&self.root).args(arguments).kill_on_drop(true).output().await?;
        let text = || String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "edgectl {}: {}\n{}", arguments.join(" "), output.status, text());
        Ok(output)
    }

    /// Client of the system cluster.
    pub async fn client(&self) -> Result<Client> {
        let file = Kubeconfig::read_from(self.root.join("kube/admin.conf"))?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// Workload clusters.
    pub async fn clusters(&self) -> Result<Api<EdgeCluster>> {
        Ok(Api::namespaced(self.client().await?, names::NAMESPACE))
    }

    /// Domains of this instance that run and whose own names begin with this.
    pub fn running(&self, prefix: &str) -> Result<BTreeSet<String>> {
        let prefix = self.instance.libvirt_name(prefix);
        let names = virsh(&["list", "--name", "--state-running"])?;
        Ok(names.lines().filter(|name| name.starts_with(&prefix)).map(ToOwned::to_owned).collect())
    }

    /// Domains of this instance that run, with their QEMU processes.
    pub fn processes(&self) -> Result<BTreeMap<String, String>> {
        let process = |domain: String| {
            let path = format!("/run/libvirt/qemu/{domain}.pid");
            let process = fs::read_to_string(&path).with_context(|| path)?;
            anyhow::Ok((domain, process.trim().to_owned()))
        };
        self.running("")?.into_iter().map(process).collect()
    }

    /// Machines of the system cluster.
    pub async fn machines(&self) -> Result<Api<VirtualMachine>> {
        Ok(Api::namespaced(self.client().await?, names::NAMESPACE))
    }

    /// Waits until a machine is as asked.
    pub async fn machine(
        &self,
        name: &str,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&VirtualMachine) -> bool,
    ) -> Result<VirtualMachine> {
        let machines = self.machines().await?;
        let what = format!("machine {name} {what}");
        let machine = eventually(&what, deadline, || async {
            Ok::<_, kube::Error>(match machines.get_opt(name).await? {
                Some(machine) if wanted(&machine) => Seen::Done(machine),
                Some(machine) => Seen::NotYet(format!("{:?}", machine.status)),
                None => Seen::NotYet("no such object".to_owned()),
            })
        });
        Ok(machine.await?)
    }

    /// Edits the example's cluster, before it is asked for.
    pub fn edit_cluster(&self, from: &str, to: &str) -> Result<()> {
        let file = self.site.dir().join("clusters/shop.yaml");
        let text = replace(&fs::read_to_string(&file)?, from, to)?;
        fs::write(&file, text).with_context(|| file.display().to_string())
    }

    /// Edits the site file, as a person would over SSH.
    pub fn edit_site(&self, from: &str, to: &str) -> Result<()> {
        let file = self.root.join("conf/unattended.yaml");
        let text = replace(&fs::read_to_string(&file)?, from, to)?;
        fs::write(&file, text).with_context(|| file.display().to_string())
    }

    /// The API server's audit log.
    pub fn audit(&self) -> AuditLog {
        AuditLog::new(self.root.join("audit/audit.log"))
    }

    /// Process ID of the agent.
    pub fn agent_pid(&self) -> Result<i32> {
        let file = self.root.join("run/agent.pid");
        Ok(fs::read_to_string(&file).with_context(|| file.display().to_string())?.trim().parse()?)
    }

    /// Name of the kind node's container.
    pub fn node(&self) -> String {
        format!("{}-control-plane", self.instance.kind_cluster())
    }

    /// Prints what helps to understand a failure.
    pub fn print_state(&self) {
        let root = self.root.to_string_lossy().into_owned();
        let kubeconfig = format!("--kubeconfig={root}/kube/admin.conf");
        let kubectl = |arguments: &[&str]| {
            let bin = std::env::var("PCG_EDGE_BUNDLE").unwrap_or_default() + "/bin/kubectl";
            run(&bin, &[&[kubeconfig.as_str(), "--request-timeout=10s"], arguments].concat())
        };
        let looks = [
            ("edgectl status", run(&format!("{root}/bin/edgectl"), &["--root", &root, "status"])),
            ("edge.log", run("tail", &["-n", "60", &format!("{root}/edge.log")])),
            ("domains", edge_tests::inventory::virsh(&["list", "--all"])),
            ("pods", kubectl(&["get", "pods", "-A", "-o", "wide"])),
            ("our objects", kubectl(&["get", "pcg-edge", "-A", "-o", "wide"])),
            ("events", kubectl(&["get", "events", "-A", "--sort-by=.lastTimestamp"])),
            ("operator", kubectl(&["logs", "-n", names::NAMESPACE, "deploy/vm-operator", "--tail=80"])),
        ];
        for (title, look) in looks {
            match look {
                Ok(text) => println!("=== {title}\n{text}"),
                Err(error) => println!("=== {title}\n{error:#}"),
            }
        }
    }
}

/// This repository's `cargo xtask`, as `cargo xtask test` names it.
pub fn xtask() -> Result<Command> {
    let program = std::env::var_os("PCG_EDGE_XTASK").context("PCG_EDGE_XTASK is not set: run `cargo xtask test`")?;
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    Ok(command)
}
