#![allow(clippy::needless_pass_by_value, reason = "values are written where they are used")]

use serde_json::{Value, json};

use super::*;

const START: &str = "2026-01-01T00:00:00Z";

fn at(minute: u8) -> Timestamp {
    format!("2026-01-01T00:{minute:02}:00Z").parse().unwrap()
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": START})
}

fn object<K: serde::de::DeserializeOwned>(kind: &str, name: &str, rest: Value) -> K {
    let mut object = json!({"apiVersion": "x/v1", "kind": kind, "metadata": {"name": name}, "spec": {}});
    for (pointer, value) in rest.as_object().unwrap() {
        object[pointer] = value.clone();
    }
    object["metadata"]["name"] = name.into();
    serde_json::from_value(object).unwrap()
}

/// A machine as Cluster API 1.14 has it: with more conditions than are kept.
fn machine(name: &str, labels: Value, node: Option<&str>, conditions: Value) -> Machine {
    let mut status = json!({"phase": "Pending", "lastUpdated": START, "conditions": conditions});
    status["conditions"].as_array_mut().unwrap().push(condition("UpToDate", "False", "NotUpToDate", "* Version: no"));
    if let Some(node) = node {
        status["nodeRef"] = json!({"name": node});
    }
    object("Machine", name, json!({"metadata": {"labels": labels, "creationTimestamp": START}, "status": status}))
}

fn control_plane() -> Value {
    json!({"cluster.x-k8s.io/cluster-name": "shop", "cluster.x-k8s.io/control-plane": ""})
}

fn worker(pool: &str) -> Value {
    json!({"cluster.x-k8s.io/cluster-name": "shop", "topology.cluster.x-k8s.io/deployment-name": pool})
}

fn libvirt(reason: &str, message: &str) -> LibvirtMachine {
    let spec = json!({"appliance": "local", "image": "kubernetes-v1.36.3", "vcpus": 2, "memoryMiB": 2048,
        "rootDisk": {"pool": "default"}, "interfaces": [{"network": "nodes"}]});
    let status = if reason.is_empty() {
        json!(null)
    } else {
        let holds = if reason == "Running" { "True" } else { "False" };
        json!({"conditions": [condition("Ready", holds, reason, message)]})
    };
    object("LibvirtMachine", "m", json!({"spec": spec, "status": status}))
}

fn vm(phase: &str, reason: &str, message: &str) -> VirtualMachine {
    let spec = json!({"id": "5a3f1c52-0c5b-4f3e-9d5e-4a1f60b6a4a1", "appliance": "local", "vcpus": 1, "memoryMiB": 64});
    let holds = if reason == "Running" { "True" } else { "False" };
    let status = json!({"phase": phase, "conditions": [condition("Ready", holds, reason, message)]});
    object("VirtualMachine", "m", json!({"spec": spec, "status": status}))
}

fn image(reason: &str, message: &str) -> VirtualMachineImage {
    let holds = if reason == "Ready" { "True" } else { "False" };
    object(
        "VirtualMachineImage",
        "kubernetes-v1.36.3",
        json!({"spec": {"appliance": "local", "artifact": "a@sha256:0"},
            "status": {"conditions": [condition("Ready", holds, reason, message)]}}),
    )
}

fn cluster(conditions: Value) -> Cluster {
    object("Cluster", "shop", json!({"status": {"conditions": conditions}}))
}

fn infrastructure(conditions: Value) -> LibvirtCluster {
    let spec = json!({"appliance": "local", "network": "nodes"});
    object("LibvirtCluster", "shop-x", json!({"spec": spec, "status": {"conditions": conditions}}))
}

fn application(name: &str, state: StepState, message: &str) -> Application {
    let (name, kind, message) = (name.to_owned(), "manifest".to_owned(), message.to_owned());
    Application { name, kind, state, message, version: None, since: None }
}

/// Name, state and message of the tasks and their parts.
fn shown(tasks: &[ClusterTask]) -> Vec<String> {
    let mut lines = Vec::new();
    let text = |name: &str, state, message: &str| format!("{name} {state:?} {message}").trim_end().to_owned();
    for task in tasks {
        lines.push(text(&task.name, task.state, &task.message));
        lines.extend(task.parts.iter().map(|part| text(&format!("  {}", part.name), part.state, &part.message)));
    }
    lines
}

