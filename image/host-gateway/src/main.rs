//! The process: options, logs, signals.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use host_gateway::run::{Options, run};
use ipnet::Ipv4Net;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The pod network of one node: addresses for its pods, routes to those of other nodes, and what leaves it.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Name of the Node that this runs on.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Addresses of all pods of the cluster, `a.b.c.d/n`.
    #[arg(long, env = "POD_NETWORK")]
    pod_network: Ipv4Net,
    /// Addresses of all services of the cluster, `a.b.c.d/n`.
    #[arg(long, env = "SERVICE_NETWORK")]
    service_network: Ipv4Net,
    /// Where the container runtime reads network configuration lists.
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_dir: PathBuf,
    /// Address of /healthz.
    #[arg(long, default_value = "127.0.0.1:10261")]
    health: String,
}

fn main() -> anyhow::Result<()> {
    let Cli { node, pod_network, service_network, cni_dir, health } = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_runtime=warn"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    subscriber.json().flatten_event(true).init();
    // kube takes whatever provider the process has.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(start(Options { node, pod_network, service_network, cni_dir, health }))
}

async fn start(options: Options) -> anyhow::Result<()> {
    let client = kube::Client::try_default().await.context("find the API server")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        result = run(client, options) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
