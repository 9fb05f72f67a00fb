//! Step `operator`: our kinds, `vm-operator` pulled from the local registry, and the one `Appliance` object that says
//! what this host has.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use edge_api::appliance::{AddressRange, ApplianceSpec, Network, NetworkType, Registry, StoragePool};
use edge_api::names::{LOCAL_APPLIANCE, NAMESPACE, OWN_ORIGIN, REGISTRY_PORT, REGISTRY_PULL_SECRET};
use edge_api::{Appliance, SiteConfig, VirtualMachine, condition, site};
use futures::future::LocalBoxFuture;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::console_logs;
use crate::durable;
use crate::engine::{Failure, Run, Step, Verdict, chain};
use crate::objects;
use crate::ports::firewall;
use crate::world::World;

/// Objects of the operator; the image of the container `vm-operator` is put in here.
const MANIFEST: &str = include_str!("../../../deploy/operator.yaml");
/// Name of the Deployment and of its container.
const NAME: &str = "vm-operator";
/// Longest wait for the operator's pod, its pull included.
const DEADLINE: Duration = Duration::from_mins(4);
/// Longest wait for the host's networks and pools.
const APPLIANCE_DEADLINE: Duration = Duration::from_mins(2);

/// See the module.
pub struct Operator {
    world: Arc<World>,
}