/// The state and message of the parts of one machine, and of the whole.
fn parts(machine: &Machine, libvirt: Option<&LibvirtMachine>, vm: Option<&VirtualMachine>) -> [String; 4] {
    let machines = vec![ObservedMachine { machine, libvirt, vm }];
    let observed =
        Observed { cluster: None, infrastructure: None, image: None, machines, layers: &[], deleting: false };
    let mut lines = shown(&tree(&observed, &[], at(0))[2..]);
    assert_eq!(lines.len(), 4, "{lines:?}");
    for (line, name) in lines.iter_mut().zip(["machine m ", "  virtual machine ", "  bootstrap ", "  join "]) {
        *line = line.strip_prefix(name).unwrap_or_else(|| panic!("{line}")).to_owned();
    }
    lines.try_into().unwrap()
}

#[test]
fn a_cluster_from_nothing_to_ready() {
    let none = Observed {
        cluster: None,
        infrastructure: None,
        image: None,
        machines: Vec::new(),
        layers: &[application("network", StepState::Pending, "is next")],
        deleting: false,
    };
    let tasks = tree(&none, &[], at(0));
    let expected = [
        "endpoint Running waits for the Cluster of Cluster API to be made",
        "image Running waits for the VirtualMachineImage to be made",
        "layer network Pending is next",
    ];
    assert_eq!(shown(&tasks), expected);
    assert_eq!((tasks[0].since, tasks[2].since), (Some(at(0)), None));

    let (cluster, image) = (cluster(json!([])), image("Downloading", "VM image kubernetes: 40 %"));
    let tasks = tree(&Observed { cluster: Some(&cluster), image: Some(&image), ..none }, &tasks, at(1));
    let expected = [
        "endpoint Running waits for Cluster API to make the LibvirtCluster",
        "image Running VM image kubernetes: 40 %",
        "layer network Pending is next",
    ];
    assert_eq!(shown(&tasks), expected);
    assert_eq!(tasks[1].since, Some(at(0)), "the same state");

    let infrastructure = infrastructure(json!([condition("Ready", "True", "Provisioned", "10.0.0.5:6443")]));
    let image = super::tests::image("Ready", "all volumes are there");
    let healthy = json!([condition("NodeHealthy", "True", "NodeHealthy", "")]);
    let (first, second) = (
        machine("shop-b", control_plane(), Some("shop-b"), healthy.clone()),
        machine("shop-a", worker("general"), Some("shop-a"), healthy),
    );
    let vm = vm("Running", "Running", "runs, and the guest agent answers");
    let layers = [application("network", StepState::Ready, ""), application("metrics", StepState::Ready, "")];
    let observed = Observed {
        cluster: Some(&cluster),
        infrastructure: Some(&infrastructure),
        image: Some(&image),
        machines: vec![
            ObservedMachine { machine: &second, libvirt: None, vm: Some(&vm) },
            ObservedMachine { machine: &first, libvirt: None, vm: Some(&vm) },
        ],
        layers: &layers,
        deleting: false,
    };
    let ready = tree(&observed, &tasks, at(2));
    let names: Vec<_> = ready.iter().map(|task| (task.name.as_str(), task.state)).collect();
    let done = |name| (name, TaskState::Done);
    let expected =
        ["endpoint", "image", "machine shop-b", "machine shop-a", "layer network", "layer metrics"].map(done);
    assert_eq!(names, expected, "the control plane first");
    assert_eq!(current(&ready), None);
    assert!(ready.iter().flat_map(|t| &t.parts).all(|p| p.state == TaskState::Done && p.since == Some(at(2))));
    assert_eq!(tree(&observed, &ready, at(9)), ready, "nothing changed: the same bytes");
}

#[test]
fn machines_are_in_the_order_they_come_up() {
    let machines: Vec<_> = [
        ("c2", control_plane()),
        ("w1", worker("b")),
        ("w3", worker("a")),
        ("w2", worker("a")),
        ("c1", control_plane()),
    ]
    .map(|(name, labels)| machine(name, labels, None, json!([])))
    .into();
    let machines = machines.iter().map(|machine| ObservedMachine { machine, libvirt: None, vm: None }).collect();
    let observed =
        Observed { cluster: None, infrastructure: None, image: None, machines, layers: &[], deleting: false };
    let names: Vec<_> = tree(&observed, &[], at(0)).into_iter().skip(2).map(|task| task.name).collect();
    assert_eq!(names, ["c1", "c2", "w2", "w3", "w1"].map(|name| format!("machine {name}")));
}

