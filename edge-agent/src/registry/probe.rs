//! Questions to the registry as everybody sees it: on the host's port, over TLS, with the pull login.

use std::time::Duration;

use edge_api::names::REGISTRY_PULL_USER;
use reqwest::{Certificate, Client, Method, StatusCode};

use super::login::Login;
use super::reference::Reference;

/// What is asked for when a manifest is meant.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json";

/// The registry seen from outside.
#[derive(Clone)]
pub struct Probe {
    client: Client,
    base: String,
    password: String,
}

impl Probe {
    /// A probe of the registry on this port of the host.
    pub fn new(port: u16, authority: &str, login: &Login) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .tls_certs_only([Certificate::from_pem(authority.as_bytes())?])
            .no_proxy()
            .timeout(Duration::from_secs(20))
            .build()?;
        Ok(Self { client, base: format!("https://127.0.0.1:{port}"), password: login.password.clone() })
    }

    /// Digest of a manifest by tag or digest; `None` where it is not there.
    pub async fn manifest(&self, repository: &str, tag: &str) -> Result<Option<String>, reqwest::Error> {
        let url = format!("{}/v2/{repository}/manifests/{tag}", self.base);
        let request = self.client.head(url).basic_auth(REGISTRY_PULL_USER, Some(&self.password));
        let answer = request.header("Accept", MANIFESTS).send().await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = answer.error_for_status()?;
        let digest = answer.headers().get("Docker-Content-Digest").and_then(|v| v.to_str().ok());
        Ok(digest.map(str::to_owned))
    }

    /// What is wrong with who may do what, or nothing: without login nobody reads, with it nobody writes.
    pub async fn access(&self, reference: &Reference) -> Result<Option<String>, reqwest::Error> {
        let status = |method: Method, path: &str, login: bool| {
            let mut request = self.client.request(method, format!("{}{path}", self.base));
            if login {
                request = request.basic_auth(REGISTRY_PULL_USER, Some(&self.password));
            }
            async move { request.send().await.map(|answer| answer.status()) }
        };
        let stranger = status(Method::GET, "/v2/", false).await?;
        if stranger != StatusCode::UNAUTHORIZED {
            return Ok(Some(format!("without a login it answers {stranger}, 401 was expected")));
        }
        let guest = status(Method::GET, "/v2/", true).await?;
        if guest != StatusCode::OK {
            return Ok(Some(format!("with the pull login it answers {guest}, 200 was expected")));
        }
        let push = status(Method::POST, &format!("/v2/{}/blobs/uploads/", reference.repository()), true).await?;
        if ![StatusCode::METHOD_NOT_ALLOWED, StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED].contains(&push) {
            return Ok(Some(format!("the pull login may push ({push})")));
        }
        Ok(None)
    }
}
