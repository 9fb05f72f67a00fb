//! The archive of a profile (D4, R-7): an OCI image layout in a plain, uncompressed tar.
//!
//! | entry | content |
//! |---|---|
//! | `oci-layout` | version of the layout |
//! | `index.json` | one descriptor: the manifest, artifact type [`ARTIFACT_TYPE`] |
//! | `blobs/sha256/<hex>` | manifest; configuration (`profile.yaml` as JSON); one compressed tar per layer |
//!
//! An archive is accepted whole or refused whole. It is read once, from front to end: every blob is spooled under its
//! digest into a staging folder inside the store while it is hashed; then the manifest is resolved, layers are
//! unpacked in the staging folder, and one rename publishes the result. Whatever goes wrong before the rename leaves
//! the store as it was.

mod build;
mod publish;
mod strict_tar;
mod unpack;

pub use build::build_archive;
pub use publish::{LayerSummary, ProfileSummary, Published, keep_only, publish_archive, verify_archive};

use crate::digest::Digest;
use crate::model::LayerKind;

/// Artifact type of a profile.
pub const ARTIFACT_TYPE: &str = "application/vnd.pcg-edge.system-profile.v1";
/// Media type of the configuration blob.
pub const CONFIG_TYPE: &str = "application/vnd.pcg-edge.system-profile.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const TITLE: &str = "org.opencontainers.image.title";
const VERSION: &str = "org.opencontainers.image.version";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Media type of a layer's blob, without its compression.
fn layer_type(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Chart => "application/vnd.pcg-edge.system-profile.chart.v1.tar",
        LayerKind::Manifest => "application/vnd.pcg-edge.system-profile.manifest.v1.tar",
        LayerKind::Vm => "application/vnd.pcg-edge.system-profile.vm.v1.tar",
    }
}

/// How much an archive may ask for. Profiles are text; images travel in the bundle.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of the archive.
    pub archive_bytes: u64,
    /// Entries of the archive.
    pub archive_entries: u64,
    /// Bytes of one blob.
    pub blob_bytes: u64,
    /// Bytes of `index.json`, the manifest and the configuration, each; these are held in memory.
    pub document_bytes: u64,
    /// Bytes of all layers unpacked.
    pub unpacked_bytes: u64,
    /// Files and folders of all layers.
    pub unpacked_entries: u64,
    /// Unpacked bytes per compressed byte, looked at past the first MiB.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            archive_bytes: 256 << 20,
            archive_entries: 1024,
            blob_bytes: 128 << 20,
            document_bytes: 1 << 20,
            unpacked_bytes: 512 << 20,
            unpacked_entries: 20_000,
            ratio: 200,
        }
    }
}

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's text is its documentation")]
pub enum Refusal {
    #[error("it ends in the middle of {0}")]
    Truncated(String),
    #[error("it could not be read at {what}")]
    Unreadable { what: String, source: std::io::Error },
    #[error("{0:?} is no entry of a profile archive; expected oci-layout, index.json and blobs/sha256/<digest>")]
    UnexpectedEntry(String),
    #[error("path {0:?}: expected a plain path inside the layer's folder")]
    BadPath(String),
    #[error("{path:?} is {found}; only files and folders are allowed")]
    BadType { path: String, found: &'static str },
    #[error("{0:?} is there twice")]
    Duplicate(String),
    #[error("{what} has {found} bytes; at most {limit} are allowed")]
    TooLarge { what: String, found: u64, limit: u64 },
    #[error("{what} has more than {limit} entries")]
    TooManyEntries { what: String, limit: u64 },
    #[error("{what} unpacks to more than {limit} times its size: a decompression bomb")]
    Bomb { what: String, limit: u64 },
    #[error("{what} has the digest {found}")]
    WrongDigest { what: String, found: Digest },
    #[error("a header of {0} is damaged: {1}")]
    BadHeader(String, &'static str),
    #[error("{0}")]
    BadLayout(String),
    #[error("its content is no valid profile")]
    BadProfile(#[source] Box<crate::Error>),
    #[error("cannot write to {}", path.display())]
    Staging { path: std::path::PathBuf, source: std::io::Error },
}

impl Refusal {
    /// Of a copy of the archive's content to a path: nobody finds an input too large for a disk.
    fn at(self, path: &std::path::Path) -> Self {
        match self {
            Self::Unreadable { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::Staging { path: path.to_owned(), source }
            }
            other => other,
        }
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
