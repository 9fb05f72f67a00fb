//! From an `EdgeCluster` to the Cluster API `Cluster` of class [`CLUSTER_CLASS`]. Pure. What is written here is what the
//! variables of `deploy/cluster-class.yaml` ask for.

use std::collections::BTreeMap;

use edge_api::EdgeCluster;
use edge_api::cluster_profile::OsFile;
use edge_api::edge_cluster::{ControlPlanePool, Hardware, Placement, Rollout, Taint, TaintEffect, WorkerPool};
use edge_api::names::{ANNOTATION_DIGEST, CLUSTER_CLASS, CLUSTER_IMAGE_PREFIX, LABEL_EDGE_CLUSTER};
use kube::ResourceExt as _;
use serde_json::{Map, Value, json};

use super::profile::Resolved;
use super::validate;
use crate::cluster_api::provider::reference;
use crate::image::registry::sha256;

/// Key of the taint that keeps ordinary pods off a control plane.
const CONTROL_PLANE_TAINT: &str = "node-role.kubernetes.io/control-plane";
/// Folder that `update-ca-certificates` looks into.
const CA_FOLDER: &str = "/usr/local/share/ca-certificates";

/// The `Cluster` as it is applied. `labels` are those of the profile's tags that can be labels.
pub fn cluster(
    edge: &EdgeCluster,
    placement: &Placement,
    resolved: &Resolved,
    labels: &BTreeMap<String, String>,
) -> Value {
    let (name, kubernetes) = (edge.name_any(), &resolved.kubernetes);
    let mut all_labels = labels.clone();
    all_labels.insert(LABEL_EDGE_CLUSTER.to_owned(), name.clone());
    let mut object = json!({
        "apiVersion": "cluster.x-k8s.io/v1beta2",
        "kind": "Cluster",
        "metadata": { "name": name, "labels": all_labels, "ownerReferences": [reference(edge, true)] },
        "spec": {
            "clusterNetwork": {
                "pods": { "cidrBlocks": [kubernetes.pod_cidr] },
                "services": { "cidrBlocks": [kubernetes.service_cidr] },
            },
            "topology": topology(edge, placement, resolved),
        },
    });
    // Keys are sorted, so equal objects have equal bytes.
    let digest = sha256(object.to_string().as_bytes());
    object["metadata"]["annotations"] = json!({ ANNOTATION_DIGEST: digest });
    object
}

/// Those of a profile's tags that can be labels of a `Cluster`.
pub fn labels(tags: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let of_people = |(key, value): &(&String, &String)| validate::labels::problem(key, value).is_none();
    tags.iter().filter(of_people).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn topology(edge: &EdgeCluster, placement: &Placement, resolved: &Resolved) -> Value {
    let spec = &edge.spec;
    let control_plane = &spec.control_plane;
    let mut topology = json!({
        "classRef": { "name": CLUSTER_CLASS },
        "version": format!("v{}", resolved.version),
        "controlPlane": {
            "replicas": control_plane.size,
            "variables": { "overrides": overrides(&control_plane.hardware, placement, control_plane_node(control_plane)) },
        },
        "variables": variables(edge, placement, resolved),
    });
    if !spec.workers.is_empty() {
        let pools: Vec<Value> = spec.workers.iter().map(|pool| worker(pool, placement)).collect();
        topology["workers"] = json!({ "machineDeployments": pools });
    }
    topology
}

fn worker(pool: &WorkerPool, placement: &Placement) -> Value {
    let WorkerPool { name, size, labels, taints, hardware, rollout } = pool;
    let (surge, unavailable) = match rollout {
        Rollout::ExpandFirst => (1, 0),
        Rollout::ContractFirst => (0, 1),
    };
    json!({
        "class": "worker",
        "name": name,
        "replicas": size,
        "rollout": { "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable },
        } },
        "variables": { "overrides": overrides(hardware, placement, node(labels, taints)) },
    })
}

fn overrides(hardware: &Hardware, placement: &Placement, node: Value) -> Value {
    json!([variable("hardware", machine(hardware, placement)), variable("node", node)])
}

