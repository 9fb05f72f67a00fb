use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::edge_cluster::profile::resolve;

/// A cluster and its surroundings, as JSON for cases to change.
pub(crate) struct World {
    pub edge: Value,
    pub profile: Value,
    appliance: Value,
    pools: Vec<Value>,
    others: Vec<Claimant>,
    machines: Vec<Value>,
    own_machines: BTreeSet<String>,
    current: Option<Value>,
    image: Option<Value>,
    versions: Option<Vec<String>>,
}

pub(crate) fn object<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

fn named(kind: &str, name: &str, spec: Value) -> Value {
    let mut object = json!({ "apiVersion": "pcg-edge.io/v1alpha1", "kind": kind, "metadata": { "name": name } });
    object["spec"] = spec;
    object
}

fn pool(name: &str, start: &str, end: &str) -> Value {
    named("IPPool", name, json!({ "range": { "start": start, "end": end }, "prefix": 24 }))
}

fn machine(name: &str, memory: u64) -> Value {
    let spec =
        json!({ "id": "00000000-0000-0000-0000-000000000001", "appliance": "local", "vcpus": 1, "memoryMiB": memory });
    named("VirtualMachine", name, spec)
}

/// Everything that a cluster can say, all of it right.
pub(crate) fn example() -> World {
    let hardware = json!({
        "vcpus": 4, "memoryMiB": 4096, "cpuSet": "0-3,6", "rootDiskGiB": 40,
        "dataDisks": [{ "name": "osd", "sizeGiB": 100 }],
    });
    let mut edge = named(
        "EdgeCluster",
        "shop",
        json!({
            "profile": "edge", "kubernetesVersion": "1.36.3", "virtualIP": "10.0.0.10",
            "presets": { "storage": ["replicated"] },
            "sshAuthorizedKeys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 somebody@example"],
            "ntpServers": ["ntp.example.com", "10.0.0.1"],
            "controlPlane": {
                "size": 3, "hardware": hardware, "rollout": "ContractFirst",
                "labels": { "tier": "control" }, "taints": [{ "key": "example.com/own", "value": "yes", "effect": "NoExecute" }],
            },
            "workers": [
                { "name": "general", "size": 2, "hardware": hardware,
                  "labels": { "node.kubernetes.io/pool": "general", "zone": "a" } },
                { "name": "big", "size": 1, "rollout": "ContractFirst",
                  "hardware": { "vcpus": 8, "memoryMiB": 8192, "rootDiskGiB": 80 } },
            ],
            "placements": [{
                "appliance": "local", "networkType": "NAT", "imagePool": "images", "targetPool": "fast", "dataPool": "bulk",
                "networks": [{ "name": "nodes", "addressPool": "machines" }],
            }],
            "loadBalancer": { "addressPool": "services", "addresses": 3 },
        }),
    );
    edge["metadata"]["uid"] = json!("uid-of-shop");
    let mut appliance = named(
        "Appliance",
        "local",
        json!({
            "id": "00000000-0000-0000-0000-000000000002", "instance": "edge", "libvirtUri": "qemu:///system",
            "networks": [
                { "name": "nodes", "type": "NAT", "address": "10.0.0.1/24",
                  "dhcp": { "start": "10.0.0.100", "end": "10.0.0.120" } },
                { "name": "lan", "type": "Isolated" },
            ],
            "storagePools": [
                { "name": "images", "path": "/images" }, { "name": "fast", "path": "/fast" }, { "name": "bulk", "path": "/bulk" },
            ],
            "imagePool": "images", "registry": { "host": "registry:10443", "secretName": "pull" }, "consoleLogDir": "/log",
        }),
    );
    appliance["status"] = json!({ "host": {
        "cpus": 16, "memoryMiB": 65536, "accelerator": "kvm", "libvirtVersion": "1.0.0", "hypervisorVersion": "1.0.0",
    } });
    let profile = named(
        "ClusterProfile",
        "edge",
        json!({
            "version": "1.0.0", "type": "Full",
            "layers": [
                { "name": "os", "kind": "OS", "os": {
                    "image": "pcg-edge.io/vm/kubernetes-node",
                    "files": [{ "targetPath": "/etc/motd", "content": "hello\n" },
                              { "targetPath": "/root/run", "targetOwner": "root:adm", "targetPermissions": "0750", "content": "#!" }],
                    "preKubeadmCommands": ["modprobe rbd"], "postKubeadmCommands": ["true"],
                    "caCertificates": ["-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"],
                } },
                { "name": "kubernetes", "kind": "Kubernetes", "version": "1.36.3",
                  "kubernetes": { "podCIDR": "10.244.0.0/16", "serviceCIDR": "10.96.0.0/12" } },
                { "name": "network", "kind": "Network", "manifests": [{ "inline": "{}" }] },
                { "name": "storage", "kind": "Storage", "manifests": [{ "inline": "{}" }],
                  "presets": [{ "name": "replicated", "minimumWorkers": 3 }] },
            ],
        }),
    );
    World {
        edge,
        profile,
        appliance,
        pools: vec![pool("machines", "10.0.0.20", "10.0.0.29"), pool("services", "10.0.0.40", "10.0.0.49")],
        others: vec![claimant("market", "10.0.0.11")],
        machines: vec![machine("router", 1024)],
        own_machines: BTreeSet::new(),
        current: None,
        image: None,
        versions: Some(vec!["1.35.9".into(), "1.36.3".into(), "1.36.4".into(), "1.37.1".into(), "1.38.0".into()]),
    }
}

