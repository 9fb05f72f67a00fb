//! `edgectl`: checks and applies site files, shows what the agent does, looks after workload clusters, builds profile
//! archives.
//!
//! One module per command. Results go to standard output, progress and errors to standard error. Exit codes: 0 done,
//! 1 failed or invalid, 2 wrong usage, 3 (`status`, `apply --watch`, `cluster … --wait`) not Ready, or not yet gone. They hold where nobody reads the result.

mod apply;
mod backup;
mod check;
mod cluster;
mod error;
mod logs;
mod profile;
mod registry;
mod reset;
mod status;
mod text;
mod upgrade;
mod vm;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use edge_api::{Instance, agent};
use edge_client::Client;

use crate::paths::Paths;
use error::Error;

/// Exit code of wrong usage.
const USAGE: u8 = 2;
/// Exit code while the appliance is not Ready.
const NOT_READY: u8 = 3;

#[derive(Debug, Parser)]
#[command(name = "edgectl", version, about = "Looks after a PCG-Edge appliance, on the box itself", after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  edgectl template > unattended.yaml             a commented site file to start from
  edgectl validate unattended.yaml               every error of a site file, with its place
  edgectl apply unattended.yaml --watch          put it in force, follow until Ready
  edgectl status                                 steps, applications, machines, clusters
  edgectl logs -f                                what happens, as it happens
  edgectl vm list                                virtual machines and their addresses
  edgectl cluster create -f shop.yaml --wait     make a workload cluster, follow until it is Running
  edgectl cluster kubeconfig shop > shop.conf    log in to it
  edgectl profile build ./profile -o site.tar    make a profile archive of a folder
  edgectl upgrade /media/stick/bundle --wait     another version of all that
  edgectl backup                                 what another box needs to take this one's place

`edgectl help COMMAND` tells more about a command.";

/// Which appliance of this host.
#[derive(Args, Debug)]
struct Place {
    /// Instance of the appliance, where the host has more than one
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "PCG_EDGE_INSTANCE",
        hide_env_values = true,
        default_value = "edge"
    )]
    instance: Instance,
    /// Folder of the agent [default: /opt/spectrocloud, with -NAME for another instance]
    #[arg(long, global = true, value_name = "DIR", env = "PCG_EDGE_ROOT", hide_env_values = true)]
    root: Option<PathBuf>,
    /// Socket of the agent [default: run/agent.sock below the root]
    #[arg(long, global = true, value_name = "PATH", env = "PCG_EDGE_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,
}

impl Place {
    fn root(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(|| self.instance.default_root())
    }

    fn client(&self) -> Client {
        Client::new(self.socket.clone().unwrap_or_else(|| self.root().join(agent::SOCKET)))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a site file: every error at once, with line, column, and what was expected
    #[command(after_help = "Needs no running agent. Exits with 1 where the file is invalid.

Examples:
  edgectl validate /opt/spectrocloud/conf/unattended.yaml
  edgectl validate - < pasted.yaml
  edgectl validate site.yaml -o json")]
    Validate(check::Args),
    /// Check a site file and put it in force
    #[command(after_help = "The file takes the place of conf/unattended.yaml below the agent's root. Fields that \
need a reinstall are listed; everything else is applied to the running appliance.

Examples:
  edgectl apply site.yaml
  edgectl apply site.yaml --watch")]
    Apply(apply::Args),
    /// Steps, applications, machines and clusters of the appliance
    #[command(after_help = "Exits with 0 where the appliance is Ready, else with 3.

Examples:
  edgectl status
  edgectl status --watch
  edgectl status -o json")]
    Status(status::Args),
    /// Log of the appliance
    #[command(after_help = "Examples:
  edgectl logs --lines 50
  edgectl logs -f")]
    Logs(logs::Args),
    /// Virtual machines
    #[command(subcommand)]
    Vm(vm::Command),
    /// Workload clusters
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Profile archives
    #[command(subcommand)]
    Profile(profile::Command),
    /// Local registry
    #[command(subcommand)]
    Registry(registry::Command),
    /// Bring the appliance to another bundle; it goes back by itself where that does not become ready
    #[command(
        after_help = "The bundle is copied below the agent's root and verified, and the system cluster's data are \
kept. Then node, registry, operator, Cluster API and applications follow, while virtual machines run on. What is not ready \
by the deadline goes back to the bundle before, which stays. Kubernetes goes one minor at a time. Programs of the host \
(edge-agent, edgectl, edge-tui) come with its image, not with a bundle.

Examples:
  edgectl upgrade /media/stick/bundle --wait
  edgectl upgrade /media/stick/bundle --deadline 10m"
    )]
    Upgrade(upgrade::Args),
    /// Back up what cannot be made anew: the system cluster's data, keys, identity, site file
    #[command(after_help = "The appliance runs on meanwhile. The file holds every key of the appliance: keep it like \
