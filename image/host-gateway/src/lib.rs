//! The pod network of a workload cluster: one pod on every node (`DaemonSet`), in the node's own network.
//!
//! ```text
//! own Node: podCIDR ─────────────────► conflist: the bridge cni0, addresses of the podCIDR
//! other Nodes: podCIDR, InternalIP ──► routes: a podCIDR via its node, so nodes share a subnet
//! networks of pods and services ─────► rules: what leaves takes the node's address; what nobody serves goes nowhere
//! ```
//!
//! Every pass finds out what is there and writes what differs. It comes after each change of a Node or of the routing
//! table, and at the latest after [`run::RESYNC`]. Nothing is remembered from one start to the next: routes of ours
//! carry a routing protocol of our own.

pub mod conflist;
pub mod plan;
pub mod routes;
pub mod rules;
pub mod run;
