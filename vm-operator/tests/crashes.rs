//! The operator is ended with SIGKILL before and after every one of its side effects, and gets where it gets undisturbed.

mod support;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use crash_points::{Effects as _, Point, points};
use edge_api::cluster_api::{ANNOTATION_REMEDIATE, LABEL_CLUSTER};
use edge_api::edge_cluster::ClusterPhase;
use edge_api::names::{ANNOTATION_DIGEST, ANNOTATION_FORCE_DELETE, FINALIZER, LABEL_LAYER};
use edge_api::{
    Appliance, ClusterProfile, Condition, EdgeCluster, IPPool, LibvirtCluster, LibvirtMachine, VirtualMachine,
    VirtualMachineImage, condition,
};
use edge_tests::crashes::Armed;
use edge_tests::wait::Seen;
use edge_tests::{ControlPlane, Fault, SmallDisk, eventually};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::guests::{fail_bootstrap, make, said, start};
use support::objects::{create, subnet};
use support::process::while_it_ends;
use support::{LONG, Site};
use virt::sys;
use vm_operator::cluster_api::upstream::{Cluster, IPAddress, IPAddressClaim, Machine};
use vm_operator::effects::Effect;

const URI: &str = "qemu:///system";
const NUMBER: u8 = 38;
const IMAGE: &str = "pcg-edge.io/vm/kubernetes-node";
/// Bytes of a pool that becomes full.
const SMALL: u64 = 128 << 20;
/// What the operator does in a machine's life, from its creation to its end.
const OF_A_MACHINE: [Effect; 11] = [
    Effect::PatchMachine,
    Effect::PatchMachineStatus,
    Effect::CreateVolume,
    Effect::UploadPart,
    Effect::FinishUpload,
    Effect::DefineDomain,
    Effect::AutostartDomain,
    Effect::StartDomain,
    Effect::DestroyDomain,
    Effect::UndefineDomain,
    Effect::DeleteVolume,
];
/// The same in every life, so that its guest has the same address.
const ONE: &str = "5b0c7f4e-8f0e-4b57-9a3e-2f6f0d0c3801";

/// One life without, one with an end at each point.
#[tokio::test]
async fn the_operator_ends_before_and_after_every_effect() -> Result<()> {
    let disk = SmallDisk::new(SMALL)?;
    disk.leave(SMALL)?;
    let site = Site::without_operator(NUMBER, URI).await?;
    support::cluster_api::install(&site.client()).await?;
    let tiny = site.registry.push_tiny().await?;
    site.registry.push_as(IMAGE, Some("1.36.3"), &support::registry::tiny()?).await?;
    let undisturbed =
        while_it_ends(&site, &Armed::default(), life(&site, &tiny, &disk)).await.context("undisturbed")?;

    let all = points::<Effect>();
    let armed = Armed::new(all.clone());
    let ends = Fault::strikes("the operator ends before or after one of its side effects").times(all.len());
    let outcome = while_it_ends(&site, &armed, life(&site, &tiny, &disk)).await;
    let left = armed.left();
    println!("{} of {} points passed", all.len() - left.len(), all.len());
    let disturbed = outcome.context("with an end at each point")?;
    assert_eq!(undisturbed.len(), disturbed.len());
    for (expected, found) in undisturbed.iter().zip(&disturbed) {
        expected.assert_is(found);
    }
    assert!(left.is_empty(), "not reached: {left:?}");
    ends.survived();
    Ok(())
}

