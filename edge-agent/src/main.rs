//! `edge-agent`: the host daemon.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use edge_agent::daemon;
use edge_agent::engine::chain;
use edge_agent::remove;
use edge_api::Instance;

/// Installs a PCG-Edge appliance from its site file and keeps it so.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Run {
        #[command(flatten)]
        common: Common,
        /// Folder of the bundle
        #[arg(long)]
        bundle: PathBuf,
        /// Port of the API server on the host's loopback [default: of the instance]
        #[arg(long)]
        api_port: Option<u16>,
        /// Port of the local registry on the host [default: of the instance]
        #[arg(long)]
        registry_port: Option<u16>,
    },
    /// Take away all that this instance made on this host
    Remove {
        #[command(flatten)]
        common: Common,
        /// Keep the root with the cluster's data, identity, logins and logs
        #[arg(long)]
        keep_data: bool,
        /// Go on where virtual machines cannot be removed, and say what was left
        #[arg(long)]
        force: bool,
    },
}

#[derive(clap::Args)]
struct Common {
    /// Root of the agent's state [default: /opt/spectrocloud, with -NAME for other instances]
    #[arg(long)]
    root: Option<PathBuf>,
    /// Name that everything on the host carries
    #[arg(long, default_value_t)]
    instance: Instance,
}

impl Common {
    fn root(&self) -> std::io::Result<PathBuf> {
        // Mounts into the node need absolute paths.
        std::path::absolute(self.root.clone().unwrap_or_else(|| self.instance.default_root()))
    }
}

fn main() -> ExitCode {
    // Files are private unless somebody decides otherwise.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(run(arguments.command));
            // A blocking read of a large file must not hold up the end.
            runtime.shutdown_background();
            ended
        }
        Err(e) => Err(e.into()),
    };
    match ended {
        Ok(code) => code,
        Err(e) => {
            complain(&format!("edge-agent: {}", chain(&*e)));
            ExitCode::FAILURE
        }
    }
}

/// Nobody may be reading any more; the exit code says it, too.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

async fn run(command: Command) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match command {
        Command::Run { common, bundle, api_port, registry_port } => {
            let options = daemon::Options {
                root: common.root()?,
                bundle: std::path::absolute(bundle)?,
                api_port: api_port.unwrap_or_else(|| common.instance.api_port()),
                registry_port: registry_port.unwrap_or_else(|| common.instance.registry_port()),
                instance: common.instance,
            };
            let program = options.root.join("bin/edge-agent");
            match daemon::run(options).await? {
                daemon::End::Stopped => Ok(ExitCode::SUCCESS),
                // The same process, so that whoever looks after it sees no end.
                daemon::End::Renewed => {
                    Err(std::process::Command::new(program).args(std::env::args_os().skip(1)).exec().into())
                }
            }
        }
        Command::Remove { common, keep_data, force } => {
            let (root, instance) = (common.root()?, common.instance);
            let options = remove::Options { root, instance, keep_data, force, end_agent: false };
            let left = remove::run(&options).await?;
            for what in &left {
                complain(&format!("left: {what}"));
            }
            Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