fn claimant(name: &str, host: &str) -> Claimant {
    let made = (i64::from(name == "shop"), name.to_owned());
    Claimant { name: name.to_owned(), host: Some(host.to_owned()), router_id: None, provisioned: false, made }
}

/// The Cluster that the example became.
fn current(version: &str, control_plane: u32, owner: &str) -> Value {
    json!({
        "apiVersion": "cluster.x-k8s.io/v1beta2", "kind": "Cluster",
        "metadata": { "name": "shop", "ownerReferences": [
            { "apiVersion": "pcg-edge.io/v1alpha1", "kind": "EdgeCluster", "name": "shop", "uid": owner },
        ] },
        "spec": { "topology": { "version": version, "controlPlane": { "replicas": control_plane } } },
    })
}

fn check(world: &World) -> Vec<String> {
    let edge: EdgeCluster = object(&world.edge);
    let profile = object(&world.profile);
    let resolved = resolve(&profile, &edge.spec).unwrap_or_else(|errors| panic!("{errors:?}"));
    let appliance: Appliance = object(&world.appliance);
    let placed = edge.spec.placements.first().is_some_and(|p| p.appliance == "local");
    let pools: Vec<IPPool> = world.pools.iter().map(object).collect();
    let machines: Vec<VirtualMachine> = world.machines.iter().map(object).collect();
    let current: Option<Cluster> = world.current.as_ref().map(object);
    let image: Option<VirtualMachineImage> = world.image.as_ref().map(object);
    let site = Site {
        appliance: placed.then_some(&appliance),
        pools: &pools,
        own: claimant("shop", &edge.spec.virtual_ip),
        others: &world.others,
        machines: &machines,
        own_machines: &world.own_machines,
        current: current.as_ref(),
        image: image.as_ref(),
        versions: world.versions.as_deref(),
    };
    validate(&edge, Some(&resolved), &site).iter().map(ToString::to_string).collect()
}

type Edit = fn(&mut World);