one. Disks of virtual machines are not in it.

Examples:
  edgectl backup
  edgectl backup /media/stick/store-1.backup")]
    Backup(backup::MakeArgs),
    /// Make the appliance of a backup on this box, which must not have one yet
    #[command(after_help = "Where this box has a site file already, its device_id must be that of the backup, and it \
is kept. An agent that runs is ended; started again, it makes the system cluster of the backup. A virtual machine whose \
disks are not on this box is told of as DiskLost: bring its disks, or delete it, and the profile makes it anew.

Example:
  edgectl restore /media/stick/store-1.backup")]
    Restore(backup::RestoreArgs),
    /// Remove the appliance: the box is then as it came from the factory
    #[command(
        after_help = "Ends the agent, and takes away all that this instance made on this host: clusters, virtual \
machines with their disks, the system cluster, the registry, the site file, identity, keys and logs. Asks for the \
instance's name on a terminal, and wants --yes elsewhere. What had to be left is said, and doing it again is safe.

Examples:
  edgectl reset
  edgectl reset --yes"
    )]
    Reset(reset::Args),
    /// Print a commented site file with every field
    Template,
    /// Print the JSON Schema of the site file, for editors
    Schema,
}

/// Format of a result.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            text::complain(&format!("error: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&cli)) {
        Ok(code) => code,
        // Whoever read our output has seen enough (`… | head`).
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            error.print();
            ExitCode::FAILURE
        }
    }
}

/// Waits for the agent and, where that takes longer than two seconds, says so.
async fn patiently<T>(answer: impl Future<Output = T>) -> T {
    telling("waiting for the agent to answer", answer).await
}

/// Does something and, where that takes longer than two seconds, says so.
async fn telling<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(Duration::from_secs(2)) => text::complain(&format!("{what} …")),
    }
    work.await
}

async fn run(cli: &Cli) -> Result<ExitCode, Error> {
    let client = cli.place.client();
    match &cli.command {
        Command::Validate(args) => check::run(args),
        Command::Apply(args) => apply::run(args, &client).await,
        Command::Status(args) => status::run(args, &client).await,
        Command::Logs(args) => logs::run(args, &client).await,
        Command::Vm(command) => vm::run(command, &client).await,
        Command::Cluster(command) => cluster::run(command, &client).await,
        Command::Profile(command) => profile::run(command),
        Command::Registry(command) => registry::run(command, &Paths::new(cli.place.root()), &cli.place.instance),
        Command::Upgrade(args) => upgrade::run(args, &cli.place).await,
        Command::Backup(args) => backup::make(args, &cli.place).await,
        Command::Restore(args) => backup::restore(args, &cli.place).await,
        Command::Reset(args) => reset::run(args, &cli.place).await,
        Command::Template => text::print(crate::site::TEMPLATE).map(|()| ExitCode::SUCCESS),
        Command::Schema => text::json(&crate::site::schema(), true).map(|()| ExitCode::SUCCESS),
    }
}
