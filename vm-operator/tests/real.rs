//! On real libvirtd, QEMU and registry, with the tiny guest.

mod support;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use edge_api::bundle::{ANNOTATION_VIRTUAL_SIZE, VM_DISK_QCOW2, VM_INITRD, VM_KERNEL};
use edge_api::virtual_machine::{GuestAddress, Phase};
use edge_api::{Appliance, VirtualMachine, VirtualMachineImage, condition};
use edge_tests::Fault;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use support::{LONG, SHORT, Site, TIMES};
use uuid::Uuid;
use vm_operator::context::Times;

const URI: &str = "qemu:///system";

fn files(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// From nothing to a guest with an address and back, and what may happen in between.
#[tokio::test]
async fn life_of_a_machine() -> Result<()> {
    let mut site = Site::start(1, URI).await?;
    let appliance = site.appliance().await?;
    let host = appliance.status.and_then(|s| s.host).context("host")?;
    println!("host: {host:?}");
    site.image("tiny", &site.registry.push_tiny().await?).await?;
    site.secret("config", &files(&[("config.xml", "<router/>\n")])).await?;
    site.secret("seed", &files(&[("user-data", "#cloud-config\n")])).await?;
    let id = site
        .tiny_vm(
            "one",
            json!({
                "rootDisk": { "pool": "default", "sizeGiB": 1 },
                "dataDisks": [{ "name": "logs", "pool": "default", "sizeGiB": 2 }],
                "cloudInitSecret": "seed", "configDisk": { "secretName": "config" },
            }),
        )
        .await?;
    let vm = site.ready_vm("one").await?;
    let status = vm.status.context("status")?;
    println!("{}", serde_json::to_string(&status)?);
    assert_eq!(status.addresses[0].network, "wan");
    assert!(status.addresses[0].ip.starts_with("192.168.211."), "{:?}", status.addresses);
    let digest = status.config_digest.context("digest")?;

    // What DHCP gave stays the machine's, now and after the network's next start.
    let libvirt = support::libvirt()?;
    let network = libvirt.lookup_network_by_name("optest1-wan")?;
    let reserved = |flags| anyhow::Ok(network.xml_desc(flags)?.contains(&reservation(&status.addresses[0])));
    assert!(reserved(0)? && reserved(virt::sys::VIR_NETWORK_XML_INACTIVE)?, "{}", network.xml_desc(0)?);

    // What was made: one domain, its five volumes and the image's, and a console log.
    let domain = libvirt.lookup_domain_by_uuid(id)?;
    assert!(domain.is_persistent()? && domain.autostart()?);
    let own: BTreeSet<String> =
        ["root", "data-logs", "seed", "config"].iter().map(|role| format!("pcg-{id}-{role}")).collect();
    let volumes = site.volumes()?;
    assert!(own.is_subset(&volumes), "{volumes:?}");
    assert_eq!(volumes.len(), own.len() + 2, "{volumes:?}");
    let console = std::fs::read_to_string(status.console_log.context("console log")?)?;
    assert!(console.contains("Linux version"), "{console}");
    let xml = domain.xml_desc(0)?;
    assert!(!xml.contains("<router/>") && !xml.contains("cloud-config"), "no content of Secrets in {xml}");

    // A new operator finds everything as it left it and writes nothing, resync after resync.
    site.kill_operator().await;
    let mark = site.plane.audit().mark()?;
    site.start_operator(Times { resync: Duration::from_secs(1), addresses: Duration::from_secs(1), ..TIMES })?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let writes = site.plane.audit().writes_since(mark, |user| user == support::OPERATOR)?;
    assert!(writes.is_empty(), "a resync writes nothing, but: {writes:?}");
    site.kill_operator().await;
    site.start_operator(TIMES)?;

    // Disks grow under the running guest, which is not restarted.
    let pool = libvirt.lookup_storage_pool_by_name("optest1-default")?;
    let sizes = || -> Result<Vec<u64>> {
        let of =
            |role| anyhow::Ok(pool.lookup_storage_vol_by_name(&format!("pcg-{id}-{role}"))?.info()?.capacity >> 30);
        Ok(vec![of("root")?, of("data-logs")?])
    };
    let larger = |root: u64, logs: u64| {
        json!({ "rootDisk": { "pool": "default", "sizeGiB": root },
                "dataDisks": [{ "name": "logs", "pool": "default", "sizeGiB": logs }] })
    };
    let run = domain.id();
    site.edit::<VirtualMachine>("one", larger(2, 3)).await?;
    site.see("both disks grown", |_| Ok(sizes()? == [2, 3])).await?;
    let grown = |path: String| Ok::<_, anyhow::Error>(domain.block_info(&path, 0)?.capacity >> 30);
    let own_path = |role: &str| site.dir.join(format!("pool/pcg-{id}-{role}")).display().to_string();
    assert_eq!((grown(own_path("root"))?, grown(own_path("data-logs"))?), (2, 3), "QEMU has the new sizes");
    assert_eq!(libvirt.lookup_domain_by_uuid(id)?.id(), run, "not restarted");
    site.edit::<VirtualMachine>("one", larger(2, 2)).await?;
    site.wait_reason("one", "DiskShrink", SHORT).await?;
    assert_eq!(sizes()?, [2, 3]);
    site.edit::<VirtualMachine>("one", larger(2, 3)).await?;
    site.ready_vm("one").await?;

    // Wait: the guest keeps running on what it has.
    site.secret("config", &files(&[("config.xml", "<router changed='1'/>\n")])).await?;
    let waiting = site
        .wait_vm("one", "ConfigCurrent=False", SHORT, |s| {
            condition::find(&s.conditions, "ConfigCurrent").is_some_and(|c| c.reason == "ConfigChanged")
        })
        .await?;
    assert_eq!(waiting.status.context("status")?.config_digest.as_ref(), Some(&digest));
    assert_eq!(libvirt.lookup_domain_by_uuid(id)?.id(), run, "not restarted");

    // Restart: it is shut down, its disk written, and started.
    site.edit::<VirtualMachine>("one", json!({ "onConfigChange": "Restart" })).await?;
    let renewed = site
        .wait_vm("one", "restarted with the new configuration", LONG, |s| {
            condition::is_true(&s.conditions, "ConfigCurrent")
                && condition::is_true(&s.conditions, "Ready")
                && s.config_digest.as_ref().is_some_and(|d| *d != digest)
        })
        .await?;
    assert_ne!(libvirt.lookup_domain_by_uuid(id)?.id(), run, "restarted");
    assert_eq!(read_config_disk(&site, id)?, "<router changed='1'/>\n");
    assert!(!renewed.status.context("status")?.addresses.is_empty());

    // Off and on.
    site.edit::<VirtualMachine>("one", json!({ "powerState": "Stopped" })).await?;
    site.wait_reason("one", "Stopped", LONG).await?;
    let domain = libvirt.lookup_domain_by_uuid(id)?;
    assert!(!domain.is_active()? && !domain.autostart()?);
    // Disks grow while it is off, by libvirt itself.
    site.edit::<VirtualMachine>("one", larger(3, 4)).await?;
    site.see("both disks grown", |_| Ok(sizes()? == [3, 4])).await?;
    // Memory is changed while it is off and holds at once; a disk that is no longer named is detached and kept.
    let more = json!({ "powerState": "Running", "memoryMiB": 300, "dataDisks": [] });
    site.edit::<VirtualMachine>("one", more).await?;
    let vm = site.ready_vm("one").await?;
    assert!(!libvirt.lookup_domain_by_uuid(id)?.xml_desc(0)?.contains(&own_path("data-logs")));
    let kept = vm.status.context("status")?.kept_disks;
    assert_eq!((kept.len(), kept[0].name.as_str(), kept[0].attached), (1, "logs", false));
    assert_eq!(sizes()?, [3, 4]);
    assert_eq!(libvirt.lookup_domain_by_uuid(id)?.max_memory()?, 300 * 1024);

    // Removal takes what is the machine's and nothing else.
    let foreign = "<volume><name>holiday.jpg</name><capacity>512</capacity></volume>";
    virt::storage_vol::StorageVol::create_xml(&pool, foreign, 0)?;
    site.delete::<VirtualMachine>("one").await?;
    site.gone::<VirtualMachine>("one").await?;
    assert!(libvirt.lookup_domain_by_uuid(id).is_err());
    let left = site.volumes()?;
    assert!(left.is_disjoint(&own) && left.contains("holiday.jpg") && left.len() == 3, "{left:?}");
    let left = [network.xml_desc(0)?, network.xml_desc(virt::sys::VIR_NETWORK_XML_INACTIVE)?];
    assert!(left.iter().all(|xml| !xml.contains("<host ")), "{left:?}");

    // All at once, in any order.
    site.delete::<Appliance>("local").await?;
    site.delete::<VirtualMachineImage>("tiny").await?;
    site.gone::<VirtualMachineImage>("tiny").await?;
    site.gone::<Appliance>("local").await?;
    assert!(libvirt.lookup_network_by_name("optest1-wan").is_err());
    assert!(libvirt.lookup_storage_pool_by_name("optest1-default").is_err());
    assert!(site.dir.join("pool/holiday.jpg").exists(), "files that are not ours stay");
    Ok(())
}

/// As libvirt writes it.
fn reservation(GuestAddress { mac, ip, .. }: &GuestAddress) -> String {
    format!("<host mac='{mac}' ip='{ip}'/>")
}

/// `config.xml` as it stands on the configuration disk.
fn read_config_disk(site: &Site, id: Uuid) -> Result<String> {
    let path = site.dir.join(format!("pool/pcg-{id}-config"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path)?.permissions());
    assert_eq!(mode & 0o777, 0o600, "it may hold secrets");
    let disk = std::io::Cursor::new(std::fs::read(path)?);
    let filesystem = fatfs::FileSystem::new(disk, fatfs::FsOptions::new())?;
    let mut text = String::new();
    filesystem.root_dir().open_file("config.xml")?.read_to_string(&mut text)?;
    Ok(text)
}

/// What somebody takes away behind the operator's back comes back, but for data.
#[tokio::test]
async fn what_is_taken_away() -> Result<()> {
    let site = Site::start(2, URI).await?;
    site.appliance().await?;
    site.image("tiny", &site.registry.push_tiny().await?).await?;
    let id = site.tiny_vm("one", json!({ "rootDisk": { "pool": "default" } })).await?;
    site.ready_vm("one").await?;
    let libvirt = support::libvirt()?;

    let run = libvirt.lookup_domain_by_uuid(id)?.id();
    let fault = Fault::strikes("a guest is cut off");
    libvirt.lookup_domain_by_uuid(id)?.destroy()?;
    site.see("the domain started again", |l| Ok(l.lookup_domain_by_uuid(id)?.id().is_some_and(|now| Some(now) != run)))
        .await?;
    fault.survived();

    // The definition of a running guest returns without a restart.
    let run = libvirt.lookup_domain_by_uuid(id)?.id();
    let fault = Fault::strikes("the definition of a guest that runs is removed");
    libvirt.lookup_domain_by_uuid(id)?.undefine()?;
    site.see("the definition back", |l| Ok(l.lookup_domain_by_uuid(id)?.is_persistent()?)).await?;
    assert_eq!(libvirt.lookup_domain_by_uuid(id)?.id(), run);
    fault.survived();

    // A network that is stopped is started.
    let network = libvirt.lookup_network_by_name("optest2-lan")?;
    let fault = Fault::strikes("a network is stopped");
    network.destroy()?;
    site.see("the network started again", |l| Ok(l.lookup_network_by_name("optest2-lan")?.is_active()?)).await?;

    fault.survived();

    // A lost disk is reported and not replaced, whoever asks.
    site.edit::<VirtualMachine>("one", json!({ "powerState": "Stopped" })).await?;
    site.wait_reason("one", "Stopped", LONG).await?;
    let root = site.dir.join(format!("pool/pcg-{id}-root"));
    let fault = Fault::strikes("a disk is lost, which is told, and comes back");
    std::fs::rename(&root, site.dir.join("aside"))?;
    site.edit::<VirtualMachine>("one", json!({ "powerState": "Running" })).await?;
    site.wait_reason("one", "DiskLost", SHORT).await?;
    libvirt.lookup_domain_by_uuid(id)?.undefine()?;
    site.edit::<VirtualMachine>("one", json!({ "vcpus": 2 })).await?;
    site.wait_vm("one", "still lost", SHORT, |s| {
        condition::find(&s.conditions, "Ready").is_some_and(|c| c.reason == "DiskLost")
    })
    .await?;
    assert!(!root.exists());

    // It is found again once it is back.
    std::fs::rename(site.dir.join("aside"), &root)?;
    site.edit::<VirtualMachine>("one", json!({ "vcpus": 1 })).await?;
    site.ready_vm("one").await?;
    fault.survived();
    Ok(())
}

/// Images: hostile, broken, shared, adopted, in use.
#[tokio::test]
async fn images() -> Result<()> {
    let mut site = Site::start(3, URI).await?;
    site.appliance().await?;
    let qcow2 = |args: &[&str]| -> Result<Vec<u8>> {
        let path = site.dir.join("disk");
        let mut command = std::process::Command::new("qemu-img");
        let status = command.args(["create", "-q", "-f", "qcow2"]).args(args).arg(&path).arg("64M").status()?;
        anyhow::ensure!(status.success());
        Ok(std::fs::read(path)?)
    };
    let announced = |bytes: u64| json!({ ANNOTATION_VIRTUAL_SIZE: bytes.to_string() });
    let refused = |name: &'static str| {
        site.wait::<VirtualMachineImage>(name, "ImageRefused", |c| reason(c) == "ImageRefused", SHORT)
    };
    let create = |name: &'static str, artifact: String| {
        site.create::<VirtualMachineImage>(name, json!({ "appliance": "local", "artifact": artifact }))
    };

    // A disk that names a file of the host.
    let hostile = qcow2(&["-u", "-b", "/etc/shadow", "-F", "raw"])?;
    let artifact = site.registry.push("test/hostile", &[(VM_DISK_QCOW2, hostile, announced(64 << 20))]).await?;
    create("hostile", artifact).await?;
    refused("hostile").await?;
    // A disk that is larger than announced.
    let disk = qcow2(&[])?;
    let artifact = site.registry.push("test/large", &[(VM_DISK_QCOW2, disk.clone(), announced(1))]).await?;
    create("large", artifact).await?;
    refused("large").await?;
    assert!(site.volumes()?.is_empty(), "refused images leave nothing");

    // Two images share a layer; each has its own of the other.
    let kernel = vec![7_u8; 3 << 20];
    let one = [(VM_KERNEL, kernel.clone(), json!({})), (VM_DISK_QCOW2, disk.clone(), announced(64 << 20))];
    let two = [(VM_KERNEL, kernel.clone(), json!({})), (VM_INITRD, vec![8_u8; 9], json!({}))];
    let artifacts = (site.registry.push("test/one", &one).await?, site.registry.push("test/two", &two).await?);
    let (one, two) = tokio::try_join!(site.image("one", &artifacts.0), site.image("two", &artifacts.1))?;
    assert_eq!(one.status.context("status")?.volumes[1].virtual_size, Some(64 << 20));
    assert_eq!(site.volumes()?.len(), 3);
    site.delete::<VirtualMachineImage>("two").await?;
    site.gone::<VirtualMachineImage>("two").await?;
    assert_eq!(site.volumes()?.len(), 2, "the shared layer stays");
    drop(two);

    // A new API server knows nothing: what is right is adopted, what is wrong is replaced.
    site.kill_operator().await;
    let none = json!({ "metadata": { "finalizers": null } });
    site.api::<VirtualMachineImage>().patch("one", &PatchParams::default(), &Patch::Merge(&none)).await?;
    site.delete::<VirtualMachineImage>("one").await?;
    site.gone::<VirtualMachineImage>("one").await?;
    let path = |bytes: &[u8]| {
        let name = support::registry::digest(bytes).replace("sha256:", "pcg-img-");
        site.dir.join("pool").join(name)
    };
    let made = std::fs::metadata(path(&kernel))?.modified()?;
    std::fs::write(path(&disk), b"half an upload")?;
    site.start_operator(TIMES)?;
    site.image("one", &artifacts.0).await?;
    let path = |bytes: &[u8]| {
        let name = support::registry::digest(bytes).replace("sha256:", "pcg-img-");
        site.dir.join("pool").join(name)
    };
    assert_eq!(std::fs::metadata(path(&kernel))?.modified()?, made, "adopted, not fetched again");
    assert!(std::fs::read(path(&disk))? == disk, "replaced");

    // Content that is not what its digest says.
    let initrd = vec![9_u8; 1 << 20];
    let layers = [(VM_KERNEL, vec![1_u8; 1 << 20], json!({})), (VM_INITRD, initrd.clone(), json!({}))];
    let artifact = site.registry.push("test/forged", &layers).await?;
    let hex = support::registry::digest(&initrd).replace("sha256:", "");
    let blob = format!("registry/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    std::fs::write(site.dir.join(blob), vec![6_u8; 1 << 20])?;
    site.create::<VirtualMachineImage>("forged", json!({ "appliance": "local", "artifact": artifact })).await?;
    site.wait::<VirtualMachineImage>(
        "forged",
        "an error",
        |c| reason(c).contains("Mismatch") || reason(c) == "RegistryError",
        SHORT,
    )
    .await?;
    assert!(!path(&initrd).exists(), "forged content leaves nothing");

    // In use by a machine's overlay.
    let id = Uuid::new_v4();
    let spec = json!({ "id": id.to_string(), "appliance": "local", "vcpus": 1, "memoryMiB": 64, "image": "one",
                       "rootDisk": { "pool": "default" }, "powerState": "Stopped" });
    site.create::<VirtualMachine>("user", spec).await?;
    site.wait_reason("user", "Stopped", LONG).await?;
    site.delete::<VirtualMachineImage>("one").await?;
    let blocked = site.wait::<VirtualMachineImage>("one", "ImageInUse", |c| reason(c) == "ImageInUse", SHORT).await?;
    let conditions = blocked.status.context("status")?.conditions;
    assert!(conditions[0].message.contains("user"), "{conditions:?}");
    assert!(path(&disk).exists());
    site.delete::<VirtualMachine>("user").await?;
    site.gone::<VirtualMachineImage>("one").await?;
    assert!(!path(&disk).exists() && !path(&kernel).exists());
    Ok(())
}

