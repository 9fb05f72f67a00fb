//! The requests about clusters. Reads are answered from memory, everything else by the system cluster's API server: also
//! what memory does not have, because a watch may be behind, and after a restart has nothing yet.

use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use edge_api::EdgeCluster;
use edge_api::agent::{Cluster, ClusterChange, ClusterRemoval, ValidationError};
use edge_api::names::{ANNOTATION_FORCE_DELETE, NAMESPACE};
use edge_client::cluster;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, Preconditions, ValidationDirective};
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};
use tracing::info;

use super::rules::{self, Removal};
use super::{Refusal, file};
use crate::engine::chain;
use crate::objects::FIELD_MANAGER;
use crate::server::Server;

/// Longest wait for the API server: shorter than clients wait for us.
const DEADLINE: Duration = Duration::from_secs(20);
/// A new object is in memory long before that.
const SEEN_DEADLINE: Duration = Duration::from_secs(2);
/// How often a write is tried again because the object was changed by somebody else meanwhile.
const ATTEMPTS: u32 = 8;
/// Key of a kubeconfig in its Secret, by Cluster API's contract.
const KUBECONFIG: &str = "value";

/// The paths about clusters.
pub fn routes() -> Router<Server> {
    Router::new()
        .route("/v1/clusters", get(list).post(create))
        .route("/v1/clusters/{name}", get(one).patch(change).delete(remove))
        .route("/v1/clusters/{name}/kubeconfig", get(kubeconfig))
}

async fn list(State(server): State<Server>) -> Json<Vec<EdgeCluster>> {
    Json(server.objects.clusters.all())
}

async fn one(State(server): State<Server>, Path(name): Path<String>) -> Result<Json<EdgeCluster>, Refusal> {
    if let Some(known) = server.objects.clusters.get(&name) {
        return Ok(Json(known));
    }
    within(async {
        let api: Api<EdgeCluster> = Api::namespaced(client(&server)?, NAMESPACE);
        api.get(&name).await.map(|object| Json(readable(object))).map_err(|e| named(&name, e))
    })
    .await
}

async fn create(
    State(server): State<Server>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<EdgeCluster>), Refusal> {
    let cluster = file::load(&bytes(body)?).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(line).collect();
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, lines.join("\n"))
    })?;
    let name = cluster.name_any();
    let made = within(async {
        let client = client(&server)?;
        let path = EdgeCluster::url_path(&(), Some(NAMESPACE));
        let request = hyper::Request::post(format!("{path}?fieldManager={FIELD_MANAGER}&fieldValidation=Strict"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(json!(cluster).to_string().into_bytes())
            .map_err(|e| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&e)))?;
        match client.request::<EdgeCluster>(request).await {
            Ok(made) => Ok(made),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Err(exists(&server, &name)),
            Err(e) => Err(failure(e)),
        }
    })
    .await?;
    info!("cluster {name} was created over the socket");
    // Whoever asks next finds it.
    let mut statuses = server.board.subscribe();
    let seen = statuses.wait_for(|status| status.clusters.iter().any(|cluster| cluster.name == name));
    let _ = tokio::time::timeout(SEEN_DEADLINE, seen).await;
    Ok((StatusCode::CREATED, Json(readable(made))))
}

async fn change(
    State(server): State<Server>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<EdgeCluster>, Refusal> {
    let wanted: ClusterChange = serde_json::from_slice(&bytes(body)?)
        .map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, format!("a change of a cluster cannot be read: {e}")))?;
    let changed = write(&server, &name, |object| Ok(Write::Patch(rules::change(object, &wanted)?))).await?;
    info!("cluster {name} was changed over the socket: {}", json!(wanted));
    Ok(Json(changed))
}

async fn remove(
    State(server): State<Server>,
    Path(name): Path<String>,
    query: Result<Query<ClusterRemoval>, QueryRejection>,
) -> Result<Json<EdgeCluster>, Refusal> {
    let Query(asked) = query.map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, e.body_text()))?;
    let removed = write(&server, &name, |object| {
        Ok(match rules::removal(object, asked, (server.now)())? {
            Removal::Nothing => Write::Nothing,
            Removal::Delete => Write::Delete,
            Removal::Force => Write::Merge(json!({"metadata": {
                "uid": object.metadata.uid,
                "resourceVersion": object.metadata.resource_version,
                "annotations": {ANNOTATION_FORCE_DELETE: "true"},
            }})),
        })
    });
    let removed = removed.await?;
    let what = match asked {
        ClusterRemoval { force: true, .. } => "forced deletion",
        ClusterRemoval { abort: true, .. } => "abort",
        ClusterRemoval { .. } => "deletion",
    };
    info!("{what} of cluster {name} was asked for over the socket");
    Ok(Json(removed))
}

async fn kubeconfig(State(server): State<Server>, Path(name): Path<String>) -> Result<Response, Refusal> {
    let secret = within(async {
        let client = client(&server)?;
        let cluster = Api::<EdgeCluster>::namespaced(client.clone(), NAMESPACE).get(&name).await;
        let cluster = Cluster::from(&cluster.map_err(|e| named(&name, e))?);
        let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
        let secret = secrets.get_opt(&format!("{name}-kubeconfig")).await.map_err(failure)?;
        let value = secret.and_then(|secret| secret.data).and_then(|mut data| data.remove(KUBECONFIG));
        value.ok_or_else(|| {
            Refusal::conflict(format!(
                "cluster {name} has no kubeconfig yet: it is made with the control plane; now {}",
                cluster::summary(&cluster)
            ))
            .hint(format!("`edgectl cluster get {name}` shows how far it is"))
        })
    })
    .await?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], secret.0).into_response())
}

