//! `VirtualMachineImage`: what machines boot from, brought from the registry into an image pool (D13).

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;

/// A disk, or a kernel and initial RAM disk, or all three, as volumes of an appliance's image pool.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "pcg-edge.io",
    version = "v1alpha1",
    kind = "VirtualMachineImage",
    namespaced,
    status = "VirtualMachineImageStatus",
    shortname = "vmi",
    category = "pcg-edge",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Artifact", type_ = "string", json_path = ".spec.artifact"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("an image cannot be changed; make another one"))]
pub struct VirtualMachineImageSpec {
    /// Name of the [`Appliance`](crate::Appliance) in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub appliance: String,
    /// Repository and digest in the appliance's registry, `<origin host>/<path>@sha256:<hex>`. The artifact's type is
    /// [`VM_IMAGE_ARTIFACT`](crate::bundle::VM_IMAGE_ARTIFACT).
    #[schemars(length(min = 1, max = 512), regex(pattern = "^[^@]+@sha256:[0-9a-f]{64}$"))]
    pub artifact: String,
}

/// How far an image has come.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineImageStatus {
    /// `metadata.generation` this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// One volume per layer of the artifact; a volume is listed once its digest was seen to be right.
    #[serde(default)]
    pub volumes: Vec<ImageVolume>,
}

/// One volume of an image in the image pool.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageVolume {
    /// What the volume is.
    pub role: VolumeRole,
    /// Volume name in the pool, `pcg-img-<hex>`.
    pub name: String,
    /// SHA-256 of its content, `sha256:<hex>`.
    pub digest: String,
    /// Bytes of the content.
    pub size: u64,
    /// Virtual size in bytes; for [`VolumeRole::Disk`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
}

/// What a volume of an image is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum VolumeRole {
    /// qcow2 disk without backing file.
    Disk,
    /// Linux kernel.
    Kernel,
    /// Initial RAM disk.
    Initrd,
}