/// Machines come and go, first while the operator ends at a point by chance in each of their lives, then undisturbed:
/// nothing is left of any, and one operator is no larger after a hundred than after ten.
#[tokio::test]
#[ignore = "long: two hundred machines"]
async fn two_hundred_machines_leave_nothing() -> Result<()> {
    const CYCLES: u32 = 100;
    let site = Site::without_operator(NUMBER + 1, URI).await?;
    support::cluster_api::install(&site.client()).await?;
    let tiny = site.registry.push_tiny().await?;
    let baseline = while_it_ends(&site, &Armed::default(), async {
        site.appliance().await?;
        site.image("tiny", &tiny).await?;
        site.secret("seed", &BTreeMap::from([("user-data".to_owned(), "#cloud-config\n".to_owned())])).await?;
        come_and_go(&site).await?;
        Look::take(&site, "before").await
    })
    .await?;
    let (taps, files) = (taps()?, libvirtd_files()?);

    let own = |point: &Point| OF_A_MACHINE.iter().any(|effect| effect.name() == point.effect);
    let points: Vec<Point> = points::<Effect>().into_iter().filter(own).collect();
    let cycles = Fault::strikes("machines come and go, in the lives of half of them the operator ends");
    let cycles = cycles.times(2 * CYCLES as usize);
    for cycle in 0..CYCLES {
        let by_chance = uuid::Uuid::new_v4().as_u128() % points.len() as u128;
        let point = points[by_chance as usize].clone();
        let armed = Armed::new([point.clone()]);
        while_it_ends(&site, &armed, come_and_go(&site)).await.with_context(|| format!("cycle {cycle}, {point}"))?;
        assert!(armed.left().is_empty(), "cycle {cycle} does not reach {point}");
    }

    let armed = Armed::default();
    let sizes = while_it_ends(&site, &armed, async {
        let mut sizes = Vec::new();
        for cycle in 1..=CYCLES {
            come_and_go(&site).await.with_context(|| format!("cycle {cycle}"))?;
            if [10, CYCLES].contains(&cycle) {
                sizes.push((
                    memory(armed.process())?,
                    std::fs::read_dir(format!("/proc/{}/fd", armed.process()))?.count(),
                ));
            }
        }
        baseline.assert_is(&Look::take(&site, "after").await?);
        anyhow::Ok(sizes)
    })
    .await?;
    println!("operator after 10 and {CYCLES} machines (KiB, files): {sizes:?}");
    let [(small, few), (large, many)] = sizes[..] else { anyhow::bail!("{sizes:?}") };
    assert!(large < small + 2048 && many <= few, "{sizes:?}");
    assert_eq!(self::taps()?, taps);
    let now = libvirtd_files()?;
    assert!(now <= files + 4, "libvirtd had {files} files open, and has {now}");
    cycles.survived();
    Ok(())
}

async fn come_and_go(site: &Site) -> Result<()> {
    let spec =
        json!({ "rootDisk": { "pool": "default", "sizeGiB": 1 }, "cloudInitSecret": "seed", "guestAgent": false });
    let id = site.tiny_vm("one", spec).await?;
    site.see("a domain that runs", |libvirt| {
        Ok(libvirt.lookup_domain_by_uuid(id).is_ok_and(|domain| domain.is_active().unwrap_or(false)))
    })
    .await?;
    site.delete::<VirtualMachine>("one").await?;
    site.gone::<VirtualMachine>("one").await
}

/// Network devices of guests.
fn taps() -> Result<Vec<String>> {
    let devices = std::fs::read_dir("/sys/class/net")?.map(|entry| Ok(entry?.file_name().display().to_string()));
    let devices: Vec<String> = devices.collect::<Result<_>>()?;
    Ok(devices.into_iter().filter(|device| device.starts_with("vnet")).collect())
}

