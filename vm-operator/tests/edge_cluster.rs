//! Clusters as people want them, on a real API server with Cluster API's definitions, and with its core manager where
//! what that does matters. Libvirt is the test driver, which cannot hold images.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use edge_api::cluster_api::{ANNOTATION_BLOCK_MOVE, ANNOTATION_PAUSED, LABEL_CLUSTER};
use edge_api::edge_cluster::ClusterPhase;
use edge_api::names::{ANNOTATION_FORCE_DELETE, FINALIZER, LABEL_EDGE_CLUSTER};
use edge_api::{
    Appliance, ClusterProfile, Condition, EdgeCluster, IPPool, LibvirtCluster, LibvirtMachine, LibvirtMachineTemplate,
    VirtualMachine, VirtualMachineImage, condition,
};
use edge_tests::eventually;
use edge_tests::wait::Seen;
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use support::{LONG, NAMESPACE, OPERATOR, SHORT, Site, TIMES};
use vm_operator::cluster_api::upstream::{Cluster, IPAddress, IPAddressClaim, Machine};
use vm_operator::context::Times;

const URI: &str = "test:///default";
const IMAGE: &str = "pcg-edge.io/vm/kubernetes-node";

/// A control plane with all kinds, an appliance that answers, an image of one version, and a profile.
async fn start(number: u8) -> Result<Site> {
    let site = Site::start(number, URI).await?;
    support::cluster_api::install(&site.client()).await?;
    furnish(&site).await?;
    Ok(site)
}

async fn furnish(site: &Site) -> Result<()> {
    site.appliance().await?;
    let kernel = [(edge_api::bundle::VM_KERNEL, b"kernel".to_vec(), json!({}))];
    site.registry.push_as(IMAGE, Some("1.36.3"), &kernel).await?;
    site.create::<ClusterProfile>("edge", profile()).await?;
    Ok(())
}

fn profile() -> Value {
    json!({
        "version": "1.0.0", "type": "Full", "tags": { "tier": "shop", "not a label!": "x" },
        "layers": [
            { "name": "os", "kind": "OS", "os": { "image": IMAGE } },
            { "name": "kubernetes", "kind": "Kubernetes", "version": "1.36.3",
              "kubernetes": { "podCIDR": "10.244.0.0/16", "serviceCIDR": "10.96.0.0/12" } },
            { "name": "network", "kind": "Network", "manifests": [{ "inline": "{}" }] },
            { "name": "storage", "kind": "Storage", "manifests": [{ "inline": "{}" }] },
        ],
    })
}

fn spec(address: &str) -> Value {
    // Libvirt's test driver has 3 GiB.
    let hardware = |memory: u64| json!({ "vcpus": 2, "memoryMiB": memory, "rootDiskGiB": 20 });
    json!({
        "profile": "edge", "virtualIP": address,
        "controlPlane": { "size": 1, "hardware": hardware(1800) },
        "workers": [{ "name": "general", "size": 1, "hardware": hardware(1024) }],
        "placements": [{ "appliance": "local", "networks": [{ "name": "wan" }], "targetPool": "default" }],
    })
}

fn address(number: u8, last: u8) -> String {
    format!("192.168.{}.{last}", 210 + number)
}

async fn phase(site: &Site, name: &str, wanted: ClusterPhase) -> Result<EdgeCluster> {
    let api = site.api::<EdgeCluster>();
    let found = eventually(&format!("{name} to be {wanted:?}"), SHORT, || async {
        let cluster = api.get(name).await?;
        let status = cluster.status.clone().unwrap_or_default();
        let current = status.observed_generation == cluster.metadata.generation;
        Ok::<_, kube::Error>(if current && status.phase == wanted {
            Seen::Done(cluster)
        } else {
            Seen::NotYet(format!("{status:?}"))
        })
    })
    .await?;
    Ok(found)
}

fn find<'a>(cluster: &'a EdgeCluster, type_: &str) -> Result<&'a Condition> {
    let conditions = cluster.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition::find(conditions, type_).with_context(|| format!("no condition {type_}"))
}

