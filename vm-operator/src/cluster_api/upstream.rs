//! Cluster API's own kinds, with only the fields that are read or written here. Nothing here is ever written as a whole
//! over an object of somebody else.

use edge_api::cluster_api::ApiEndpoint;
use edge_api::condition::Condition;
use kube::CustomResource;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// What a `Cluster` should be.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Serialize)]
#[kube(
    group = "cluster.x-k8s.io",
    version = "v1beta2",
    kind = "Cluster",
    namespaced,
    status = "ClusterStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpec {
    /// Whether nobody may act on what belongs to the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Where its API server answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane_endpoint: Option<PartialEndpoint>,
    /// Addresses of pods and services, as they were written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_network: Option<Value>,
    /// What its class is given, as it was written and defaulted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Value>,
}

impl ClusterSpec {
    /// Kubernetes version that the whole cluster shall have, for instance `v1.36.3`.
    pub fn version(&self) -> Option<&str> {
        self.topology.as_ref()?.get("version")?.as_str()
    }

    /// Machines that the control plane shall have.
    pub fn control_plane_replicas(&self) -> Option<u64> {
        self.topology.as_ref()?.pointer("/controlPlane/replicas")?.as_u64()
    }
}

/// An endpoint as Cluster API has it: each part may still be missing.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartialEndpoint {
    /// Address or name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// TCP port.
    #[serde(default)]
    pub port: u16,
}

impl PartialEndpoint {
    /// The endpoint, where both parts are there.
    pub fn whole(&self) -> Option<ApiEndpoint> {
        let Self { host, port } = self;
        (!host.is_empty() && *port != 0).then(|| ApiEndpoint { host: host.clone(), port: *port })
    }
}

/// What became of a `Cluster`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// How far its first provisioning has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initialization: Option<ClusterInitialization>,
    /// `metadata.generation` that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Available` and `TopologyReconciled` alone.
    #[serde(default, deserialize_with = "conditions_of_interest", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Machines of the control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<Replicas>,
    /// Workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<Replicas>,
}

/// Machines of a part of a cluster, counted. A number that is absent is not known yet.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replicas {
    /// Wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<u32>,
    /// There, in whatever state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Made of what is wanted now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to_date_replicas: Option<u32>,
    /// Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<u32>,
    /// Kubernetes versions that they have.
    #[serde(default)]
    pub versions: Vec<ReplicaVersion>,
}

impl Replicas {
    /// Whether exactly so many are there, each ready and made of what is wanted now.
    pub fn are_all(&self, wanted: u32) -> bool {
        let Self { desired_replicas, replicas, up_to_date_replicas, ready_replicas, versions: _ } = self;
        [desired_replicas, replicas, up_to_date_replicas, ready_replicas].iter().all(|n| n.unwrap_or(0) == wanted)
    }
}

/// A Kubernetes version that machines have.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ReplicaVersion {
    /// It, for instance `v1.36.3`.
    pub version: String,
}

/// How far a cluster's first provisioning has come.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterInitialization {
    /// Whether its infrastructure is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infrastructure_provisioned: Option<bool>,
    /// Whether its API server has answered once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane_initialized: Option<bool>,
}

/// What a `Machine` should be.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, Serialize)]
#[kube(
    group = "cluster.x-k8s.io",
    version = "v1beta2",
    kind = "Machine",
    namespaced,
    status = "MachineStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct MachineSpec {
    /// Its cluster.
    #[serde(default)]
    pub cluster_name: String,
    /// What it starts with.
    #[serde(default)]
    pub bootstrap: Bootstrap,
    /// Failure domain it must be placed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_domain: Option<String>,
}

/// What a machine starts with.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bootstrap {
    /// Secret with the data, once it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_secret_name: Option<String>,
}

/// What became of a `Machine`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineStatus {
    /// Its node, once it has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ref: Option<Named>,
    /// `BootstrapConfigReady`, `NodeHealthy` and `Deleting` alone.
    #[serde(default, deserialize_with = "conditions_of_interest", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Conditions that somebody here asks for. There are a dozen more on each machine, and thousands of machines in a cache.
fn conditions_of_interest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Condition>, D::Error> {
    const ASKED_FOR: [&str; 5] = ["Available", "TopologyReconciled", "BootstrapConfigReady", "NodeHealthy", "Deleting"];
    let mut conditions = Vec::<Condition>::deserialize(deserializer)?;
    conditions.retain(|condition| ASKED_FOR.contains(&condition.type_.as_str()));
    conditions.shrink_to_fit();
    Ok(conditions)
}

/// What an `IPAddressClaim` asks for.
#[derive(Clone, CustomResource, Debug, Deserialize, Serialize)]
#[kube(
    group = "ipam.cluster.x-k8s.io",
    version = "v1beta2",
    kind = "IPAddressClaim",
    plural = "ipaddressclaims",
    namespaced,
    status = "IPAddressClaimStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressClaimSpec {
    /// Cluster that the address is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    /// Pool it shall come from.
    pub pool_ref: PoolReference,
}

/// Names a pool.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolReference {
    /// API group.
    pub api_group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
}

impl PoolReference {
    /// Names one of our pools.
    pub fn to(pool: &str) -> Self {
        Self { api_group: edge_api::names::GROUP.to_owned(), kind: "IPPool".to_owned(), name: pool.to_owned() }
    }

    /// Whether it names one of our pools.
    pub fn is_ours(&self) -> bool {
        self.api_group == edge_api::names::GROUP && self.kind == "IPPool"
    }
}

/// What became of a claim.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressClaimStatus {
    /// The address that was made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_ref: Option<Named>,
    /// `Ready`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// Names an object of a kind that is clear.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    /// Name.
    pub name: String,
}

/// An address that was given out.
#[derive(Clone, CustomResource, Debug, Deserialize, Serialize)]
#[kube(
    group = "ipam.cluster.x-k8s.io",
    version = "v1beta2",
    kind = "IPAddress",
    plural = "ipaddresses",
    namespaced,
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressSpec {
    /// The claim it is for.
    pub claim_ref: Named,
    /// The pool it is from.
    pub pool_ref: PoolReference,
    /// The address.
    pub address: String,
    /// Prefix length.
    pub prefix: u8,
    /// Default gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}
