//! Uploads of artifacts of the bundle, and their removal, through the API server's port-forward into the container
//! `push`: no port is opened for it anywhere. Blobs are streamed, and those that are there are skipped; a manifest goes
//! last, so a tag never names something incomplete, and a kill costs at most one blob.

use std::io;
use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, Portforwarder};
use tokio::task::JoinHandle;
use tokio_util::io::ReaderStream;

use super::objects::{NAME, PUSH_PORT};
use super::reference::Reference;
use crate::bundle::{self, Manifest};
use crate::effects::Effect;

/// An upload did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No pod of the registry runs.
    #[error("no pod of the registry runs")]
    NoPod,
    /// The API server refused or broke.
    #[error("reach the registry through the API server")]
    Kube(#[from] kube::Error),
    /// The connection broke.
    #[error("connection to the registry")]
    Http(#[from] hyper::Error),
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    /// A file cannot be read.
    #[error("read a blob")]
    Io(#[from] io::Error),
    /// The registry answered something else than expected.
    #[error("{method} {path}: {status} {body}")]
    Answer {
        /// Method.
        method: Method,
        /// Path.
        path: String,
        /// Answer.
        status: StatusCode,
        /// Beginning of its body.
        body: String,
    },
    /// A request could not be formed.
    #[error("form a request")]
    Request(#[from] hyper::http::Error),
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A connection to the container `push`.
pub struct Push {
    sender: SendRequest<Body>,
    connection: JoinHandle<()>,
    _forward: Portforwarder,
}

impl Drop for Push {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Push {
    /// Connects to the pod that runs.
    pub async fn connect(client: &kube::Client) -> Result<Self, Error> {
        let (pods, name) = ready_pod(client).await?;
        let mut forward = pods.portforward(&name, &[PUSH_PORT]).await?;
        let stream = forward.take_stream(PUSH_PORT).ok_or(Error::NoPod)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, connection, _forward: forward })
    }

    /// Uploads one artifact; `count` is told the bytes as they go, those of blobs already there included.
    pub async fn artifact(
        &mut self,
        bundle: &Path,
        reference: &Reference,
        digest: &str,
        count: &(impl Fn(u64) + Clone + Send + 'static),
    ) -> Result<(), Error> {
        let repository = reference.repository();
        // Depth first: what a manifest names must be there before it.
        let mut todo = vec![(digest.to_owned(), false)];
        while let Some((manifest_digest, children_done)) = todo.pop() {
            let (manifest, text) = bundle::read_manifest(bundle, &manifest_digest)?;
            if !children_done && !manifest.manifests.is_empty() {
                todo.push((manifest_digest, true));
                todo.extend(manifest.manifests.iter().map(|d| (d.digest.clone(), false)));
                continue;
            }
            for blob in manifest.config.iter().chain(&manifest.layers) {
                self.blob(bundle, &repository, &blob.digest, blob.size, count).await?;
            }
            let name = if manifest_digest == digest { reference.tag.clone() } else { manifest_digest };
            self.manifest(&repository, &name, &manifest, text).await?;
        }
        Ok(())
    }

    async fn blob(
        &mut self,
        bundle: &Path,
        repository: &str,
        digest: &str,
        size: u64,
        count: &(impl Fn(u64) + Clone + Send + 'static),
    ) -> Result<(), Error> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let there = self.send(Method::HEAD, &path, None, empty()).await?;
        if there.status() == StatusCode::OK {
            count(size);
            return Ok(());
        }
        let path = format!("/v2/{repository}/blobs/uploads/");
        let started = self.expect(Method::POST, &path, None, empty(), StatusCode::ACCEPTED).await?;
        let location = started.headers().get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let location = path_of(location);
        let separator = if location.contains('?') { '&' } else { '?' };
        let path = format!("{location}{separator}digest={digest}");
        let file = tokio::fs::File::open(bundle::blob(bundle, digest)?).await?;
        let count = count.clone();
        let stream = ReaderStream::with_capacity(file, 128 << 10).map(move |chunk| {
            chunk.map(|bytes| {
                count(bytes.len() as u64);
                Frame::data(bytes)
            })
        });
        let body = BodyExt::boxed_unsync(StreamBody::new(stream.map_err(io::Error::from)));
        let put = self.expect(Method::PUT, &path, Some(("application/octet-stream", size)), body, StatusCode::CREATED);
        Effect::PushBlob.around_async(put).await?;
        Ok(())
    }

    async fn manifest(
        &mut self,
        repository: &str,
        name: &str,
        manifest: &Manifest,
        text: Vec<u8>,
    ) -> Result<(), Error> {
        let media_type = manifest.media_type.as_deref().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let path = format!("/v2/{repository}/manifests/{name}");
        let size = text.len() as u64;
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let put = self.expect(Method::PUT, &path, Some((media_type, size)), body, StatusCode::CREATED);
        Effect::PushManifest.around_async(put).await?;
        Ok(())
    }

    /// Removes a manifest with its tags; not there is done. Its blobs stay until garbage is collected.
    pub async fn forget(&mut self, repository: &str, digest: &str) -> Result<(), Error> {
        let path = format!("/v2/{repository}/manifests/{digest}");
        let delete = self.expect(Method::DELETE, &path, None, empty(), StatusCode::ACCEPTED);
        match Effect::DeleteManifest.around_async(delete).await {
            Ok(_) | Err(Error::Answer { status: StatusCode::NOT_FOUND, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn expect(
        &mut self,
        method: Method,
        path: &str,
        content: Option<(&str, u64)>,
        body: Body,
        expected: StatusCode,
    ) -> Result<Response<()>, Error> {
        let answer = self.send(method.clone(), path, content, body).await?;
        let status = answer.status();
        let (head, body) = answer.into_parts();
        // Read in any case: the connection is used again.
        let text =
            Limited::new(body, 64 << 10).collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if status == expected {
            return Ok(Response::from_parts(head, ()));
        }
        let body = String::from_utf8_lossy(&text).chars().take(300).collect();
        let path = path.split('?').next().unwrap_or_default().to_owned();
        Err(Error::Answer { method, path, status, body })
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        content: Option<(&str, u64)>,
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        self.sender.ready().await?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, "registry");
        if let Some((media_type, size)) = content {
            request = request.header(CONTENT_TYPE, media_type).header(CONTENT_LENGTH, size);
        }
        Ok(self.sender.send_request(request.body(body)?).await?)
    }
}

/// The pod of the registry that is ready, and the API with it.
pub async fn ready_pod(client: &kube::Client) -> Result<(Api<Pod>, String), Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), edge_api::names::NAMESPACE);
    let selector = format!("app.kubernetes.io/name={NAME}");
    let ready = pods.list(&ListParams::default().labels(&selector)).await?.items.into_iter().find(is_ready);
    let name = ready.and_then(|pod| pod.metadata.name).ok_or(Error::NoPod)?;
    Ok((pods, name))
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Path and query of an absolute or relative URL.
fn path_of(location: &str) -> &str {
    match location.find("://") {
        Some(at) => location[at + 3..].find('/').map_or("/", |slash| &location[at + 3 + slash..]),
        None => location,
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none() && conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_become_paths() {
        assert_eq!(path_of("http://registry/v2/a/blobs/uploads/1?_state=x"), "/v2/a/blobs/uploads/1?_state=x");
        assert_eq!(path_of("/v2/a/blobs/uploads/1"), "/v2/a/blobs/uploads/1");
    }
}
