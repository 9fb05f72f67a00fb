//! The appliance's registry: manifests whole, layers as streams.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Secret;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use sha2::{Digest as _, Sha256};

use super::validate::ValidatedImage;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// A manifest is small; anything else is not one.
const MANIFEST_LIMIT: usize = 4 << 20;

/// Why something could not be had from the registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Secret lacks something.
    #[error("Secret {secret} has no usable key {key:?}")]
    Secret {
        /// Its name.
        secret: String,
        /// What is missing.
        key: &'static str,
    },
    /// The registry refused or did not answer.
    #[error("registry {host}: cannot {what}")]
    Registry {
        /// `host:port`.
        host: String,
        /// What was to be done.
        what: String,
        /// The client's error.
        source: Box<OciDistributionError>,
    },
    /// What came is not what was asked for.
    #[error("registry {host}: manifest of {repository} has digest {found}, not {expected}")]
    Digest {
        /// `host:port`.
        host: String,
        /// Repository.
        repository: String,
        /// Digest of what came.
        found: String,
        /// Digest that was asked for.
        expected: String,
    },
}

/// A registry with its login.
pub struct Registry {
    client: Client,
    auth: RegistryAuth,
    host: String,
}

impl Registry {
    /// Reads login and CA of the Secret. Only that CA is trusted (D7).
    pub fn new(host: &str, name: &str, secret: &Secret) -> Result<Self, Error> {
        let key = |key: &'static str| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .ok_or_else(|| Error::Secret { secret: name.to_owned(), key })
        };
        let text = |name_of: &'static str| {
            String::from_utf8(key(name_of)?.0.clone())
                .map_err(|_| Error::Secret { secret: name.to_owned(), key: name_of })
        };
        let auth = RegistryAuth::Basic(text("username")?, text("password")?);
        let certificate = Certificate { encoding: CertificateEncoding::Pem, data: key("ca.crt")?.0.clone() };
        let config = ClientConfig {
            protocol: ClientProtocol::Https,
            tls_certs_only: vec![certificate],
            connect_timeout: Some(Duration::from_secs(10)),
            read_timeout: Some(Duration::from_mins(1)),
            user_agent: concat!("vm-operator/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|source| Error::Registry {
            host: host.to_owned(),
            what: "be set up".to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self { client, auth, host: host.to_owned() })
    }

    fn reference(&self, repository: &str, digest: &str) -> Reference {
        Reference::with_digest(self.host.clone(), repository.to_owned(), digest.to_owned())
    }

    fn error(&self, what: String) -> impl FnOnce(OciDistributionError) -> Error {
        let host = self.host.clone();
        move |source| Error::Registry { host, what, source: Box::new(source) }
    }

    /// The manifest, byte by byte, with its digest checked.
    pub async fn manifest(&self, image: &ValidatedImage) -> Result<Vec<u8>, Error> {
        let ValidatedImage { repository, digest } = image;
        let bytes = self.raw_manifest(&self.reference(repository, digest)).await?;
        let found = sha256(&bytes);
        if found != *digest {
            return Err(Error::Digest {
                host: self.host.clone(),
                repository: repository.clone(),
                found,
                expected: digest.clone(),
            });
        }
        Ok(bytes)
    }

    /// What a tag names now, with its manifest.
    pub async fn tagged(&self, repository: &str, tag: &str) -> Result<(ValidatedImage, Vec<u8>), Error> {
        let reference = Reference::with_tag(self.host.clone(), repository.to_owned(), tag.to_owned());
        let bytes = self.raw_manifest(&reference).await?;
        Ok((ValidatedImage { repository: repository.to_owned(), digest: sha256(&bytes) }, bytes))
    }

    async fn raw_manifest(&self, reference: &Reference) -> Result<Vec<u8>, Error> {
        let pulled = self.client.pull_manifest_raw(reference, &self.auth, &[MANIFEST_TYPE]).await;
        let name = reference.digest().map_or_else(
            || format!("{}:{}", reference.repository(), reference.tag().unwrap_or_default()),
            |digest| format!("{}@{digest}", reference.repository()),
        );
        let (bytes, _) = pulled.map_err(self.error(format!("read manifest of {name}")))?;
        Ok(bytes[..bytes.len().min(MANIFEST_LIMIT)].to_vec())
    }

    /// Tags of a repository, sorted; none where there is no such repository.
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>, Error> {
        let reference = Reference::with_tag(self.host.clone(), repository.to_owned(), "latest".to_owned());
        match self.client.list_tags(&reference, &self.auth, None, None).await {
            Ok(mut found) => {
                found.tags.sort();
                Ok(found.tags)
            }
            Err(error) if is_unknown_name(&error) => Ok(Vec::new()),
            Err(error) => Err(self.error(format!("list the tags of {repository}"))(error)),
        }
    }

    /// The bytes of a layer. Digest and length are checked by whoever takes them.
    pub async fn layer(
        &self,
        image: &ValidatedImage,
        digest: &str,
        size: u64,
    ) -> Result<BoxStream<'static, Result<bytes::Bytes, std::io::Error>>, Error> {
        let descriptor = OciDescriptor {
            digest: digest.to_owned(),
            size: size.try_into().unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let reference = self.reference(&image.repository, &image.digest);
        self.client.store_auth_if_needed(&self.host, &self.auth).await;
        let stream = self
            .client
            .pull_blob_stream(&reference, &descriptor)
            .await
            .map_err(self.error(format!("read layer {digest} of {}", image.repository)))?;
        Ok(stream.boxed())
    }
}

fn is_unknown_name(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|error| error.code == OciErrorCode::NameUnknown)
        }
        OciDistributionError::ServerError { code, .. } => *code == 404,
        _ => false,
    }
}

/// `sha256:<hex>` of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// `sha256:<hex>` of a digest.
pub fn hex(digest: &[u8]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing into a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
