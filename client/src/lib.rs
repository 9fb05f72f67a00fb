//! Client of the agent's socket API ([`edge_api::agent`]): HTTP/1 on a UNIX socket and a server-sent event stream, with
//! bounds on all that is read. For `edgectl`, `edge-tui`, `xtask` and tests.
//!
//! One connection per request: the socket is local, and nothing is left to go stale.

pub mod cluster;
mod error;
mod events;
mod span;
mod sse;

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_api::agent::{
    ApiError, ClusterChange, ClusterRemoval, LogLine, Status, Upgrade, UpgradeRequest, ValidationReport,
};
use edge_api::{EdgeCluster, VirtualMachine};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

pub use error::{Error, Named};
pub use events::{Event, Events};
pub use span::span;

/// Longest wait for an answer. The agent answers from its memory, local disk, or the system cluster.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 32 * 1024 * 1024;

/// Talks to one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the agent that listens on `socket`. Nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// All there is to know about the appliance now.
    pub async fn status(&self) -> Result<Status, Error> {
        self.get("/v1/status").await
    }

    /// The last `lines` lines of the log, oldest first.
    pub async fn logs(&self, lines: usize) -> Result<Vec<LogLine>, Error> {
        self.get(&format!("/v1/logs?lines={lines}")).await
    }

    /// Has the agent check a site file.
    pub async fn validate(&self, yaml: Vec<u8>) -> Result<ValidationReport, Error> {
        self.post("/v1/validate", yaml).await
    }

    /// Has the agent put a site file in force, where it is valid.
    pub async fn apply(&self, yaml: Vec<u8>) -> Result<ValidationReport, Error> {
        self.post("/v1/apply", yaml).await
    }

    /// Asks for another bundle; the upgrade goes on after the answer.
    pub async fn upgrade(&self, request: &UpgradeRequest) -> Result<Upgrade, Error> {
        let body = serde_json::to_vec(request).map_err(|error| Error::Unreadable(error.to_string()))?;
        self.post("/v1/upgrade", body).await
    }

    /// All virtual machines.
    pub async fn vms(&self) -> Result<Vec<VirtualMachine>, Error> {
        self.get("/v1/vms").await
    }

    /// One virtual machine.
    pub async fn vm(&self, name: &str) -> Result<VirtualMachine, Error> {
        self.get(&format!("/v1/vms/{}", named(name, Named::Vm)?)).await
    }

    /// All workload clusters.
    pub async fn clusters(&self) -> Result<Vec<EdgeCluster>, Error> {
        self.get("/v1/clusters").await
    }

    /// One workload cluster.
    pub async fn cluster(&self, name: &str) -> Result<EdgeCluster, Error> {
        self.get(&path_of_cluster(name)?).await
    }

    /// Makes a workload cluster of the YAML of one `EdgeCluster`.
    pub async fn create_cluster(&self, yaml: Vec<u8>) -> Result<EdgeCluster, Error> {
        self.post("/v1/clusters", yaml).await
    }

    /// Changes a workload cluster.
    pub async fn change_cluster(&self, name: &str, change: &ClusterChange) -> Result<EdgeCluster, Error> {
        let body = serde_json::to_vec(change).map_err(|error| Error::Unreadable(error.to_string()))?;
        self.ask(Method::PATCH, &path_of_cluster(name)?, body).await
    }

    /// Removes a workload cluster; it goes on going after the answer.
    pub async fn remove_cluster(&self, name: &str, removal: ClusterRemoval) -> Result<EdgeCluster, Error> {
        let ClusterRemoval { abort, force } = removal;
        let path = format!("{}?abort={abort}&force={force}", path_of_cluster(name)?);
        self.ask(Method::DELETE, &path, Vec::new()).await
    }

    /// An administrator's kubeconfig of a workload cluster, YAML. It is a secret.
    pub async fn cluster_kubeconfig(&self, name: &str) -> Result<Bytes, Error> {
        self.bytes(Method::GET, &format!("{}/kubeconfig", path_of_cluster(name)?), Vec::new()).await
    }

    /// Opens the event stream; its first event is a whole status.
    pub async fn events(&self) -> Result<Events, Error> {
        let answer = self.send(Method::GET, "/v1/events", Vec::new());
        let answer = tokio::time::timeout(DEADLINE, answer).await.map_err(|_| self.late())??;
        if answer.status() != StatusCode::OK {
            return Err(self.refusal(answer).await);
        }
        Ok(Events::new(answer.into_body()))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.ask(Method::GET, path, Vec::new()).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T, Error> {
        self.ask(Method::POST, path, body).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, Error> {
        let bytes = self.bytes(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Unreadable(error.to_string()))
    }

    async fn bytes(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, Error> {
        let exchange = async {
            let answer = self.send(method, path, body).await?;
            if !answer.status().is_success() {
                return Err(self.refusal(answer).await);
            }
            collect(answer.into_body()).await
        };
        tokio::time::timeout(DEADLINE, exchange).await.map_err(|_| self.late())?
    }

    fn late(&self) -> Error {
        Error::Late { socket: self.socket.clone(), seconds: DEADLINE.as_secs() }
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, Error> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| Error::connect(&self.socket, e))?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(256 * 1024)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| Error::broken(&e))?;
        // Ends with the connection, which ends with the answer's body.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "edge-agent")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Error::Unreadable(error.to_string()))?;
        sender.send_request(request).await.map_err(|e| Error::broken(&e))
    }

    async fn refusal(&self, answer: Response<Incoming>) -> Error {
        let status = answer.status().as_u16();
        let bytes = match collect(answer.into_body()).await {
            Ok(bytes) => bytes,
            Err(error) => return error,
        };
        match serde_json::from_slice::<ApiError>(&bytes) {
            Ok(error) => Error::Refused { status, error: error.error, hint: error.hint },
            Err(_) => Error::Refused { status, error: format!("HTTP status {status}"), hint: None },
        }
    }
}

fn path_of_cluster(name: &str) -> Result<String, Error> {
    Ok(format!("/v1/clusters/{}", named(name, Named::Cluster)?))
}

/// Only names that can be part of a path.
fn named(name: &str, kind: Named) -> Result<&str, Error> {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if name.is_empty() || name.len() > 253 || !name.bytes().all(letter) {
        return Err(Error::NoName { kind, name: name.chars().filter(|c| !c.is_control()).take(60).collect() });
    }
    Ok(name)
}

async fn collect(body: Incoming) -> Result<Bytes, Error> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(Error::Broken(error.to_string())),
    }
}