/// Starts the operator anew, so that it looks at everything once more every second, and waits until it writes nothing
/// for a few of these looks. What a status follows may still change for a while: the test driver cannot take an image,
/// whose own controller tries ever less often. Returns what was last written where that does not come.
async fn writes_of_a_resync(site: &mut Site) -> Result<Vec<String>> {
    const QUIET: Duration = Duration::from_secs(4);
    site.kill_operator().await;
    site.start_operator(Times { resync: Duration::from_secs(1), ..TIMES })?;
    // Something new is seen to be looked at, so all else was as well.
    site.create::<IPPool>("marker", json!({ "subnet": "10.9.0.0/24", "prefix": 24 })).await?;
    site.wait::<IPPool>("marker", "Ready", |c| condition::is_true(c, "Ready"), SHORT).await?;
    let end = Instant::now() + Duration::from_secs(40);
    loop {
        let mark = site.plane.audit().mark()?;
        tokio::time::sleep(QUIET).await;
        let writes = site.plane.audit().writes_since(mark, |user| user == OPERATOR)?;
        let of_others = |write: &String| !write.contains("/kubernetes-v");
        let shown: Vec<String> = writes.iter().map(ToString::to_string).filter(of_others).collect();
        if shown.is_empty() || Instant::now() > end {
            return Ok(shown);
        }
    }
}

/// One Cluster of the class, an image, addresses; nothing is written twice; and all of it goes.
#[tokio::test]
async fn a_cluster_comes_and_goes() -> Result<()> {
    let mut site = start(30).await?;
    let range = json!({ "start": address(30, 40), "end": address(30, 49) });
    site.create::<IPPool>("services", json!({ "range": range, "prefix": 24 })).await?;
    let mut wanted = spec(&address(30, 10));
    wanted["loadBalancer"] = json!({ "addressPool": "services", "addresses": 2 });
    site.create::<EdgeCluster>("shop", wanted).await?;
    let edge = phase(&site, "shop", ClusterPhase::Provisioning).await?;
    assert!(condition::is_true(&edge.status.clone().unwrap_or_default().conditions, "Valid"));
    assert_eq!(edge.status.clone().unwrap_or_default().nodes.as_deref(), Some("0/2"));

    let cluster = site.api::<Cluster>().get("shop").await?;
    assert_eq!(cluster.labels()[LABEL_EDGE_CLUSTER], "shop");
    assert_eq!(cluster.labels()["tier"], "shop");
    assert_eq!(cluster.owner_references().iter().map(|o| o.kind.as_str()).collect::<Vec<_>>(), ["EdgeCluster"]);
    assert_eq!(cluster.spec.version(), Some("v1.36.3"));
    let topology = cluster.spec.topology.context("topology")?;
    assert_eq!(topology["classRef"]["name"], "pcg-edge-v1");
    assert_eq!(topology["controlPlane"]["replicas"], 1);
    assert_eq!(topology["workers"]["machineDeployments"][0]["name"], "general");
    let image = site.api::<VirtualMachineImage>().get("kubernetes-v1.36.3").await?;
    assert!(image.spec.artifact.starts_with(&format!("{IMAGE}@sha256:")), "{}", image.spec.artifact);

    let api = site.api::<EdgeCluster>();
    let edge = eventually("shop to have its addresses and to wait for its machines", SHORT, || async {
        let edge = api.get("shop").await?;
        let status = edge.status.clone().unwrap_or_default();
        let provisioning = condition::find(&status.conditions, "Ready").is_some_and(|c| c.reason == "Provisioning");
        let has_addresses = status.load_balancer_addresses == [address(30, 40), address(30, 41)];
        Ok::<_, kube::Error>(if provisioning && has_addresses {
            Seen::Done(edge)
        } else {
            Seen::NotYet(format!("{status:?}"))
        })
    })
    .await?;
    println!("shop: {}", find(&edge, "Ready")?.message);
    let claim = site.api::<IPAddressClaim>().get("shop-lb-0").await?;
    assert_eq!(claim.labels()[LABEL_CLUSTER], "shop");
    assert_eq!(claim.owner_references().len(), 1);

    let writes = writes_of_a_resync(&mut site).await?;
    assert!(writes.is_empty(), "{writes:#?}");

    // A changed pool is a changed Cluster; fewer addresses are given back.
    site.edit::<EdgeCluster>("shop", json!({ "loadBalancer": { "addresses": 1 } })).await?;
    site.gone::<IPAddress>("shop-lb-1").await?;
    let edge = phase(&site, "shop", ClusterPhase::Provisioning).await?;
    assert_eq!(edge.status.unwrap_or_default().load_balancer_addresses, [address(30, 40)]);

    moves_with_its_cluster(&site).await?;
    site.delete::<EdgeCluster>("shop").await?;
    site.gone::<EdgeCluster>("shop").await?;
    nothing_is_left(&site).await
}

