//! The way of a machine: owner → pause → identity → cluster and bootstrap data → addresses → Secrets → `VirtualMachine`
//! → status. Each step finds out by itself what is there. A machine that was made is not changed in place: Cluster API
//! replaces machines.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use edge_api::cluster_api::{LABEL_CLUSTER, LABEL_CONTROL_PLANE, identity, provider_id};
use edge_api::names::{FINALIZER, REGISTRY_PORT};
use edge_api::virtual_machine::{ConfigDisk, Interface, OnConfigChange, PowerState};
use edge_api::{
    Appliance, ApplianceSpec, ConditionStatus, Instance, LibvirtCluster, LibvirtMachine, VirtualMachine,
    VirtualMachineSpec, condition,
};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::controller::Action as Next;
use serde_json::json;
use uuid::Uuid;

use super::bootstrap;
use super::cleanup;
use super::node::{self, Registry, VirtualAddress};
use super::pause;
use super::seed::{self, Address, Nic};
use super::status::{self, Findings, Made, made_at};
use crate::appliance::status::emulates;
use crate::cluster_api::cluster::reconcile::cluster_name;
use crate::cluster_api::pool::allocate;
use crate::cluster_api::provider::{
    Finding, Provide, Provider, cluster_label, hold, is_owned, is_paused, list, outdated, owner, reference,
};
use crate::cluster_api::upstream::{Cluster, IPAddress, IPAddressClaim, IPAddressClaimSpec, Machine, PoolReference};
use crate::reconcile::Error;
use crate::status::{newest, publish};

/// Field manager of the Secrets that follow something.
const FIELD_MANAGER: &str = "vm-operator-cluster-api";

/// Name of the Secret with a machine's `NoCloud` files.
pub fn seed_secret(machine: &LibvirtMachine) -> String {
    format!("{}-seed", machine.name_any())
}

/// Name of the Secret with the files of a machine's `PCGNODE` disk.
pub fn node_secret(machine: &LibvirtMachine) -> String {
    format!("{}-node", machine.name_any())
}

/// A value, or a state to wait in.
type Step<T> = Result<Result<T, Findings>, Error>;

/// Goes on with the value of a step, or ends with the state to wait in.
macro_rules! step {
    ($step:expr) => {
        match $step? {
            Ok(value) => value,
            Err(waiting) => return Ok(Err(waiting)),
        }
    };
}

impl Provide for LibvirtMachine {
    async fn bring(&self, provider: &Provider) -> Result<Next, Error> {
        let owner_machine = owner(&self.metadata, "Machine");
        let machine = owner_machine.and_then(|o| provider.get(&provider.stores.owner_machines, &o.name));
        let cluster = machine.as_ref().map(|m| m.spec.cluster_name.as_str()).or_else(|| cluster_label(&self.metadata));
        let cluster = cluster.and_then(|name| provider.get(&provider.stores.owner_clusters, name));
        let paused = is_paused(cluster.as_ref(), &self.metadata);
        pause::pass_on(self, paused, provider).await?;
        if paused {
            publish(&provider.context, self, |old, generation| {
                let mut new = old.clone();
                Finding::paused(true).put(&mut new.conditions, "Paused", generation);
                new
            })
            .await?;
            return Ok(Next::await_change());
        }
        if self.metadata.deletion_timestamp.is_some() {
            return cleanup::leave(self, provider).await;
        }
        let (object, findings) = match (owner_machine, machine.clone(), cluster) {
            (Some(_), Some(machine), Some(cluster)) => {
                let object = identify(self, provider).await?;
                let findings = match ensure(&object, &machine, &cluster, provider).await? {
                    Ok(findings) | Err(findings) => findings,
                };
                (object, findings)
            }
            (Some(owner), None, _) => {
                let message = format!("waits for Machine {}, the owner of this object", owner.name);
                (self.clone(), Findings::passing("WaitingForMachine", message, &self.metadata))
            }
            (Some(_), Some(machine), None) => {
                let message = format!("waits for Cluster {}", machine.spec.cluster_name);
                (self.clone(), Findings::passing("WaitingForCluster", message, &self.metadata))
            }
            (None, ..) => {
                let message = "waits for Cluster API to make a Machine the owner of this object (its \
                               spec.infrastructureRef)";
                (self.clone(), Findings::passing("WaitingForMachine", message, &self.metadata))
            }
        };
        if findings.is_passing(Timestamp::now()) {
            return Ok(Next::requeue(status::MOMENT));
        }
        publish(&provider.context, &object, |old, generation| status::status(old, generation, &findings)).await?;
        if findings.ready.reason == bootstrap::FAILED {
            return bootstrap::give_up(&object, machine.as_ref(), provider).await;
        }
        let joining = findings.made.is_some_and(|made| made.joining);
        Ok(if joining { Next::requeue(provider.context.times.addresses) } else { provider.resync() })
    }
}

