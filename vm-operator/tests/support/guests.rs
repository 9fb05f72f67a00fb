//! A machine of Cluster API as a real guest: the tiny one, which is no node, with what others would say of it played.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use edge_api::cluster_api::LABEL_CLUSTER;
use edge_api::{LibvirtCluster, LibvirtMachine, condition};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use uuid::Uuid;
use vm_operator::cluster_api::upstream::{Cluster, Machine};

use super::objects::{bootstrap_secret, cluster, create, libvirt_cluster, own, pool, provisioned, subnet};
use super::{LONG, NAMESPACE, Site};

/// A cluster of one machine, whose guest answers and is no node yet.
pub async fn make(site: &Site, number: u8) -> Result<()> {
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
pub async fn join(site: &Site) -> Result<()> {
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

/// Lets a guest run a script, and does not wait for it; gives the number of its process.
pub fn start(id: Uuid, script: &str) -> Result<u64> {
    let arguments = json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true });
    let started = ask(id, &json!({ "execute": "guest-exec", "arguments": arguments }))?;
    started["pid"].as_u64().context("pid")
}

/// What a script said, once it has ended.
pub fn said(id: Uuid, process: u64) -> Result<Option<String>> {
    let status = ask(id, &json!({ "execute": "guest-exec-status", "arguments": { "pid": process } }))?;
    if status["exited"] != true {
        return Ok(None);
    }
    let output = BASE64_STANDARD.decode(status["out-data"].as_str().unwrap_or_default())?;
    anyhow::ensure!(status["exitcode"] == 0, "{status}: {}", String::from_utf8_lossy(&output));
    Ok(Some(String::from_utf8_lossy(&output).into_owned()))
}

fn ask(id: Uuid, command: &Value) -> Result<Value> {
    let domain = super::libvirt()?.lookup_domain_by_uuid(id)?;
    let answer = domain.qemu_agent_command(&command.to_string(), 10, 0).context("guest agent")?;
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(answer["return"].clone())
}

/// Lets a guest say that its bootstrap has ended without success.
pub fn fail_bootstrap(id: Uuid) -> Result<()> {
    let script = "mkdir -p /run/cloud-init /run/cluster-api /var/log; \
                  for n in $(seq 40); do echo line $n; done > /var/log/cloud-init-output.log; \
                  echo 'kubeadm join --token abcdef.0123456789abcdef: timed out' >> /var/log/cloud-init-output.log; \
                  echo '{}' > /run/cloud-init/result.json";
    start(id, script).map(drop)
}
