//! `cargo xtask …`: the one entry point for people and for CI.
//!
//! | command | does |
//! |---|---|
//! | `up` | prepares the host, builds what is missing, starts the agent and follows it until appliance and workload clusters are ready |
//! | `down` | removes one instance and nothing else |
//! | `test` | prepares like `up`, then runs the tests; `--fast` leaves the end-to-end tests out, a name all others; `--long` also fuzzes |
//! | `bench` | times a machine against a bare script |
//! | `ci` | formatting, lints, generated files, licences, then `test` |
//!
//! Nothing here links libvirt: this must compile before the Debian packages are there.

mod agent;
mod build;
mod ci;
mod clusters;
mod command;
mod down;
mod faults;
mod follow;
mod fuzz;
mod host;
mod packages;
mod process;
mod services;
mod site;
mod table;
mod test;
mod up;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use edge_api::Instance;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests PCG-Edge", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Brings an appliance up on this host and shows it
    Up {
        /// One line per step instead of the console; the default where there is no terminal
        #[arg(long)]
        plain: bool,
        /// Instance name: 1 to 9 lower-case letters and digits
        #[arg(long, default_value_t)]
        instance: Instance,
        /// Folder with unattended.yaml, profile/ and clusters/
        #[arg(long, default_value = "examples/site")]
        site: PathBuf,
        /// Without the workload clusters of the site's folder clusters/
        #[arg(long)]
        no_cluster: bool,
        /// With guests of the Kubernetes minor before as well, to try the upgrade of a cluster
        #[arg(long)]
        previous_minor: bool,
        /// With everything of the Kubernetes minor before, to try the upgrade of the appliance
        #[arg(long, conflicts_with = "previous_minor")]
        only_previous_minor: bool,
    },
    /// Removes an instance and, with the last one, stops the services that were started for it
    Down {
        /// Instance name
        #[arg(long, default_value_t)]
        instance: Instance,
    },
    /// Runs the tests
    Test {
        /// Without the end-to-end tests
        #[arg(long, conflicts_with = "long")]
        fast: bool,
        /// Also those that take too long for every change
        #[arg(long)]
        long: bool,
        /// Only those with this in their name, also where they are long
        #[arg(value_name = "NAME", conflicts_with_all = ["fast", "long"])]
        only: Option<String>,
    },
    /// Times a machine against a bare script, on an instance of the example that is ready
    Bench {
        /// Instance name
        #[arg(long, default_value_t)]
        instance: Instance,
    },
    /// What CI runs
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Up { plain, instance, site, no_cluster, previous_minor, only_previous_minor } => {
            let minors = match (previous_minor, only_previous_minor) {
                (true, _) => build::Minors::WithPrevious,
                (_, true) => build::Minors::Previous,
                _ => build::Minors::Current,
            };
            up::run(&up::Options { plain, instance, site, clusters: !no_cluster, minors })
        }
        Task::Down { instance } => down::run(&instance),
        Task::Test { only: Some(name), .. } => test::run(&test::Scope::Named(name)),
        Task::Test { fast: true, .. } => test::run(&test::Scope::Fast),
        Task::Test { long: true, .. } => test::run(&test::Scope::Long),
        Task::Test { .. } => test::run(&test::Scope::Normal),
        Task::Bench { instance } => command::run(workspace::cargo().args([
            "run",
            "--release",
            "-q",
            "-p",
            "edge-tests",
            "--bin",
            "bench",
            "--",
            instance.as_str(),
        ])),
        Task::Ci => ci::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
