//! The bundle: artifacts shipped with the image, as an OCI image layout with one more file, `pcg-index.json`.
//!
//! The layout's own `index.json` names each image by `org.opencontainers.image.ref.name`; [`Index`] adds where each
//! came from and what it is for. Blobs lie in `blobs/sha256/`, so that one blob serves several images.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// File name of the index in a bundle.
pub const INDEX_FILE: &str = "pcg-index.json";
/// Artifact type of a VM image.
pub const VM_IMAGE_ARTIFACT: &str = "application/vnd.pcg-edge.vm-image.v1";
/// Configuration media type of a VM image: the OCI empty descriptor.
pub const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";
/// Layer media type of a bootable disk in qcow2 format, without backing file.
pub const VM_DISK_QCOW2: &str = "application/vnd.pcg-edge.vm-image.disk.qcow2";
/// Layer media type of a Linux kernel for direct boot.
pub const VM_KERNEL: &str = "application/vnd.pcg-edge.vm-image.kernel";
/// Layer media type of an initial RAM disk for direct boot.
pub const VM_INITRD: &str = "application/vnd.pcg-edge.vm-image.initrd";
/// Artifact type of install manifests: one layer per file, see [`MANIFESTS_YAML`].
pub const MANIFESTS_ARTIFACT: &str = "application/vnd.pcg-edge.manifests.v1";
/// Layer media type of a YAML file with Kubernetes objects; its name is in [`ANNOTATION_TITLE`].
pub const MANIFESTS_YAML: &str = "application/vnd.pcg-edge.manifests.yaml";
/// Layer annotation with the name of a file, of the OCI image specification.
pub const ANNOTATION_TITLE: &str = "org.opencontainers.image.title";
/// Layer annotation with the virtual size of a disk in bytes, decimal.
pub const ANNOTATION_VIRTUAL_SIZE: &str = "pcg-edge.io/virtual-size";

/// What is in a bundle.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Index {
    /// Format of this file; 1.
    pub format_version: u32,
    /// Version of the bundle, that of the workspace.
    pub version: String,
    /// Digest over all pins and recipes, hexadecimal SHA-256.
    pub pins_digest: String,
    /// Kubernetes version of the node image, with its `v`.
    pub kubernetes_version: String,
    /// Every artifact, sorted by name.
    pub artifacts: Vec<Artifact>,
    /// Programs for the host in `bin/`, sorted by name.
    pub programs: Vec<Program>,
}

/// A program for the host.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Program {
    /// File name in `bin/`.
    pub name: String,
    /// SHA-256 of the file, `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Go module and version, or package of this workspace and its version.
    pub source: String,
}

/// One artifact of a bundle.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Artifact {
    /// Full reference with origin host and tag, for instance `registry.k8s.io/pause:3.10.2`.
    pub name: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Bytes of manifest, configuration and layers together.
    pub size: u64,
    /// What it is for.
    pub kind: ArtifactKind,
    /// True where it goes into the local registry (the node image and Cluster API's install manifests do not).
    pub registry: bool,
    /// Where it came from: Go module and version, or Debian suite and packages.
    pub source: String,
}

/// What an artifact is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactKind {
    /// The kind node image.
    Node,
    /// A container image.
    Container,
    /// A VM image, artifact type [`VM_IMAGE_ARTIFACT`].
    Vm,
    /// Install manifests, artifact type [`MANIFESTS_ARTIFACT`]: Cluster API's for the agent, others for the layers of
    /// workload clusters.
    Manifests,
}