/// How an object is written.
enum Write {
    /// A JSON patch.
    Patch(Vec<Value>),
    /// A merge patch.
    Merge(Value),
    /// It is deleted.
    Delete,
    /// It stays.
    Nothing,
}

/// Reads the object and writes it as decided, again where somebody else wrote in between.
async fn write(
    server: &Server,
    name: &str,
    decide: impl Fn(&EdgeCluster) -> Result<Write, Refusal>,
) -> Result<EdgeCluster, Refusal> {
    within(async {
        let api: Api<EdgeCluster> = Api::namespaced(client(server)?, NAMESPACE);
        for _ in 0..ATTEMPTS {
            let object = api.get(name).await.map_err(|e| named(name, e))?;
            let write = decide(&object)?;
            match carry_out(&api, name, object, write).await {
                Ok(written) => return Ok(readable(written)),
                Err(kube::Error::Api(status)) if status.reason == "Conflict" => {}
                Err(e) => return Err(named(name, e)),
            }
        }
        Err(Refusal::conflict(format!("cluster {name} is being changed by somebody else all the time"))
            .hint("try again"))
    })
    .await
}

async fn carry_out(
    api: &Api<EdgeCluster>,
    name: &str,
    object: EdgeCluster,
    write: Write,
) -> Result<EdgeCluster, kube::Error> {
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::default()
    };
    match write {
        Write::Patch(operations) => {
            let patch = serde_json::from_value(Value::Array(operations)).map_err(kube::Error::SerdeError)?;
            api.patch(name, &params, &Patch::<()>::Json(patch)).await
        }
        Write::Merge(patch) => api.patch(name, &params, &Patch::Merge(patch)).await,
        Write::Delete => {
            let ObjectMeta { resource_version, uid, .. } = object.metadata.clone();
            let preconditions = Some(Preconditions { resource_version, uid });
            let params = DeleteParams { preconditions, ..DeleteParams::background() };
            // Without a finalizer it is gone at once.
            Ok(api.delete(name, &params).await?.left().unwrap_or(object))
        }
        Write::Nothing => Ok(object),
    }
}

/// Ends a request that the API server does not answer.
async fn within<T>(request: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    tokio::time::timeout(DEADLINE, request).await.unwrap_or_else(|_| {
        let error = format!("the system cluster's API server did not answer within {} s", DEADLINE.as_secs());
        Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, error)
            .hint("`edgectl status` shows whether the step system-cluster is Ready; then try again"))
    })
}

fn client(server: &Server) -> Result<kube::Client, Refusal> {
    server.clients.borrow().clone().ok_or_else(not_there)
}

fn not_there() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the system cluster is not ready for workload clusters yet")
        .hint("`edgectl status` shows how far the installation is")
}

fn unknown(name: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no cluster {name:?}"))
        .hint("`edgectl cluster list` shows all there are")
}

fn exists(server: &Server, name: &str) -> Refusal {
    let going = server.objects.clusters.get(name).is_some_and(|c| c.metadata.deletion_timestamp.is_some());
    if going {
        return Refusal::conflict(format!("the cluster {name} before this one is still being deleted"))
            .hint(format!("`edgectl cluster get {name}` shows how far that is; then create it again"));
    }
    Refusal::conflict(format!("there is a cluster {name} already")).hint(format!(
        "`edgectl cluster scale {name}` and `edgectl cluster upgrade {name}` change it; for a new one, choose another name"
    ))
}

/// A failure about one cluster.
fn named(name: &str, error: kube::Error) -> Refusal {
    match &error {
        kube::Error::Api(status) if status.code == 404 && status.details.as_ref().is_some_and(|d| d.name == name) => {
            unknown(name)
        }
        _ => failure(error),
    }
}

/// What the API server said, with the fields it said it about.
fn failure(error: kube::Error) -> Refusal {
    let kube::Error::Api(status) = error else {
        return Refusal::new(StatusCode::BAD_GATEWAY, format!("the system cluster's API server: {}", chain(&error)))
            .hint("`edgectl status` shows whether the step system-cluster is Ready; then try again");
    };
    if status.code == 404 {
        // The kind itself is not there yet.
        return not_there();
    }
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let lines: Vec<_> = causes.map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    let text = if lines.is_empty() { status.message.clone() } else { lines.join("\n") };
    Refusal::new(StatusCode::from_u16(status.code).unwrap_or(StatusCode::BAD_GATEWAY), text)
}

/// An error of a file in one line.
fn line(error: &ValidationError) -> String {
    let ValidationError { line, column, field, found, expected, hint } = error;
    let place = if *line == 0 { String::new() } else { format!("line {line}, column {column}: ") };
    let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
    let hint = hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{place}{field}found {found}, expected {expected}{hint}")
}

fn bytes(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Refusal> {
    body.map_err(|e| Refusal::new(e.status(), e.body_text()).hint("a request has at most 1 MiB"))
}

/// Without the API server's bookkeeping of who wrote which field.
fn readable(mut cluster: EdgeCluster) -> EdgeCluster {
    cluster.metadata.managed_fields = None;
    cluster
}