/// Gives a machine its finalizer and its identity, in one write, before anything is made for it.
async fn identify(object: &LibvirtMachine, provider: &Provider) -> Result<LibvirtMachine, Error> {
    if object.spec.provider_id.is_some() && object.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(object.clone());
    }
    let missing = |live: &LibvirtMachine| {
        let id = provider_id(&Uuid::new_v4().to_string());
        live.spec.provider_id.is_none().then(|| json!({ "providerID": id }))
    };
    hold(&provider.context, object, FINALIZER, missing).await
}

async fn ensure(object: &LibvirtMachine, machine: &Machine, cluster: &Cluster, provider: &Provider) -> Step<Findings> {
    let waiting = |reason: &str, message: String| Ok(Err(Findings::waiting(reason, message)));
    let given = object.spec.provider_id.as_deref().unwrap_or_default();
    let Some(id) = identity(given).and_then(|id| Uuid::try_parse(id).ok()) else {
        return waiting("Invalid", format!("spec.providerID {given:?} is not of the form libvirt:///UUID"));
    };
    if let Some(domain) = machine.spec.failure_domain.as_ref().filter(|d| **d != object.spec.appliance) {
        let message = format!(
            "Machine {} wants failure domain {domain}, but spec.appliance is {}",
            machine.name_any(),
            object.spec.appliance
        );
        return waiting("FailureDomainMismatch", message);
    }
    let name = object.name_any();
    let known = match provider.get(&provider.context.stores.machines, &name) {
        Some(vm) => Some(vm),
        // The cache may lag behind what was made a moment ago.
        None => provider.context.api::<VirtualMachine>().get_opt(&name).await?,
    };
    if known.as_ref().is_some_and(|vm| !is_owned(&vm.metadata, object.uid().as_deref())) {
        return waiting("NameTaken", format!("there is a VirtualMachine {name} that is not of this object"));
    }
    // Law 2: what was lost is not replaced by something blank. Cluster API replaces the machine.
    let was_there = newest(&provider.context, object).initialization.and_then(|i| i.provisioned) == Some(true);
    if known.is_none() && was_there {
        let message = format!("VirtualMachine {name} was deleted, and its disks with it; delete the Machine");
        return waiting("VirtualMachineLost", message);
    }
    let provisioned = cluster.status.as_ref().and_then(|s| s.initialization.as_ref());
    if known.is_none() && provisioned.and_then(|i| i.infrastructure_provisioned) != Some(true) {
        let message = format!("waits for the infrastructure of Cluster {}", cluster.name_any());
        return waiting("WaitingForClusterInfrastructure", message);
    }
    let bootstrap = machine.spec.bootstrap.data_secret_name.as_deref();
    if known.is_none() && bootstrap.is_none() {
        let message = format!("waits for the bootstrap data of Machine {}", machine.name_any());
        return waiting("WaitingForBootstrapData", message);
    }
    let Some(appliance) = provider.context.appliance(&object.spec.appliance) else {
        return waiting("ApplianceNotFound", format!("waits for Appliance {}", object.spec.appliance));
    };
    let nics = step!(nics(object, id, machine, known.is_some(), provider).await);
    let endpoint = step!(endpoint(object, machine, &appliance, provider));
    if let (None, Some(bootstrap)) = (&known, bootstrap) {
        step!(ensure_seed(object, id, machine, bootstrap, &nics, provider).await);
    }
    step!(ensure_node(object, &appliance, endpoint.as_ref(), provider).await);
    let vm = match known {
        Some(vm) => vm,
        None => make(object, id, provider).await?,
    };
    let (mut ready, runs) = status::judge(&vm);
    let is_node = machine.status.as_ref().is_some_and(|s| s.node_ref.is_some());
    let mut joining = ready.status == ConditionStatus::True && !is_node;
    if joining && let Some(failed) = bootstrap::failure(object, &vm, provider).await {
        ready = failed;
        joining = false;
    }
    let static_addresses: Vec<Ipv4Addr> = nics.iter().filter_map(|n| Some(n.address.as_ref()?.ip)).collect();
    let control_plane = cluster.spec.control_plane_endpoint.as_ref().map(|e| e.host.as_str());
    let addresses = status::addresses(&machine.name_any(), &static_addresses, Some(&vm), control_plane);
    let since = if ["Preparing", "Starting"].contains(&ready.reason.as_str()) { made_at(&vm.metadata) } else { None };
    let made = Made { runs, joining, addresses, appliance: object.spec.appliance.clone() };
    Ok(Ok(Findings { ready, made: Some(made), since }))
}