impl Operator {
    /// The step.
    pub fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    async fn ensure_operator(&self, run: &Run) -> Result<Verdict, Failure> {
        let (index, client) = (self.world.index()?, self.world.client()?);
        for definition in edge_api::definitions() {
            let name = definition.metadata.name.clone().unwrap_or_default();
            let wanted = serde_json::to_value(&definition).map_err(|e| Failure::of(&e))?;
            if objects::ensure(&client, run, &wanted).await? {
                let api: Api<CustomResourceDefinition> = Api::all(client.clone());
                let established = await_condition(api, &name, conditions::is_crd_established());
                let outcome = tokio::time::timeout(Duration::from_mins(1), established).await;
                outcome
                    .map_err(|_| Failure::new(format!("{name} is not established after 60 s")))?
                    .map_err(|e| Failure::of(&e))?;
            }
        }
        let artifact = index.artifacts.iter().find(|a| a.name.starts_with(&format!("{OWN_ORIGIN}/{NAME}:")));
        let artifact = artifact.ok_or_else(|| Failure::new("the bundle has no image of vm-operator"))?;
        // By digest: it is not in the node's store, so that the pull from the registry is proved by every install.
        let image = format!("{OWN_ORIGIN}/{NAME}@{}", artifact.digest);
        for object in manifest(&image)? {
            objects::ensure(&client, run, &object).await?;
        }
        objects::deployment_available(&client, run, NAMESPACE, NAME, DEADLINE).await?;
        let begun = Instant::now();
        let selector = format!("app.kubernetes.io/name={NAME}");
        while !objects::pod_answers(&client, NAMESPACE, &selector, 8080, "/healthz").await {
            if begun.elapsed() > APPLIANCE_DEADLINE {
                return Err(Failure::new(format!("{NAME} does not answer on its health port")));
            }
            run.working(format!("waits for {NAME} to answer"));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        durable::write_if_changed(&self.world.paths.host_touched(), b"", 0o600).map_err(|e| Failure::of(&e))?;
        if self.world.firewall().ensure(&behind_the_host(&self.world, &run.site)).await.map_err(|e| Failure::of(&e))? {
            info!(step = "operator", "the host's packet filter lets guests out");
        }
        objects::ensure(&client, run, &self.appliance(&run.site)?).await?;
        let host = self.appliance_ready(run, &client).await?;
        self.prune_console_logs(&client).await;
        Ok(Verdict::Ready(host))
    }

    /// A log too many is no reason to fail.
    async fn prune_console_logs(&self, client: &kube::Client) {
        let machines = match Api::<VirtualMachine>::namespaced(client.clone(), NAMESPACE)
            .list_metadata(&ListParams::default())
            .await
        {
            Ok(list) => list.items.iter().map(ResourceExt::name_any).collect(),
            Err(e) => return warn!("console logs are not looked through: {}", chain(&e)),
        };
        match console_logs::prune(&self.world.paths.join("console"), &machines, SystemTime::now()) {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => {
                info!(step = "operator", "removed console logs of machines that are gone: {}", removed.join(", "));
            }
            Err(e) => warn!("old console logs: {}", chain(&e)),
        }
    }

    fn appliance(&self, config: &SiteConfig) -> Result<Value, Failure> {
        let spec = appliance_spec(&self.world, config)?;
        Ok(json!({
            "apiVersion": format!("{}/{}", edge_api::names::GROUP, edge_api::names::VERSION),
            "kind": "Appliance",
            "metadata": {"name": LOCAL_APPLIANCE, "namespace": NAMESPACE},
            "spec": serde_json::to_value(spec).map_err(|e| Failure::of(&e))?,
        }))
    }

    async fn appliance_ready(&self, run: &Run, client: &kube::Client) -> Result<String, Failure> {
        let api: Api<Appliance> = Api::namespaced(client.clone(), NAMESPACE);
        let begun = Instant::now();
        loop {
            let ready = await_condition(api.clone(), LOCAL_APPLIANCE, |a: Option<&Appliance>| a.is_some_and(is_ready));
            if let Ok(Ok(Some(appliance))) = tokio::time::timeout(Duration::from_secs(2), ready).await {
                let host = appliance.status.and_then(|s| s.host).unwrap_or_default();
                return Ok(format!(
                    "libvirt {}, QEMU {}, {}",
                    host.libvirt_version, host.hypervisor_version, host.accelerator
                ));
            }
            let missing = match api.get_opt(LOCAL_APPLIANCE).await {
                Ok(Some(appliance)) => unmet(&appliance),
                Ok(None) => "the object is gone".to_owned(),
                Err(e) => chain(&e),
            };
            if begun.elapsed() > APPLIANCE_DEADLINE {
                let seconds = APPLIANCE_DEADLINE.as_secs();
                return Err(Failure::new(format!(
                    "after {seconds} s: Appliance {LOCAL_APPLIANCE} is not ready: {missing}"
                ))
                .hint(format!("`kubectl -n {NAMESPACE} logs deployment/{NAME}` shows what it tries")));
            }
            run.working(format!("waits for Appliance {LOCAL_APPLIANCE}: {missing}"));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Step for Operator {
    fn name(&self) -> &'static str {
        "operator"
    }

    fn interruptible(&self) -> bool {
        true
    }

    fn ensure<'a>(&'a self, run: &'a Run) -> LocalBoxFuture<'a, Result<Verdict, Failure>> {
        Box::pin(self.ensure_operator(run))
    }
}

/// What this host has, from the site.
fn appliance_spec(world: &World, config: &SiteConfig) -> Result<ApplianceSpec, Failure> {
    let pools: Vec<StoragePool> = crate::site::effective_pools(config, world.paths.root())
        .into_iter()
        .map(|site::StoragePool { name, path }| StoragePool { name, path })
        .collect();
    let image_pool =
        pools.first().map(|p| p.name.clone()).ok_or_else(|| Failure::new("the site has no storage pool"))?;
    let networks = crate::site::effective_networks(config).into_iter().map(|network| {
        let site::Network { name, type_, address, dhcp_range, bridge } = network;
        let type_ = match type_ {
            site::NetworkType::Nat => NetworkType::Nat,
            site::NetworkType::Isolated => NetworkType::Isolated,
            site::NetworkType::Bridge => NetworkType::Bridge,
        };
        let dhcp = dhcp_range
            .map(|site::DhcpRange { start, end }| AddressRange { start: start.to_string(), end: end.to_string() });
        Network { name, type_, address: address.map(|a| a.to_string()), dhcp, bridge }
    });
    Ok(ApplianceSpec {
        id: world.identity.appliance_id.to_string(),
        instance: world.instance.to_string(),
        libvirt_uri: "qemu:///system".to_owned(),
        networks: networks.collect(),
        storage_pools: pools,
        image_pool,
        registry: Registry {
            host: format!("registry.{NAMESPACE}.svc:{REGISTRY_PORT}"),
            secret_name: REGISTRY_PULL_SECRET.to_owned(),
        },
        console_log_dir: world.paths.join("console").display().to_string(),
    })
}

/// Networks whose guests reach out through the host.
fn behind_the_host(world: &World, config: &SiteConfig) -> Vec<firewall::Network> {
    let networks = crate::site::effective_networks(config).into_iter().filter(|n| n.type_ == site::NetworkType::Nat);
    let with_subnet = networks.filter_map(|n| Some((world.instance.bridge(&n.name), n.address?)));
    with_subnet.map(|(bridge, subnet)| firewall::Network { bridge, subnet }).collect()
}

/// The operator's objects with its image.
fn manifest(image: &str) -> Result<Vec<Value>, Failure> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).map_err(|e| Failure::of(&e))?;
    let mut found = false;
    let objects = documents.into_iter().filter(|d| !d.is_null()).map(|mut object| {
        if object["kind"] == "Deployment"
            && let Some(containers) = object["spec"]["template"]["spec"]["containers"].as_array_mut()
        {
            for container in containers.iter_mut().filter(|c| c["name"] == NAME) {
                container["image"] = json!(image);
                found = true;
            }
        }
        object
    });
    let objects: Vec<Value> = objects.collect();
    if found { Ok(objects) } else { Err(Failure::new("deploy/operator.yaml has no container vm-operator")) }
}

fn is_ready(appliance: &Appliance) -> bool {
    appliance.status.as_ref().is_some_and(|status| {
        condition::is_true(&status.conditions, "Ready") && status.observed_generation == appliance.metadata.generation
    })
}

fn unmet(appliance: &Appliance) -> String {
    let Some(status) = &appliance.status else { return "vm-operator has not looked at it yet".to_owned() };
    let find =
        |type_| condition::find(&status.conditions, type_).filter(|c| c.status != edge_api::ConditionStatus::True);
    let unmet = ["Connected", "NetworksReady", "StoragePoolsReady", "Ready"].into_iter().find_map(find);
    unmet.map_or_else(|| "its last change is being worked on".to_owned(), |c| format!("{}: {}", c.type_, c.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_gets_the_image() {
        let objects = manifest("pcg-edge.io/vm-operator@sha256:00").unwrap();
        let deployment = objects.iter().find(|o| o["kind"] == "Deployment").unwrap();
        assert_eq!(deployment["metadata"]["name"], NAME);
        assert_eq!(deployment["metadata"]["namespace"], NAMESPACE);
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/name"], NAME, "by which its pods are asked");
    }
}
