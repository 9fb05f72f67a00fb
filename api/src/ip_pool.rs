//! `IPPool`: addresses for machines, given out by Cluster API's IPAM contract.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;

/// IPv4 addresses that machines claim, each by an `IPAddressClaim` and an `IPAddress`.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "pcg-edge.io",
    version = "v1alpha1",
    kind = "IPPool",
    plural = "ippools",
    namespaced,
    status = "IPPoolStatus",
    category = "pcg-edge",
    label("cluster.x-k8s.io/v1beta2", "v1alpha1"),
    label("clusterctl.cluster.x-k8s.io", ""),
    label("clusterctl.cluster.x-k8s.io/move", ""),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.free"),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.used"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.total"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.range) != has(self.subnet)").message("give either range or subnet"))]
pub struct IPPoolSpec {
    /// First and last address, both included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<crate::appliance::AddressRange>,
    /// All host addresses of a subnet, `a.b.c.d/n`, without the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    pub subnet: Option<String>,
    /// Prefix length that machines configure.
    #[schemars(range(min = 8, max = 30))]
    pub prefix: u8,
    /// Default gateway of the machines; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub gateway: Option<String>,
    /// Name servers of the machines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub name_servers: Vec<String>,
    /// The first cluster that claims an address has the pool for itself as long as it holds one.
    #[serde(default)]
    pub restrict_to_single_cluster: bool,
}

/// How full a pool is.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IPPoolStatus {
    /// `metadata.generation` this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Addresses in all.
    #[serde(default)]
    pub total: u64,
    /// Addresses given out.
    #[serde(default)]
    pub used: u64,
    /// Addresses left.
    #[serde(default)]
    pub free: u64,
    /// Cluster that has the pool for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_for: Option<String>,
    /// `Ready`: whether the spec makes sense. A full pool is ready: the claims that wait say so.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}