fn variable(name: &str, value: impl Into<Value>) -> Value {
    json!({ "name": name, "value": value.into() })
}

fn variables(edge: &EdgeCluster, placement: &Placement, resolved: &Resolved) -> Value {
    let spec = &edge.spec;
    let os = &resolved.os;
    let interface = |network: &edge_api::edge_cluster::PlacementNetwork| {
        let mut interface = json!({ "network": network.name });
        if let Some(pool) = &network.address_pool {
            interface["addressPool"] = json!(pool);
        }
        interface
    };
    let surge = match spec.control_plane.rollout {
        Rollout::ExpandFirst => 1,
        Rollout::ContractFirst => 0,
    };
    let certificates = os.ca_certificates.iter().enumerate().map(|(index, certificate)| {
        json!({
            "path": format!("{CA_FOLDER}/pcg-edge-{index}.crt"),
            "owner": "root:root",
            "permissions": "0644",
            "content": certificate,
        })
    });
    let files: Vec<Value> = certificates.chain(os.files.iter().map(file)).collect();
    let mut before = Vec::new();
    if !os.ca_certificates.is_empty() {
        // containerd reads the certificates when it starts, and kubeadm needs it right after.
        before.extend([
            "update-ca-certificates".to_owned(),
            "systemctl restart containerd".to_owned(),
            "timeout 300 sh -c 'until [ -S /run/containerd/containerd.sock ]; do sleep 1; done'".to_owned(),
        ]);
    }
    before.extend(os.pre_kubeadm_commands.iter().cloned());
    json!([
        variable("appliance", placement.appliance.as_str()),
        variable("virtualIP", spec.virtual_ip.as_str()),
        variable("network", placement.networks.first().map_or("", |network| network.name.as_str())),
        variable("interfaces", placement.networks.iter().map(interface).collect::<Vec<_>>()),
        variable("imagePrefix", CLUSTER_IMAGE_PREFIX),
        variable("hardware", machine(&spec.control_plane.hardware, placement)),
        variable("node", node(&BTreeMap::new(), &[])),
        variable("controlPlaneMaxSurge", surge),
        variable("files", files),
        variable("preKubeadmCommands", before),
        variable("postKubeadmCommands", os.post_kubeadm_commands.clone()),
        variable("sshAuthorizedKeys", spec.ssh_authorized_keys.clone()),
        variable("ntpServers", spec.ntp_servers.clone()),
    ])
}

fn file(file: &OsFile) -> Value {
    let OsFile { target_path, target_owner, target_permissions, content } = file;
    json!({
        "path": target_path,
        "owner": target_owner.as_deref().unwrap_or("root:root"),
        "permissions": target_permissions.as_deref().unwrap_or("0644"),
        "content": content,
    })
}

fn machine(hardware: &Hardware, placement: &Placement) -> Value {
    let Hardware { vcpus, memory_mib, cpu_set, root_disk_gib, data_disks } = hardware;
    let mut machine = json!({
        "vcpus": vcpus,
        "memoryMiB": memory_mib,
        "rootDisk": { "pool": placement.target_pool, "sizeGiB": root_disk_gib },
    });
    if let Some(set) = cpu_set {
        machine["cpuSet"] = json!(set);
    }
    if !data_disks.is_empty() {
        let pool = placement.data_pool.as_ref().unwrap_or(&placement.target_pool);
        let disk = |disk: &edge_api::edge_cluster::ClusterDataDisk| json!({ "name": disk.name, "pool": pool, "sizeGiB": disk.size_gib });
        machine["dataDisks"] = data_disks.iter().map(disk).collect();
    }
    machine
}

fn control_plane_node(pool: &ControlPlanePool) -> Value {
    let mut taints = pool.taints.clone();
    let own = Taint { key: CONTROL_PLANE_TAINT.to_owned(), value: None, effect: TaintEffect::NoSchedule };
    if !pool.allow_workers && !taints.contains(&own) {
        taints.insert(0, own);
    }
    node(&pool.labels, &taints)
}

