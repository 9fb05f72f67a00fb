//! The provider of Cluster API on a real API server. Libvirt is the test driver, which cannot hold images: machines
//! whose domain runs are played by writing the status that the `VirtualMachine` would have.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use edge_api::cluster_api::{ANNOTATION_PAUSED, LABEL_CLUSTER};
use edge_api::{IPPool, LibvirtCluster, LibvirtMachine, VirtualMachine, condition};
use edge_tests::wait::Seen;
use edge_tests::{ControlPlane, eventually};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use support::objects::{
    BOOTSTRAP, bootstrap, bootstrap_secret, cluster, clusters, create, files, libvirt_cluster, machine, machine_with,
    merge, message, names, own, pool, provisioned, reason, runs, subnet, until,
};
use support::{NAMESPACE, OPERATOR, SHORT, Site, TIMES};
use vm_operator::cluster_api::upstream::{Cluster, IPAddress, IPAddressClaim, Machine};
use vm_operator::context::Times;

const URI: &str = "test:///default";

/// A control plane with all kinds and an appliance that answers.
async fn start(number: u8) -> Result<Site> {
    let site = Site::start(number, URI).await?;
    // The operator runs already, and finds the kinds when they come.
    support::cluster_api::install(&site.client()).await?;
    site.appliance().await?;
    Ok(site)
}

