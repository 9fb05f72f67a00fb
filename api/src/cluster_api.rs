//! Shapes that Cluster API's infrastructure contract, version `v1beta2`, asks of a provider's kinds. The names of the
//! fields are the contract's.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// API group of the provider's kinds.
pub const GROUP: &str = "infrastructure.cluster.x-k8s.io";
/// Label of a custom resource definition by which Cluster API finds the version that speaks a contract, and its value.
pub const CONTRACT: (&str, &str) = ("cluster.x-k8s.io/v1beta2", "v1alpha1");
/// Label by which `clusterctl` finds the kinds that belong to providers.
pub const LABEL_CLUSTERCTL: &str = "clusterctl.cluster.x-k8s.io";
/// Label with the name of the cluster that an object belongs to.
pub const LABEL_CLUSTER: &str = "cluster.x-k8s.io/cluster-name";
/// Label of the machines of a control plane; its value is empty.
pub const LABEL_CONTROL_PLANE: &str = "cluster.x-k8s.io/control-plane";
/// Label whose value says which manager looks after an object; one without that value here is left alone.
pub const LABEL_WATCH_FILTER: &str = "cluster.x-k8s.io/watch-filter";
/// Annotation that pauses an object.
pub const ANNOTATION_PAUSED: &str = "cluster.x-k8s.io/paused";
/// On a `Machine` that is to be replaced by its owner, whatever its health checks say.
pub const ANNOTATION_REMEDIATE: &str = "cluster.x-k8s.io/remediate-machine";
/// Annotation with which an object asks `clusterctl move` to wait with it.
pub const ANNOTATION_BLOCK_MOVE: &str = "clusterctl.cluster.x-k8s.io/block-move";
/// Annotation that `clusterctl move` puts on an object before it deletes it: the object lives on in another cluster, and
/// so does what was made for it.
pub const ANNOTATION_DELETE_FOR_MOVE: &str = "clusterctl.cluster.x-k8s.io/delete-for-move";

/// Where an API server answers.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiEndpoint {
    /// Address or name.
    #[schemars(length(min = 1, max = 512))]
    pub host: String,
    /// TCP port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// How far the first provisioning has come.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Initialization {
    /// True as soon as the infrastructure is there, and ever after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioned: Option<bool>,
}

/// A part of the infrastructure that fails as one: here an appliance.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureDomain {
    /// Unique name.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Whether control planes may be placed in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<bool>,
    /// Facts for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// An address of a machine.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineAddress {
    /// What kind of address.
    #[serde(rename = "type")]
    pub type_: MachineAddressType,
    /// The address.
    #[schemars(length(min = 1, max = 256))]
    pub address: String,
}

/// Kinds of addresses.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum MachineAddressType {
    /// The guest's host name.
    Hostname,
    /// Reachable from outside of the cluster's network.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    /// Reachable from the other nodes.
    #[serde(rename = "InternalIP")]
    InternalIp,
}

/// Metadata that a template gives to what is made from it.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateMetadata {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Provider ID of the machine with this identity ([`VirtualMachineSpec::id`](crate::VirtualMachineSpec::id)), as its node has it.
pub fn provider_id(id: &str) -> String {
    format!("libvirt:///{id}")
}

/// Identity in a provider ID of ours.
pub fn identity(provider_id: &str) -> Option<&str> {
    provider_id.strip_prefix("libvirt:///").filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_id_holds_the_identity() {
        let id = "5a3f1c52-0c5b-4f3e-9d5e-4a1f60b6a4a1";
        assert_eq!(identity(&provider_id(id)), Some(id));
        assert_eq!(identity("libvirt:///"), None);
        assert_eq!(identity("docker:////x"), None);
    }
}