fn reason(conditions: &[edge_api::Condition]) -> String {
    condition::find(conditions, "Ready").map(|c| c.reason.clone()).unwrap_or_default()
}

/// Things with our names and without our marks.
#[tokio::test]
async fn what_is_not_ours() -> Result<()> {
    let site = Site::start(4, URI).await?;
    let libvirt = support::libvirt()?;
    let foreign = "<network><name>optest4-lan</name><bridge name='optest4x'/></network>";
    libvirt.define_network_xml(foreign)?;
    let before = libvirt.lookup_network_by_name("optest4-lan")?.xml_desc(0)?;
    site.create::<Appliance>("local", site.appliance_spec()).await?;
    site.wait::<Appliance>("local", "NetworkNotOurs", |c| reason(c) == "NetworkNotOurs", SHORT).await?;

    let id = Uuid::new_v4();
    let domain = format!(
        "<domain type='qemu'><name>optest4-somebody</name><uuid>{id}</uuid><memory unit='MiB'>64</memory>\
         <os><type>hvm</type></os></domain>"
    );
    libvirt.define_domain_xml(&domain)?;
    let spec = |id: Uuid| {
        json!({ "id": id.to_string(), "appliance": "local", "vcpus": 1, "memoryMiB": 64,
                "rootDisk": { "pool": "default" } })
    };
    site.create::<VirtualMachine>("one", spec(id)).await?;
    site.wait_reason("one", "DomainNotOurs", SHORT).await?;
    site.create::<VirtualMachine>("somebody", spec(Uuid::new_v4())).await?;
    site.wait_reason("somebody", "NameTaken", SHORT).await?;
    for name in ["one", "somebody"] {
        site.delete::<VirtualMachine>(name).await?;
        site.gone::<VirtualMachine>(name).await?;
    }
    site.delete::<Appliance>("local").await?;
    site.gone::<Appliance>("local").await?;
    assert!(libvirt.lookup_domain_by_uuid(id).is_ok(), "the foreign domain stays");
    assert_eq!(libvirt.lookup_network_by_name("optest4-lan")?.xml_desc(0)?, before, "the foreign network stays");
    Ok(())
}

