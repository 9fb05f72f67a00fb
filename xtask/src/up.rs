//! `up`: from a bare host to a ready appliance; again: nothing.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use edge_api::Instance;

use crate::agent::Agent;
use crate::build::Minors;
use crate::clusters::{self, Wanted};
use crate::command::{command, tail};
use crate::follow::{self, Limits};
use crate::host::{Holder, Host};
use crate::table::human;
use crate::{build, packages, services, site, workspace};

/// What was asked for.
pub struct Options {
    /// Lines instead of the console.
    pub plain: bool,
    /// Which instance.
    pub instance: Instance,
    /// Folder with the site file, the profile and the clusters.
    pub site: PathBuf,
    /// Whether the site's workload clusters are made as well.
    pub clusters: bool,
    /// What the bundle is made of.
    pub minors: Minors,
}

/// What a host needs before an agent or a test can run.
pub struct Prepared {
    /// The host's state, locked.
    pub host: Host,
    /// Folder of our programs.
    pub bin: PathBuf,
    /// Folder of the bundle.
    pub bundle: PathBuf,
}

/// Installs packages, builds programs and bundle, starts services; all of it only where it is missing.
pub fn prepare(plain: bool, minors: Minors, hold: impl FnOnce(&mut Host) -> Result<()>) -> Result<Prepared> {
    workspace::require_root()?;
    ensure_packages(&mut Host::lock()?)?;
    // Unlocked: cargo and edge-image have locks of their own, and this may take half an hour.
    let bin = build::programs()?;
    let bundle = build::artifact(&bin, &[&["bundle"], minors.arguments()].concat(), plain)?;
    let mut host = Host::lock()?;
    hold(&mut host)?;
    services::ensure(&mut host, &bin.join("edge-runc"))?;
    Ok(Prepared { host, bin, bundle })
}

/// Installs missing packages and notes them.
pub fn ensure_packages(host: &mut Host) -> Result<()> {
    let installed = packages::ensure()?;
    if !installed.is_empty() {
        host.state.packages.extend(installed);
        host.save()?;
    }
    Ok(())
}

/// Runs the task.
pub fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    let plain = options.plain || !std::io::stdout().is_terminal();
    let site = std::path::absolute(&options.site)?;
    anyhow::ensure!(site.join("unattended.yaml").is_file(), "{} has no unattended.yaml", site.display());
    let name = options.instance.as_str();
    let prepared = prepare(plain, options.minors, |host| host.hold(name, Holder::Instance))?;

    let agent = Agent::of(&options.instance);
    let updated = agent.install(&prepared.bundle)?;
    let wanted = if options.clusters { clusters::read(&site.join("clusters"))? } else { Vec::new() };
    let conf = site::install(&site, &agent.root.join("conf"), &agent.program("edgectl"))?;
    for note in &conf.notes {
        println!("{note}");
    }
    let started = agent.ensure(&prepared.bundle)?;
    if started {
        println!("edge-agent started{}", if updated { " with new programs" } else { "" });
    }
    // Others may prepare while this one waits.
    drop(prepared);
    if plain {
        follow_plainly(&agent, conf.changed || started, start)?;
        clusters::ensure(&agent, &wanted, start)?;
        print_where(&agent, &wanted);
        Ok(())
    } else {
        console(&agent, &wanted)
    }
}

fn follow_plainly(agent: &Agent, moving: bool, start: Instant) -> Result<()> {
    // The PID file appears a moment after the start.
    let born = Instant::now();
    let alive = || agent.process().is_some() || born.elapsed().as_secs() < 10;
    let status = follow::until_ready(&agent.socket(), Limits::default(), moving, alive).map_err(|error| {
        let output = std::fs::read_to_string(agent.log()).unwrap_or_default();
        let ended = agent.process().is_none() && !output.is_empty();
        if ended { error.context(format!("{}:\n{}", agent.log().display(), tail(&output))) } else { error }
    });
    let status = status.with_context(|| {
        let ctl = agent.program("edgectl");
        format!(
            "instance {} is not ready (edge-agent goes on; `{} --root {} status` shows it)",
            agent.instance,
            ctl.display(),
            agent.root.display()
        )
    })?;
    println!("{} is ready after {}", status.device_id.as_deref().unwrap_or("the appliance"), human(start.elapsed()));
    Ok(())
}

fn print_where(agent: &Agent, clusters: &[Wanted]) {
    let root = agent.root.display();
    println!("  status:   {root}/bin/edgectl --root {root} status");
    println!("  console:  {root}/bin/edge-tui --root {root}");
    println!("  cluster:  KUBECONFIG={root}/kube/admin.conf kubectl get vm,pods -A");
    for cluster in clusters {
        println!("  {}: {root}/bin/edgectl --root {root} cluster kubeconfig {0}", cluster.name);
    }
    println!("  log:      {root}/edge.log");
    println!("  remove:   cargo xtask down --instance {}", agent.instance);
}

/// Shows the console; clusters that are not there yet are asked for as soon as the appliance can make them.
fn console(agent: &Agent, clusters: &[Wanted]) -> Result<()> {
    let mut tui = command(agent.program("edge-tui"));
    tui.arg("--socket").arg(agent.socket()).stdin(std::process::Stdio::inherit());
    let shown = || format!("cannot run {}", Path::new(tui.get_program()).display());
    if clusters.is_empty() {
        let context = shown();
        return Err(tui.exec()).context(context);
    }
    let context = shown();
    let mut screen = tui.spawn().context(context)?;
    let asked = clusters::ask_quietly(agent, clusters, || matches!(screen.try_wait(), Ok(None)));
    let status = screen.wait()?;
    anyhow::ensure!(status.success(), "edge-tui: {status}");
    asked
}