/// Interfaces with their addresses, claimed where they are not.
async fn nics(object: &LibvirtMachine, id: Uuid, machine: &Machine, made: bool, provider: &Provider) -> Step<Vec<Nic>> {
    let mut nics = Vec::new();
    let mut waits = Vec::new();
    for (position, interface) in object.spec.interfaces.iter().enumerate() {
        let mac = crate::identity::mac(id, position);
        let address = match &interface.address_pool {
            None => None,
            // All claims are made before the first is waited for.
            Some(pool) => match address(object, position, pool, machine, made, provider).await? {
                Ok(address) => Some(address),
                Err(waiting) => {
                    waits.push(waiting);
                    continue;
                }
            },
        };
        nics.push(Nic { mac, address });
    }
    match waits.into_iter().next() {
        Some(first) => Ok(Err(first)),
        None => Ok(Ok(nics)),
    }
}

async fn address(
    object: &LibvirtMachine,
    position: usize,
    pool: &str,
    machine: &Machine,
    made: bool,
    provider: &Provider,
) -> Step<Address> {
    let waiting = |reason: &str, message: String| Ok(Err(Findings::waiting(reason, message)));
    let context = &provider.context;
    let name = format!("{}-{position}", object.name_any());
    let known = match provider.get(&provider.stores.claims, &name) {
        Some(claim) => Some(claim),
        None => context.api::<IPAddressClaim>().get_opt(&name).await?,
    };
    let claim = match known {
        Some(claim) => claim,
        // The guest has an address already, and another one would not reach it.
        None if made => {
            let message = format!(
                "IPAddressClaim {name} was deleted, and the address of interface {position} may be given to somebody \
                 else; delete the Machine"
            );
            return waiting("IPAddressLost", message);
        }
        None => make_claim(object, name.clone(), pool, machine, provider).await?,
    };
    if !is_owned(&claim.metadata, object.uid().as_deref()) {
        return waiting("NameTaken", format!("there is an IPAddressClaim {name} that is not of this object"));
    }
    if claim.spec.pool_ref != PoolReference::to(pool) {
        let message = format!(
            "interface {position} names IPPool {pool}, but its address was claimed from {}; make the machine anew",
            claim.spec.pool_ref.name
        );
        return waiting("AddressPoolChanged", message);
    }
    let claimed = claim.status.unwrap_or_default();
    let Some(reference) = claimed.address_ref else {
        let message = format!("waits for the address of interface {position}");
        let Some(why) = condition::find(&claimed.conditions, "Ready") else {
            return Ok(Err(Findings::passing("WaitingForIPAddress", message, &claim.metadata)));
        };
        return waiting(&why.reason, format!("{message}: {}", why.message));
    };
    let found = match provider.get(&provider.stores.addresses, &reference.name) {
        Some(found) => Some(found),
        None => context.api::<IPAddress>().get_opt(&reference.name).await?,
    };
    let Some(found) = found else {
        let message = format!("waits for IPAddress {} of interface {position}", reference.name);
        return waiting("WaitingForIPAddress", message);
    };
    let Ok(ip) = found.spec.address.parse() else {
        let message = format!("IPAddress {} is no IPv4 address: {}", reference.name, found.spec.address);
        return waiting("Invalid", message);
    };
    let pool = provider.get(&provider.stores.pools, pool).and_then(|p| allocate::validate(&p.spec).ok());
    Ok(Ok(Address {
        ip,
        prefix: found.spec.prefix,
        gateway: found.spec.gateway.as_deref().and_then(|g| g.parse().ok()),
        name_servers: pool.map(|p| p.name_servers).unwrap_or_default(),
    }))
}