/// What `clusterctl move` does, as one side sees it: pauses the Cluster, and removes it here. No second one is made; and
/// a Cluster that arrives later, and is let go on, is taken over.
async fn moves_with_its_cluster(site: &Site) -> Result<()> {
    let annotated = async |annotation: &str| {
        let edge = site.api::<EdgeCluster>().get("shop").await?;
        anyhow::Ok(edge.annotations().get(annotation).cloned())
    };
    assert_eq!(annotated(ANNOTATION_BLOCK_MOVE).await?.as_deref(), Some(""), "it asks for time");
    let clusters = site.api::<Cluster>();
    let cluster = clusters.get("shop").await?;
    site.edit::<Cluster>("shop", json!({ "paused": true })).await?;
    let paused = |c: &[Condition]| condition::find(c, "Ready").is_some_and(|c| c.reason == "Paused");
    site.wait::<EdgeCluster>("shop", "Paused", paused, SHORT).await?;
    assert_eq!(annotated(ANNOTATION_PAUSED).await?.as_deref(), Some("Cluster"));
    assert_eq!(annotated(ANNOTATION_BLOCK_MOVE).await?, None);

    site.delete::<Cluster>("shop").await?;
    site.gone::<Cluster>("shop").await?;
    site.edit::<EdgeCluster>("shop", json!({ "loadBalancer": { "addresses": 2 } })).await?;
    let generation = site.api::<EdgeCluster>().get("shop").await?.metadata.generation;
    let looked = |c: &[Condition]| condition::find(c, "Ready").is_some_and(|c| c.observed_generation == generation);
    let edge = site.wait::<EdgeCluster>("shop", "looked at once more", looked, SHORT).await?;
    assert_eq!(find(&edge, "Ready")?.reason, "Paused");
    assert!(clusters.get_opt("shop").await?.is_none(), "no second Cluster");

    let mut arrived = cluster;
    arrived.metadata.resource_version = None;
    arrived.spec.paused = Some(true);
    clusters.create(&PostParams::default(), &arrived).await?;
    site.edit::<Cluster>("shop", json!({ "paused": false })).await?;
    site.wait::<EdgeCluster>("shop", "going on", |c| !paused(c), SHORT).await?;
    assert_eq!(annotated(ANNOTATION_PAUSED).await?, None);
    assert_eq!(annotated(ANNOTATION_BLOCK_MOVE).await?.as_deref(), Some(""));
    let addresses = [address(30, 40), address(30, 41)];
    eventually("its addresses to be as they were asked for meanwhile", SHORT, || async {
        let status = site.api::<EdgeCluster>().get("shop").await?.status.unwrap_or_default();
        Ok::<_, kube::Error>(Seen::when(status.load_balancer_addresses == addresses, status))
    })
    .await?;
    Ok(())
}