/// From nothing to a machine whose domain runs, each wait said; paused; a resync without a write; and gone again.
#[tokio::test]
async fn a_machine_comes_and_goes() -> Result<()> {
    let mut site = start(40).await?;
    let net = subnet(40);
    libvirt_cluster(&site, "one", None).await?;
    reason::<LibvirtCluster>(&site, "one", "WaitingForCluster").await?;
    let owner = cluster(&site, "one").await?;
    own::<LibvirtCluster>(&site, "one", &owner).await?;
    reason::<LibvirtCluster>(&site, "one", "WaitingForControlPlaneEndpoint").await?;
    let endpoint = json!({ "controlPlaneEndpoint": { "host": format!("{net}.10"), "port": 6443 } });
    merge::<Cluster>(&site, "one", json!({ "spec": endpoint })).await?;
    let taken = reason::<LibvirtCluster>(&site, "one", "Provisioned").await?;
    assert_eq!(taken.spec.control_plane_endpoint.context("endpoint")?.host, format!("{net}.10"));
    assert_eq!(taken.spec.virtual_router_id, Some(1));
    let status = taken.status.context("status")?;
    assert_eq!(status.initialization.and_then(|i| i.provisioned), Some(true));
    assert_eq!(status.failure_domains[0].name, "local");

    let range = json!({ "start": format!("{net}.20"), "end": format!("{net}.29") });
    let of_pool = json!({ "range": range, "prefix": 24, "gateway": format!("{net}.1"), "nameServers": ["9.9.9.9"] });
    pool(&site, "nodes", of_pool).await?;
    machine(&site, "cp-1", "one", true).await?;
    reason::<LibvirtMachine>(&site, "cp-1", "WaitingForClusterInfrastructure").await?;
    provisioned(&site, "one").await?;
    reason::<LibvirtMachine>(&site, "cp-1", "WaitingForBootstrapData").await?;
    assert!(names::<VirtualMachine>(&site).await?.is_empty(), "nothing is made before its data is there");
    bootstrap(&site, "cp-1", "cp-1-data").await?;
    bootstrap_secret(&site, "cp-1-data", "ignition").await?;
    reason::<LibvirtMachine>(&site, "cp-1", "BootstrapFormatUnsupported").await?;
    bootstrap_secret(&site, "cp-1-data", "cloud-config").await?;
    // The image does not exist: the machine says what its domain waits for.
    let made = reason::<LibvirtMachine>(&site, "cp-1", "ImageNotFound").await?;
    let id = made.spec.provider_id.clone().context("providerID")?;
    let id = id.strip_prefix("libvirt:///").context("prefix")?;
    let vm = site.api::<VirtualMachine>().get("cp-1").await?;
    assert_eq!((vm.spec.id.as_str(), vm.spec.guest_agent), (id, true));
    let owner = vm.owner_references().first().context("owner")?;
    assert_eq!(
        (owner.kind.as_str(), owner.controller, owner.block_owner_deletion),
        ("LibvirtMachine", Some(true), Some(true))
    );

    let seed = files(&site, "cp-1-seed").await?;
    assert_eq!(seed["user-data"], BOOTSTRAP, "byte for byte");
    let meta: Value = serde_json::from_slice(&seed["meta-data"])?;
    assert_eq!(meta, json!({ "instance-id": id, "local-hostname": "cp-1" }));
    let network: Value = serde_json::from_slice(&seed["network-config"])?;
    assert_eq!(network["ethernets"]["eth0"]["addresses"], json!([format!("{net}.20/24")]));
    assert_eq!(network["ethernets"]["eth0"]["routes"][0]["via"], format!("{net}.1"));
    assert_eq!(network["ethernets"]["eth1"]["dhcp4"], true);
    let node = files(&site, "cp-1-node").await?;
    assert!(node["registry-host"].starts_with(b"registry.pcg-edge.internal:"));
    assert_eq!(node["registry-address"], format!("{net}.1\n").into_bytes());
    assert!(String::from_utf8_lossy(&node["keepalived.conf"]).contains(&format!("{net}.10/32 dev eth0")));

    let claim = site.api::<IPAddressClaim>().get("cp-1-0").await?;
    let owner = claim.owner_references().first().context("owner")?;
    assert_eq!(
        (owner.kind.as_str(), owner.controller, owner.block_owner_deletion),
        ("LibvirtMachine", Some(true), Some(true))
    );
    assert_eq!(claim.spec.cluster_name.as_deref(), Some("one"));
    let address = site.api::<IPAddress>().get("cp-1-0").await?;
    assert_eq!(address.finalizers(), ["ipam.cluster.x-k8s.io/protect-address"]);
    let owners: Vec<_> = address.owner_references().iter().map(|o| (o.kind.as_str(), o.controller)).collect();
    assert_eq!(owners, [("IPAddressClaim", Some(true)), ("IPPool", Some(false))]);

    // A new process looks at everything anew, and then again every second.
    site.kill_operator().await;
    let mark = site.plane.audit().mark()?;
    site.start_operator(Times { resync: Duration::from_secs(1), ..TIMES })?;
    pool(&site, "marker", json!({ "subnet": "10.9.0.0/24", "prefix": 24 })).await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let writes = site.plane.audit().writes_since(mark, |user| user == OPERATOR)?;
    let of_marker = |w: &&edge_tests::audit::Write| w.object.ends_with("/marker") || w.object.contains("/marker.");
    let others: Vec<String> = writes.iter().filter(|w| !of_marker(w)).map(ToString::to_string).collect();
    println!("writes of a resync: {} besides {} for a new pool", others.len(), writes.len() - others.len());
    assert!(others.is_empty() && !writes.is_empty(), "{others:?}");
    site.kill_operator().await;
    site.start_operator(TIMES)?;

    let running = runs(&site, "cp-1", "10.1.0.9").await?;
    let status = running.status.context("status")?;
    let shown: Vec<&str> = status.addresses.iter().map(|a| a.address.as_str()).collect();
    assert_eq!(shown, ["cp-1", &format!("{net}.20"), "10.1.0.9"]);
    assert_eq!(status.failure_domain.as_deref(), Some("local"));

    // Deleted behind our back: that is said, and nothing blank takes its place.
    machine(&site, "worker", "one", false).await?;
    bootstrap(&site, "worker", "cp-1-data").await?;
    reason::<LibvirtMachine>(&site, "worker", "ImageNotFound").await?;
    runs(&site, "worker", "10.1.0.10").await?;
    site.delete::<VirtualMachine>("worker").await?;
    reason::<LibvirtMachine>(&site, "worker", "VirtualMachineLost").await?;
    assert!(site.api::<VirtualMachine>().get_opt("worker").await?.is_none());
    site.delete::<LibvirtMachine>("worker").await?;
    site.gone::<LibvirtMachine>("worker").await?;

    // Paused: not even its deletion goes on.
    merge::<Cluster>(&site, "one", json!({ "spec": { "paused": true } })).await?;
    let is_paused = |c: &[edge_api::Condition]| condition::is_true(c, "Paused");
    site.wait::<LibvirtMachine>("cp-1", "Paused", is_paused, SHORT).await?;
    site.wait::<LibvirtCluster>("one", "Paused", is_paused, SHORT).await?;
    until("the VirtualMachine to be paused as well", async || {
        let annotations = site.api::<VirtualMachine>().get_metadata("cp-1").await?.metadata.annotations;
        Ok((annotations.iter().flatten().any(|(key, _)| key == ANNOTATION_PAUSED), annotations))
    })
    .await?;
    site.delete::<LibvirtCluster>("one").await?;
    site.delete::<LibvirtMachine>("cp-1").await?;
    site.api::<Secret>().delete("cp-1-data", &kube::api::DeleteParams::default()).await?;
    // Something else goes on meanwhile, so the deletions were seen.
    pool(&site, "marker-2", json!({ "subnet": "10.8.0.0/24", "prefix": 24 })).await?;
    assert_eq!(names::<VirtualMachine>(&site).await?.len(), 1, "a paused machine stays");
    assert!(site.api::<VirtualMachine>().get("cp-1").await?.metadata.deletion_timestamp.is_none());

    merge::<Cluster>(&site, "one", json!({ "spec": { "paused": null } })).await?;
    site.gone::<LibvirtMachine>("cp-1").await?;
    site.gone::<LibvirtCluster>("one").await?;
    assert!(names::<VirtualMachine>(&site).await?.is_empty());
    assert!(names::<IPAddressClaim>(&site).await?.is_empty());
    assert!(names::<IPAddress>(&site).await?.is_empty());
    let left: Vec<String> = names::<Secret>(&site).await?.into_iter().filter(|n| n.starts_with("cp-1")).collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// A cluster waits for its machines; one that never got its data goes as well, and one whose owner is gone.
#[tokio::test]
async fn deleted_in_any_order() -> Result<()> {
    let site = start(41).await?;
    let net = subnet(41);
    clusters(&site, &[("one", Some(&format!("{net}.10")))]).await?;
    provisioned(&site, "one").await?;
    pool(&site, "nodes", json!({ "subnet": format!("{net}.32/29"), "prefix": 24, "gateway": format!("{net}.1") }))
        .await?;
    for name in ["made", "waits", "orphan"] {
        machine(&site, name, "one", false).await?;
        reason::<LibvirtMachine>(&site, name, "WaitingForBootstrapData").await?;
    }
    for name in ["made", "orphan"] {
        bootstrap_secret(&site, &format!("{name}-data"), "cloud-config").await?;
        bootstrap(&site, name, &format!("{name}-data")).await?;
        reason::<LibvirtMachine>(&site, name, "ImageNotFound").await?;
    }
    assert!(!files(&site, "made-node").await?.contains_key("keepalived.conf"), "a worker has no virtual address");
    // The data's Secret is not there at all.
    bootstrap(&site, "waits", "nowhere").await?;

    site.delete::<IPPool>("nodes").await?;
    reason::<IPPool>(&site, "nodes", "InUse").await?;
    site.delete::<LibvirtCluster>("one").await?;
    reason::<LibvirtCluster>(&site, "one", "Deleting").await?;
    site.delete::<Machine>("orphan").await?;
    site.delete::<LibvirtMachine>("waits").await?;
    site.gone::<LibvirtMachine>("waits").await?;
    // Somebody deleted what was made first.
    site.delete::<VirtualMachine>("made").await?;
    site.delete::<LibvirtMachine>("made").await?;
    site.gone::<LibvirtMachine>("made").await?;
    assert!(site.api::<LibvirtCluster>().get_opt("one").await?.is_some(), "one machine is left");
    site.delete::<Cluster>("one").await?;
    site.delete::<LibvirtMachine>("orphan").await?;
    site.gone::<LibvirtMachine>("orphan").await?;
    site.gone::<LibvirtCluster>("one").await?;
    site.gone::<IPPool>("nodes").await?;
    assert!(names::<VirtualMachine>(&site).await?.is_empty() && names::<IPAddress>(&site).await?.is_empty());
    Ok(())
}

/// Each thing that a machine cannot be has its reason, and no domain.
#[tokio::test]
async fn machines_that_cannot_be() -> Result<()> {
    let site = start(39).await?;
    let net = subnet(39);
    clusters(&site, &[("one", Some(&format!("{net}.10")))]).await?;
    provisioned(&site, "one").await?;
    pool(&site, "nodes", json!({ "subnet": format!("{net}.32/31"), "prefix": 24 })).await?;
    bootstrap_secret(&site, "data", "cloud-config").await?;
    site.create::<VirtualMachine>(
        "stranger",
        json!({ "id": uuid::Uuid::new_v4().to_string(), "appliance": "local",
        "vcpus": 1, "memoryMiB": 64, "image": "node" }),
    )
    .await?;
    let data = json!({ "bootstrap": { "dataSecretName": "data" } });
    let elsewhere = json!({ "bootstrap": { "dataSecretName": "data" }, "failureDomain": "far-away" });
    let on_lan = json!({ "interfaces": [{ "network": "lan" }] });
    let pool_missing = json!({ "interfaces": [{ "network": "wan", "addressPool": "nowhere" }] });
    let disk = json!({ "rootDisk": { "pool": "nowhere" }, "interfaces": [{ "network": "wan" }] });
    let none = || json!({});
    let cases = [
        ("far", false, elsewhere, none(), "FailureDomainMismatch"),
        ("cp", true, data.clone(), on_lan, "EndpointNetworkMissing"),
        ("stranger", false, data.clone(), none(), "NameTaken"),
        ("poolless", false, data.clone(), pool_missing, "PoolNotReady"),
        ("diskless", false, data.clone(), disk, "PoolNotFound"),
        ("first", false, data.clone(), none(), "ImageNotFound"),
        ("second", false, data.clone(), none(), "ImageNotFound"),
    ];
    for (name, control_plane, theirs, ours, expected) in cases {
        machine_with(&site, name, "one", control_plane, theirs, ours).await?;
        reason::<LibvirtMachine>(&site, name, expected).await?;
    }
    // The pool has two addresses.
    machine_with(&site, "third", "one", false, data, none()).await?;
    reason::<LibvirtMachine>(&site, "third", "PoolExhausted").await?;
    let made = names::<VirtualMachine>(&site).await?;
    assert_eq!(made, ["diskless", "first", "second", "stranger"].map(ToOwned::to_owned).into());
    site.delete::<LibvirtMachine>("first").await?;
    reason::<LibvirtMachine>(&site, "third", "ImageNotFound").await?;
    // Taken away while a guest has it.
    site.delete::<IPAddressClaim>("second-0").await?;
    reason::<LibvirtMachine>(&site, "second", "IPAddressLost").await?;
    // What is not ours stays.
    site.delete::<LibvirtMachine>("stranger").await?;
    site.gone::<LibvirtMachine>("stranger").await?;
    assert!(site.api::<VirtualMachine>().get("stranger").await?.metadata.deletion_timestamp.is_none());
    Ok(())
}

async fn claim(site: &Site, name: &str, pool: &str, cluster: &str) -> Result<()> {
    let reference = json!({ "apiGroup": "pcg-edge.io", "kind": "IPPool", "name": pool });
    let spec = json!({ "clusterName": cluster, "poolRef": reference });
    let claim: IPAddressClaim = serde_json::from_value(json!({
        "apiVersion": "ipam.cluster.x-k8s.io/v1beta2", "kind": "IPAddressClaim", "metadata": { "name": name },
        "spec": spec,
    }))?;
    site.api::<IPAddressClaim>().create(&PostParams::default(), &claim).await?;
    Ok(())
}

async fn given(site: &Site) -> Result<Vec<(String, String)>> {
    let all = site.api::<IPAddress>().list(&ListParams::default()).await?.items;
    Ok(all.into_iter().map(|a| (a.name_any(), a.spec.address)).collect())
}

/// Many claims at once never share an address; who gets none says so until one is free.
#[tokio::test]
async fn addresses_have_one_owner() -> Result<()> {
    let site = start(42).await?;
    cluster(&site, "one").await?;
    cluster(&site, "two").await?;
    let range = |end: u8| json!({ "start": "10.0.0.1", "end": format!("10.0.0.{end}") });
    pool(&site, "small", json!({ "range": range(5), "prefix": 24, "gateway": "10.0.0.1" })).await?;
    // The same addresses once more: nobody may get one twice.
    pool(&site, "twin", json!({ "range": range(6), "prefix": 24, "gateway": "10.0.0.1" })).await?;
    let names: Vec<(String, &str)> =
        (0..8).map(|n| (format!("c-{n}"), if n % 2 == 0 { "small" } else { "twin" })).collect();
    futures_join(&site, &names).await?;
    // Five of them: 2 to 5 of both, 6 of the twin, and the gateway never.
    let five = until("five addresses, and three that wait", async || {
        let given = given(&site).await?;
        let claims = site.api::<IPAddressClaim>().list(&ListParams::default()).await?.items;
        let full = |c: &&IPAddressClaim| {
            let conditions = c.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            condition::find(conditions, "Ready").is_some_and(|c| c.reason == "PoolExhausted")
        };
        let waiting = claims.iter().filter(full).count();
        Ok((given.len() + waiting == 8, (given, waiting)))
    })
    .await?;
    println!("given out: {five:?}");
    let different: BTreeSet<&String> = five.0.iter().map(|(_, address)| address).collect();
    assert_eq!(different.len(), five.0.len(), "{five:?}");
    assert!((4..=5).contains(&five.0.len()) && !different.contains(&"10.0.0.1".to_owned()), "{five:?}");

    // Released: somebody who waits has it.
    let (first, free) = five.0.first().cloned().context("an address")?;
    site.delete::<IPAddressClaim>(&first).await?;
    site.gone::<IPAddressClaim>(&first).await?;
    until("the released address to have a new owner", async || {
        let given = given(&site).await?;
        Ok((given.iter().any(|(name, address)| *name != first && *address == free), given))
    })
    .await?;
    // Grown: all have one.
    merge::<IPPool>(&site, "small", json!({ "spec": { "range": range(20) } })).await?;
    merge::<IPPool>(&site, "twin", json!({ "spec": { "range": range(20) } })).await?;
    let all = until("seven addresses", async || {
        let given = given(&site).await?;
        Ok((given.len() == 7, given))
    })
    .await?;
    assert_eq!(all.iter().map(|(_, address)| address).collect::<BTreeSet<_>>().len(), 7);
    until("the counts to follow", async || {
        let mut used = 0;
        for pool in ["small", "twin"] {
            let status = site.api::<IPPool>().get(pool).await?.status.unwrap_or_default();
            assert_eq!(status.free + status.used, status.total);
            used += status.used;
        }
        Ok((used == 7, used))
    })
    .await?;

    // One cluster only, and an invalid pool.
    let sole =
        json!({ "range": { "start": "10.2.0.9", "end": "10.2.0.12" }, "prefix": 24, "restrictToSingleCluster": true });
    pool(&site, "sole", sole).await?;
    claim(&site, "s-1", "sole", "one").await?;
    reason::<IPAddressClaim>(&site, "s-1", "Allocated").await?;
    claim(&site, "s-2", "sole", "two").await?;
    reason::<IPAddressClaim>(&site, "s-2", "PoolReserved").await?;
    site.delete::<IPAddressClaim>("s-1").await?;
    reason::<IPAddressClaim>(&site, "s-2", "Allocated").await?;
    pool(&site, "bad", json!({ "range": { "start": "10.3.0.9", "end": "10.3.0.2" }, "prefix": 24 })).await?;
    reason::<IPPool>(&site, "bad", "Invalid").await?;
    claim(&site, "b-1", "bad", "one").await?;
    reason::<IPAddressClaim>(&site, "b-1", "PoolNotReady").await?;
    // A claim of a paused cluster waits.
    merge::<Cluster>(&site, "one", json!({ "spec": { "paused": true } })).await?;
    claim(&site, "p-1", "small", "one").await?;
    claim(&site, "p-2", "small", "two").await?;
    reason::<IPAddressClaim>(&site, "p-2", "Allocated").await?;
    assert!(site.api::<IPAddressClaim>().get("p-1").await?.finalizers().is_empty());
    merge::<Cluster>(&site, "one", json!({ "spec": { "paused": false } })).await?;
    reason::<IPAddressClaim>(&site, "p-1", "Allocated").await?;
    Ok(())
}

async fn futures_join(site: &Site, claims: &[(String, &str)]) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (name, pool) in claims {
        let reference = json!({ "apiGroup": "pcg-edge.io", "kind": "IPPool", "name": pool });
        let object: IPAddressClaim = serde_json::from_value(json!({
            "apiVersion": "ipam.cluster.x-k8s.io/v1beta2", "kind": "IPAddressClaim", "metadata": { "name": name },
            "spec": { "clusterName": "one", "poolRef": reference },
        }))?;
        let api = site.api::<IPAddressClaim>();
        tasks.spawn(async move { api.create(&PostParams::default(), &object).await });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Virtual addresses that somebody else answers to are refused, with both sides named.
#[tokio::test]
async fn endpoints_are_checked() -> Result<()> {
    let site = start(43).await?;
    let net = subnet(43);
    let range = json!({ "start": format!("{net}.20"), "end": format!("{net}.29") });
    pool(&site, "nodes", json!({ "range": range, "prefix": 24, "gateway": format!("{net}.1") })).await?;
    clusters(&site, &[("first", Some(&format!("{net}.10")))]).await?;
    provisioned(&site, "first").await?;
    let cases = [
        ("outside", "10.77.0.1".to_owned(), "EndpointOutsideNetwork"),
        ("gateway", format!("{net}.1"), "EndpointIsNetworkAddress"),
        ("dhcp", format!("{net}.105"), "EndpointInDhcpRange"),
        ("pool", format!("{net}.22"), "EndpointInPool"),
        ("taken", format!("{net}.10"), "EndpointTaken"),
    ];
    for (name, host, _) in &cases {
        clusters(&site, &[(name, Some(host))]).await?;
    }
    for (name, host, expected) in &cases {
        let refused = reason::<LibvirtCluster>(&site, name, expected).await?;
        assert!(message(&serde_json::to_value(&refused)?).contains(host));
        let status = refused.status.context("status")?;
        assert_eq!(status.initialization.and_then(|i| i.provisioned), None);
        assert_eq!(refused.spec.virtual_router_id, None);
    }
    // Two at once.
    clusters(&site, &[("second", Some(&format!("{net}.11"))), ("third", Some(&format!("{net}.12")))]).await?;
    let mut ids = BTreeSet::from([site.api::<LibvirtCluster>().get("first").await?.spec.virtual_router_id]);
    for name in ["second", "third"] {
        ids.insert(provisioned(&site, name).await?.spec.virtual_router_id);
    }
    println!("virtual router IDs: {ids:?}");
    assert_eq!(ids, BTreeSet::from([Some(1), Some(2), Some(3)]));
    // Somebody else's: not touched, although all others were.
    let filtered = json!({ "name": "theirs", "labels": { "cluster.x-k8s.io/watch-filter": "them" } });
    let spec = json!({ "appliance": "local", "network": "wan" });
    create::<LibvirtCluster>(&site, filtered, spec).await?;
    // What was in the way goes.
    site.delete::<IPPool>("nodes").await?;
    provisioned(&site, "pool").await?;
    site.delete::<LibvirtCluster>("first").await?;
    let after = provisioned(&site, "taken").await?;
    assert_eq!(after.spec.virtual_router_id, Some(1), "the lowest that is free");
    let theirs = site.api::<LibvirtCluster>().get("theirs").await?;
    assert!(theirs.status.is_none() && theirs.finalizers().is_empty(), "{theirs:?}");
    Ok(())
}

/// An address of this host, for as long as this lives.
struct OwnAddress(String);

impl OwnAddress {
    fn take(address: &str) -> Result<Self> {
        let own = Self(format!("{address}/32"));
        own.change("add")?;
        Ok(own)
    }

    fn change(&self, verb: &str) -> Result<()> {
        let done = std::process::Command::new("ip").args(["address", verb, &self.0, "dev", "lo"]).status()?;
        anyhow::ensure!(done.success(), "ip address {verb} {}: {done}", self.0);
        Ok(())
    }
}

impl Drop for OwnAddress {
    fn drop(&mut self) {
        if let Err(error) = self.change("del") {
            println!("{error:#}");
        }
    }
}

/// Somebody has the virtual address already: nothing is made for the cluster until they are gone.
#[tokio::test]
async fn an_endpoint_that_answers_is_in_use() -> Result<()> {
    let site = start(38).await?;
    let address = format!("{}.10", subnet(38));
    let stranger = OwnAddress::take(&address)?;
    clusters(&site, &[("one", Some(&address))]).await?;
    let refused = reason::<LibvirtCluster>(&site, "one", "AddressInUse").await?;
    assert!(message(&serde_json::to_value(&refused)?).contains(&address));
    assert_eq!(refused.status.and_then(|s| s.initialization), None);
    drop(stranger);
    provisioned(&site, "one").await?;
    Ok(())
}

/// The package for `clusterctl`, out of a folder: `init` installs the operator, and `generate cluster` makes a cluster
/// that the API server takes.
#[tokio::test]
async fn clusterctl_takes_the_package() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let folder = plane.dir().join("infrastructure-libvirt/v0.1.0");
    std::fs::create_dir_all(&folder)?;
    for file in std::fs::read_dir("../deploy/clusterctl")? {
        let file = file?;
        std::fs::copy(file.path(), folder.join(file.file_name()))?;
    }
    let components = folder.join("infrastructure-components.yaml");
    let mut providers = vec![json!({ "name": "libvirt", "type": "InfrastructureProvider", "url": components })];
    // Of the others it wants to know which contract they speak, and shall not look for that on the internet.
    let series = json!([{ "major": 1, "minor": 14, "contract": "v1beta2" }]);
    let metadata =
        json!({ "apiVersion": "clusterctl.cluster.x-k8s.io/v1alpha3", "kind": "Metadata", "releaseSeries": series });
    let others = [
        ("cluster-api", "cluster-api", "CoreProvider", "core"),
        ("bootstrap-kubeadm", "kubeadm", "BootstrapProvider", "bootstrap"),
        ("control-plane-kubeadm", "kubeadm", "ControlPlaneProvider", "control-plane"),
    ];
    for (label, name, of, file) in others {
        let folder = plane.dir().join(label).join("v1.14.2");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("metadata.yaml"), metadata.to_string())?;
        let components = folder.join(format!("{file}-components.yaml"));
        std::fs::write(&components, "")?;
        providers.push(json!({ "name": name, "type": of, "url": components }));
    }
    let config = plane.dir().join("clusterctl.yaml");
    let variables = json!({
        "providers": providers, "VIRTUAL_IP": "10.0.0.10", "NETWORK": "nodes", "ADDRESS_POOL": "machines",
    });
    std::fs::write(&config, variables.to_string())?;
    let config = config.to_string_lossy().into_owned();
    let client = plane.client();
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(client.clone());
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    support::cluster_api::install_all(&client).await?;

    let init = ["init", "--infrastructure", "libvirt:v0.1.0", "--config", &config];
    let said = support::cluster_api::clusterctl(&plane, &init).await?;
    println!("{said}");
    assert!(said.contains("Skipping installing cert-manager"), "{said}");
    let deployments = kube::Api::<k8s_openapi::api::apps::v1::Deployment>::namespaced(client.clone(), NAMESPACE);
    let labels = deployments.get("vm-operator").await?.metadata.labels.context("labels")?;
    assert_eq!(labels["cluster.x-k8s.io/provider"], "infrastructure-libvirt");

    let out = plane.dir().join("cluster.yaml");
    let to = out.to_string_lossy().into_owned();
    let generate = [
        "generate",
        "cluster",
        "shop",
        "--infrastructure",
        "libvirt:v0.1.0",
        "--kubernetes-version",
        "v1.36.3",
        "--worker-machine-count",
        "2",
        "--target-namespace",
        NAMESPACE,
        "--config",
        &config,
        "--write-to",
        &to,
    ];
    println!("{}", support::cluster_api::clusterctl(&plane, &generate).await?);
    let objects: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(&out)?)?;
    let kinds: BTreeSet<&str> = objects.iter().filter_map(|o| o["kind"].as_str()).collect();
    assert!(kinds.is_superset(&["Cluster", "ClusterClass", "LibvirtMachineTemplate"].into()), "{kinds:?}");
    for object in &objects {
        let (group, version) = object["apiVersion"].as_str().and_then(|v| v.split_once('/')).context("a version")?;
        let kind = kube::core::GroupVersionKind::gvk(group, version, object["kind"].as_str().context("a kind")?);
        let resource = kube::core::ApiResource::from_gvk(&kind);
        let api: kube::Api<kube::core::DynamicObject> =
            kube::Api::namespaced_with(client.clone(), NAMESPACE, &resource);
        let name = object["metadata"]["name"].as_str().context("a name")?;
        let params = PatchParams::apply("test");
        api.patch(name, &params, &Patch::Apply(object)).await.with_context(|| format!("{} {name}", kind.kind))?;
    }
    Ok(())
}

