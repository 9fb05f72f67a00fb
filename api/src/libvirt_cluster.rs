//! `LibvirtCluster`: what Cluster API needs of an appliance for one cluster: the address of its control plane.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster_api::{ApiEndpoint, FailureDomain, Initialization, TemplateMetadata};
use crate::condition::Condition;

/// Infrastructure of one Cluster API `Cluster`.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "infrastructure.cluster.x-k8s.io",
    version = "v1alpha1",
    kind = "LibvirtCluster",
    namespaced,
    status = "LibvirtClusterStatus",
    category = "cluster-api",
    label("cluster.x-k8s.io/v1beta2", "v1alpha1"),
    label("clusterctl.cluster.x-k8s.io", ""),
    label("cluster.x-k8s.io/provider", "infrastructure-libvirt"),
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".metadata.labels['cluster\\.x-k8s\\.io/cluster-name']"
    ),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".spec.controlPlaneEndpoint.host"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.appliance == oldSelf.appliance").message("a cluster cannot change its appliance"))]
#[x_kube(validation = Rule::new("!has(oldSelf.controlPlaneEndpoint) || (has(self.controlPlaneEndpoint) \
    && self.controlPlaneEndpoint == oldSelf.controlPlaneEndpoint)").message("the endpoint of a cluster cannot be changed"))]
pub struct LibvirtClusterSpec {
    /// Virtual IP address and port of the control plane. The address lies in the subnet of `network`, outside of what
    /// is given to machines, and answers to nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane_endpoint: Option<ApiEndpoint>,
    /// Name of the [`Appliance`](crate::Appliance) in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub appliance: String,
    /// Network of the appliance that the virtual IP address lies in.
    #[schemars(length(min = 1, max = 32))]
    pub network: String,
    /// VRRP virtual router ID, unique on the network; allocated by `vm-operator` and kept.
    #[serde(default, rename = "virtualRouterID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub virtual_router_id: Option<u8>,
}

/// What `vm-operator` observed of a cluster's infrastructure.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtClusterStatus {
    /// `metadata.generation` this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How far the first provisioning has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initialization: Option<Initialization>,
    /// The appliance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failure_domains: Vec<FailureDomain>,
    /// `Ready`, `Paused`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// What the clusters of a `ClusterClass` start from.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "infrastructure.cluster.x-k8s.io",
    version = "v1alpha1",
    kind = "LibvirtClusterTemplate",
    namespaced,
    category = "cluster-api",
    label("cluster.x-k8s.io/v1beta2", "v1alpha1"),
    label("clusterctl.cluster.x-k8s.io", ""),
    label("cluster.x-k8s.io/provider", "infrastructure-libvirt")
)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtClusterTemplateSpec {
    /// The template.
    pub template: LibvirtClusterTemplateResource,
}

/// Metadata and spec of what is made.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtClusterTemplateResource {
    /// Labels and annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TemplateMetadata>,
    /// Spec.
    pub spec: LibvirtClusterSpec,
}