/// What is wrong, how it comes to be so, and what is said of it.
#[rustfmt::skip]
const CASES: [(&str, Edit, &str); 49] = [
    ("size", |w| w.edge["spec"]["controlPlane"]["size"] = json!(2),
        "spec.controlPlane.size: 2: expected 1, 3 or 5"),
    ("contract first alone", |w| w.edge["spec"]["controlPlane"]["size"] = json!(1),
        "spec.controlPlane.rollout: ContractFirst with one machine: expected ExpandFirst, or three machines or more"),
    ("five become three", |w| w.current = Some(current("v1.36.3", 5, "uid-of-shop")),
        "spec.controlPlane.size: 3: expected at least 5, because a control plane cannot shrink"),
    ("no workers", |w| { w.edge["spec"]["workers"] = json!([]); w.edge["spec"]["presets"] = json!({}); },
        "spec.workers: no machines: expected at least one worker, or spec.controlPlane.allowWorkers: true"),
    ("name", |w| w.edge["metadata"]["name"] = json!("1.shop"),
        "metadata.name: \"1.shop\": expected lower-case letters, digits and dashes, the first a letter"),
    ("long name", |w| w.edge["metadata"]["name"] = json!("s".repeat(40)),
        "spec.workers[0].name: \"general\" and the cluster's name have 47 characters: expected at most 44, because machines' names grow from them"),
    ("longer name", |w| { w.edge["metadata"]["name"] = json!("s".repeat(52)); w.edge["spec"]["workers"] = json!([]);
                          w.edge["spec"]["controlPlane"]["allowWorkers"] = json!(true); w.edge["spec"]["presets"] = json!({}); },
        "has 52 characters: expected at most 51, because machines' names grow from it"),
    ("pool twice", |w| w.edge["spec"]["workers"][1]["name"] = json!("general"),
        "spec.workers[1].name: \"general\": expected a name that no other pool has"),
    ("disk twice", |w| { let disks = &mut w.edge["spec"]["workers"][0]["hardware"]["dataDisks"]; let first = disks[0].clone(); disks.as_array_mut().unwrap().push(first); },
        "spec.workers[0].hardware.dataDisks[1].name: \"osd\": expected a name that no other disk of the pool has"),
    ("taint twice", |w| { let taints = &mut w.edge["spec"]["controlPlane"]["taints"]; let first = taints[0].clone(); taints.as_array_mut().unwrap().push(first); },
        "spec.controlPlane.taints[1]: example.com/own:NoExecute: expected a key and effect that no other has"),
    ("taint", |w| w.edge["spec"]["controlPlane"]["taints"][0]["value"] = json!("a b"),
        "spec.controlPlane.taints[0]: example.com/own=a b: expected a key and value as labels have them"),
    ("label value", |w| w.edge["spec"]["workers"][0]["labels"]["zone"] = json!("a,b=c"),
        "spec.workers[0].labels.zone: \"a,b=c\": expected at most 63 letters, digits, dashes, underscores and dots"),
    ("label key", |w| w.edge["spec"]["workers"][0]["labels"]["a b"] = json!("x"),
        "spec.workers[0].labels.a b: \"a b\": expected a label's key, [prefix/]name"),
    ("label of Kubernetes", |w| w.edge["spec"]["workers"][0]["labels"]["node-role.kubernetes.io/worker"] = json!(""),
        "\"node-role.kubernetes.io/worker\": expected a key that a node may give itself"),
    ("virtual IP", |w| w.edge["spec"]["virtualIP"] = json!("shop.local"),
        "spec.virtualIP: \"shop.local\": expected an IPv4 address"),
    ("virtual IP elsewhere", |w| w.edge["spec"]["virtualIP"] = json!("10.1.0.10"),
        "spec.virtualIP: 10.1.0.10: the endpoint 10.1.0.10 is no host address of network nodes, which is 10.0.0.0/24"),
    ("network address", |w| w.edge["spec"]["virtualIP"] = json!("10.0.0.0"),
        "spec.virtualIP: 10.0.0.0: the endpoint 10.0.0.0 is no host address of network nodes"),
    ("broadcast address", |w| w.edge["spec"]["virtualIP"] = json!("10.0.0.255"),
        "spec.virtualIP: 10.0.0.255: the endpoint 10.0.0.255 is no host address of network nodes"),
    ("host's address", |w| w.edge["spec"]["virtualIP"] = json!("10.0.0.1"),
        "spec.virtualIP: 10.0.0.1: the endpoint 10.0.0.1 is the appliance's own address on network nodes"),
    ("in DHCP", |w| w.edge["spec"]["virtualIP"] = json!("10.0.0.105"),
        "spec.virtualIP: 10.0.0.105: the endpoint 10.0.0.105 lies in the DHCP range of network nodes, 10.0.0.100 to 10.0.0.120"),
    ("in a pool", |w| w.edge["spec"]["virtualIP"] = json!("10.0.0.45"),
        "spec.virtualIP: 10.0.0.45: the endpoint 10.0.0.45 lies in IPPool services, 10.0.0.40 to 10.0.0.49"),
    ("another's", |w| w.edge["spec"]["virtualIP"] = json!("10.0.0.11"),
        "spec.virtualIP: 10.0.0.11: the endpoint 10.0.0.11 on network nodes is that of cluster market already"),
    ("pods and services", |w| w.profile["spec"]["layers"][1]["kubernetes"]["serviceCIDR"] = json!("10.244.128.0/20"),
        "spec.profile: podCIDR 10.244.0.0/16 of the Kubernetes layer overlaps with serviceCIDR, 10.244.128.0/20"),
    ("pods and machines", |w| w.profile["spec"]["layers"][1]["kubernetes"]["podCIDR"] = json!("10.0.0.0/16"),
        "spec.profile: podCIDR 10.0.0.0/16 of the Kubernetes layer overlaps with network nodes of the appliance, 10.0.0.0/24"),
    ("appliance", |w| w.edge["spec"]["placements"][0]["appliance"] = json!("far"),
        "spec.placements[0].appliance: \"far\": expected the name of an Appliance; there is none of this name"),
    ("network", |w| w.edge["spec"]["placements"][0]["networks"][0]["name"] = json!("wan"),
        "spec.placements[0].networks[0].name: \"wan\": expected a network of the appliance: nodes, lan"),
    ("network type", |w| w.edge["spec"]["placements"][0]["networkType"] = json!("Bridge"),
        "spec.placements[0].networks[0].name: nodes is of type Nat: expected Bridge, as networkType says"),
    ("address pool", |w| w.edge["spec"]["placements"][0]["networks"][0]["addressPool"] = json!("none"),
        "spec.placements[0].networks[0].addressPool: \"none\": expected an IPPool: machines, services"),
    ("invalid address pool", |w| w.pools[0]["spec"]["range"]["start"] = json!("10.0.0.90"),
        "spec.placements[0].networks[0].addressPool: IPPool machines is invalid: spec.range starts at 10.0.0.90 and ends before that"),
    ("address pool in DHCP", |w| w.pools[0]["spec"]["range"]["end"] = json!("10.0.0.100"),
        "spec.placements[0].networks[0].addressPool: IPPool machines, 10.0.0.20 to 10.0.0.100, overlaps with the DHCP range of network nodes, 10.0.0.100 to 10.0.0.120: expected addresses apart"),
    ("services' pool in DHCP", |w| w.pools[1]["spec"]["range"] = json!({ "start": "10.0.0.120", "end": "10.0.0.130" }),
        "spec.loadBalancer.addressPool: IPPool services, 10.0.0.120 to 10.0.0.130, overlaps with the DHCP range"),
    ("services' pool", |w| w.edge["spec"]["loadBalancer"]["addressPool"] = json!("none"),
        "spec.loadBalancer.addressPool: \"none\": expected an IPPool: machines, services"),
    ("services", |w| w.edge["spec"]["loadBalancer"]["addresses"] = json!(11),
        "spec.loadBalancer.addresses: 11: expected at most 10, which IPPool services has"),
    ("storage pool", |w| w.edge["spec"]["placements"][0]["dataPool"] = json!("slow"),
        "spec.placements[0].dataPool: \"slow\": expected a storage pool of the appliance: images, fast, bulk"),
    ("image pool", |w| w.edge["spec"]["placements"][0]["imagePool"] = json!("fast"),
        "spec.placements[0].imagePool: \"fast\": expected \"images\", the appliance's image pool; another one is not possible in this version"),
    ("placements", |w| { let p = &mut w.edge["spec"]["placements"]; let first = p[0].clone(); p.as_array_mut().unwrap().push(first); },
        "spec.placements: 2: expected one; a second appliance is not possible in this version"),
    ("vCPUs", |w| w.edge["spec"]["workers"][1]["hardware"]["vcpus"] = json!(17),
        "spec.workers[1].hardware.vcpus: 17: expected at most 16, which the host has"),
    ("vCPUs of a control plane", |w| w.edge["spec"]["controlPlane"]["hardware"]["vcpus"] = json!(1),
        "spec.controlPlane.hardware.vcpus: 1: expected at least 2, which kubeadm asks of a control plane"),
    ("memory of a control plane", |w| w.edge["spec"]["controlPlane"]["hardware"]["memoryMiB"] = json!(1700),
        "spec.controlPlane.hardware.memoryMiB: 1700: expected at least 1800"),
    ("CPU set", |w| w.edge["spec"]["workers"][0]["hardware"]["cpuSet"] = json!("0-3,16"),
        "spec.workers[0].hardware.cpuSet: cpuSet \"0-3,16\" names CPU 16, the host has 0 to 15"),
    ("CPU set backwards", |w| w.edge["spec"]["workers"][0]["hardware"]["cpuSet"] = json!("3-0"),
        "spec.workers[0].hardware.cpuSet: cpuSet \"3-0\" is not of the form 0-3,6 with each range rising"),
    ("memory", |w| w.machines.push(machine("other", 40_000)),
        "spec: 28672 MiB of memory for all machines: expected at most 24512 MiB, which other machines leave of the host's 65536 MiB"),
    ("workers of a preset", |w| w.edge["spec"]["workers"][0]["size"] = json!(1),
        "spec.workers: 2 machines: expected at least 3, which preset storage/replicated needs"),
    ("version", |w| w.edge["spec"]["kubernetesVersion"] = json!("1.36.9"),
        "spec.kubernetesVersion: 1.36.9: expected a tag of pcg-edge.io/vm/kubernetes-node in the appliance's registry: 1.35.9, 1.36.3, 1.36.4, 1.37.1, 1.38.0"),
    ("back", |w| w.current = Some(current("v1.36.4", 3, "uid-of-shop")),
        "spec.kubernetesVersion: 1.36.3: expected at least 1.36.4, which the cluster has; there is no way back"),
    ("skipped", |w| { w.edge["spec"]["kubernetesVersion"] = json!("1.38.0"); w.current = Some(current("v1.36.3", 3, "uid-of-shop")); },
        "spec.kubernetesVersion: 1.38.0: expected at most 1.37, because a minor version cannot be skipped from 1.36.3"),
    ("another image", |w| { let spec = json!({ "appliance": "local", "artifact": format!("example.com/os@sha256:{:064}", 1) });
                            w.image = Some(named("VirtualMachineImage", "kubernetes-v1.36.3", spec)); },
        "spec.profile: VirtualMachineImage kubernetes-v1.36.3 is example.com/os on Appliance local: expected pcg-edge.io/vm/kubernetes-node"),
    ("another's Cluster", |w| w.current = Some(current("v1.36.3", 3, "uid-of-another")),
        "metadata.name: \"shop\": there is a Cluster of this name that belongs to nobody here"),
    ("SSH key", |w| w.edge["spec"]["sshAuthorizedKeys"][0] = json!("ssh-ed25519 A\nroot"),
        "spec.sshAuthorizedKeys[0]: expected one line of at most 2048 characters as in an authorized_keys file"),
];