/// Resident memory of a process, KiB.
fn memory(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// How many files libvirtd has open.
fn libvirtd_files() -> Result<usize> {
    let process = std::fs::read_to_string("/run/libvirtd.pid").context("libvirtd's process")?;
    Ok(std::fs::read_dir(format!("/proc/{}/fd", process.trim()))?.count())
}

/// Everything that a machine, a machine of Cluster API and a cluster make, have changed, and take along.
async fn life(site: &Site, tiny: &str, disk: &SmallDisk) -> Result<Vec<Look>> {
    let mut looks = Vec::new();
    let mut appliance = site.appliance_spec();
    let default = appliance["storagePools"][0].take();
    appliance["storagePools"] = json!([default, { "name": "small", "path": disk.path() }]);
    // Some twenty lives of the operator go by.
    site.create::<Appliance>("local", appliance).await?;
    site.wait::<Appliance>("local", "Ready", |c| condition::is_true(c, "Ready"), LONG).await?;
    site.image("tiny", tiny).await?;
    looks.extend(a_machine(site, disk).await.context("a machine")?);
    looks.extend(a_machine_of_cluster_api(site).await.context("a machine of Cluster API")?);
    looks.extend(a_cluster(site).await.context("a cluster")?);
    site.delete::<VirtualMachineImage>("tiny").await?;
    site.gone::<VirtualMachineImage>("tiny").await?;
    site.delete::<Appliance>("local").await?;
    site.gone::<Appliance>("local").await?;
    looks.push(Look::take(site, "all is gone").await?);
    Ok(looks)
}

async fn a_machine(site: &Site, disk: &SmallDisk) -> Result<Vec<Look>> {
    let text = |content: &str| BTreeMap::from([("config.txt".to_owned(), content.to_owned())]);
    site.secret("config", &text("one")).await?;
    site.secret("seed", &BTreeMap::from([("user-data".to_owned(), "#cloud-config\n".to_owned())])).await?;
    let disks = |root: u64, logs: u64| {
        json!({ "rootDisk": { "pool": "default", "sizeGiB": root },
                "dataDisks": [{ "name": "logs", "pool": "default", "sizeGiB": logs },
                              { "name": "small", "pool": "small", "sizeGiB": 1 }] })
    };
    let mut spec = disks(1, 2);
    for (key, value) in [
        ("id", json!(ONE)),
        ("appliance", json!("local")),
        ("vcpus", json!(1)),
        ("memoryMiB", json!(256)),
        ("image", json!("tiny")),
        ("kernelArgs", json!("console=ttyS0")),
        ("guestAgent", json!(true)),
        ("interfaces", json!([{ "network": "wan" }])),
        ("cloudInitSecret", json!("seed")),
        ("configDisk", json!({ "secretName": "config" })),
    ] {
        spec[key] = value;
    }
    site.create::<VirtualMachine>("one", spec).await?;
    let ready = site.ready_vm("one").await?;
    let digest = ready.status.context("status")?.config_digest;
    let mut looks = vec![Look::take(site, "a machine runs").await?];

    disk.leave(0)?;
    let process = start(ONE.parse()?, "dd if=/dev/zero of=/dev/vdc bs=1M count=4 conv=fsync")?;
    site.wait_reason("one", "NoSpace", LONG).await?;
    disk.leave(SMALL)?;
    site.ready_vm("one").await?;
    eventually("the guest to have written", LONG, || async {
        let said = said(ONE.parse()?, process)?;
        anyhow::Ok(Seen::when(said.is_some(), ()))
    })
    .await?;

    let libvirt = support::libvirt()?;
    let sizes = |pool: &virt::storage_pool::StoragePool| -> Result<[u64; 2]> {
        let of =
            |role| anyhow::Ok(pool.lookup_storage_vol_by_name(&format!("pcg-{ONE}-{role}"))?.info()?.capacity >> 30);
        Ok([of("root")?, of("data-logs")?])
    };
    let pool = libvirt.lookup_storage_pool_by_name(&format!("{}-default", site.instance))?;
    site.edit::<VirtualMachine>("one", disks(2, 3)).await?;
    site.see("disks grown under the running guest", |_| Ok(sizes(&pool)? == [2, 3])).await?;

    site.secret("config", &text("two")).await?;
    site.edit::<VirtualMachine>("one", json!({ "onConfigChange": "Restart" })).await?;
    site.wait_vm("one", "restarted with the new configuration", LONG, |s| {
        condition::is_true(&s.conditions, "ConfigCurrent")
            && condition::is_true(&s.conditions, "Ready")
            && s.config_digest != digest
    })
    .await?;
    looks.push(Look::take(site, "it runs with other disks and configuration").await?);

    site.edit::<VirtualMachine>("one", json!({ "powerState": "Stopped" })).await?;
    site.wait_reason("one", "Stopped", LONG).await?;
    site.edit::<VirtualMachine>("one", disks(3, 4)).await?;
    site.see("disks grown while it is off", |_| Ok(sizes(&pool)? == [3, 4])).await?;
    site.wait_reason("one", "Stopped", LONG).await?;
    looks.push(Look::take(site, "it is off").await?);

    site.edit::<VirtualMachine>("one", json!({ "powerState": "Running" })).await?;
    site.ready_vm("one").await?;
    site.delete::<VirtualMachine>("one").await?;
    site.gone::<VirtualMachine>("one").await?;
    looks.push(Look::take(site, "it is gone").await?);
    Ok(looks)
}

async fn a_machine_of_cluster_api(site: &Site) -> Result<Vec<Look>> {
    make(site, NUMBER).await?;
    let mut looks = vec![Look::take(site, "a machine of Cluster API runs").await?];
    fail_bootstrap(site.api::<VirtualMachine>().get("node").await?.spec.id.parse()?)?;
    let failed = |c: &[Condition]| condition::find(c, "Ready").is_some_and(|c| c.reason == "BootstrapFailed");
    site.wait::<LibvirtMachine>("node", "BootstrapFailed", failed, LONG).await?;
    eventually("another machine to be asked for", LONG, || async {
        let annotations = site.api::<Machine>().get("node").await?.annotations().clone();
        Ok::<_, kube::Error>(Seen::when(annotations.contains_key(ANNOTATION_REMEDIATE), annotations))
    })
    .await?;
    site.delete::<LibvirtMachine>("node").await?;
    site.gone::<LibvirtMachine>("node").await?;
    site.delete::<Machine>("node").await?;
    site.delete::<LibvirtCluster>("one").await?;
    site.gone::<LibvirtCluster>("one").await?;
    site.delete::<Cluster>("one").await?;
    site.delete::<Secret>("node-data").await?;
    site.delete::<IPPool>("nodes").await?;
    site.gone::<IPPool>("nodes").await?;
    looks.push(Look::take(site, "it is gone too").await?);
    Ok(looks)
}

async fn a_cluster(site: &Site) -> Result<Vec<Look>> {
    let net = subnet(NUMBER);
    let profile = json!({ "version": "1.0.0", "type": "Full", "layers": [
        { "name": "os", "kind": "OS", "os": { "image": IMAGE } },
        { "name": "kubernetes", "kind": "Kubernetes", "version": "1.36.3",
          "kubernetes": { "podCIDR": "10.244.0.0/16", "serviceCIDR": "10.96.0.0/12" } },
        { "name": "network", "kind": "Network", "manifests": [{ "inline": config_map("one") }, { "inline": config_map("two") }] },
        { "name": "storage", "kind": "Storage", "manifests": [{ "inline": config_map("three") }] },
    ] });
    let mut profile = site.create::<ClusterProfile>("edge", profile).await?;
    let range = json!({ "start": format!("{net}.40"), "end": format!("{net}.49") });
    site.create::<IPPool>("services", json!({ "range": range, "prefix": 24 })).await?;
    let hardware = json!({ "vcpus": 2, "memoryMiB": 1800, "rootDiskGiB": 20 });
    let wanted = json!({
        "profile": "edge", "virtualIP": format!("{net}.10"),
        "controlPlane": { "size": 1, "hardware": hardware, "allowWorkers": true },
        "placements": [{ "appliance": "local", "networks": [{ "name": "wan" }], "targetPool": "default" }],
        "loadBalancer": { "addressPool": "services", "addresses": 2 },
    });
    site.create::<EdgeCluster>("shop", wanted).await?;
    has_addresses(site, 2).await?;
    let ready = |c: &[Condition]| condition::is_true(c, "Ready");
    site.wait::<VirtualMachineImage>("kubernetes-v1.36.3", "Ready", ready, LONG).await?;
    let mut looks = vec![Look::take(site, "a cluster is asked for").await?];
    site.edit::<EdgeCluster>("shop", json!({ "loadBalancer": { "addresses": 1 } })).await?;
    site.gone::<IPAddress>("shop-lb-1").await?;
    has_addresses(site, 1).await?;
    looks.push(Look::take(site, "it has one address less").await?);
    Box::pin(layers(site, &mut profile)).await.context("layers")?;

    // As Cluster API holds it, with infrastructure that nobody takes apart.
    let held = json!({ "metadata": { "finalizers": ["cluster.cluster.x-k8s.io"] } });
    site.api::<Cluster>().patch("shop", &PatchParams::default(), &Patch::Merge(&held)).await?;
    let metadata = |name: &str| json!({ "name": name, "labels": { LABEL_CLUSTER: "shop" }, "finalizers": [FINALIZER] });
    create::<LibvirtCluster>(site, metadata("shop-c"), json!({ "appliance": "local", "network": "wan" })).await?;
    let machine = json!({
        "appliance": "local", "vcpus": 1, "memoryMiB": 64, "image": "tiny", "rootDisk": { "pool": "default" },
        "interfaces": [{ "network": "wan" }],
    });
    create::<LibvirtMachine>(site, metadata("shop-m"), machine).await?;
    site.delete::<EdgeCluster>("shop").await?;
    let force = json!({ "metadata": { "annotations": { ANNOTATION_FORCE_DELETE: "true" } } });
    site.api::<EdgeCluster>().patch("shop", &PatchParams::default(), &Patch::Merge(&force)).await?;
    site.gone::<EdgeCluster>("shop").await?;
    site.gone::<LibvirtMachine>("shop-m").await?;
    site.gone::<LibvirtCluster>("shop-c").await?;
    let free = json!({ "metadata": { "finalizers": null } });
    site.api::<Cluster>().patch("shop", &PatchParams::default(), &Patch::Merge(&free)).await?;
    site.gone::<Cluster>("shop").await?;
    site.gone::<VirtualMachineImage>("kubernetes-v1.36.3").await?;
    site.delete::<IPPool>("services").await?;
    site.gone::<IPPool>("services").await?;
    site.delete::<ClusterProfile>("edge").await?;
    looks.push(Look::take(site, "it is gone, by force").await?);
    Ok(looks)
}

/// Layers come to the cluster's API server, which another one plays, and one of their objects goes.
async fn layers(site: &Site, profile: &mut ClusterProfile) -> Result<()> {
    let workload = ControlPlane::start().await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(workload.client());
    let are_there = async |wanted: &[&str]| {
        eventually("the layers' objects", LONG, || async {
            let found = maps.list(&ListParams::default().labels(LABEL_LAYER)).await?;
            let names: Vec<_> = found.items.iter().map(kube::ResourceExt::name_any).collect();
            Ok::<_, kube::Error>(Seen::when(names == wanted, names))
        })
        .await
    };
    let kubeconfig = std::fs::read_to_string(workload.kubeconfig())?;
    site.secret("shop-kubeconfig", &BTreeMap::from([("value".to_owned(), kubeconfig)])).await?;
    let initialized = json!({ "status": { "initialization": { "controlPlaneInitialized": true } } });
    site.api::<Cluster>().patch_status("shop", &PatchParams::default(), &Patch::Merge(&initialized)).await?;
    are_there(&["one", "three", "two"]).await?;
    profile.spec.layers[2].manifests.truncate(1);
    site.edit::<ClusterProfile>("edge", json!({ "layers": profile.spec.layers })).await?;
    are_there(&["one", "three"]).await?;
    let not_yet = json!({ "status": { "initialization": { "controlPlaneInitialized": false } } });
    site.api::<Cluster>().patch_status("shop", &PatchParams::default(), &Patch::Merge(&not_yet)).await?;
    site.delete::<Secret>("shop-kubeconfig").await
}

fn config_map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: default}}\n")
}

