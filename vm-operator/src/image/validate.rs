//! From an image's specification and its manifest to layers that can be planned with.

use std::collections::BTreeMap;

use edge_api::bundle::{ANNOTATION_VIRTUAL_SIZE, VM_DISK_QCOW2, VM_IMAGE_ARTIFACT, VM_INITRD, VM_KERNEL};
use edge_api::virtual_machine_image::{VirtualMachineImageSpec, VolumeRole};
use serde::Deserialize;

use crate::identity;

/// Where an image lies in the registry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ValidatedImage {
    /// Repository, `<origin host>/<path>`.
    pub repository: String,
    /// Digest of its manifest.
    pub digest: String,
}

/// A layer, which becomes a volume.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layer {
    /// What it is.
    pub role: VolumeRole,
    /// Volume name.
    pub volume: String,
    /// SHA-256 of its content, `sha256:<hex>`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Announced virtual size; disks only.
    pub virtual_size: Option<u64>,
}

/// What is wrong with a specification or manifest.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// Not of the form `<repository>@sha256:<hex>`.
    #[error("spec.artifact {0:?} is not of the form <origin host>/<path>@sha256:<64 hex digits>")]
    Artifact(String),
    /// No JSON, or not a manifest.
    #[error("the manifest cannot be read: {0}")]
    Manifest(String),
    /// Something else than was asked for.
    #[error("the artifact is of type {0:?}, not {1}")]
    Type(String, &'static str),
    /// A layer nobody knows.
    #[error("the image has a layer of unknown type {0:?}")]
    Layer(String),
    /// Two layers for one purpose.
    #[error("the image has two layers for {0:?}")]
    Twice(VolumeRole),
    /// Nothing to boot.
    #[error("the image has neither a disk nor a kernel")]
    Nothing,
    /// An initial RAM disk without a kernel.
    #[error("the image has an initial RAM disk but no kernel")]
    InitrdAlone,
    /// A digest that is not SHA-256, or a size that is none.
    #[error("the layer {0:?} has no usable digest or size")]
    Descriptor(String),
}

/// Checks a specification.
pub fn validate(spec: &VirtualMachineImageSpec) -> Result<ValidatedImage, Invalid> {
    let VirtualMachineImageSpec { appliance: _, artifact } = spec;
    let (repository, digest) = artifact.split_once('@').ok_or_else(|| Invalid::Artifact(artifact.clone()))?;
    if repository.is_empty() || !is_sha256(digest) {
        return Err(Invalid::Artifact(artifact.clone()));
    }
    Ok(ValidatedImage { repository: repository.to_owned(), digest: digest.to_owned() })
}

fn is_sha256(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    artifact_type: Option<String>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// A layer as a manifest has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    digest: String,
    size: i64,
    /// What else is said of it.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Digest, `sha256:<hex>`, and bytes, of which there are some.
    pub fn content(&self) -> Result<(&str, u64), Invalid> {
        let size = u64::try_from(self.size).ok().filter(|size| *size > 0);
        match size {
            Some(size) if is_sha256(&self.digest) => Ok((&self.digest, size)),
            _ => Err(Invalid::Descriptor(self.digest.clone())),
        }
    }
}

/// Layers of the manifest of an artifact of some type.
pub fn descriptors(manifest: &[u8], artifact_type: &'static str) -> Result<Vec<Descriptor>, Invalid> {
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|error| Invalid::Manifest(error.to_string()))?;
    let type_ = manifest.artifact_type.unwrap_or_default();
    if type_ == artifact_type { Ok(manifest.layers) } else { Err(Invalid::Type(type_, artifact_type)) }
}

