//! Names that several rooms must agree on: groups, namespaces, labels, ports.

/// API group of our kinds.
pub const GROUP: &str = "pcg-edge.io";
/// Version of our kinds.
pub const VERSION: &str = "v1alpha1";
/// Namespace of everything of ours on the box.
pub const NAMESPACE: &str = "pcg-edge-system";
/// Name of the one local `Appliance` object.
pub const LOCAL_APPLIANCE: &str = "local";
/// Default instance name (D11).
pub const DEFAULT_INSTANCE: &str = "edge";
/// Default root of the agent's state.
pub const DEFAULT_ROOT: &str = "/opt/spectrocloud";
/// NodePort of the local registry.
pub const REGISTRY_PORT: u16 = 10443;
/// Host part of the names of images that this project builds itself.
pub const OWN_ORIGIN: &str = "pcg-edge.io";
/// Login that may pull from the local registry.
pub const REGISTRY_PULL_USER: &str = "pull";
/// Secret in [`NAMESPACE`] with the pull login; keys `username`, `password`, `ca.crt`.
pub const REGISTRY_PULL_SECRET: &str = "registry-pull";
/// Finalizer that `vm-operator` puts on the objects it has made something for.
pub const FINALIZER: &str = "pcg-edge.io/vm-operator";
/// Label on every object that a layer brought; its value is the layer's name. Pruning looks at nothing else.
pub const LABEL_LAYER: &str = "pcg-edge.io/layer";
/// Label on every object that a profile brought; its value is the profile's name.
pub const LABEL_PROFILE: &str = "pcg-edge.io/profile";
/// Annotation with the digest of a rendered object, for telling whether it has to be written again; on a Helm release, a
/// label with the first 63 digits of that of the rendered layer.
pub const ANNOTATION_DIGEST: &str = "pcg-edge.io/layer-digest";
/// XML namespace of our element in libvirt metadata (D10).
pub const METADATA_NS: &str = "https://pcg-edge.io/ns/domain/1";
/// Namespace UUID from which identities are derived (UUID version 5).
pub const ID_NAMESPACE: &str = "5a3f1c52-0c5b-4f3e-9d5e-4a1f60b6a4a1";
/// Annotation on an `EdgeCluster` that is being deleted: give up on what cannot be removed, and list it.
pub const ANNOTATION_FORCE_DELETE: &str = "pcg-edge.io/force-delete";
/// The `ClusterClass` of every cluster.
pub const CLUSTER_CLASS: &str = "pcg-edge-v1";
/// Prefix of the names of the images that clusters' machines boot from; the version, `v<major>.<minor>.<patch>`, follows.
pub const CLUSTER_IMAGE_PREFIX: &str = "kubernetes-";
/// Label of what belongs to an `EdgeCluster` in the system cluster; its value is the cluster's name.
pub const LABEL_EDGE_CLUSTER: &str = "pcg-edge.io/edge-cluster";
