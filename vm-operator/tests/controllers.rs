//! The controllers on a real API server, with libvirt's test driver, which starts domains without QEMU.

mod support;

use anyhow::{Context as _, Result};
use edge_api::virtual_machine::{KeptDisk, Phase};
use edge_api::{Appliance, VirtualMachine, VirtualMachineImage, condition};
use edge_tests::eventually;
use edge_tests::wait::Seen;
use serde_json::{Value, json};
use support::{SHORT, Site};
use uuid::Uuid;

const URI: &str = "test:///default";

fn spec(edit: Value) -> Value {
    let mut spec = json!({
        "id": Uuid::new_v4().to_string(), "appliance": "local", "vcpus": 1, "memoryMiB": 64,
        "rootDisk": { "pool": "default", "sizeGiB": 1 },
    });
    if let (Some(spec), Value::Object(edit)) = (spec.as_object_mut(), edit) {
        spec.extend(edit);
    }
    spec
}

/// Each thing that can be wrong has its reason, and leaves nothing half-made.
#[tokio::test]
async fn what_cannot_be_made() -> Result<()> {
    let site = Site::start(5, URI).await?;
    site.create::<VirtualMachine>("early", spec(json!({}))).await?;
    site.wait_reason("early", "ApplianceNotFound", SHORT).await?;
    site.appliance().await?;
    site.ready_vm("early").await?;

    let cases = [
        ("pool", "PoolNotFound", json!({ "rootDisk": { "pool": "nowhere" } })),
        ("network", "NetworkNotFound", json!({ "interfaces": [{ "network": "nowhere" }] })),
        ("image", "ImageNotFound", json!({ "image": "nothing" })),
        ("memory", "InsufficientMemory", json!({ "memoryMiB": 16_000_000 })),
        ("cpus", "InsufficientCpus", json!({ "vcpus": 512 })),
        ("secret", "SecretNotFound", json!({ "configDisk": { "secretName": "nothing" } })),
        ("kernel", "Invalid", json!({ "kernelArgs": "console=ttyS0" })),
    ];
    for (name, _, edit) in &cases {
        site.create::<VirtualMachine>(name, spec(edit.clone())).await?;
    }
    for (name, reason, _) in &cases {
        let vm = site.wait_reason(name, reason, SHORT).await?;
        let status = vm.status.context("status")?;
        assert!(!condition::is_true(&status.conditions, "Ready"));
        assert!(status.domain.is_none(), "no domain for {name}");
        // An event follows its status.
        let what = format!("an event about {name}");
        let events = eventually(&what, SHORT, || async {
            site.events(name).await.map(|events| Seen::when(!events.is_empty(), events))
        });
        assert_eq!(events.await?, [*reason], "one event for {name}");
    }

    // What is waited for wakes who waits: no resync comes within the deadline.
    site.edit::<VirtualMachine>("memory", json!({ "memoryMiB": 128 })).await?;
    site.ready_vm("memory").await?;
    let mut networks = site.appliance_spec()["networks"].clone();
    // With an address: the test driver crashes when asked for leases of a network without one.
    let nowhere = json!({ "name": "nowhere", "type": "NAT", "address": "192.168.209.1/24" });
    networks.as_array_mut().context("networks")?.push(nowhere);
    site.edit::<Appliance>("local", json!({ "networks": networks })).await?;
    site.ready_vm("network").await?;

    // The image exists and its registry does not answer for it.
    let artifact = format!("test/none@sha256:{:064x}", 5);
    site.create::<VirtualMachineImage>("nothing", json!({ "appliance": "local", "artifact": artifact })).await?;
    site.wait_reason("image", "ImageNotReady", SHORT).await?;
    let error = |c: &[edge_api::Condition]| condition::find(c, "Ready").is_some_and(|c| c.reason == "RegistryError");
    site.wait::<VirtualMachineImage>("nothing", "RegistryError", error, SHORT).await?;

    // Off, on, gone.
    site.edit::<VirtualMachine>("early", json!({ "powerState": "Stopped" })).await?;
    site.wait_reason("early", "Stopped", SHORT).await?;
    site.edit::<VirtualMachine>("early", json!({ "powerState": "Running" })).await?;
    site.ready_vm("early").await?;
    for name in ["early", "memory", "network"].into_iter().chain(cases.iter().map(|c| c.0)) {
        if site.api::<VirtualMachine>().get_opt(name).await?.is_some() {
            site.delete::<VirtualMachine>(name).await?;
            site.gone::<VirtualMachine>(name).await?;
        }
    }
    site.delete::<VirtualMachineImage>("nothing").await?;
    site.gone::<VirtualMachineImage>("nothing").await?;
    site.delete::<Appliance>("local").await?;
    site.gone::<Appliance>("local").await?;
    Ok(())
}

