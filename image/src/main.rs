//! `edge-image build …`: builds an artifact, or takes it from the cache, and prints its path.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use edge_image::build::Context;
use edge_image::cache::Cache;
use edge_image::containers::Built;
use edge_image::pins::{CURRENT, PREVIOUS};
use edge_image::progress::Progress;
use edge_image::{
    add_ons, bundle, cluster_images, containers, kubernetes_guest, manifests, node, process, programs, router_image,
    tiny,
};

/// Builds the images of a PCG-Edge appliance from pinned Go modules and Debian packages.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds an artifact and prints its path as the last line of standard output.
    Build {
        /// What to build.
        what: Artifact,
        /// Plain lines instead of progress bars.
        #[arg(long)]
        plain: bool,
        /// Root of the Cargo workspace; by default the one around the current folder.
        #[arg(long)]
        workspace: Option<PathBuf>,
        /// Folder with this workspace's programs, already built in release mode; otherwise cargo builds them.
        #[arg(long)]
        own_programs: Option<PathBuf>,
        /// In the bundle: also the guest of the Kubernetes minor before, to try an upgrade of a cluster.
        #[arg(long)]
        previous_minor: bool,
        /// In the bundle: system cluster and guest of the Kubernetes minor before, to try an upgrade of an appliance.
        #[arg(long, conflicts_with = "previous_minor")]
        only_previous_minor: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Artifact {
    /// The Go programs of the system cluster: Kubernetes, etcd, containerd, CNI plugins, kind, helm, registry, coredns.
    Programs,
    /// The kind node image, as an OCI image layout.
    Node,
    /// The container images of the bundle, each an OCI image layout.
    Containers,
    /// The install manifests, each an artifact with one layer per file: Cluster API's, and those of clusters' layers.
    Manifests,
    /// The Kubernetes guest's VM image: kernel, initial RAM disk and disk.
    Guest,
    /// The site router's VM image: kernel, initial RAM disk and disk.
    Router,
    /// The tiny guest's VM image: kernel and initial RAM disk.
    Tiny,
    /// Everything, in one OCI image layout with `pcg-index.json` and the host's programs in `bin/`.
    Bundle,
}

fn main() -> ExitCode {
    let verdict = process::on_interrupt().context("cannot handle signals").and_then(|()| run(Cli::parse()));
    match verdict {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if process::interrupted() => {
            eprintln!("edge-image: interrupted; finished artifacts stay in the cache");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("edge-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let Command::Build { what, plain, workspace, own_programs, previous_minor, only_previous_minor } = cli.command;
    let workspace = match workspace {
        Some(dir) => dir,
        None => find_workspace()?,
    };
    let context = Context { cache: Cache::open()?, progress: Progress::new(plain), workspace, own_programs };
    let path = match what {
        Artifact::Programs => programs::ensure(&context, &CURRENT)?,
        Artifact::Node => node::ensure(&context, &CURRENT)?.layout,
        Artifact::Router => router_image::ensure(&context)?.layout,
        Artifact::Tiny => tiny::ensure(&context)?.layout,
        Artifact::Guest => kubernetes_guest::ensure(&context, &CURRENT)?.layout,
        Artifact::Bundle => {
            let releases: &[_] = match (previous_minor, only_previous_minor) {
                (true, _) => &[&CURRENT, &PREVIOUS],
                (_, true) => &[&PREVIOUS],
                _ => &[&CURRENT],
            };
            bundle::ensure(&context, releases)?
        }
        Artifact::Containers => {
            let mut images = cluster_images::ensure(&context)?;
            images.push(cluster_images::busybox(&context)?);
            images.push(cluster_images::host_gateway(&context)?);
            images.extend(containers::of_clusters(&context, &CURRENT)?);
            images.extend(containers::ensure(&context)?);
            show(&images)
        }
        Artifact::Manifests => {
            let mut manifests = add_ons::ensure(&context)?;
            manifests.push(manifests::ensure(&context)?);
            show(&manifests)
        }
    };
    println!("{}", path.display());
    Ok(())
}

/// Prints every name with its path; the last path is the one to print last.
fn show(built: &[Built]) -> PathBuf {
    for one in built {
        println!("{} {}", one.name, one.layout.display());
    }
    built.last().map(|one| one.layout.clone()).unwrap_or_default()
}

/// The workspace that cargo runs us in, else the one around the current folder.
fn find_workspace() -> Result<PathBuf> {
    let here = std::env::current_dir().context("cannot tell the current folder")?;
    let start = std::env::var_os("CARGO_MANIFEST_DIR").map_or(here, PathBuf::from);
    let is_root = |dir: &&Path| dir.join("vm-operator").is_dir() && dir.join("Cargo.lock").is_file();
    match start.ancestors().find(is_root) {
        Some(root) => Ok(root.to_owned()),
        None => bail!("no PCG-Edge workspace around {}; name it with --workspace", start.display()),
    }
}
