//! The socket API ([`edge_api::agent`]): reads are answered from memory. One write replaces the site file; those about
//! workload clusters are in [`clusters`].

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use edge_api::agent::{ApiError, LogLine, UpgradeRequest, ValidationReport};
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{BroadcastStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::clusters;
use crate::durable;
use crate::engine::chain;
use crate::journal::Journal;
use crate::machines::Objects;
use crate::paths::Paths;
use crate::site;
use crate::site_follow::{LIMIT, check};
use crate::status::Board;
use crate::upgrade;

/// What the server answers from.
#[derive(Clone)]
pub struct Server {
    /// Paths below the root.
    pub paths: Paths,
    /// The status.
    pub board: Board,
    /// The log.
    pub journal: Journal,
    /// Machines and clusters.
    pub objects: Objects,
    /// The system cluster's client, once there is one.
    pub clients: watch::Receiver<Option<kube::Client>>,
    /// Folder of the bundle that the agent was given.
    pub bundle: PathBuf,
    /// Has the engine look soon.
    pub wake: mpsc::Sender<()>,
    /// What time it is.
    pub now: fn() -> Timestamp,
    /// Ends event streams.
    pub cancel: CancellationToken,
}

impl Server {
    /// Listens on the socket, readable and writable by root only, until cancelled.
    pub async fn run(self) -> std::io::Result<()> {
        let path = self.paths.socket();
        let listener = listen(&path)?;
        let cancel = self.cancel.clone();
        let served =
            axum::serve(listener, self.router()).with_graceful_shutdown(async move { cancel.cancelled().await });
        let served = served.await;
        let _ = std::fs::remove_file(&path);
        served
    }

    fn router(self) -> Router {
        Router::new()
            .route("/v1/status", get(status))
            .route("/v1/events", get(events))
            .route("/v1/logs", get(logs))
            .route("/v1/validate", post(validate))
            .route("/v1/apply", post(apply))
            .route("/v1/upgrade", post(ask_for_upgrade))
            .route("/v1/vms", get(vms))
            .route("/v1/vms/{name}", get(vm))
            .merge(clusters::routes())
            .fallback(async || error(StatusCode::NOT_FOUND, "there is no such path", Some("GET /v1/status")))
            .method_not_allowed_fallback(async || {
                error(StatusCode::METHOD_NOT_ALLOWED, "another method is needed", None)
            })
            .layer(DefaultBodyLimit::max(LIMIT as usize))
            .with_state(self)
    }
}

/// A socket of a dead agent is replaced; the lock says that there is no living one.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// An error answer.
pub fn error(status: StatusCode, text: impl Into<String>, hint: Option<&str>) -> Response {
    let body = ApiError { error: text.into(), hint: hint.map(str::to_owned) };
    (status, Json(body)).into_response()
}

async fn status(State(server): State<Server>) -> Response {
    Json(server.board.get()).into_response()
}

/// Whole status at once and after every change, and every line of the log. A reader that is slow misses states in
/// between, never the last one.
async fn events(State(server): State<Server>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let statuses = WatchStream::new(server.board.subscribe())
        .filter_map(async |s| Event::default().event("status").json_data(s).ok());
    let lines = BroadcastStream::new(server.journal.subscribe())
        .filter_map(async |line: Result<LogLine, _>| Event::default().event("log").json_data(line.ok()?).ok());
    let both = stream::select(statuses.boxed(), lines.boxed()).map(Ok);
    let cancel = server.cancel.clone();
    let until = both.take_until(async move { cancel.cancelled().await });
    Sse::new(until).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}

#[derive(Deserialize)]
struct LogQuery {
    lines: Option<usize>,
}

async fn logs(
    State(server): State<Server>,
    query: Result<Query<LogQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    match query {
        Ok(Query(query)) => Json(server.journal.last(query.lines.unwrap_or(200))).into_response(),
        Err(e) => error(StatusCode::BAD_REQUEST, e.body_text(), Some("GET /v1/logs?lines=200")),
    }
}

/// Checks a text against the site in force.
fn report(server: &Server, body: &[u8]) -> ValidationReport {
    match check(body) {
        Err(errors) => ValidationReport { errors, ..ValidationReport::default() },
        Ok(new) => {
            let stored =
                |path: std::path::PathBuf| durable::read(&path, LIMIT).ok().flatten().and_then(|t| check(&t).ok());
            let old = stored(server.paths.site_in_force());
            let installed = stored(server.paths.site_installed())
                .or_else(|| old.clone().filter(|_| server.paths.join("state/cluster.json").exists()));
            ValidationReport {
                errors: Vec::new(),
                live: old.map(|old| site::diff(&old, &new).live).unwrap_or_default(),
                needs_reinstall: installed.map(|old| site::diff(&old, &new).needs_reinstall).unwrap_or_default(),
            }
        }
    }
}

async fn validate(
    State(server): State<Server>,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    match body {
        Ok(body) => Json(report(&server, &body)).into_response(),
        Err(e) => error(e.status(), e.body_text(), Some("a site file has at most 1 MiB")),
    }
}

async fn apply(
    State(server): State<Server>,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(e) => return error(e.status(), e.body_text(), Some("a site file has at most 1 MiB")),
    };
    let report = report(&server, &body);
    if report.errors.is_empty() {
        // The follower sees the new file by itself: one way for all edits.
        match durable::write_if_changed(&server.paths.site_file(), &body, 0o600) {
            Ok(true) => info!("unattended.yaml was replaced over the socket"),
            Ok(false) => {}
            Err(e) => return error(StatusCode::INTERNAL_SERVER_ERROR, chain(&e), None),
        }
    }
    Json(report).into_response()
}

async fn ask_for_upgrade(
    State(server): State<Server>,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(e) => return error(e.status(), e.body_text(), None),
    };
    let request: UpgradeRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(e) => return error(StatusCode::BAD_REQUEST, format!("an upgrade request cannot be read: {e}"), None),
    };
    let deadline = Duration::from_secs(request.deadline_seconds);
    match upgrade::ask(&server.paths, &server.bundle, Path::new(&request.bundle), deadline) {
        Ok(asked) => {
            info!("upgrade to {} is asked for", asked.to);
            server.board.edit(|status| status.upgrade = Some(asked.clone()));
            // Full means that it looks soon anyway.
            let _ = server.wake.try_send(());
            Json(asked).into_response()
        }
        Err(refused) => error(StatusCode::CONFLICT, refused.message, Some(refused.hint)),
    }
}

async fn vms(State(server): State<Server>) -> Response {
    Json(server.objects.machines.all()).into_response()
}

async fn vm(State(server): State<Server>, UrlPath(name): UrlPath<String>) -> Response {
    match server.objects.machines.get(&name) {
        Some(machine) => Json(machine).into_response(),
        None => error(
            StatusCode::NOT_FOUND,
            format!("there is no virtual machine {name:?}"),
            Some("GET /v1/vms lists them"),
        ),
    }
}