#[test]
fn the_stages_of_a_machine() {
    let machine_of = |conditions| machine("m", worker("general"), None, conditions);
    let nothing = machine_of(json!([]));
    let waits = "waits for Cluster API to make the LibvirtMachine";
    assert_eq!(
        parts(&nothing, None, None),
        [&format!("Pending virtual machine: {waits}"), &format!("Pending {waits}"), "Pending", "Pending"]
    );

    let no_data = machine_of(json!([condition(
        "BootstrapConfigReady",
        "False",
        "NotReady",
        "* DataSecretAvailable: Waiting for Cluster control plane to be initialized"
    )]));
    let waiting = libvirt("WaitingForBootstrapData", "waits for the bootstrap data of Machine m");
    let [whole, part, ..] = parts(&no_data, Some(&waiting), None);
    let text = "waits for the bootstrap data: DataSecretAvailable: Waiting for Cluster control plane to be initialized";
    assert_eq!((whole, part), (format!("Pending virtual machine: {text}"), format!("Pending {text}")));

    let waiting = libvirt("WaitingForIPAddress", "waits for the address of interface 0");
    assert_eq!(parts(&nothing, Some(&waiting), None)[1], "Running waits for the address of interface 0");
    let waiting = libvirt("WaitingForClusterInfrastructure", "waits for the infrastructure of Cluster shop");
    assert_eq!(parts(&nothing, Some(&waiting), None)[1], "Pending waits for the infrastructure of Cluster shop");
    let full = libvirt("AddressPoolExhausted", "waits for the address of interface 0: no address is free");
    assert_eq!(
        parts(&nothing, Some(&full), None)[..2],
        [
            "Failed virtual machine: waits for the address of interface 0: no address is free",
            "Failed waits for the address of interface 0: no address is free"
        ]
    );

    let made = libvirt("ImageNotReady", "");
    for (vm, expected) in [
        (
            vm("Pending", "ImageNotReady", "waits for VirtualMachineImage k: 40 %"),
            "Running waits for VirtualMachineImage k: 40 %",
        ),
        (vm("Preparing", "Preparing", "disks and domain are being made"), "Running disks and domain are being made"),
        (vm("Failed", "InsufficientMemory", "needs 4096 MiB"), "Failed needs 4096 MiB"),
        (vm("Running", "Paused", "the domain is paused"), "Failed the domain is paused"),
    ] {
        let [_, part, bootstrap, join] = parts(&nothing, Some(&made), Some(&vm));
        assert_eq!([part.as_str(), &bootstrap, &join], [expected, "Pending", "Pending"]);
    }

    let boots = vm("Running", "WaitingForAgent", "runs; waits for the guest's qemu-guest-agent to connect");
    let expected = [
        "Running bootstrap: the guest boots: runs; waits for the guest's qemu-guest-agent to connect",
        "Done",
        "Running the guest boots: runs; waits for the guest's qemu-guest-agent to connect",
        "Pending",
    ];
    assert_eq!(parts(&nothing, Some(&made), Some(&boots)), expected);

    let runs = vm("Running", "Running", "runs, and the guest agent answers");
    let awaited = machine_of(json!([condition(
        "NodeHealthy",
        "Unknown",
        "InspectionFailed",
        "Waiting for a Node with spec.providerID libvirt:///x to exist"
    )]));
    let expected = "Running kubeadm runs in the guest; Waiting for a Node with spec.providerID libvirt:///x to exist";
    assert_eq!(parts(&awaited, Some(&made), Some(&runs))[1..], ["Done", expected, "Pending"]);
    assert_eq!(parts(&nothing, Some(&made), Some(&runs))[2], "Running kubeadm runs in the guest");

    let failed = libvirt("BootstrapFailed", "cloud-init ended without making a node of this machine");
    let text = "Failed cloud-init ended without making a node of this machine";
    assert_eq!(parts(&awaited, Some(&failed), Some(&runs))[1..], ["Done", text, "Pending"]);

    let joined = |conditions| machine("m", worker("general"), Some("m"), conditions);
    let not_ready = joined(json!([condition(
        "NodeHealthy",
        "False",
        "NodeNotHealthy",
        "* Node.Ready: container runtime network not ready\n* Node.DiskPressure: kubelet has disk pressure"
    )]));
    let text = "Node.Ready: container runtime network not ready; Node.DiskPressure: kubelet has disk pressure";
    assert_eq!(
        parts(&not_ready, Some(&made), Some(&runs)),
        [&format!("Running join: {text}"), "Done", "Done", &format!("Running {text}")]
    );
    assert_eq!(parts(&joined(json!([])), Some(&made), Some(&runs))[3], "Running waits for Node m to be healthy");
    let lost = joined(json!([condition(
        "NodeHealthy",
        "False",
        "NodeDeleted",
        "Node m has been deleted while the Machine still exists"
    )]));
    assert_eq!(
        parts(&lost, Some(&made), Some(&runs))[3],
        "Failed Node m has been deleted while the Machine still exists"
    );
    let healthy = joined(json!([condition("NodeHealthy", "True", "NodeHealthy", "")]));
    assert_eq!(parts(&healthy, Some(&made), Some(&runs)), ["Done", "Done", "Done", "Done"]);
    // A guest that crashed later.
    let crashed = vm("Failed", "Crashed", "the guest crashed and is kept for inspection");
    let [whole, ..] = parts(&healthy, Some(&made), Some(&crashed));
    assert_eq!(whole, "Failed virtual machine: the guest crashed and is kept for inspection");
}

