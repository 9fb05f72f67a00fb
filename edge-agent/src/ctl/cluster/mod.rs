//! `edgectl cluster`: workload clusters from their file to their end.

mod follow;
mod show;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use edge_api::EdgeCluster;
use edge_api::agent::{Cluster, ClusterChange, ClusterRemoval};
use edge_client::Client;
use jiff::{SignedDuration, Timestamp};

use super::error::Error;
use super::text::{self, Paint, clean};
use super::{Format, USAGE, check, patiently};
use crate::{clusters, durable};

pub use show::{detail, list};

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Make a cluster of a file
    #[command(after_help = "The file is checked here first: every error at once, with line and column. With --wait, \
the command follows what is done until the cluster is Running.

Examples:
  edgectl cluster create -f shop.yaml
  edgectl cluster create -f - --wait --timeout 2h < shop.yaml")]
    Create {
        /// YAML of one `EdgeCluster`; `-` reads standard input
        #[arg(short, long)]
        file: PathBuf,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        result: Output,
    },
    /// All clusters
    #[command(after_help = "Example:
  edgectl cluster list -o json")]
    List {
        #[command(flatten)]
        result: Output,
    },
    /// One cluster: what has to be done, where that stands, and what it waits for
    #[command(after_help = "Example:
  edgectl cluster get shop")]
    Get {
        /// Name of the cluster
        name: String,
        #[command(flatten)]
        result: Output,
    },
    /// Kubeconfig of a cluster's administrator; it is a secret
    #[command(after_help = "Examples:
  edgectl cluster kubeconfig shop -o shop.conf
  kubectl --kubeconfig shop.conf get nodes")]
    Kubeconfig {
        /// Name of the cluster
        name: String,
        /// File to write, readable by its owner only [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Change how many machines a cluster has
    #[command(after_help = "Examples:
  edgectl cluster scale shop --pool general=3
  edgectl cluster scale shop --control-plane 3 --wait")]
    Scale {
        /// Name of the cluster
        name: String,
        /// Machines of the control plane: 1, 3 or 5, and never fewer than before
        #[arg(long, value_name = "N", required_unless_present = "pools")]
        control_plane: Option<u32>,
        /// Machines of a pool of workers; may be given for several pools
        #[arg(long = "pool", id = "pools", value_name = "NAME=N", value_parser = pool)]
        pools: Vec<(String, u32)>,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        result: Output,
    },
    /// Roll another Kubernetes version out over a cluster's machines
    #[command(after_help = "Example:
  edgectl cluster upgrade shop --version 1.36.4 --wait")]
    Upgrade {
        /// Name of the cluster
        name: String,
        /// Kubernetes version
        #[arg(long, value_name = "X.Y.Z")]
        version: String,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        result: Output,
    },
    /// Stop making a cluster that was never ready, and remove everything of it
    #[command(after_help = "Example:
  edgectl cluster abort shop --wait")]
    Abort {
        /// Name of the cluster
        name: String,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        result: Output,
    },
    /// Remove a cluster with all its machines and disks
    #[command(
        after_help = "Asks for the cluster's name on a terminal, and wants --yes elsewhere. A deletion that has \
been stuck for 15 minutes may be forced: what cannot be removed is then left, and listed.

Examples:
  edgectl cluster delete shop --wait
  edgectl cluster delete shop --yes
  edgectl cluster delete shop --force"
    )]
    Delete {
        /// Name of the cluster
        name: String,
        /// Give up on what cannot be removed
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        result: Output,
    },
}

/// Whether to follow what was begun.
#[derive(Args, Clone, Copy, Debug)]
pub struct Wait {
    /// Follow until it is done
    #[arg(short, long)]
    wait: bool,
    /// How long, for instance 90m or 2h; it goes on by itself afterwards
    #[arg(long, value_name = "TIME", requires = "wait", default_value = "1h")]
    timeout: SignedDuration,
}

/// How a result is written.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// Format of the result
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

impl Output {
    /// Writes an object, or a sentence about it for people.
    fn print(self, cluster: &EdgeCluster, sentence: &str) -> Result<(), Error> {
        text::seen(match self.output {
            Format::Table => text::print(&format!("{}\n", clean(sentence))),
            Format::Json => text::json(cluster, true),
            Format::Yaml => text::yaml(cluster),
        })
    }
}