async fn has_addresses(site: &Site, count: usize) -> Result<()> {
    let api = site.api::<EdgeCluster>();
    eventually(&format!("shop to have {count} addresses"), LONG, || async {
        let edge = api.get("shop").await?;
        let status = edge.status.unwrap_or_default();
        let settled = status.phase == ClusterPhase::Provisioning
            && status.observed_generation == edge.metadata.generation
            && status.load_balancer_addresses.len() == count;
        Ok::<_, kube::Error>(Seen::when(settled, status))
    })
    .await?;
    Ok(())
}

/// What there is, without what no two lives share: times, versions, identities that are made up.
struct Look {
    title: &'static str,
    items: BTreeMap<String, String>,
}

impl Look {
    async fn take(site: &Site, title: &'static str) -> Result<Self> {
        let mut look = Self { title, items: BTreeMap::new() };
        let mut made_up = Vec::new();
        look.objects::<Appliance>(site, &mut made_up).await?;
        look.objects::<VirtualMachine>(site, &mut made_up).await?;
        look.objects::<VirtualMachineImage>(site, &mut made_up).await?;
        look.objects::<EdgeCluster>(site, &mut made_up).await?;
        look.objects::<IPPool>(site, &mut made_up).await?;
        look.objects::<LibvirtCluster>(site, &mut made_up).await?;
        look.objects::<LibvirtMachine>(site, &mut made_up).await?;
        look.objects::<Cluster>(site, &mut made_up).await?;
        look.objects::<Machine>(site, &mut made_up).await?;
        look.objects::<IPAddressClaim>(site, &mut made_up).await?;
        look.objects::<IPAddress>(site, &mut made_up).await?;
        look.objects::<Secret>(site, &mut made_up).await?;
        look.libvirt(site, &mut made_up)?;
        for (made_up, name) in &made_up {
            let renamed = |text: String| text.replace(made_up, name);
            look.items = look.items.into_iter().map(|(key, value)| (renamed(key), renamed(value))).collect();
        }
        Ok(look)
    }