#[test]
fn a_bootstrap_that_never_ends_is_told() {
    let machine = machine("m", control_plane(), None, json!([]));
    let mut guest = vm("Running", "WaitingForAgent", "runs; waits for the guest's qemu-guest-agent to connect");
    guest.status.as_mut().unwrap().console_log = Some("/opt/x/console/m.log".into());
    let libvirt = libvirt("WaitingForAgent", "");
    let bootstrap_at = |guest: &VirtualMachine, now: &str| {
        let machines = vec![ObservedMachine { machine: &machine, libvirt: Some(&libvirt), vm: Some(guest) }];
        let observed =
            Observed { cluster: None, infrastructure: None, image: None, machines, layers: &[], deleting: false };
        shown(&tree(&observed, &[], now.parse().unwrap()))[4].clone()
    };
    let boots = "  bootstrap Running the guest boots: runs; waits for the guest's qemu-guest-agent to connect";
    assert_eq!(bootstrap_at(&guest, "2026-01-01T02:00:00Z"), boots, "nobody knows since when");
    guest.metadata.creation_timestamp = serde_json::from_value(json!(START)).unwrap();
    assert_eq!(bootstrap_at(&guest, "2026-01-01T00:59:59Z"), boots);
    let late = "  bootstrap Failed the guest is no node after 60 minutes; /opt/x/console/m.log has what it said last";
    assert_eq!(bootstrap_at(&guest, "2026-01-01T01:00:00Z"), late);
    let class = include_str!("../../../../deploy/cluster-class.yaml");
    assert!(class.contains(&format!("nodeStartupTimeoutSeconds: {}\n", STARTUP.as_secs())));
}

#[test]
fn what_fails_is_said_first() {
    let taken =
        infrastructure(json!([condition("Ready", "False", "EndpointTaken", "10.0.0.5 is taken by Cluster first")]));
    let cluster_object = cluster(json!([]));
    let layers = [
        application("network", StepState::Waiting, "DaemonSet x: 0 of 1 available"),
        application("metrics", StepState::Failed, "no such luck"),
    ];
    let mut observed = Observed {
        cluster: Some(&cluster_object),
        infrastructure: Some(&taken),
        image: None,
        machines: Vec::new(),
        layers: &layers,
        deleting: false,
    };
    let tasks = tree(&observed, &[], at(0));
    assert_eq!(shown(&tasks)[0], "endpoint Failed 10.0.0.5 is taken by Cluster first");
    assert_eq!(current(&tasks).unwrap().to_string(), "endpoint failed: 10.0.0.5 is taken by Cluster first");

    let good = infrastructure(json!([condition("Ready", "True", "Provisioned", "")]));
    observed.infrastructure = Some(&good);
    let tasks = tree(&observed, &tasks, at(1));
    assert_eq!(current(&tasks).unwrap().to_string(), "layer metrics failed: no such luck");
    observed.layers = &layers[..1];
    let tasks = tree(&observed, &tasks, at(1));
    assert_eq!(current(&tasks).unwrap().to_string(), "image: waits for the VirtualMachineImage to be made");

    let refused =
        cluster(json!([condition("TopologyReconciled", "False", "ReconcileFailed", "variable \"x\" is unknown")]));
    observed.cluster = Some(&refused);
    assert_eq!(
        shown(&tree(&observed, &tasks, at(2)))[0],
        "endpoint Failed Cluster API cannot go on: variable \"x\" is unknown"
    );
}