async fn make_claim(
    object: &LibvirtMachine,
    name: String,
    pool: &str,
    machine: &Machine,
    provider: &Provider,
) -> Result<IPAddressClaim, Error> {
    let cluster = machine.spec.cluster_name.clone();
    let claim = IPAddressClaim {
        metadata: ObjectMeta {
            name: Some(name),
            labels: Some([(LABEL_CLUSTER.to_owned(), cluster.clone())].into()),
            owner_references: Some(vec![reference(object, true)]),
            ..ObjectMeta::default()
        },
        spec: IPAddressClaimSpec { cluster_name: Some(cluster), pool_ref: PoolReference::to(pool) },
        status: None,
    };
    provider.context.api::<IPAddressClaim>().create(&PostParams::default(), &claim).await.map_err(outdated)
}

/// The virtual address that a control plane shares.
fn endpoint(
    object: &LibvirtMachine,
    machine: &Machine,
    appliance: &Appliance,
    provider: &Provider,
) -> Step<Option<VirtualAddress>> {
    let waiting = |reason: &str, message: String| Ok(Err(Findings::waiting(reason, message)));
    let control_plane = [&object.metadata, &machine.metadata]
        .iter()
        .any(|m| m.labels.as_ref().is_some_and(|l| l.contains_key(LABEL_CONTROL_PLANE)));
    if !control_plane {
        return Ok(Ok(None));
    }
    let of_cluster =
        list(&provider.stores.clusters, |c: &LibvirtCluster| cluster_name(c) == Some(&machine.spec.cluster_name));
    let found = of_cluster.first().and_then(|c| {
        let spec = &c.spec;
        let address = spec.control_plane_endpoint.as_ref()?.host.parse::<Ipv4Addr>().ok()?;
        Some((spec.network.clone(), address, spec.virtual_router_id?))
    });
    let Some((network, address, router_id)) = found else {
        let message = format!(
            "waits for a LibvirtCluster of Cluster {} with an endpoint and a virtual router ID",
            machine.spec.cluster_name
        );
        return waiting("WaitingForClusterInfrastructure", message);
    };
    let Some(position) = object.spec.interfaces.iter().position(|i| i.network == network) else {
        let message = format!(
            "a control plane needs an interface on network {network}, where the endpoint {address} of Cluster {} lies",
            machine.spec.cluster_name
        );
        return waiting("EndpointNetworkMissing", message);
    };
    let (interface, emulated) = (seed::interface(position), emulates(appliance));
    Ok(Ok(Some(VirtualAddress { address, router_id, interface, emulated })))
}

fn secret(object: &LibvirtMachine, machine_cluster: Option<&str>, name: String, files: Files) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name),
            labels: machine_cluster.map(|c| [(LABEL_CLUSTER.to_owned(), c.to_owned())].into()),
            owner_references: Some(vec![reference(object, true)]),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(files.into_iter().map(|(name, data)| (name, ByteString(data))).collect()),
        ..Secret::default()
    }
}

type Files = BTreeMap<String, Vec<u8>>;

/// What the machine boots with is written once: an instance that is made is not made anew by other data.
async fn ensure_seed(
    object: &LibvirtMachine,
    id: Uuid,
    machine: &Machine,
    bootstrap: &str,
    nics: &[Nic],
    provider: &Provider,
) -> Step<()> {
    let waiting = |reason: &str, message: String| Ok(Err(Findings::waiting(reason, message)));
    let api = provider.context.api::<Secret>();
    let name = seed_secret(object);
    if let Some(there) = api.get_metadata_opt(&name).await? {
        if is_owned(&there.metadata, object.uid().as_deref()) {
            return Ok(Ok(()));
        }
        return waiting("NameTaken", format!("there is a Secret {name} that is not of this object"));
    }
    let Some(data) = api.get_opt(bootstrap).await? else {
        return waiting("WaitingForBootstrapData", format!("waits for Secret {bootstrap} with the bootstrap data"));
    };
    let mut data = data.data.unwrap_or_default();
    if let Some(format) = data.get("format").filter(|f| f.0 != b"cloud-config") {
        let format = String::from_utf8_lossy(&format.0);
        let message = format!("Secret {bootstrap} is of format {format:?}; only cloud-config is possible");
        return waiting("BootstrapFormatUnsupported", message);
    }
    let Some(ByteString(user_data)) = data.remove("value") else {
        return waiting("WaitingForBootstrapData", format!("waits for key value of Secret {bootstrap}"));
    };
    let files = BTreeMap::from([
        ("user-data".to_owned(), user_data),
        ("meta-data".to_owned(), seed::meta_data(&id.to_string(), &machine.name_any()).into_bytes()),
        ("network-config".to_owned(), seed::network_config(nics).into_bytes()),
    ]);
    let seed = secret(object, Some(&machine.spec.cluster_name), name, files);
    api.create(&PostParams::default(), &seed).await.map_err(outdated)?;
    Ok(Ok(()))
}

