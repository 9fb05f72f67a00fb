//! Cluster API's objects as tests make them, and what they wait for.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use edge_api::cluster_api::LABEL_CLUSTER;
use edge_api::{IPPool, LibvirtCluster, LibvirtMachine, VirtualMachine, condition};
use edge_tests::eventually;
use edge_tests::wait::Seen;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vm_operator::cluster_api::upstream::{Cluster, Machine};

use super::{SHORT, Site};

pub const BOOTSTRAP: &[u8] = b"## template: jinja\n#cloud-config\nruncmd: []\n\xc3\xa9\n";

pub fn subnet(number: u8) -> String {
    format!("192.168.{}", 210 + number)
}

pub async fn create<K>(site: &Site, metadata: Value, spec: Value) -> Result<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Serialize,
    K: std::fmt::Debug,
{
    let object: K = serde_json::from_value(json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": metadata, "spec": spec,
    }))?;
    // As it was given: the partial views of Cluster API's kinds lack what its definitions want.
    let mut value = serde_json::to_value(&object)?;
    value["spec"] = spec;
    let name = object.name_any();
    let params = PatchParams::apply("test").force();
    site.api::<K>().patch(&name, &params, &Patch::Apply(&value)).await.with_context(|| format!("create {name}"))
}

pub async fn merge<K>(site: &Site, name: &str, patch: Value) -> Result<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned,
    K: std::fmt::Debug,
{
    Ok(site.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?)
}

pub async fn cluster(site: &Site, name: &str) -> Result<Cluster> {
    let spec = json!({ "infrastructureRef": {
        "apiGroup": "infrastructure.cluster.x-k8s.io", "kind": "LibvirtCluster", "name": name,
    } });
    create::<Cluster>(site, json!({ "name": name }), spec).await
}

pub async fn libvirt_cluster(site: &Site, name: &str, host: Option<&str>) -> Result<LibvirtCluster> {
    let mut spec = json!({ "appliance": "local", "network": "wan" });
    if let Some(host) = host {
        spec["controlPlaneEndpoint"] = json!({ "host": host, "port": 6443 });
    }
    create::<LibvirtCluster>(site, json!({ "name": name, "labels": { LABEL_CLUSTER: name } }), spec).await
}

/// What Cluster API's core does.
pub async fn own<K>(site: &Site, name: &str, owner: &impl Resource<DynamicType = ()>) -> Result<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned,
    K: std::fmt::Debug,
{
    let owner = vm_operator::cluster_api::provider::reference(owner, true);
    merge::<K>(site, name, json!({ "metadata": { "ownerReferences": [owner] } })).await
}

pub async fn clusters(site: &Site, names: &[(&str, Option<&str>)]) -> Result<()> {
    for (name, host) in names {
        let owner = cluster(site, name).await?;
        libvirt_cluster(site, name, *host).await?;
        own::<LibvirtCluster>(site, name, &owner).await?;
    }
    Ok(())
}

pub async fn pool(site: &Site, name: &str, spec: Value) -> Result<IPPool> {
    create::<IPPool>(site, json!({ "name": name }), spec).await?;
    site.wait::<IPPool>(name, "Ready", |c| condition::find(c, "Ready").is_some(), SHORT).await
}

pub async fn reason<K>(site: &Site, name: &str, reason: &str) -> Result<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Serialize,
    K: std::fmt::Debug,
{
    let is = |c: &[edge_api::Condition]| condition::find(c, "Ready").is_some_and(|c| c.reason == reason);
    let object = site.wait::<K>(name, reason, is, SHORT).await?;
    let value = serde_json::to_value(&object)?;
    println!("{} {name}: {reason}: {}", K::kind(&()), message(&value));
    Ok(object)
}

pub fn message(object: &Value) -> String {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().find(|c| c["type"] == "Ready").map_or(String::new(), |c| c["message"].to_string())
}