pub async fn run(command: &Command, client: &Client) -> Result<ExitCode, Error> {
    match command {
        Command::Create { file, wait, result } => create(file, *wait, *result, client).await,
        Command::List { result } => all(*result, client).await,
        Command::Get { name, result } => one(name, *result, client).await,
        Command::Kubeconfig { name, output } => kubeconfig(name, output.as_deref(), client).await,
        Command::Scale { name, control_plane, pools, wait, result } => {
            let worker_sizes: BTreeMap<_, _> = pools.iter().cloned().collect();
            let change = ClusterChange { control_plane_size: *control_plane, worker_sizes, ..ClusterChange::default() };
            changed(name, &change, *wait, *result, client).await
        }
        Command::Upgrade { name, version, wait, result } => {
            let version = version.strip_prefix('v').unwrap_or(version).to_owned();
            let change = ClusterChange { kubernetes_version: Some(version), ..ClusterChange::default() };
            changed(name, &change, *wait, *result, client).await
        }
        Command::Abort { name, wait, result } => {
            removed(name, ClusterRemoval { abort: true, force: false }, *wait, *result, client).await
        }
        Command::Delete { name, force, yes, wait, result } => {
            if !yes && !text::confirmed(&format!("cluster {name} with all its machines and disks"), name)? {
                return Ok(ExitCode::from(USAGE));
            }
            removed(name, ClusterRemoval { abort: false, force: *force }, *wait, *result, client).await
        }
    }
}

async fn create(file: &Path, wait: Wait, result: Output, client: &Client) -> Result<ExitCode, Error> {
    let bytes = check::read(file)?;
    if let Err(errors) = clusters::file::load(&bytes) {
        let report = check::report(&check::name(file), &bytes, &errors, Paint::detect());
        text::complain_lines(&report);
        return Ok(ExitCode::FAILURE);
    }
    let made = patiently(client.create_cluster(bytes)).await?;
    let name = made.metadata.name.clone().unwrap_or_default();
    if !wait.wait {
        result.print(&made, &format!("cluster {name} is created; `edgectl cluster get {name}` shows how far it is"))?;
        return Ok(ExitCode::SUCCESS);
    }
    until_running(&name, made.metadata.generation, wait, result, client).await
}

async fn changed(
    name: &str,
    change: &ClusterChange,
    wait: Wait,
    result: Output,
    client: &Client,
) -> Result<ExitCode, Error> {
    let object = patiently(client.change_cluster(name, change)).await?;
    if !wait.wait {
        result.print(&object, &format!("cluster {name} changes; `edgectl cluster get {name}` shows how far it is"))?;
        return Ok(ExitCode::SUCCESS);
    }
    until_running(name, object.metadata.generation, wait, result, client).await
}

async fn until_running(
    name: &str,
    generation: Option<i64>,
    wait: Wait,
    result: Output,
    client: &Client,
) -> Result<ExitCode, Error> {
    let end = follow::until_running(client, name, generation, wait.timeout).await?;
    if end == ExitCode::SUCCESS {
        let object = client.cluster(name).await?;
        let summary = edge_client::cluster::summary(&Cluster::from(&object));
        result.print(&object, &format!("cluster {name} is Running: {summary}"))?;
    }
    Ok(end)
}

async fn removed(
    name: &str,
    removal: ClusterRemoval,
    wait: Wait,
    result: Output,
    client: &Client,
) -> Result<ExitCode, Error> {
    let object = patiently(client.remove_cluster(name, removal)).await?;
    if !wait.wait {
        let sentence = format!("cluster {name} is being removed; `edgectl cluster get {name}` shows what is left");
        result.print(&object, &sentence)?;
        return Ok(ExitCode::SUCCESS);
    }
    let uid = object.metadata.uid.as_deref();
    let (end, last) = follow::until_gone(client, name, uid, wait.timeout).await?;
    if end == ExitCode::SUCCESS {
        if let Some(last) = last.filter(|_| removal.force) {
            // Nothing on the box tells of it by now, but an event.
            text::complain(&format!("what was left when it was given up: {}", last.message));
        }
        result.print(&object, &format!("cluster {name} is gone"))?;
    }
    Ok(end)
}

async fn all(result: Output, client: &Client) -> Result<ExitCode, Error> {
    let objects = patiently(client.clusters()).await?;
    match result.output {
        Format::Table => {
            let clusters: Vec<_> = objects.iter().map(Cluster::from).collect();
            text::print(&list(&clusters, Timestamp::now(), Paint::detect()))?;
        }
        Format::Json => text::json(&objects, true)?,
        Format::Yaml => text::yaml(&objects)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn one(name: &str, result: Output, client: &Client) -> Result<ExitCode, Error> {
    let object = patiently(client.cluster(name)).await?;
    match result.output {
        Format::Table => text::print(&detail(&object, Timestamp::now(), Paint::detect()))?,
        Format::Json => text::json(&object, true)?,
        Format::Yaml => text::yaml(&object)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn kubeconfig(name: &str, output: Option<&Path>, client: &Client) -> Result<ExitCode, Error> {
    let kubeconfig = patiently(client.cluster_kubeconfig(name)).await?;
    match output {
        Some(file) => {
            durable::write(file, &kubeconfig, 0o600)?;
            text::complain(&format!("{} is written", file.display()));
        }
        None => text::print(&String::from_utf8_lossy(&kubeconfig))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn pool(text: &str) -> Result<(String, u32), String> {
    let wanted = || "give a pool and a number of machines, for instance general=3".to_owned();
    let (name, size) = text.split_once('=').ok_or_else(wanted)?;
    if name.is_empty() {
        return Err(wanted());
    }
    Ok((name.to_owned(), size.parse().map_err(|_| wanted())?))
}