/// `clusterctl move` takes a cluster along with its Cluster: the other side goes on with the same addresses, and makes
/// no second Cluster.
#[tokio::test]
async fn clusterctl_moves_it() -> Result<()> {
    let (source, mut target) = (Site::start(10, URI).await?, Site::start(11, URI).await?);
    for site in [&source, &target] {
        support::cluster_api::install_all(&site.client()).await?;
    }
    furnish(&source).await?;
    // The same host, and what belongs to it and to no cluster.
    target.instance.clone_from(&source.instance);
    target.secret("registry-pull", &source.registry.secret()).await?;
    let appliance = source.api::<Appliance>().get("local").await?;
    target.create::<Appliance>("local", serde_json::to_value(&appliance.spec)?).await?;
    target.create::<ClusterProfile>("edge", profile()).await?;
    support::cluster_api::cluster_class(&source.client(), NAMESPACE).await?;
    let range = json!({ "start": address(10, 40), "end": address(10, 49) });
    source.create::<IPPool>("services", json!({ "range": range, "prefix": 24 })).await?;
    let mut wanted = spec(&address(10, 10));
    wanted["loadBalancer"] = json!({ "addressPool": "services", "addresses": 1 });
    source.create::<EdgeCluster>("shop", wanted).await?;
    source.wait::<IPAddressClaim>("shop-lb-0", "Ready", |c| condition::is_true(c, "Ready"), SHORT).await?;
    // What core and control plane would say, which clusterctl wants before it moves.
    let initialized = json!([{
        "type": "ControlPlaneInitialized", "status": "True", "reason": "Initialized", "message": "played",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]);
    let status = json!({ "status": {
        "conditions": initialized, "initialization": { "infrastructureProvisioned": true, "controlPlaneInitialized": true },
    } });
    source.api::<Cluster>().patch_status("shop", &PatchParams::default(), &Patch::Merge(&status)).await?;

    let to = target.plane.kubeconfig();
    let arguments = ["move", "--namespace", NAMESPACE, "--to-kubeconfig", &to.to_string_lossy()];
    println!("{}", support::cluster_api::clusterctl(&source.plane, &arguments).await?);

    assert!(source.api::<EdgeCluster>().get_opt("shop").await?.is_none());
    assert!(source.api::<Cluster>().get_opt("shop").await?.is_none());
    let going_on = |c: &[Condition]| condition::find(c, "Ready").is_some_and(|c| c.reason == "Provisioning");
    let edge = target.wait::<EdgeCluster>("shop", "going on", going_on, SHORT).await?;
    assert!(!edge.annotations().contains_key(ANNOTATION_PAUSED));
    assert_eq!(edge.status.clone().unwrap_or_default().load_balancer_addresses, [address(10, 40)]);
    let clusters = target.api::<Cluster>().list(&ListParams::default()).await?.items;
    let owners: Vec<String> =
        clusters.iter().flat_map(kube::ResourceExt::owner_references).map(|o| o.uid.clone()).collect();
    assert_eq!((clusters.len(), owners), (1, vec![edge.uid().context("uid")?]));
    Ok(())
}

async fn nothing_is_left(site: &Site) -> Result<()> {
    assert!(site.api::<Cluster>().list(&ListParams::default()).await?.items.is_empty());
    assert!(site.api::<IPAddressClaim>().list(&ListParams::default()).await?.items.is_empty());
    assert!(site.api::<IPAddress>().list(&ListParams::default()).await?.items.is_empty());
    site.gone::<VirtualMachineImage>("kubernetes-v1.36.3").await?;
    Ok(())
}

/// Everything that is wrong is said at once and nothing is made; what is corrected goes on; the younger of two yields.
#[tokio::test]
async fn what_makes_no_sense_is_said() -> Result<()> {
    let site = start(31).await?;
    let mut wrong = spec("10.77.0.1");
    wrong["controlPlane"]["size"] = json!(2);
    wrong["kubernetesVersion"] = json!("1.35.0");
    wrong["placements"][0]["targetPool"] = json!("nowhere");
    site.create::<EdgeCluster>("shop", wrong).await?;
    let expected = [
        "spec.controlPlane.size: 2: expected 1, 3 or 5",
        "spec.placements[0].targetPool: \"nowhere\": expected a storage pool of the appliance: default",
        "spec: 4624 MiB of memory for all machines: expected at most 3072 MiB, which other machines leave of the host's 3072 MiB",
        "spec.virtualIP: 10.77.0.1: the endpoint 10.77.0.1 is no host address of network wan, which is 192.168.241.0/24",
        "spec.kubernetesVersion: 1.35.0: expected a tag of pcg-edge.io/vm/kubernetes-node in the appliance's registry: 1.36.3",
    ];
    let expected = expected.join("\n");
    // All at once; the operator may have heard of the profile after the cluster.
    let told = |c: &[Condition]| condition::find(c, "Valid").is_some_and(|valid| valid.message == expected);
    let edge = site.wait::<EdgeCluster>("shop", "told what is wrong", told, SHORT).await?;
    assert_eq!(find(&edge, "Ready")?.reason, "Invalid");
    assert!(site.api::<Cluster>().get_opt("shop").await?.is_none());
    assert!(site.api::<VirtualMachineImage>().list(&ListParams::default()).await?.items.is_empty());
    // Invalid or not, it goes.
    site.delete::<EdgeCluster>("shop").await?;
    site.gone::<EdgeCluster>("shop").await?;

    let mut wrong = spec(&address(31, 10));
    wrong["profile"] = json!("nowhere");
    site.create::<EdgeCluster>("shop", wrong).await?;
    let edge = phase(&site, "shop", ClusterPhase::Pending).await?;
    assert_eq!(find(&edge, "Valid")?.message, "spec.profile: \"nowhere\": expected a ClusterProfile: edge");
    site.edit::<EdgeCluster>("shop", json!({ "profile": "edge" })).await?;
    phase(&site, "shop", ClusterPhase::Provisioning).await?;

    // Who is the younger one is told by the second.
    let first = site.api::<EdgeCluster>().get("shop").await?.metadata.creation_timestamp.context("a time")?.0;
    eventually("the next second", SHORT, || async {
        let now = jiff::Timestamp::now();
        Ok::<_, kube::Error>(Seen::when(now.as_second() > first.as_second(), now))
    })
    .await?;
    site.create::<EdgeCluster>("second", spec(&address(31, 10))).await?;
    let edge = phase(&site, "second", ClusterPhase::Pending).await?;
    let taken = &find(&edge, "Valid")?.message;
    assert!(taken.contains("is that of cluster shop already"), "{taken}");
    site.delete::<EdgeCluster>("shop").await?;
    phase(&site, "second", ClusterPhase::Provisioning).await?;
    let image = site.api::<VirtualMachineImage>().get_opt("kubernetes-v1.36.3").await?;
    assert!(image.is_some_and(|image| image.metadata.deletion_timestamp.is_none()), "the second one uses it");
    site.delete::<EdgeCluster>("second").await?;
    site.gone::<EdgeCluster>("second").await?;
    nothing_is_left(&site).await
}

/// With Cluster API's own core: the class takes what is written, the endpoint comes up, and the way back is clean from
/// wherever it begins.
#[tokio::test]
async fn with_the_core_of_cluster_api() -> Result<()> {
    let mut site = Site::start(32, URI).await?;
    let Some(core) = support::cluster_api::Core::start(&site.plane).await? else {
        println!("the bundle has no Cluster API: this test needs it");
        return Ok(());
    };
    support::cluster_api::cluster_class(&site.client(), NAMESPACE).await?;
    furnish(&site).await?;
    let result = lives_with(&mut site).await;
    result.with_context(|| format!("cluster-api-controller wrote:\n{}", core.tail()))
}

async fn lives_with(site: &mut Site) -> Result<()> {
    let range = json!({ "start": address(32, 20), "end": address(32, 29) });
    site.create::<IPPool>("machines", json!({ "range": range, "prefix": 24 })).await?;
    let mut wanted = spec(&address(32, 10));
    wanted["placements"][0]["networks"][0]["addressPool"] = json!("machines");
    wanted["controlPlane"]["hardware"]["cpuSet"] = json!("0");
    wanted["controlPlane"]["labels"] = json!({ "tier": "control" });
    site.create::<EdgeCluster>("shop", wanted.clone()).await?;
    let made = eventually("a LibvirtCluster to be provisioned", LONG, || async {
        let all = site.api::<LibvirtCluster>().list(&ListParams::default()).await?.items;
        let is_ready = |c: &&LibvirtCluster| c.status.as_ref().is_some_and(|s| s.initialization.is_some());
        Ok::<_, kube::Error>(match all.iter().find(is_ready) {
            Some(found) => Seen::Done(found.clone()),
            None => Seen::NotYet(format!("{:?}", all.iter().map(|c| &c.status).collect::<Vec<_>>())),
        })
    })
    .await?;
    assert_eq!(made.spec.control_plane_endpoint.context("endpoint")?.host, address(32, 10));
    assert_eq!((made.spec.appliance.as_str(), made.spec.network.as_str()), ("local", "wan"));
    let templates = site.api::<LibvirtMachineTemplate>().list(&ListParams::default()).await?.items;
    let control_plane = templates.iter().find(|t| t.spec.template.spec.cpu_set.is_some()).context("its template")?;
    let machine = &control_plane.spec.template.spec;
    assert_eq!((machine.image.as_str(), machine.cpu_set.as_deref()), ("kubernetes-v1.36.3", Some("0")));
    assert_eq!(machine.interfaces[0].address_pool.as_deref(), Some("machines"));
    let edge = phase(site, "shop", ClusterPhase::Provisioning).await?;
    let tasks = edge.status.clone().unwrap_or_default().tasks;
    println!("{tasks:#?}");
    assert!(tasks.iter().any(|task| task.name == "layer network"), "{tasks:?}");

    let writes = writes_of_a_resync(site).await?;
    let of_clusters: Vec<&String> =
        writes.iter().filter(|w| w.contains("clusters.cluster.x-k8s.io") || w.contains("/clusters ")).collect();
    assert!(of_clusters.is_empty(), "what Cluster API defaults is no difference: {of_clusters:#?}");

    site.delete::<EdgeCluster>("shop").await?;
    site.gone::<EdgeCluster>("shop").await?;
    for attempt in ["at once", "with its Cluster", "with its infrastructure"] {
        site.create::<EdgeCluster>("shop", wanted.clone()).await?;
        let begun = || async {
            let cluster = site.api::<Cluster>().get_opt("shop").await?;
            let infrastructure = site.api::<LibvirtCluster>().list(&ListParams::default()).await?.items;
            let is_there = match attempt {
                "at once" => true,
                "with its Cluster" => cluster.is_some(),
                _ => !infrastructure.is_empty(),
            };
            Ok::<_, kube::Error>(Seen::when(is_there, attempt))
        };
        eventually(attempt, LONG, begun).await?;
        site.delete::<EdgeCluster>("shop").await?;
        site.gone::<EdgeCluster>("shop").await.context(attempt)?;
        nothing_is_left(site).await?;
        assert!(site.api::<LibvirtCluster>().list(&ListParams::default()).await?.items.is_empty());
        assert!(site.api::<Machine>().list(&ListParams::default()).await?.items.is_empty());
    }
    Ok(())
}

/// Nobody takes the Cluster apart: what is left is said, and by force it is listed and left.
#[tokio::test]
async fn a_stuck_deletion_can_be_forced() -> Result<()> {
    let mut site = start(33).await?;
    site.create::<EdgeCluster>("shop", spec(&address(33, 10))).await?;
    phase(&site, "shop", ClusterPhase::Provisioning).await?;
    // As Cluster API holds it.
    let held = json!({ "metadata": { "finalizers": ["cluster.cluster.x-k8s.io"] } });
    site.api::<Cluster>().patch("shop", &PatchParams::default(), &Patch::Merge(&held)).await?;
    let libvirt = json!({
        "apiVersion": "infrastructure.cluster.x-k8s.io/v1alpha1", "kind": "LibvirtCluster",
        "metadata": { "name": "shop-x", "labels": { LABEL_CLUSTER: "shop" }, "finalizers": [FINALIZER] },
        "spec": { "appliance": "local", "network": "wan" },
    });
    site.api::<LibvirtCluster>().create(&PostParams::default(), &serde_json::from_value(libvirt)?).await?;
    site.delete::<EdgeCluster>("shop").await?;
    let edge = phase(&site, "shop", ClusterPhase::Deleting).await?;
    assert!(find(&edge, "Ready")?.message.starts_with("waits for these to go: Cluster shop"), "{edge:?}");
    let force = json!({ "metadata": { "annotations": { ANNOTATION_FORCE_DELETE: "true" } } });
    site.api::<EdgeCluster>().patch("shop", &PatchParams::default(), &Patch::Merge(&force)).await?;
    site.create::<IPPool>("marker", json!({ "subnet": "10.9.0.0/24", "prefix": 24 })).await?;
    site.wait::<IPPool>("marker", "Ready", |c| condition::is_true(c, "Ready"), SHORT).await?;
    assert!(site.api::<EdgeCluster>().get_opt("shop").await?.is_some(), "not before its time");

    site.kill_operator().await;
    site.start_operator(Times { force: Duration::from_secs(1), ..TIMES })?;
    site.gone::<EdgeCluster>("shop").await?;
    site.gone::<LibvirtCluster>("shop-x").await?;
    assert!(site.api::<Cluster>().get_opt("shop").await?.is_some(), "Cluster API's own stays, and is listed");
    let events = site.api::<k8s_openapi::api::events::v1::Event>().list(&ListParams::default()).await?.items;
    let said = events.into_iter().find(|e| e.reason.as_deref() == Some("ForceDeleted")).and_then(|e| e.note);
    let said = said.context("an event")?;
    println!("{said}");
    assert!(said.contains("Cluster shop"), "{said}");
    Ok(())
}

/// Without Cluster API a cluster waits for it, and goes all the same.
#[tokio::test]
async fn without_cluster_api() -> Result<()> {
    let site = Site::start(34, URI).await?;
    support::cluster_api::install_ours(&site.client()).await?;
    furnish(&site).await?;
    site.create::<EdgeCluster>("shop", spec(&address(34, 10))).await?;
    let waits = |c: &[Condition]| condition::find(c, "Ready").is_some_and(|c| c.reason == "WaitingForClusterAPI");
    site.wait::<EdgeCluster>("shop", "WaitingForClusterAPI", waits, SHORT).await?;
    // As from a time when Cluster API was there.
    let held = json!({ "metadata": { "finalizers": [FINALIZER] } });
    site.api::<EdgeCluster>().patch("shop", &PatchParams::default(), &Patch::Merge(&held)).await?;
    let labels = json!({ LABEL_CLUSTER: "shop" });
    let machine = json!({
        "apiVersion": "infrastructure.cluster.x-k8s.io/v1alpha1", "kind": "LibvirtMachine",
        "metadata": { "name": "shop-x", "labels": labels, "finalizers": [FINALIZER] },
        "spec": { "appliance": "local", "vcpus": 1, "memoryMiB": 64, "image": "node",
                  "rootDisk": { "pool": "default" }, "interfaces": [{ "network": "wan" }] },
    });
    site.api::<LibvirtMachine>().create(&PostParams::default(), &serde_json::from_value(machine)?).await?;
    let vm = json!({ "id": uuid::Uuid::new_v4().to_string(), "appliance": "local", "vcpus": 1, "memoryMiB": 64, "image": "node" });
    site.create::<VirtualMachine>("shop-x", vm).await?;
    site.delete::<EdgeCluster>("shop").await?;
    site.gone::<EdgeCluster>("shop").await?;
    site.gone::<LibvirtMachine>("shop-x").await?;
    site.gone::<VirtualMachine>("shop-x").await
}