pub async fn provisioned(site: &Site, cluster: &str) -> Result<LibvirtCluster> {
    reason::<LibvirtCluster>(site, cluster, "Provisioned").await?;
    let status = json!({ "status": { "initialization": { "infrastructureProvisioned": true } } });
    let api = site.api::<Cluster>();
    api.patch_status(cluster, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(site.api::<LibvirtCluster>().get(cluster).await?)
}

pub async fn machine(site: &Site, name: &str, cluster: &str, control_plane: bool) -> Result<()> {
    machine_with(site, name, cluster, control_plane, json!({}), json!({})).await
}

pub fn edited(mut spec: Value, edit: Value) -> Value {
    if let (Some(spec), Value::Object(edit)) = (spec.as_object_mut(), edit) {
        spec.extend(edit);
    }
    spec
}

pub async fn machine_with(
    site: &Site,
    name: &str,
    cluster: &str,
    control_plane: bool,
    theirs: Value,
    ours: Value,
) -> Result<()> {
    let mut labels = json!({ LABEL_CLUSTER: cluster });
    if control_plane {
        labels["cluster.x-k8s.io/control-plane"] = json!("");
    }
    let infrastructure =
        json!({ "apiGroup": "infrastructure.cluster.x-k8s.io", "kind": "LibvirtMachine", "name": name });
    let bootstrap =
        json!({ "configRef": { "apiGroup": "bootstrap.cluster.x-k8s.io", "kind": "KubeadmConfig", "name": name } });
    let spec = json!({ "clusterName": cluster, "bootstrap": bootstrap, "infrastructureRef": infrastructure });
    let owner = create::<Machine>(site, json!({ "name": name, "labels": labels }), edited(spec, theirs)).await?;
    let spec = json!({
        "appliance": "local", "vcpus": 1, "memoryMiB": 64, "image": "node", "rootDisk": { "pool": "default" },
        "interfaces": [{ "network": "wan", "addressPool": "nodes" }, { "network": "lan" }],
    });
    create::<LibvirtMachine>(site, json!({ "name": name, "labels": labels }), edited(spec, ours)).await?;
    own::<LibvirtMachine>(site, name, &owner).await?;
    Ok(())
}

pub async fn bootstrap(site: &Site, machine: &str, secret: &str) -> Result<()> {
    merge::<Machine>(site, machine, json!({ "spec": { "bootstrap": { "dataSecretName": secret } } })).await?;
    Ok(())
}

pub async fn bootstrap_secret(site: &Site, name: &str, format: &str) -> Result<()> {
    let secret: Secret = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
        "data": { "value": k8s_openapi::ByteString(BOOTSTRAP.to_vec()) }, "stringData": { "format": format },
    }))?;
    let params = PatchParams::apply("test").force();
    site.api::<Secret>().patch(name, &params, &Patch::Apply(&secret)).await?;
    Ok(())
}

/// Plays a domain that runs.
pub async fn play_running(site: &Site, name: &str, ip: &str) -> Result<()> {
    let now = "2026-01-01T00:00:00Z";
    let status = json!({ "status": {
        "phase": "Running",
        "conditions": [{
            "type": "Ready", "status": "False", "reason": "WaitingForAgent", "message": "played", "lastTransitionTime": now
        }],
        "addresses": [{ "network": "lan", "mac": "52:00:00:00:00:01", "ip": ip, "prefix": 24 }],
    } });
    let api = site.api::<VirtualMachine>();
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

/// Plays it until its `LibvirtMachine` knows: the domain's own controller may say otherwise in between.
pub async fn runs(site: &Site, name: &str, ip: &str) -> Result<LibvirtMachine> {
    until(&format!("{name} to be provisioned"), async || {
        play_running(site, name, ip).await?;
        let machine = site.api::<LibvirtMachine>().get(name).await?;
        let done = machine.status.as_ref().and_then(|s| s.initialization.as_ref()).and_then(|i| i.provisioned);
        Ok((done == Some(true), machine))
    })
    .await
}

pub async fn names<K>(site: &Site) -> Result<BTreeSet<String>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned,
    K: std::fmt::Debug,
{
    let all = site.api::<K>().list_metadata(&ListParams::default()).await?;
    Ok(all.items.iter().map(kube::ResourceExt::name_any).collect())
}

pub async fn files(site: &Site, secret: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let secret = site.api::<Secret>().get(secret).await?;
    Ok(secret.data.unwrap_or_default().into_iter().map(|(name, data)| (name, data.0)).collect())
}

pub async fn until<T: std::fmt::Debug>(what: &str, look: impl AsyncFn() -> Result<(bool, T)>) -> Result<T> {
    Ok(eventually(what, SHORT, || async { look().await.map(|(done, seen)| Seen::when(done, seen)) }).await?)
}