    async fn objects<K>(&mut self, site: &Site, made_up: &mut Vec<(String, String)>) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Serialize + DeserializeOwned,
        K: std::fmt::Debug,
    {
        for object in site.api::<K>().list(&ListParams::default()).await?.items {
            let title = format!("{} {}", K::kind(&()), object.name_any());
            let mut value = serde_json::to_value(&object)?;
            if let Some(id) = value["spec"]["id"].as_str() {
                made_up.push((id.to_owned(), format!("<{title}>")));
            }
            // In the clear, so that what is made up is found in it.
            for content in value["data"].as_object_mut().into_iter().flat_map(|data| data.values_mut()) {
                let bytes = BASE64_STANDARD.decode(content.as_str().unwrap_or_default())?;
                *content = json!(String::from_utf8_lossy(&bytes));
            }
            // Of what names its owner's UID, or files that name an identity that is made up.
            let digests = [&value["status"]["configDigest"], &value["metadata"]["annotations"][ANNOTATION_DIGEST]];
            for digest in
                digests.into_iter().filter_map(Value::as_str).filter(|_| object.meta().owner_references.is_some())
            {
                made_up.push((digest.to_owned(), format!("<digest of {title}>")));
            }
            // The tiny guest takes what DHCP gives, and that follows from its made-up MAC address.
            for address in value["status"]["addresses"].as_array().into_iter().flatten() {
                let ip = address["ip"].as_str().unwrap_or_default();
                if ip.rsplit('.').next().is_some_and(|last| last.len() == 3) {
                    let told = [format!("\"ip\": \"{ip}\""), format!("\"address\": \"{ip}\""), format!("ip='{ip}'")];
                    made_up.extend(told.map(|told| (told, format!("<address of {title}>"))));
                }
            }
            plain(&mut value);
            self.items.insert(title, serde_json::to_string_pretty(&value)?);
        }
        Ok(())
    }

