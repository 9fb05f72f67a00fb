//! Machines of Cluster API as real guests: moved by `clusterctl` from one API server to another, and with a bootstrap
//! that fails.

mod support;

use anyhow::{Context as _, Result};
use edge_api::cluster_api::LABEL_CLUSTER;
use edge_api::{Appliance, IPPool, LibvirtCluster, LibvirtMachine, VirtualMachine, condition};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use support::objects::{
    bootstrap_secret, cluster, create, files, libvirt_cluster, message, names, own, pool, provisioned, reason, subnet,
    until,
};
use support::{LONG, NAMESPACE, Site};
use vm_operator::cluster_api::upstream::{Cluster, IPAddress, IPAddressClaim, Machine};

const URI: &str = "qemu:///system";

/// A cluster of one machine, whose guest answers and is no node yet.
async fn make(site: &Site, number: u8) -> Result<()> {
    let net = subnet(number);
    let range = json!({ "start": format!("{net}.20"), "end": format!("{net}.29") });
    pool(site, "nodes", json!({ "range": range, "prefix": 24, "gateway": format!("{net}.1") })).await?;
    let owner = cluster(site, "one").await?;
    libvirt_cluster(site, "one", Some(&format!("{net}.10"))).await?;
    own::<LibvirtCluster>(site, "one", &owner).await?;
    provisioned(site, "one").await?;
    bootstrap_secret(site, "node-data", "cloud-config").await?;
    let labels = json!({ LABEL_CLUSTER: "one" });
    let infrastructure =
        json!({ "apiGroup": "infrastructure.cluster.x-k8s.io", "kind": "LibvirtMachine", "name": "node" });
    let spec = json!({
        "clusterName": "one", "bootstrap": { "dataSecretName": "node-data" }, "infrastructureRef": infrastructure,
    });
    create::<Machine>(site, json!({ "name": "node", "labels": labels }), spec).await?;
    let machine = own::<Machine>(site, "node", &owner).await?;
    let spec = json!({
        "appliance": "local", "vcpus": 1, "memoryMiB": 256, "image": "tiny", "kernelArgs": "console=ttyS0",
        "rootDisk": { "pool": "default", "sizeGiB": 1 },
        "interfaces": [{ "network": "wan", "addressPool": "nodes" }],
    });
    create::<LibvirtMachine>(site, json!({ "name": "node", "labels": labels }), spec).await?;
    own::<LibvirtMachine>(site, "node", &machine).await?;
    own::<Secret>(site, "node-data", &machine).await?;
    site.wait::<LibvirtMachine>("node", "Ready", |c| condition::is_true(c, "Ready"), LONG).await?;
    Ok(())
}

/// What core and control plane would say once the guest is a node, which `clusterctl` wants before it moves it.
async fn join(site: &Site) -> Result<()> {
    let now = "2026-01-01T00:00:00Z";
    let initialized = json!([{
        "type": "ControlPlaneInitialized", "status": "True", "reason": "Initialized", "message": "played",
        "lastTransitionTime": now,
    }]);
    let status = json!({ "status": { "conditions": initialized } });
    site.api::<Cluster>().patch_status("one", &PatchParams::default(), &Patch::Merge(&status)).await?;
    let machines = kube::Api::<kube::core::DynamicObject>::namespaced_with(
        site.client(),
        NAMESPACE,
        &kube::core::ApiResource::erase::<Machine>(&()),
    );
    let status = json!({ "status": { "nodeRef": { "name": "node" } } });
    machines.patch_status("node", &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

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

/// Carries a script out in a guest.
fn in_guest(domain: &virt::domain::Domain, script: &str) -> Result<()> {
    let arguments = json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true });
    let command = json!({ "execute": "guest-exec", "arguments": arguments });
    domain.qemu_agent_command(&command.to_string(), 10, 0).context("guest-exec")?;
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
    let domain = support::libvirt()?.lookup_domain_by_uuid(id)?;
    let script = "mkdir -p /run/cloud-init /run/cluster-api /var/log; \
                  for n in $(seq 40); do echo line $n; done > /var/log/cloud-init-output.log; \
                  echo 'kubeadm join --token abcdef.0123456789abcdef: timed out' >> /var/log/cloud-init-output.log; \
                  echo '{}' > /run/cloud-init/result.json";
    in_guest(&domain, script)?;
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