#[test]
fn each_thing_that_is_wrong_is_said_alone() {
    assert_eq!(check(&example()), Vec::<String>::new());
    for (name, edit, said) in CASES {
        let mut world = example();
        edit(&mut world);
        let errors = check(&world);
        assert_eq!(errors.len(), 1, "{name}: {errors:#?}");
        assert!(errors[0].contains(said), "{name}: {} does not say {said}", errors[0]);
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let mut world = example();
    let together =
        ["size", "virtual IP", "pods and services", "storage pool", "vCPUs", "SSH key", "services", "version"];
    for (_, edit, _) in CASES.iter().filter(|(name, ..)| together.contains(name)) {
        edit(&mut world);
    }
    let errors = check(&world);
    for (name, _, said) in CASES.iter().filter(|(name, ..)| together.contains(name)) {
        assert!(errors.iter().any(|error| error.contains(said)), "{name} is not in {errors:#?}");
    }
    assert_eq!(errors.len(), together.len(), "{errors:#?}");
}

#[test]
fn an_emulated_control_plane_may_have_one_cpu() {
    let mut world = example();
    world.appliance["status"]["host"]["accelerator"] = json!("tcg");
    world.edge["spec"]["controlPlane"]["hardware"]["vcpus"] = json!(1);
    assert_eq!(check(&world), Vec::<String>::new());
}

/// Machines that run already are nobody's mistake, whatever came beside them.
#[test]
fn what_runs_keeps_its_memory() {
    let mut world = example();
    world.machines = vec![machine("other", 60_000), machine("shop-1", 28_672)];
    assert_eq!(check(&world).len(), 1);
    world.own_machines.insert("shop-1".to_owned());
    assert_eq!(check(&world), Vec::<String>::new());
}

proptest! {
    /// Other sizes, addresses, versions and hardware that are right are not refused.
    #[test]
    fn a_valid_cluster_stays_valid(
        size in prop::sample::select(vec![1_u32, 3, 5]),
        workers in prop::collection::vec(0_u32..4, 0..4),
        last in prop::sample::select((2..=9).chain(12..=19).chain(30..=39).chain(121..=254).collect::<Vec<u8>>()),
        version in prop::sample::select(vec!["1.36.3", "1.36.4", "1.37.1"]),
        vcpus in 2_u32..=16, memory in 1800_u64..=2048, before in prop::sample::select(vec![1_u32, 3, 5]), exists: bool,
    ) {
        let mut world = example();
        let spec = &mut world.edge["spec"];
        let hardware = json!({ "vcpus": vcpus, "memoryMiB": memory, "rootDiskGiB": 10, "cpuSet": "15,0-14" });
        let pool = |(n, size): (usize, &u32)| json!({ "name": format!("p{n}"), "size": size, "hardware": hardware });
        spec["workers"] = workers.iter().enumerate().map(pool).collect();
        spec["presets"] = json!({});
        spec["virtualIP"] = json!(format!("10.0.0.{last}"));
        spec["kubernetesVersion"] = json!(version);
        spec["controlPlane"] = json!({ "size": size, "hardware": hardware, "allowWorkers": workers.iter().sum::<u32>() == 0 });
        if exists {
            world.current = Some(current("v1.36.3", before.min(size), "uid-of-shop"));
        }
        prop_assert_eq!(check(&world), Vec::<String>::new());
    }
}