/// libvirtd goes away and comes back: the guest does not notice, and the operator finds its way back by itself.
#[tokio::test]
async fn a_lost_connection() -> Result<()> {
    let relay = support::relay::Relay::start()?;
    let uri = format!("qemu+unix:///system?socket={}", relay.path().display());
    let site = Site::start(7, &uri).await?;
    site.appliance().await?;
    site.image("tiny", &site.registry.push_tiny().await?).await?;
    let id = site.tiny_vm("one", json!({})).await?;
    site.ready_vm("one").await?;
    let libvirt = support::libvirt()?;
    let run = libvirt.lookup_domain_by_uuid(id)?.id();

    let fault = Fault::strikes("the connection to libvirt is lost");
    relay.close();
    let lost = |c: &[edge_api::Condition]| condition::find(c, "Connected").is_some_and(|c| c.reason == "NotConnected");
    site.wait::<Appliance>("local", "NotConnected", lost, LONG).await?;
    let unknown = site.wait_reason("one", "NotConnected", SHORT).await?;
    assert_eq!(unknown.status.context("status")?.phase, Phase::Running);
    assert_eq!(libvirt.lookup_domain_by_uuid(id)?.id(), run, "the guest runs on");

    relay.open();
    site.wait::<Appliance>("local", "Connected", |c| condition::is_true(c, "Connected"), LONG).await?;
    site.ready_vm("one").await?;
    assert_eq!(libvirt.lookup_domain_by_uuid(id)?.id(), run);
    // Events come again.
    libvirt.lookup_domain_by_uuid(id)?.destroy()?;
    site.see("the domain started again", |l| Ok(l.lookup_domain_by_uuid(id)?.id().is_some_and(|now| Some(now) != run)))
        .await?;
    fault.survived();
    Ok(())
}