fn node(labels: &BTreeMap<String, String>, taints: &[Taint]) -> Value {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let taint = |Taint { key, value, effect }: &Taint| {
        let mut taint = Map::from_iter([("key".to_owned(), json!(key)), ("effect".to_owned(), json!(effect))]);
        taint.extend(value.as_ref().map(|value| ("value".to_owned(), json!(value))));
        Value::Object(taint)
    };
    json!({ "labels": labels.join(","), "taints": taints.iter().map(taint).collect::<Vec<_>>() })
}

/// Whether everything that is wanted is there; more may be, because Cluster API defaults and adds. Lists of named things
/// are compared by name, all others as a whole.
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| live.get(key).is_some_and(|live| covers(live, wanted)))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            let named = |list: &[Value]| list.iter().all(|item| item["name"].is_string());
            if !wanted.is_empty() && named(wanted) && named(live) {
                let find = |name: &Value| live.iter().find(|item| item["name"] == *name);
                wanted.iter().all(|wanted| find(&wanted["name"]).is_some_and(|live| covers(live, wanted)))
            } else {
                live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| covers(live, wanted))
            }
        }
        (live, wanted) => live == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge_cluster::profile::resolve;
    use crate::edge_cluster::validate::tests::{World, example, object};

    fn made(world: &World) -> Value {
        let edge: EdgeCluster = object(&world.edge);
        let profile = object(&world.profile);
        let resolved = resolve(&profile, &edge.spec).unwrap();
        cluster(&edge, &edge.spec.placements[0], &resolved, &labels(&profile.spec.tags))
    }

    #[test]
    fn a_full_example() {
        let mut world = example();
        world.profile["spec"]["tags"] = serde_json::json!({ "tier": "shop", "no label!": "x", "x.k8s.io/y": "z" });
        let expected: Value = serde_saphyr::from_str(include_str!("../../tests/golden/cluster.yaml")).unwrap();
        let made = made(&world);
        assert_eq!(made, expected, "{}", serde_json::to_string_pretty(&made).unwrap());
    }

    #[test]
    fn what_is_defaulted_or_added_is_no_difference_and_what_is_changed_is_one() {
        let wanted = made(&example());
        let mut live = wanted.clone();
        let spec = &mut live["spec"];
        spec["controlPlaneRef"] = json!({ "name": "shop-x" });
        spec["topology"]["variables"].as_array_mut().unwrap().insert(0, json!({ "name": "more", "value": 1 }));
        spec["topology"]["workers"]["machineDeployments"][0]["minReadySeconds"] = json!(0);
        assert!(covers(&live, &wanted));
        for (path, value) in [
            ("/spec/topology/version", json!("v1.36.4")),
            ("/spec/topology/variables/2/value", json!("10.0.0.99")),
            ("/spec/topology/workers/machineDeployments/0/replicas", json!(7)),
            ("/spec/topology/controlPlane/variables/overrides/1/value/taints", json!([])),
            ("/spec/clusterNetwork/pods/cidrBlocks", json!(["10.1.0.0/16", "10.2.0.0/16"])),
            ("/metadata/labels", json!({})),
        ] {
            let mut changed = live.clone();
            *changed.pointer_mut(path).unwrap() = value;
            assert!(!covers(&changed, &wanted), "{path}");
        }
    }

    #[test]
    fn a_control_plane_that_allows_workers_has_no_taint() {
        let mut world = example();
        world.edge["spec"]["controlPlane"]["allowWorkers"] = json!(true);
        world.edge["spec"]["workers"] = json!([]);
        world.edge["spec"]["presets"] = json!({});
        let made = made(&world);
        let node = &made["spec"]["topology"]["controlPlane"]["variables"]["overrides"][1];
        assert_eq!(node["value"]["taints"].as_array().unwrap().len(), 1, "its own alone");
        assert!(made["spec"]["topology"].get("workers").is_none());
    }
}
