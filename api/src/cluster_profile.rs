//! `ClusterProfile`: what workload clusters are made of, layer by layer (R-19 to R-24).

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Layers of a workload cluster: operating system, Kubernetes, network, storage, and whatever runs on top.
///
/// ```text
///  OS ─► guest image, files, commands        Network, Storage, AddOn ─► objects in the workload cluster,
///  Kubernetes ─► version, CIDRs                                         in the order of the list
/// ```
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "pcg-edge.io",
    version = "v1alpha1",
    kind = "ClusterProfile",
    namespaced,
    shortname = "cprof",
    category = "pcg-edge",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Kubernetes", type_ = "string", json_path = ".spec.layers[?(@.kind=='Kubernetes')].version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterProfileSpec {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// Version of the profile itself.
    #[schemars(length(min = 1, max = 63))]
    pub version: String,
    /// `Full` and `Infra` have each of OS, Kubernetes, Network and Storage once; `AddOn` has none of them.
    #[serde(rename = "type")]
    pub type_: ProfileType,
    /// For people and filters; they propagate to the clusters' labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// In install order.
    #[schemars(length(min = 1, max = 64))]
    pub layers: Vec<ClusterLayer>,
}

/// What a profile is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ProfileType {
    /// Infrastructure and add-ons.
    Full,
    /// Infrastructure alone.
    Infra,
    /// Add-ons for clusters of another profile.
    AddOn,
}

/// One layer.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterLayer {
    /// Unique in the profile.
    #[schemars(length(min = 1, max = 53), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What it is.
    pub kind: ClusterLayerKind,
    /// Version. Of the Kubernetes layer: `<major>.<minor>.<patch>`, for instance `1.36.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub version: Option<String>,
    /// Of the OS layer, and of it only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<OsLayer>,
    /// Of the Kubernetes layer, and of it only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesLayer>,
    /// Objects of the other layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub manifests: Vec<LayerManifest>,
    /// Names and default values of what an `EdgeCluster` may set; templates see them as `parameters.<name>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, Parameter>,
    /// Named groups of values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub presets: Vec<Preset>,
    /// How long it may take to become healthy; 600 where absent. An emulated host is slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_seconds: Option<u32>,
}

/// What a layer is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum ClusterLayerKind {
    /// Operating system of the machines.
    #[serde(rename = "OS")]
    Os,
    /// Kubernetes.
    Kubernetes,
    /// Network of the pods.
    Network,
    /// Volumes.
    Storage,
    /// Anything else.
    AddOn,
}

/// The machines' operating system (R-20).
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OsLayer {
    /// Repository of the VM images in the appliance's registry, `<origin host>/<path>`; its tags are the Kubernetes
    /// versions that there are.
    #[schemars(length(min = 1, max = 255))]
    pub image: String,
    /// Written before kubeadm runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub files: Vec<OsFile>,
    /// Run before kubeadm, each by a shell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub pre_kubeadm_commands: Vec<String>,
    /// Run after kubeadm, each by a shell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub post_kubeadm_commands: Vec<String>,
    /// Certificates in PEM that the machines trust besides Debian's: installed with `update-ca-certificates`, after which
    /// containerd is restarted and its socket waited for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ca_certificates: Vec<String>,
}

/// A file of a machine.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OsFile {
    /// Absolute path.
    #[schemars(length(min = 2, max = 512), regex(pattern = "^/"))]
    pub target_path: String,
    /// `user:group`; `root:root` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub target_owner: Option<String>,
    /// Octal; `0644` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^0?[0-7]{3,4}$"))]
    pub target_permissions: Option<String>,
    /// Text.
    #[schemars(length(max = 10240))]
    pub content: String,
}

/// Kubernetes.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesLayer {
    /// Addresses of pods, `a.b.c.d/n`.
    #[serde(rename = "podCIDR")]
    #[schemars(length(min = 9, max = 18))]
    pub pod_cidr: String,
    /// Addresses of services, `a.b.c.d/n`.
    #[serde(rename = "serviceCIDR")]
    #[schemars(length(min = 9, max = 18))]
    pub service_cidr: String,
}

/// Objects of a layer: either in the appliance's registry, or here.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.artifact) != has(self.inline)").message("give either artifact or inline"))]
pub struct LayerManifest {
    /// Artifact of type [`MANIFESTS_ARTIFACT`](crate::bundle::MANIFESTS_ARTIFACT) in the appliance's registry,
    /// `<origin host>/<path>:<tag>`; taken as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub artifact: Option<String>,
    /// YAML of any number of objects. Templates in it see `cluster.name`, `cluster.namespace`, `cluster.version`,
    /// `cluster.pod_cidr`, `cluster.service_cidr`, `cluster.virtual_ip`, `cluster.load_balancer_addresses` (a list, each
    /// `a.b.c.d/32`) and the layer's `parameters`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 262_144))]
    pub inline: Option<String>,
}

/// A value that an `EdgeCluster` may set.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parameter {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// Its value where nobody sets one; another one must be of the same type.
    #[schemars(schema_with = "any")]
    pub default: Value,
}

/// A named group of values (R-24).
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preset {
    /// Unique in the layer.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// Used where an `EdgeCluster` chooses none.
    #[serde(default)]
    pub enabled: bool,
    /// Values of the layer's parameters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "any_map")]
    pub parameters: BTreeMap<String, Value>,
    /// Workers that the cluster must have, for instance 3 for replicated storage (R-22).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub minimum_workers: Option<u32>,
}

/// Any value.
pub(crate) fn any(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

/// An object with any values.
pub(crate) fn any_map(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
