//! Command line and start.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use edge_api::{Instance, agent};
use edge_client::Client;
use jiff::tz::TimeZone;

use crate::state::State;
use crate::{event, run, terminal};

/// Console of a PCG-Edge appliance, on the box itself
#[derive(Debug, Parser)]
#[command(
    name = "edge-tui",
    version,
    after_help = "Keys: q leaves (the agent goes on), ? shows all keys.
Without a terminal, use `edgectl status --watch`."
)]
struct Args {
    /// Instance of the appliance, where the host has more than one
    #[arg(long, value_name = "NAME", env = "PCG_EDGE_INSTANCE", hide_env_values = true, default_value = "edge")]
    instance: Instance,
    /// Folder of the agent [default: /opt/spectrocloud, with -NAME for another instance]
    #[arg(long, value_name = "DIR", env = "PCG_EDGE_ROOT", hide_env_values = true)]
    root: Option<PathBuf>,
    /// Socket of the agent [default: run/agent.sock below the root]
    #[arg(long, value_name = "PATH", env = "PCG_EDGE_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("standard input and output must be a terminal")]
    NoTerminal,
    #[error("cannot start")]
    Start(#[source] std::io::Error),
    #[error("cannot draw")]
    Draw(#[source] std::io::Error),
}

/// Runs the console in this process until it is left.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(()) => {
            // Standard output may be gone with the terminal.
            let _ = std::io::Write::write_all(
                &mut std::io::stdout(),
                b"The agent goes on by itself. `edgectl status` shows how far it is, `edge-tui` comes back here.\n",
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            let hint = if matches!(error, Error::NoTerminal) { "; use `edgectl status --watch`" } else { "" };
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("edge-tui: {error}{cause}{hint}\n").as_bytes(),
            );
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<(), Error> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Error::NoTerminal);
    }
    let root = args.root.clone().unwrap_or_else(|| args.instance.default_root());
    let socket = args.socket.clone().unwrap_or_else(|| root.join(agent::SOCKET));
    // Tasks run on a thread of their own; this one draws.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(Error::Start)?;
    let state = State::new(socket.display().to_string(), jiff::Timestamp::now(), TimeZone::system());
    let mut screen = terminal::Screen::open().map_err(Error::Start)?;
    let mut events = event::sources(&runtime, Client::new(socket)).map_err(Error::Start)?;
    let drawn = run::run(screen.terminal(), state, || events.blocking_recv());
    drop(screen);
    // Tasks may sit in a read that nothing ends.
    runtime.shutdown_background();
    drawn.map_err(Error::Draw)
}