/// Many machines at once, with their bootstrap data: none is forgotten, and each costs a bounded number of writes.
#[tokio::test]
#[ignore = "long: 150 machines on one API server"]
async fn many_machines() -> Result<()> {
    const MACHINES: usize = 150;
    let site = start(45).await?;
    let net = subnet(45);
    clusters(&site, &[("one", Some(&format!("{net}.250")))]).await?;
    provisioned(&site, "one").await?;
    pool(&site, "nodes", json!({ "range": { "start": "10.0.0.1", "end": "10.0.0.200" }, "prefix": 16 })).await?;
    bootstrap_secret(&site, "data", "cloud-config").await?;
    let mark = site.plane.audit().mark()?;
    let begun = std::time::Instant::now();
    for n in 0..MACHINES {
        let name = format!("m-{n}");
        machine(&site, &name, "one", false).await?;
        bootstrap(&site, &name, "data").await?;
    }
    println!("{MACHINES} machines were asked for within {:.1} s", begun.elapsed().as_secs_f64());
    eventually("all machines to be made", support::LONG, || async {
        let all = site.api::<LibvirtMachine>().list(&ListParams::default()).await?.items;
        let conditions = |m: &LibvirtMachine| m.status.clone().unwrap_or_default().conditions;
        let made = all
            .iter()
            .filter(|m| condition::find(&conditions(m), "Ready").is_some_and(|c| c.reason == "ImageNotFound"));
        let made = made.count();
        Ok::<_, kube::Error>(Seen::when(made == MACHINES, made))
    })
    .await?;
    println!("{MACHINES} machines have their VirtualMachine after {:.1} s", begun.elapsed().as_secs_f64());
    let addresses: BTreeSet<String> = given(&site).await?.into_iter().map(|(_, address)| address).collect();
    assert_eq!(addresses.len(), MACHINES);
    let writes = site.plane.audit().writes_since(mark, |user| user == OPERATOR)?;
    let mut kinds = std::collections::BTreeMap::<&str, usize>::new();
    for write in &writes {
        *kinds.entry(write.object.split(' ').next().unwrap_or_default()).or_default() += 1;
    }
    for (kind, count) in &kinds {
        println!("  {count} writes to {kind}, {:.2} per machine", *count as f64 / MACHINES as f64);
    }
    let of_both = |kind: &str| kind.contains("/libvirtmachines") || kind.contains("/virtualmachines");
    let both: usize = kinds.iter().filter(|(kind, _)| of_both(kind)).map(|(_, count)| count).sum();
    println!("writes per machine over both objects: {:.2}", both as f64 / MACHINES as f64);
    assert!(both <= 8 * MACHINES, "{both}");
    Ok(())
}