    fn libvirt(&mut self, site: &Site, made_up: &mut Vec<(String, String)>) -> Result<()> {
        let libvirt = support::libvirt()?;
        let prefix = format!("{}-", site.instance);
        for domain in libvirt.list_all_domains(0)? {
            let name = domain.name()?;
            if !name.starts_with(&prefix) {
                continue;
            }
            let xml = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?;
            for (number, mac) in
                xml.split("<mac address='").skip(1).filter_map(|rest| rest.split('\'').next()).enumerate()
            {
                made_up.push((mac.to_owned(), format!("<MAC {number} of {name}>")));
            }
            // The digest of a definition, which names the identity.
            let digest = xml.split_once("definition=\"").and_then(|(_, rest)| rest.split('"').next());
            if let Some(digest) = digest.filter(|_| !xml.contains(ONE)) {
                made_up.push((digest.to_owned(), format!("<definition of {name}>")));
            }
            let state = (domain.is_active()?, domain.autostart()?);
            self.items.insert(format!("domain {name}"), format!("{state:?}\n{xml}"));
        }
        for network in libvirt.list_all_networks(0)? {
            let name = network.name()?;
            if name.starts_with(&prefix) {
                let xml = network.xml_desc(sys::VIR_NETWORK_XML_INACTIVE)?;
                let lasting = |line: &&str| !line.contains("<uuid>") && !line.contains("<mac address=");
                let xml: Vec<&str> = xml.lines().filter(lasting).collect();
                let state = (network.is_active()?, network.autostart()?);
                self.items.insert(format!("network {name}"), format!("{state:?}\n{}", xml.join("\n")));
            }
        }
        for pool in libvirt.list_all_storage_pools(0)? {
            let name = pool.name()?;
            if !name.starts_with(&prefix) {
                continue;
            }
            self.items.insert(format!("pool {name}"), format!("{:?}", (pool.is_active()?, pool.autostart()?)));
            pool.refresh(0)?;
            for volume in pool.list_all_volumes(0)? {
                let xml = volume.xml_desc(0)?;
                let backing = xml.split_once("<backingStore>").map(|(_, rest)| rest.lines().nth(1));
                let facts = format!("{} bytes, {backing:?}", volume.info()?.capacity);
                self.items.insert(format!("volume {}", volume.name()?), facts);
            }
        }
        Ok(())
    }

    fn assert_is(&self, other: &Self) {
        let lacks = |one: &Self, two: &Self| -> Vec<String> {
            let only = one.items.iter().filter(|(key, value)| two.items.get(*key) != Some(value));
            only.map(|(key, value)| format!("{key}: {value}")).collect()
        };
        let (expected, found) = (lacks(self, other), lacks(other, self));
        assert!(
            expected.is_empty() && found.is_empty(),
            "{}: expected\n{}\nfound\n{}",
            self.title,
            expected.join("\n"),
            found.join("\n")
        );
    }
}

/// Takes out what another life has otherwise.
fn plain(value: &mut Value) {
    const OTHERWISE: [&str; 6] =
        ["uid", "resourceVersion", "generation", "observedGeneration", "managedFields", "creationTimestamp"];
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !OTHERWISE.contains(&key.as_str()) && !key.ends_with("Time") && key != "since");
            map.values_mut().for_each(plain);
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        _ => {}
    }
}
