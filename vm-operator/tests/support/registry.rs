//! The pinned registry with TLS and a login, and VM images pushed into it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use edge_api::bundle::{EMPTY_CONFIG, VM_IMAGE_ARTIFACT};
use edge_tests::eventually;
use edge_tests::wait::Seen;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const USER: &str = "pull";
const PASSWORD: &str = "correct-horse";

/// A registry that ends when dropped.
pub struct Running {
    child: Child,
    port: u16,
    ca: String,
    client: Client,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Running {
    pub async fn start(dir: &Path) -> Result<Self> {
        let program = super::program("registry")?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        let ca = params.self_signed(&key)?.pem();
        let file = |name: &str| dir.join(name).to_str().unwrap_or_default().to_owned();
        std::fs::write(file("registry.crt"), &ca)?;
        std::fs::write(file("registry.key"), key.serialize_pem())?;
        std::fs::write(file("htpasswd"), format!("{USER}:{}\n", bcrypt::hash(PASSWORD, 4)?))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = json!({
            "version": "0.1",
            "log": { "level": "warn" },
            "storage": { "filesystem": { "rootdirectory": file("registry") }, "delete": { "enabled": true } },
            "http": { "addr": format!("127.0.0.1:{port}"),
                      "tls": { "certificate": file("registry.crt"), "key": file("registry.key") } },
            "auth": { "htpasswd": { "realm": "test", "path": file("htpasswd") } },
        });
        // JSON is YAML.
        std::fs::write(file("registry.yml"), config.to_string())?;
        let log = std::fs::File::create(file("registry.log"))?;
        let child = Command::new(program)
            .args(["serve", &file("registry.yml")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start the registry")?;
        let client = Client::try_from(ClientConfig {
            tls_certs_only: vec![Certificate { encoding: CertificateEncoding::Pem, data: ca.clone().into_bytes() }],
            ..ClientConfig::default()
        })?;
        let running = Self { child, port, ca, client };
        eventually("the registry", Duration::from_secs(30), || async {
            Ok::<_, std::io::Error>(match std::net::TcpStream::connect(("127.0.0.1", port)) {
                Ok(_) => Seen::Done(()),
                Err(error) => Seen::NotYet(error.to_string()),
            })
        })
        .await?;
        Ok(running)
    }

    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Content of the Secret with the login.
    pub fn secret(&self) -> BTreeMap<String, String> {
        [("username", USER), ("password", PASSWORD), ("ca.crt", &self.ca)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    /// Pushes a VM image of these layers (media type, bytes, annotations); gives its artifact reference.
    pub async fn push(&self, repository: &str, layers: &[(&str, Vec<u8>, Value)]) -> Result<String> {
        self.push_as(repository, None, layers).await
    }

    /// Like [`push`](Self::push), with a tag.
    pub async fn push_as(
        &self,
        repository: &str,
        tag: Option<&str>,
        layers: &[(&str, Vec<u8>, Value)],
    ) -> Result<String> {
        self.push_artifact(repository, tag, VM_IMAGE_ARTIFACT, layers).await
    }

    /// Pushes an artifact of any type, under a tag or its digest alone; gives its reference by digest.
    pub async fn push_artifact(
        &self,
        repository: &str,
        tag: Option<&str>,
        artifact_type: &str,
        layers: &[(&str, Vec<u8>, Value)],
    ) -> Result<String> {
        let empty = b"{}".to_vec();
        let mut descriptors = Vec::new();
        let reference = Reference::with_tag(self.host(), repository.to_owned(), "latest".to_owned());
        let auth = RegistryAuth::Basic(USER.to_owned(), PASSWORD.to_owned());
        self.client.auth(&reference, &auth, oci_client::RegistryOperation::Push).await?;
        self.client.store_auth_if_needed(&self.host(), &auth).await;
        for (media_type, bytes, annotations) in layers {
            let digest = digest(bytes);
            self.client.push_blob(&reference, bytes.clone(), &digest).await?;
            descriptors.push(json!({
                "mediaType": media_type, "digest": digest, "size": bytes.len(), "annotations": annotations,
            }));
        }
        self.client.push_blob(&reference, empty.clone(), &digest(&empty)).await?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": artifact_type,
            "config": { "mediaType": EMPTY_CONFIG, "digest": digest(&empty), "size": empty.len() },
            "layers": descriptors,
        })
        .to_string()
        .into_bytes();
        let digest = digest(&manifest);
        let named = match tag {
            Some(tag) => Reference::with_tag(self.host(), repository.to_owned(), tag.to_owned()),
            None => Reference::with_digest(self.host(), repository.to_owned(), digest.clone()),
        };
        let media_type = "application/vnd.oci.image.manifest.v1+json".parse()?;
        self.client.push_manifest_raw(&named, manifest, media_type).await?;
        Ok(format!("{repository}@{digest}"))
    }

    /// Pushes the tiny guest of the bundle.
    pub async fn push_tiny(&self) -> Result<String> {
        self.push("pcg-edge.io/vm/tiny", &tiny()?).await
    }
}

pub fn digest(bytes: &[u8]) -> String {
    vm_operator::image::registry::hex(&Sha256::digest(bytes))
}

/// Layers of the tiny guest.
pub fn tiny() -> Result<Vec<(&'static str, Vec<u8>, Value)>> {
    let bundle: PathBuf = std::env::var("PCG_EDGE_BUNDLE")
        .context("PCG_EDGE_BUNDLE is not set: it names the folder of `edge-image build bundle`")?
        .into();
    let read = |path: &Path| -> Result<Vec<u8>> { std::fs::read(path).with_context(|| path.display().to_string()) };
    let blob = |digest: &str| read(&bundle.join("blobs/sha256").join(digest.trim_start_matches("sha256:")));
    let index: Value = serde_json::from_slice(&read(&bundle.join("index.json"))?)?;
    let entry = index["manifests"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|m| m["annotations"]["org.opencontainers.image.ref.name"] == "pcg-edge.io/vm/tiny:1")
        .context("the bundle holds no pcg-edge.io/vm/tiny:1")?;
    let manifest: Value = serde_json::from_slice(&blob(entry["digest"].as_str().unwrap_or_default())?)?;
    let mut layers = Vec::new();
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let media_type = match layer["mediaType"].as_str() {
            Some(edge_api::bundle::VM_KERNEL) => edge_api::bundle::VM_KERNEL,
            Some(edge_api::bundle::VM_INITRD) => edge_api::bundle::VM_INITRD,
            other => anyhow::bail!("unexpected layer {other:?} of the tiny guest"),
        };
        layers.push((media_type, blob(layer["digest"].as_str().unwrap_or_default())?, json!({})));
    }
    Ok(layers)
}
