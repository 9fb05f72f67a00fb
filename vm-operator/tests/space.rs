//! A storage pool on a small file system that is full: what needs how much is told, and all goes on when space returns.

mod support;

use anyhow::{Context as _, Result};
use edge_api::bundle::{VM_INITRD, VM_KERNEL};
use edge_api::{VirtualMachine, VirtualMachineImage, condition};
use edge_tests::wait::Seen;
use edge_tests::{Fault, SmallDisk, eventually};
use serde_json::json;
use support::guests::{said, start};
use support::registry::digest;
use support::{LONG, SHORT, Site};
use uuid::Uuid;

const URI: &str = "qemu:///system";
const MIB: u64 = 1 << 20;

/// An image, a new machine's disks, and a guest that writes.
#[tokio::test]
async fn a_full_pool() -> Result<()> {
    let disk = SmallDisk::new(256 * MIB)?;
    let site = Site::start(45, URI).await?;
    let mut spec = site.appliance_spec();
    spec["storagePools"] = json!([{ "name": "default", "path": disk.path() }]);
    site.create::<edge_api::Appliance>("local", spec).await?;
    site.wait::<edge_api::Appliance>("local", "Ready", |c| condition::is_true(c, "Ready"), SHORT).await?;

    an_image(&site, &disk).await.context("an image")?;
    disk.leave(256 * MIB)?;
    site.image("tiny", &site.registry.push_tiny().await?).await?;
    a_new_machine(&site, &disk).await.context("a new machine")?;
    a_guest_that_writes(&site, &disk).await.context("a guest that writes")
}

async fn an_image(site: &Site, disk: &SmallDisk) -> Result<()> {
    disk.leave(10 * MIB)?;
    let fault = Fault::strikes("an image does not fit into its pool");
    let layers = [(VM_KERNEL, vec![1_u8; 4 << 20], json!({})), (VM_INITRD, vec![2_u8; 20 << 20], json!({}))];
    let artifact = site.registry.push("test/large", &layers).await?;
    site.create::<VirtualMachineImage>("large", json!({ "appliance": "local", "artifact": artifact })).await?;
    let told = no_space::<VirtualMachineImage>(site, "large").await?;
    assert!(told.contains("24 MiB are needed in pool optest45-default") && told.contains("has 10 MiB free"), "{told}");
    assert!(site.volumes()?.iter().all(|volume| volume.starts_with('.')), "nothing is left of it");
    disk.leave(256 * MIB)?;
    site.wait::<VirtualMachineImage>("large", "Ready", |c| condition::is_true(c, "Ready"), LONG).await?;
    fault.survived();
    site.delete::<VirtualMachineImage>("large").await?;
    site.gone::<VirtualMachineImage>("large").await
}

async fn a_new_machine(site: &Site, disk: &SmallDisk) -> Result<()> {
    disk.leave(0)?;
    let fault = Fault::strikes("a new machine finds its pool full");
    let volumes = site.volumes()?;
    let spec = json!({ "rootDisk": { "pool": "default", "sizeGiB": 1 },
                       "dataDisks": [{ "name": "logs", "pool": "default", "sizeGiB": 2 }] });
    site.tiny_vm("one", spec).await?;
    let told = no_space::<VirtualMachine>(site, "one").await?;
    assert!(told.contains("64 MiB are needed in pool optest45-default") && told.contains("has 0 MiB free"), "{told}");
    assert_eq!(site.volumes()?, volumes, "no half volume");
    disk.leave(256 * MIB)?;
    site.ready_vm("one").await?;
    fault.survived();
    site.delete::<VirtualMachine>("one").await?;
    site.gone::<VirtualMachine>("one").await
}

async fn a_guest_that_writes(site: &Site, disk: &SmallDisk) -> Result<()> {
    let id = site.tiny_vm("one", json!({ "rootDisk": { "pool": "default", "sizeGiB": 1 } })).await?;
    site.ready_vm("one").await?;
    let libvirt = support::libvirt()?;
    let domain = libvirt.lookup_domain_by_uuid(id)?;
    let run = domain.id();
    disk.leave(10 * MIB)?;
    let fault = Fault::strikes("a pool becomes full under a guest that writes");
    // What it reads back at the end is not from its memory.
    let script = "yes 0123456789abcde | dd of=/dev/vda bs=1M count=40 iflag=fullblock conv=fsync 2>&1 && \
                  echo 3 > /proc/sys/vm/drop_caches && dd if=/dev/vda bs=1M count=40 2>/dev/null | sha256sum";
    let process = start(id, script)?;
    eventually("the guest to be paused", LONG, || async {
        let state = domain.state()?;
        let paused = state.0 == virt::domain::DomainState::Paused.into();
        // It cannot say anything then.
        Ok::<_, anyhow::Error>(if paused { Seen::Done(()) } else { Seen::NotYet(format!("{:?}", said(id, process))) })
    })
    .await?;
    let told = no_space::<VirtualMachine>(site, "one").await?;
    assert!(told.contains("64 MiB are needed in pool optest45-default"), "{told}");

    // A little is not enough: it would be paused again at once. Nor is it cut off for a restart that is due.
    disk.leave(MIB)?;
    for vcpus in [2, 1] {
        site.edit::<VirtualMachine>("one", json!({ "vcpus": vcpus, "onConfigChange": "Restart" })).await?;
        site.wait_reason("one", "NoSpace", SHORT).await?;
    }
    disk.leave(256 * MIB)?;
    site.ready_vm("one").await?;
    let written = eventually("the guest to have written", LONG, || async {
        let text = said(id, process)?;
        anyhow::Ok(text.map_or_else(|| Seen::NotYet("it writes".to_owned()), Seen::Done))
    })
    .await?;
    println!("the guest says: {written}");
    let expected = digest("0123456789abcde\n".repeat(40 << 16).as_bytes()).replace("sha256:", "");
    assert!(written.contains(&expected), "every byte is there");
    assert_eq!(libvirt.lookup_domain_by_uuid(id)?.id(), run, "the same run");
    fault.survived();
    paused_by_hand(site, id).await
}

/// Whoever pauses a guest has a reason.
async fn paused_by_hand(site: &Site, id: Uuid) -> Result<()> {
    let domain = support::libvirt()?.lookup_domain_by_uuid(id)?;
    domain.suspend()?;
    site.wait_reason("one", "Paused", SHORT).await?;
    domain.resume()?;
    site.ready_vm("one").await.map(drop)
}

/// Waits until an object says so, and gives what it says.
async fn no_space<K>(site: &Site, name: &str) -> Result<String>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + serde::Serialize
        + std::fmt::Debug,
{
    let is = |c: &[edge_api::Condition]| condition::find(c, "Ready").is_some_and(|c| c.reason == "NoSpace");
    let object = site.wait::<K>(name, "NoSpace", is, LONG).await?;
    let told = support::objects::message(&serde_json::to_value(&object)?);
    println!("{} {name}: {told}", K::kind(&()));
    Ok(told)
}