/// The registry's login may change; what a guest runs with changes with its next start only.
async fn ensure_node(
    object: &LibvirtMachine,
    appliance: &Appliance,
    endpoint: Option<&VirtualAddress>,
    provider: &Provider,
) -> Step<()> {
    let waiting = |reason: &str, message: String| Ok(Err(Findings::waiting(reason, message)));
    let api = provider.context.api::<Secret>();
    let login = &appliance.spec.registry.secret_name;
    let Some(found) = api.get_opt(login).await? else {
        return waiting("SecretNotFound", format!("waits for Secret {login} with the login of the registry"));
    };
    let data = found.data.unwrap_or_default();
    let key = |key: &str| data.get(key).map(|value| value.0.as_slice());
    let (Some(user), Some(password), Some(ca)) = (key("username"), key("password"), key("ca.crt")) else {
        return waiting("SecretInvalid", format!("Secret {login} lacks username, password or ca.crt"));
    };
    let registry = Registry {
        port: port(&appliance.spec),
        address: host_address(object, appliance),
        ca: ca.to_vec(),
        auth: BASE64_STANDARD.encode([user, b":", password].concat()),
    };
    let name = node_secret(object);
    let wanted = secret(object, cluster_label(&object.metadata), name.clone(), node::files(&registry, endpoint));
    match api.get_opt(&name).await? {
        Some(there) if !is_owned(&there.metadata, object.uid().as_deref()) => {
            return waiting("NameTaken", format!("there is a Secret {name} that is not of this object"));
        }
        Some(there) if there.data == wanted.data => {}
        _ => {
            let params = PatchParams::apply(FIELD_MANAGER).force();
            api.patch(&name, &params, &Patch::Apply(&wanted)).await?;
        }
    }
    Ok(Ok(()))
}

/// The registry's port on the host, where guests reach it; `spec.registry.host` is where this operator does.
fn port(appliance: &ApplianceSpec) -> u16 {
    appliance.instance.parse::<Instance>().map_or(REGISTRY_PORT, |instance| instance.registry_port())
}

/// The appliance's address on the first network of the machine where it has one.
fn host_address(object: &LibvirtMachine, appliance: &Appliance) -> Option<Ipv4Addr> {
    object.spec.interfaces.iter().find_map(|interface| {
        let network = appliance.spec.networks.iter().find(|n| n.name == interface.network)?;
        network.address.as_deref()?.parse::<Ipv4Net>().ok().map(|net| net.addr())
    })
}

async fn make(object: &LibvirtMachine, id: Uuid, provider: &Provider) -> Result<VirtualMachine, Error> {
    let mut vm = VirtualMachine::new(&object.name_any(), virtual_machine(object, id));
    vm.metadata.labels =
        cluster_label(&object.metadata).map(|cluster| [(LABEL_CLUSTER.to_owned(), cluster.to_owned())].into());
    vm.metadata.owner_references = Some(vec![reference(object, true)]);
    let api = provider.context.api::<VirtualMachine>();
    api.create(&PostParams::default(), &vm).await.map_err(outdated)
}

/// The machine as libvirt shall have it.
fn virtual_machine(object: &LibvirtMachine, id: Uuid) -> VirtualMachineSpec {
    let edge_api::LibvirtMachineSpec {
        provider_id: _,
        appliance,
        vcpus,
        cpu_set,
        memory_mib,
        image,
        kernel_args,
        root_disk,
        data_disks,
        interfaces,
    } = object.spec.clone();
    VirtualMachineSpec {
        id: id.to_string(),
        appliance,
        power_state: PowerState::Running,
        vcpus,
        cpu_set,
        memory_mib,
        image: Some(image),
        kernel_args,
        root_disk: Some(root_disk),
        data_disks,
        interfaces: interfaces.into_iter().map(|i| Interface { network: i.network, mac: None }).collect(),
        cloud_init_secret: Some(seed_secret(object)),
        config_disk: Some(ConfigDisk { secret_name: node_secret(object), label: node::DISK_LABEL.to_owned() }),
        on_config_change: OnConfigChange::Wait,
        guest_agent: true,
    }
}