/// Checks a manifest whose digest was seen to be right.
pub fn layers(manifest: &[u8]) -> Result<Vec<Layer>, Invalid> {
    let mut layers: Vec<Layer> = Vec::new();
    for descriptor in descriptors(manifest, VM_IMAGE_ARTIFACT)? {
        let role = match descriptor.media_type.as_str() {
            VM_DISK_QCOW2 => VolumeRole::Disk,
            VM_KERNEL => VolumeRole::Kernel,
            VM_INITRD => VolumeRole::Initrd,
            _ => return Err(Invalid::Layer(descriptor.media_type)),
        };
        if layers.iter().any(|l| l.role == role) {
            return Err(Invalid::Twice(role));
        }
        let (digest, size) = descriptor.content()?;
        let virtual_size = match descriptor.annotations.get(ANNOTATION_VIRTUAL_SIZE) {
            Some(text) if role == VolumeRole::Disk => {
                Some(text.parse().map_err(|_| Invalid::Descriptor(digest.to_owned()))?)
            }
            _ => None,
        };
        let (volume, digest) = (identity::image_volume(digest), digest.to_owned());
        layers.push(Layer { role, volume, digest, size, virtual_size });
    }
    let has = |role| layers.iter().any(|l| l.role == role);
    if !has(VolumeRole::Disk) && !has(VolumeRole::Kernel) {
        return Err(Invalid::Nothing);
    }
    if has(VolumeRole::Initrd) && !has(VolumeRole::Kernel) {
        return Err(Invalid::InitrdAlone);
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifest(artifact_type: &str, layers: &[(&str, i64)]) -> Vec<u8> {
        let layers: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(i, (media_type, size))| {
                json!({ "mediaType": media_type, "digest": format!("sha256:{i:064x}"), "size": size,
                        "annotations": { ANNOTATION_VIRTUAL_SIZE: "1024" } })
            })
            .collect();
        json!({ "schemaVersion": 2, "artifactType": artifact_type, "layers": layers }).to_string().into_bytes()
    }

    #[test]
    fn a_kernel_and_its_ram_disk() {
        let layers = layers(&manifest(VM_IMAGE_ARTIFACT, &[(VM_KERNEL, 5), (VM_INITRD, 7)])).unwrap();
        assert_eq!(layers[1].volume, format!("pcg-img-{:064x}", 1));
        assert_eq!((layers[1].role, layers[1].virtual_size), (VolumeRole::Initrd, None));
        let disk = super::layers(&manifest(VM_IMAGE_ARTIFACT, &[(VM_DISK_QCOW2, 5)])).unwrap();
        assert_eq!(disk[0].virtual_size, Some(1024));
    }

    #[test]
    fn anything_else_is_refused() {
        let cases: [(&str, Vec<u8>); 7] = [
            ("artifact is of type", manifest("application/other", &[(VM_KERNEL, 5)])),
            ("unknown type", manifest(VM_IMAGE_ARTIFACT, &[("x/y", 5)])),
            ("two layers", manifest(VM_IMAGE_ARTIFACT, &[(VM_KERNEL, 5), (VM_KERNEL, 5)])),
            ("neither", manifest(VM_IMAGE_ARTIFACT, &[])),
            ("no kernel", manifest(VM_IMAGE_ARTIFACT, &[(VM_DISK_QCOW2, 1), (VM_INITRD, 5)])),
            ("no usable", manifest(VM_IMAGE_ARTIFACT, &[(VM_KERNEL, -5)])),
            ("cannot be read", b"{".to_vec()),
        ];
        for (expected, manifest) in cases {
            let error = layers(&manifest).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not say {expected}");
        }
    }

    #[test]
    fn an_artifact_needs_a_digest() {
        let spec = |artifact: &str| VirtualMachineImageSpec { appliance: "a".into(), artifact: artifact.into() };
        let good = format!("pcg-edge.io/vm/tiny@sha256:{:064x}", 1);
        assert_eq!(validate(&spec(&good)).unwrap().repository, "pcg-edge.io/vm/tiny");
        assert!(validate(&spec("pcg-edge.io/vm/tiny:1")).is_err());
        assert!(validate(&spec("a@sha256:12")).is_err());
    }
}