#[test]
fn a_part_is_named_with_its_task() {
    let boots = vm("Running", "WaitingForAgent", "waits");
    let machine = machine("m", control_plane(), None, json!([]));
    let machines = vec![ObservedMachine { machine: &machine, libvirt: None, vm: Some(&boots) }];
    let (cluster, infrastructure, image) = (
        cluster(json!([])),
        infrastructure(json!([condition("Ready", "True", "Provisioned", "")])),
        image("Ready", ""),
    );
    let observed = Observed {
        cluster: Some(&cluster),
        infrastructure: Some(&infrastructure),
        image: Some(&image),
        machines,
        layers: &[],
        deleting: false,
    };
    let tasks = tree(&observed, &[], at(0));
    let current = current(&tasks).unwrap();
    assert_eq!(current.to_string(), "machine m: bootstrap: the guest boots: waits");
    assert_eq!(current.part.unwrap().name, "bootstrap");
}

#[test]
fn a_cluster_that_goes_shows_what_is_still_there() {
    let mut leaving = machine(
        "m",
        control_plane(),
        Some("m"),
        json!([condition(
            "Deleting",
            "True",
            "DrainingNode",
            "Drain not completed yet (started at x):\n* Pods a: cannot be evicted"
        )]),
    );
    leaving.metadata.deletion_timestamp = Some(serde_json::from_value(json!(START)).unwrap());
    let (cluster, infrastructure) =
        (cluster(json!([])), infrastructure(json!([condition("Ready", "True", "Provisioned", "")])));
    let mut observed = Observed {
        cluster: Some(&cluster),
        infrastructure: Some(&infrastructure),
        image: None,
        machines: vec![ObservedMachine { machine: &leaving, libvirt: None, vm: None }],
        layers: &[application("network", StepState::Ready, "")],
        deleting: true,
    };
    let tasks = tree(&observed, &[], at(0));
    let expected = [
        "machine m Running is being removed: Drain not completed yet (started at x): Pods a: cannot be evicted",
        "endpoint Pending waits for the machines to go",
        "cluster Pending waits for the machines to go",
    ];
    assert_eq!(shown(&tasks), expected);

    let mut libvirt = libvirt("Deleting", "waits for VirtualMachine m to go: the guest shuts down");
    libvirt.metadata.deletion_timestamp.clone_from(&leaving.metadata.deletion_timestamp);
    observed.machines[0].libvirt = Some(&libvirt);
    let text = "machine m Running is being removed: waits for VirtualMachine m to go: the guest shuts down";
    assert_eq!(shown(&tree(&observed, &tasks, at(1)))[0], text);

    observed.machines.clear();
    let expected = ["endpoint Running is being given up", "cluster Pending waits for the endpoint to go"];
    assert_eq!(shown(&tree(&observed, &tasks, at(1))), expected);
    observed.infrastructure = None;
    let tasks = tree(&observed, &tasks, at(1));
    assert_eq!(shown(&tasks), ["cluster Running waits for Cluster API to remove Cluster shop"]);
    observed.cluster = None;
    assert_eq!(tree(&observed, &tasks, at(2)), []);
}

#[test]
fn of_many_conditions_only_some_are_kept() {
    let machine = machine(
        "m",
        json!({}),
        None,
        json!([
            condition("NodeHealthy", "True", "NodeHealthy", ""),
            condition("EtcdMemberHealthy", "True", "Healthy", "")
        ]),
    );
    let kept: Vec<_> = machine.status.unwrap().conditions.into_iter().map(|c| c.type_).collect();
    assert_eq!(kept, ["NodeHealthy"]);
}