/// With Cluster API's own core: it sets the owners, and copies what the contract says.
#[tokio::test]
async fn with_the_core_of_cluster_api() -> Result<()> {
    let site = Site::start(44, URI).await?;
    let Some(core) = support::cluster_api::Core::start(&site.plane).await? else {
        println!("the bundle has no Cluster API: this test needs it");
        return Ok(());
    };
    site.appliance().await?;
    let result = lives_with(&site).await;
    result.with_context(|| format!("cluster-api-controller wrote:\n{}", core.tail()))
}

async fn lives_with(site: &Site) -> Result<()> {
    let net = subnet(44);
    let range = json!({ "start": format!("{net}.20"), "end": format!("{net}.29") });
    pool(site, "nodes", json!({ "range": range, "prefix": 24, "gateway": format!("{net}.1") })).await?;
    libvirt_cluster(site, "one", Some(&format!("{net}.10"))).await?;
    cluster(site, "one").await?;
    let core = until("Cluster one to have its endpoint", async || {
        let cluster = site.api::<Cluster>().get("one").await?;
        let status = cluster.status.as_ref().and_then(|s| s.initialization.as_ref());
        let provisioned = status.and_then(|i| i.infrastructure_provisioned) == Some(true);
        Ok((provisioned && cluster.spec.control_plane_endpoint.is_some(), cluster))
    })
    .await?;
    assert_eq!(core.spec.control_plane_endpoint.context("endpoint")?.host, format!("{net}.10"));

    bootstrap_secret(site, "node-data", "cloud-config").await?;
    let mark = site.plane.audit().mark()?;
    let infrastructure =
        json!({ "apiGroup": "infrastructure.cluster.x-k8s.io", "kind": "LibvirtMachine", "name": "node" });
    let spec = json!({
        "appliance": "local", "vcpus": 1, "memoryMiB": 64, "image": "node", "rootDisk": { "pool": "default" },
        "interfaces": [{ "network": "wan", "addressPool": "nodes" }],
    });
    let labels = json!({ LABEL_CLUSTER: "one" });
    create::<LibvirtMachine>(site, json!({ "name": "node", "labels": labels }), spec).await?;
    let bootstrap = json!({ "dataSecretName": "node-data" });
    let spec = json!({ "clusterName": "one", "bootstrap": bootstrap, "infrastructureRef": infrastructure });
    create::<Machine>(site, json!({ "name": "node", "labels": labels }), spec).await?;
    reason::<LibvirtMachine>(site, "node", "ImageNotFound").await?;
    let ours = runs(site, "node", &format!("{net}.20")).await?;
    let machines = kube::Api::<kube::core::DynamicObject>::namespaced_with(
        site.client(),
        NAMESPACE,
        &kube::core::ApiResource::erase::<Machine>(&()),
    );
    let machine = until("Machine node to have its provider ID", async || {
        let machine = machines.get("node").await?.data;
        Ok((machine["status"]["initialization"]["infrastructureProvisioned"] == true, machine))
    })
    .await?;
    assert_eq!(machine["spec"]["providerID"], json!(ours.spec.provider_id));
    assert_eq!(machine["status"]["failureDomain"], "local");
    let addresses =
        json!([{ "type": "Hostname", "address": "node" }, { "type": "InternalIP", "address": format!("{net}.20") }]);
    assert_eq!(machine["status"]["addresses"], addresses);
    let conditions = machine["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mirrored = conditions.iter().find(|c| c["type"] == "InfrastructureReady").context("InfrastructureReady")?;
    println!("Machine node: {}: {}", mirrored["reason"], mirrored["message"]);
    let tree = support::cluster_api::clusterctl(&site.plane, &["describe", "cluster", "one", "--namespace", NAMESPACE])
        .await?;
    println!("{tree}");
    for object in ["LibvirtCluster pcg-edge-system/one", "Machine pcg-edge-system/node"] {
        assert!(tree.contains(object), "{tree}");
    }
    let writes = site.plane.audit().writes_since(mark, |user| user == OPERATOR)?;
    println!("writes of the operator from LibvirtMachine to a domain that runs: {}", writes.len());
    for write in &writes {
        println!("  {} {}", write.verb, write.object);
    }

    site.delete::<Cluster>("one").await?;
    site.gone::<Cluster>("one").await?;
    assert!(names::<Machine>(site).await?.is_empty() && names::<LibvirtMachine>(site).await?.is_empty());
    assert!(names::<VirtualMachine>(site).await?.is_empty() && names::<LibvirtCluster>(site).await?.is_empty());
    assert!(names::<IPAddressClaim>(site).await?.is_empty() && names::<IPAddress>(site).await?.is_empty());
    Ok(())
}
