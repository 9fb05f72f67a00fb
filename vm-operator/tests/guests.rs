//! Machines of Cluster API as real guests: moved by `clusterctl` from one API server to another, and with a bootstrap
//! that fails.

mod support;

use anyhow::{Context as _, Result};
use edge_api::{Appliance, IPPool, LibvirtCluster, LibvirtMachine, VirtualMachine, condition};
use kube::ResourceExt as _;
use support::guests::{fail_bootstrap, join, make};
use support::objects::{files, message, names, reason, subnet, until};
use support::{LONG, NAMESPACE, Site};
use vm_operator::cluster_api::upstream::{IPAddress, IPAddressClaim, Machine};

const URI: &str = "qemu:///system";

/// Process of a running domain.
fn process(domain: &str) -> Result<String> {
    let path = format!("/run/libvirt/qemu/{domain}.pid");
    std::fs::read_to_string(&path).with_context(|| path)
}

/// Two operators watch while it happens; the second one goes on where the first one was.
#[tokio::test]
#[ignore = "long: a real guest, and two API servers"]
async fn move_leaves_guests_alone() -> Result<()> {
    let source = Site::start(36, URI).await?;
    let mut target = Site::start(37, URI).await?;
    for site in [&source, &target] {
        support::cluster_api::install_all(&site.client()).await?;
    }
    let image = source.registry.push_tiny().await?;
    let appliance = source.appliance().await?;
    source.image("tiny", &image).await?;
    make(&source, 36).await?;
    join(&source).await?;

    // The same host, and what belongs to it and to no cluster.
    target.instance.clone_from(&source.instance);
    target.secret("registry-pull", &source.registry.secret()).await?;
    target.create::<Appliance>("local", serde_json::to_value(&appliance.spec)?).await?;
    target.wait::<Appliance>("local", "Ready", |c| condition::is_true(c, "Ready"), LONG).await?;
    target.image("tiny", &image).await?;

    let before = source.api::<VirtualMachine>().get("node").await?;
    let (id, domain) = (before.spec.id.parse()?, before.status.and_then(|s| s.domain).context("domain")?);
    let libvirt = support::libvirt()?;
    let of_domain = |id| anyhow::Ok((libvirt.lookup_domain_by_uuid(id)?.id(), process(&domain)?));
    let run = of_domain(id)?;
    let (volumes, seed) = (source.volumes()?, files(&source, "node-seed").await?);
    println!("domain {domain}: {run:?}");

    let to = target.plane.kubeconfig();
    let said = support::cluster_api::clusterctl(
        &source.plane,
        &["move", "--namespace", NAMESPACE, "--to-kubeconfig", &to.to_string_lossy()],
    )
    .await?;
    println!("{said}");
    assert!(names::<Machine>(&source).await?.is_empty() && names::<LibvirtMachine>(&source).await?.is_empty());
    assert!(names::<VirtualMachine>(&source).await?.is_empty() && names::<LibvirtCluster>(&source).await?.is_empty());
    assert!(names::<IPAddressClaim>(&source).await?.is_empty() && names::<IPPool>(&source).await?.is_empty());

    target.wait::<LibvirtCluster>("one", "Ready", |c| condition::is_true(c, "Ready"), LONG).await?;
    let moved = target.wait::<LibvirtMachine>("node", "Ready", |c| condition::is_true(c, "Ready"), LONG).await?;
    target.ready_vm("node").await?;
    assert_eq!(moved.spec.provider_id, Some(format!("libvirt:///{id}")));
    assert_eq!(moved.status.and_then(|s| s.initialization).and_then(|i| i.provisioned), Some(true));
    assert_eq!(files(&target, "node-seed").await?, seed);
    assert_eq!((of_domain(id)?, source.volumes()?), (run, volumes), "the guest runs as it did");
    let address = target.api::<IPAddress>().get("node-0").await?;
    assert_eq!(address.spec.address, format!("{}.20", subnet(36)));
    until("the machine to be let go on", async || {
        let annotations = target.api::<VirtualMachine>().get("node").await?.annotations().clone();
        Ok((!annotations.contains_key(edge_api::cluster_api::ANNOTATION_PAUSED), annotations))
    })
    .await?;

    // It is the target's now, and goes with it.
    target.delete::<LibvirtMachine>("node").await?;
    target.gone::<LibvirtMachine>("node").await?;
    assert!(libvirt.lookup_domain_by_uuid(id).is_err());
    assert!(names::<IPAddress>(&target).await?.is_empty());
    Ok(())
}

/// A guest that says that it ended without success has the end of its log in the condition, without its token; and it
/// is provisioned nevertheless.
#[tokio::test]
async fn a_failed_bootstrap_is_told() -> Result<()> {
    let site = Site::start(35, URI).await?;
    support::cluster_api::install(&site.client()).await?;
    site.appliance().await?;
    site.image("tiny", &site.registry.push_tiny().await?).await?;
    make(&site, 35).await?;
    let id = site.api::<VirtualMachine>().get("node").await?.spec.id.parse()?;
    fail_bootstrap(id)?;
    let failed = reason::<LibvirtMachine>(&site, "node", "BootstrapFailed").await?;
    let told = message(&serde_json::to_value(&failed)?);
    assert!(told.contains("line 40 | kubeadm join --token [redacted] timed out"), "{told}");
    assert!(!told.contains("0123456789abcdef") && !told.contains("line 21 "), "{told}");
    assert_eq!(failed.status.and_then(|s| s.initialization).and_then(|i| i.provisioned), Some(true));
    until("another machine to be asked for", async || {
        let annotations = site.api::<Machine>().get("node").await?.annotations().clone();
        Ok((annotations.contains_key(edge_api::cluster_api::ANNOTATION_REMEDIATE), annotations))
    })
    .await?;
    // It is a node after all.
    join(&site).await?;
    site.wait::<LibvirtMachine>("node", "Ready", |c| condition::is_true(c, "Ready"), LONG).await?;
    Ok(())
}