/// Disks never shrink, and one that is no longer named is kept until its machine goes.
#[tokio::test]
async fn disks_are_safe_from_edits() -> Result<()> {
    let site = Site::start(8, URI).await?;
    site.appliance().await?;
    let disks = |gib: u64| json!([{ "name": "logs", "pool": "default", "sizeGiB": gib }]);
    let spec = spec(json!({ "dataDisks": disks(2) }));
    let volume = format!("pcg-{}-data-logs", spec["id"].as_str().context("id")?);
    site.create::<VirtualMachine>("one", spec).await?;
    site.ready_vm("one").await?;
    // The test driver's hypervisor is one per process: the operator's.
    let libvirt = virt::connect::Connect::open(Some(URI))?;
    let pool = libvirt.lookup_storage_pool_by_name("optest8-default")?;
    let capacity = || anyhow::Ok(pool.lookup_storage_vol_by_name(&volume)?.info()?.capacity >> 30);
    let run = libvirt.lookup_domain_by_name("optest8-one")?.id();

    site.edit::<VirtualMachine>("one", json!({ "dataDisks": disks(1) })).await?;
    site.wait_reason("one", "DiskShrink", SHORT).await?;
    assert_eq!((capacity()?, libvirt.lookup_domain_by_name("optest8-one")?.id()), (2, run), "neither is touched");
    // The test driver cannot grow a disk; that it was asked to is what it refuses.
    site.edit::<VirtualMachine>("one", json!({ "dataDisks": disks(3) })).await?;
    let refused = site.wait_reason("one", "LibvirtError", SHORT).await?;
    let conditions = refused.status.context("status")?.conditions;
    let message = &condition::find(&conditions, "Ready").context("Ready")?.message;
    assert!(message.contains(&format!("grow volume {volume} of running domain")), "{message}");

    // No longer named, then off and on, then named again.
    let kept = |attached: bool| {
        let pool = "optest8-default".to_owned();
        vec![KeptDisk { name: "logs".to_owned(), pool, volume: volume.clone(), attached }]
    };
    site.edit::<VirtualMachine>("one", json!({ "dataDisks": [] })).await?;
    site.wait_vm("one", "attached until the next start", SHORT, |s| s.kept_disks == kept(true)).await?;
    site.edit::<VirtualMachine>("one", json!({ "powerState": "Stopped" })).await?;
    site.wait_reason("one", "Stopped", SHORT).await?;
    site.edit::<VirtualMachine>("one", json!({ "powerState": "Running" })).await?;
    site.wait_vm("one", "detached", SHORT, |s| s.kept_disks == kept(false)).await?;
    site.ready_vm("one").await?;
    let has_it = || anyhow::Ok(libvirt.lookup_domain_by_name("optest8-one")?.xml_desc(0)?.contains(&volume));
    assert!(!has_it()? && capacity()? == 2, "detached, and kept");
    site.edit::<VirtualMachine>("one", json!({ "dataDisks": disks(2), "powerState": "Stopped" })).await?;
    site.wait_vm("one", "named again", SHORT, |s| s.kept_disks.is_empty() && s.phase == Phase::Stopped).await?;
    assert!(has_it()?);
    site.edit::<VirtualMachine>("one", json!({ "dataDisks": [] })).await?;
    site.wait_vm("one", "kept", SHORT, |s| s.kept_disks == kept(false)).await?;

    site.delete::<VirtualMachine>("one").await?;
    site.gone::<VirtualMachine>("one").await?;
    assert!(pool.list_volumes()?.iter().all(|name| *name != volume), "gone with its machine");
    Ok(())
}

/// An appliance whose libvirt cannot be reached says so, and can be deleted once it never made anything.
#[tokio::test]
async fn an_appliance_that_cannot_be_reached() -> Result<()> {
    let site = Site::start(6, "qemu+unix:///system?socket=/nonexistent/libvirt-sock").await?;
    site.create::<Appliance>("local", site.appliance_spec()).await?;
    let not_connected = |c: &[edge_api::Condition]| {
        condition::find(c, "Connected").is_some_and(|c| c.reason == "NotConnected" && c.message.contains("nonexistent"))
    };
    site.wait::<Appliance>("local", "NotConnected", not_connected, SHORT).await?;
    site.create::<VirtualMachine>("one", spec(json!({}))).await?;
    site.wait_reason("one", "NotConnected", SHORT).await?;
    site.create::<VirtualMachine>("two", spec(json!({ "appliance": "nobody" }))).await?;
    site.wait_reason("two", "ApplianceNotFound", SHORT).await?;
    for name in ["one", "two"] {
        site.delete::<VirtualMachine>(name).await?;
        site.gone::<VirtualMachine>(name).await?;
    }
    site.delete::<Appliance>("local").await?;
    site.gone::<Appliance>("local").await?;
    Ok(())
}