#[tokio::test]
async fn an_api_server_that_is_away() -> Result<()> {
    away(14, Duration::from_secs(30)).await
}

#[tokio::test]
#[ignore = "long: ten minutes"]
async fn an_api_server_that_is_away_for_ten_minutes() -> Result<()> {
    away(15, Duration::from_mins(10)).await
}

/// The API server hangs for a while: one guest runs on, one that ends meanwhile is started again, and afterwards the same
/// operator does what it is asked.
async fn away(number: u8, outage: Duration) -> Result<()> {
    let site = Site::start(number, URI).await?;
    site.appliance().await?;
    site.image("tiny", &site.registry.push_tiny().await?).await?;
    let (one, other) = (site.tiny_vm("one", json!({})).await?, site.tiny_vm("other", json!({})).await?);
    site.ready_vm("one").await?;
    site.ready_vm("other").await?;
    let libvirt = support::libvirt()?;
    let run = |id| anyhow::Ok(libvirt.lookup_domain_by_uuid(id)?.id());
    let (of_one, of_other) = (run(one)?, run(other)?);

    let fault = Fault::strikes(format!("the API server hangs for {} s", outage.as_secs()));
    site.plane.hang(true)?;
    libvirt.lookup_domain_by_uuid(other)?.destroy()?;
    tokio::time::sleep(outage).await;
    assert_eq!(run(one)?, of_one, "the guest runs on");
    site.plane.hang(false)?;

    site.see("the domain started again", |l| {
        Ok(l.lookup_domain_by_uuid(other)?.id().is_some_and(|now| Some(now) != of_other))
    })
    .await?;
    site.ready_vm("other").await?;
    site.tiny_vm("third", json!({})).await?;
    site.ready_vm("third").await?;
    site.delete::<VirtualMachine>("other").await?;
    site.gone::<VirtualMachine>("other").await?;
    assert_eq!(run(one)?, of_one);
    fault.survived();
    Ok(())
}
