//! Puts it together: watches Nodes and the routing table, one pass after each change, and says how it stands.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::reflector::store;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use crate::plan::{Changes, Plan, plan};
use crate::{conflist, routes, rules};

/// How long a node's network may differ from what it should be before somebody looks, where nothing says that it does.
pub const RESYNC: Duration = Duration::from_mins(1);
/// After a pass that did not succeed.
const RETRY: Duration = Duration::from_secs(5);

/// How it runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the Node that it runs on.
    pub node: String,
    /// Addresses of all pods of the cluster.
    pub pod_network: Ipv4Net,
    /// Addresses of all services of the cluster.
    pub service_network: Ipv4Net,
    /// Where the container runtime reads network configuration lists.
    pub cni_dir: PathBuf,
    /// Address of `/healthz`.
    pub health: String,
}

/// A pass did not reach its end.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Not an error of anybody: the controller manager has yet to choose.
    #[error("waits for the podCIDR of the node {0}")]
    NoPodCidr(String),
    #[error("packet rules")]
    Rules(#[from] rules::Error),
    #[error("network configuration list in {dir}")]
    Conflist { dir: PathBuf, source: std::io::Error },
    #[error("routes")]
    Routes(#[from] routes::Error),
}

/// Runs until something breaks that only a new start mends.
pub async fn run(client: Client, options: Options) -> anyhow::Result<()> {
    let (state, told) = watch::channel(Err("waits for the list of nodes".to_owned()));
    let listener = TcpListener::bind(&options.health).await.with_context(|| format!("listen on {}", options.health))?;
    let (table, table_changes) = routes::Table::open()?;
    let (nodes, writer) = store::<Node>();
    let node_changes = watcher(Api::<Node>::all(client), watcher::Config::default())
        .default_backoff()
        .modify(|node| node.managed_fields_mut().clear())
        .reflect(writer)
        .touched_objects()
        .inspect_err(|error| tracing::warn!(error = chain(error), "cannot watch nodes"));
    let changed = Notify::new();
    let passes = async {
        // A list that is not complete would take routes away.
        nodes.wait_until_ready().await.context("the watch of nodes ended")?;
        loop {
            let result = pass(&options, &plan(&options.node, nodes.state().iter().map(Arc::as_ref)), &table).await;
            let pause = if result.is_ok() { RESYNC } else { RETRY };
            tell(&state, result.map_err(|error| chain(&error)));
            let _ = tokio::time::timeout(pause, changed.notified()).await;
        }
    };
    tokio::select! {
        result = passes => result,
        () = note(node_changes, &changed) => anyhow::bail!("the watch of nodes ended"),
        () = note(table_changes, &changed) => anyhow::bail!("the netlink socket was closed"),
        served = axum::serve(listener, health(told)) => served.context("health endpoint"),
    }
}

/// Has the node's network as planned. The list comes last but for routes that cannot be set: with it the node counts as
/// ready, and one node out of reach is no reason to keep this one back.
async fn pass(options: &Options, plan: &Plan, table: &routes::Table) -> Result<(), Error> {
    let Plan { pod_cidr, routes } = plan;
    if rules::ensure(options.pod_network, options.service_network).await? {
        tracing::info!(pods = %options.pod_network, services = %options.service_network, "packet rules set");
    }
    let routed = table.ensure(routes).await;
    if let Ok(Changes { remove, set }) = &routed {
        for (destination, gateway) in remove {
            tracing::info!(%destination, %gateway, "route removed");
        }
        for (destination, gateway) in set {
            tracing::info!(%destination, %gateway, "route set");
        }
    }
    let pod_cidr = pod_cidr.ok_or_else(|| Error::NoPodCidr(options.node.clone()))?;
    let dir = &options.cni_dir;
    if conflist::ensure(dir, pod_cidr).map_err(|source| Error::Conflist { dir: dir.clone(), source })? {
        tracing::info!(%pod_cidr, file = conflist::FILE, "network configuration list written");
    }
    Ok(routed.map(drop)?)
}

/// Tells the health endpoint, and the log where it is news.
fn tell(state: &watch::Sender<Result<(), String>>, result: Result<(), String>) {
    state.send_if_modified(|was| {
        let news = *was != result;
        match &result {
            Ok(()) if news => tracing::info!("the node's pod network is ready"),
            Err(reason) if news => tracing::warn!(reason, "the node's pod network is not ready"),
            _ => {}
        }
        *was = result;
        news
    });
}

/// Until the stream ends.
async fn note(stream: impl Stream, changed: &Notify) {
    stream.for_each(async |_| changed.notify_one()).await;
}

/// `/healthz`: the last pass succeeded, so pods here have addresses and a way to all others.
fn health(told: watch::Receiver<Result<(), String>>) -> Router {
    let answer = move || {
        let state = told.borrow().clone();
        async move {
            match state {
                Ok(()) => (StatusCode::OK, "ok".to_owned()),
                Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
            }
        }
    };
    Router::new().route("/healthz", get(answer))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
