//! The operator's process: options, logs, signals.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use edge_api::agent::FORCE_AFTER_SECONDS;
use edge_api::names::NAMESPACE;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use vm_operator::context::Times;
use vm_operator::effects;
use vm_operator::run::{Options, run};

#[derive(Parser)]
#[command(
    version,
    about = "Turns Appliance, VirtualMachineImage and VirtualMachine objects into libvirt networks, pools, volumes and domains"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watches one namespace until it is told to stop.
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// Namespace to watch.
    #[arg(long, env = "NAMESPACE", default_value = NAMESPACE)]
    namespace: String,
    /// Address of /healthz and /readyz.
    #[arg(long, default_value = "0.0.0.0:8080")]
    health: String,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
    /// Seconds that a guest may take to shut down before its power is cut.
    #[arg(long, default_value_t = 60)]
    shutdown_seconds: u64,
    /// Seconds between two slow looks at everything.
    #[arg(long, default_value_t = 600)]
    resync_seconds: u64,
    /// Seconds between two looks for the addresses of a guest that has some.
    #[arg(long, default_value_t = 60)]
    address_seconds: u64,
    /// Seconds after which a cluster's deletion that was asked to be forced does not wait any longer.
    #[arg(long, default_value_t = FORCE_AFTER_SECONDS.unsigned_abs())]
    force_seconds: u64,
    /// Seconds for which it is told that a guest's bootstrap failed before its machine is given up.
    #[arg(long, default_value_t = 300)]
    bootstrap_seconds: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

fn main() -> anyhow::Result<()> {
    let Cli { command: Command::Run(arguments) } = Cli::parse();
    log(arguments.log_format);
    // kube and the registry client take whatever provider the process has.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    // One thread does all that waits; libvirt's calls, which block, have threads of their own.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .build()
        .context("start the runtime")?
        .block_on(start(arguments))
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_runtime=warn"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
        LogFormat::Text => subscriber.init(),
    }
}

async fn start(arguments: Run) -> anyhow::Result<()> {
    let config = kube::Config::infer().await.context("find the API server")?;
    let client = effects::client(config).context("prepare to talk to the API server")?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        stopper.cancel();
    });
    let times = Times {
        shutdown: Duration::from_secs(arguments.shutdown_seconds),
        resync: Duration::from_secs(arguments.resync_seconds),
        addresses: Duration::from_secs(arguments.address_seconds),
        force: Duration::from_secs(arguments.force_seconds),
        bootstrap: Duration::from_secs(arguments.bootstrap_seconds),
    };
    let Run { namespace, health, .. } = arguments;
    run(client, Options { namespace, health: Some(health), times }, stop).await
}
