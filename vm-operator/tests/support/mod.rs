//! What the tests on real things share: a real API server, a real registry, libvirt, and an operator in this process.
//!
//! Everything made on the host carries the instance name of the test, and goes when [`Site`] is dropped, also after a
//! failure.

#![allow(dead_code)]

pub mod cluster_api;
pub mod guests;
pub mod objects;
pub mod process;
pub mod registry;
pub mod relay;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use edge_api::virtual_machine::VirtualMachineStatus;
use edge_api::{Appliance, Condition, VirtualMachine, VirtualMachineImage, condition};
use edge_tests::wait::Seen;
use edge_tests::{ControlPlane, eventually};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vm_operator::context::Times;
use vm_operator::run::{Options, run};

/// User as which the operator under test acts, to be told apart in the audit log.
pub const OPERATOR: &str = "system:serviceaccount:pcg-edge-system:vm-operator";
pub const NAMESPACE: &str = edge_api::names::NAMESPACE;
pub const TIMES: Times = Times {
    shutdown: Duration::from_secs(20),
    resync: Duration::from_mins(10),
    addresses: Duration::from_secs(5),
    force: Duration::from_mins(15),
    bootstrap: Duration::from_secs(2),
};
/// Longest wait for anything that involves a guest under TCG on a busy host.
pub const LONG: Duration = Duration::from_mins(5);
pub const SHORT: Duration = Duration::from_secs(30);

/// A control plane, a registry and an operator for one instance.
pub struct Site {
    pub plane: ControlPlane,
    pub registry: registry::Running,
    pub dir: PathBuf,
    pub instance: String,
    number: u8,
    pub uri: String,
    operator: Option<(CancellationToken, JoinHandle<Result<()>>)>,
    _dir: tempfile::TempDir,
}

impl Site {
    /// Starts everything but the operator's objects. Tests run side by side: each has a number of its own, from which
    /// instance and subnet follow.
    pub async fn start(number: u8, uri: &str) -> Result<Self> {
        let mut site = Self::without_operator(number, uri).await?;
        site.start_operator(TIMES)?;
        Ok(site)
    }

    /// The same, for an operator that is no part of this process.
    pub async fn without_operator(number: u8, uri: &str) -> Result<Self> {
        let instance = format!("optest{number}");
        let _second_is_fine = rustls::crypto::ring::default_provider().install_default();
        let _second_is_fine = tracing_subscriber::fmt()
            .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "info,kube_runtime=warn".into()))
            .with_test_writer()
            .try_init();
        purge(&instance);
        // libvirt's QEMU user must reach the pool.
        let dir = tempfile::Builder::new().prefix("optest-").tempdir_in("/var/tmp")?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open)?;
        std::fs::create_dir(dir.path().join("console"))?;
        let (plane, registry) = tokio::try_join!(ControlPlane::start(), registry::Running::start(dir.path()))?;
        plane.install_crds().await?;
        let namespaces: Api<Namespace> = Api::all(plane.client());
        let namespace = serde_json::from_value(json!({ "metadata": { "name": NAMESPACE } }))?;
        namespaces.create(&PostParams::default(), &namespace).await?;
        let site = Self {
            plane,
            registry,
            dir: dir.path().to_owned(),
            instance,
            number,
            uri: uri.to_owned(),
            operator: None,
            _dir: dir,
        };
        site.install_rights().await?;
        site.secret("registry-pull", &site.registry.secret()).await?;
        Ok(site)
    }

    /// The rights the operator has on the box, and no more.
    async fn install_rights(&self) -> Result<()> {
        let manifest = include_str!("../../../deploy/operator.yaml");
        let documents: Vec<Value> = serde_saphyr::from_multiple(manifest)?;
        let params = PatchParams::apply("test").force();
        let of_kind =
            |kind: &str| documents.iter().find(|d| d["kind"] == kind).context("a kind in deploy/operator.yaml");
        self.api::<Role>().patch("vm-operator", &params, &Patch::Apply(of_kind("Role")?)).await?;
        self.api::<RoleBinding>().patch("vm-operator", &params, &Patch::Apply(of_kind("RoleBinding")?)).await?;
        Ok(())
    }

    pub fn start_operator(&mut self, times: Times) -> Result<()> {
        let stop = CancellationToken::new();
        let client = self.plane.client_as(OPERATOR, &["system:authenticated"])?;
        let options = Options { namespace: NAMESPACE.to_owned(), health: None, times };
        let task = tokio::spawn(run(client, options, stop.clone()));
        self.operator = Some((stop, task));
        Ok(())
    }

    /// As `kill -9` does: nothing is finished.
    pub async fn kill_operator(&mut self) {
        if let Some((_, task)) = self.operator.take() {
            task.abort();
            let _aborted = task.await;
        }
    }

    pub fn client(&self) -> Client {
        self.plane.client()
    }

    pub fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.client(), NAMESPACE)
    }

    /// Kubernetes events about an object, as `reason`.
    pub async fn events(&self, name: &str) -> Result<Vec<String>> {
        let events = self.api::<k8s_openapi::api::events::v1::Event>().list(&kube::api::ListParams::default()).await?;
        let about = |e: &k8s_openapi::api::events::v1::Event| {
            e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name)
        };
        Ok(events.items.into_iter().filter(about).filter_map(|e| e.reason).collect())
    }

    pub async fn secret(&self, name: &str, files: &BTreeMap<String, String>) -> Result<()> {
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": files });
        let params = PatchParams::apply("test").force();
        self.api::<Secret>().patch(name, &params, &Patch::Apply(&secret)).await?;
        Ok(())
    }

    pub async fn create<K>(&self, name: &str, spec: Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Serialize,
        K: std::fmt::Debug,
    {
        let object: K = serde_json::from_value(json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": { "name": name }, "spec": spec,
        }))?;
        self.api::<K>().create(&PostParams::default(), &object).await.with_context(|| format!("create {name}"))
    }

    pub async fn edit<K>(&self, name: &str, spec: Value) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned,
        K: std::fmt::Debug,
    {
        let patch = json!({ "spec": spec });
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    pub fn appliance_spec(&self) -> Value {
        let subnet = format!("192.168.{}", 210 + self.number);
        json!({
            "id": Uuid::new_v4().to_string(), "instance": self.instance, "libvirtUri": self.uri,
            "networks": [
                { "name": "wan", "type": "NAT", "address": format!("{subnet}.1/24"),
                  "dhcp": { "start": format!("{subnet}.100"), "end": format!("{subnet}.120") } },
                { "name": "lan", "type": "Isolated" },
            ],
            "storagePools": [{ "name": "default", "path": self.dir.join("pool").to_str() }],
            "imagePool": "default",
            "registry": { "host": self.registry.host(), "secretName": "registry-pull" },
            "consoleLogDir": self.dir.join("console").to_str(),
        })
    }

    pub async fn appliance(&self) -> Result<Appliance> {
        self.create::<Appliance>("local", self.appliance_spec()).await?;
        self.wait::<Appliance>("local", "Ready", |c| condition::is_true(c, "Ready"), SHORT).await
    }

    /// Waits for an object whose conditions satisfy `wanted`.
    pub async fn wait<K>(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&[Condition]) -> bool,
        deadline: Duration,
    ) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Serialize,
        K: std::fmt::Debug,
    {
        let api = self.api::<K>();
        let what = format!("{} {name}: {what}", K::kind(&()));
        let found = eventually(&what, deadline, || async {
            let object = api.get(name).await?;
            let value = serde_json::to_value(&object)?;
            let conditions: Vec<Condition> =
                serde_json::from_value(value["status"]["conditions"].clone()).unwrap_or_default();
            Ok::<_, anyhow::Error>(if wanted(&conditions) {
                Seen::Done(object)
            } else {
                Seen::NotYet(value["status"].to_string())
            })
        })
        .await?;
        Ok(found)
    }

    pub async fn wait_vm(
        &self,
        name: &str,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&VirtualMachineStatus) -> bool,
    ) -> Result<VirtualMachine> {
        let api = self.api::<VirtualMachine>();
        let found = eventually(&format!("{name}: {what}"), deadline, || async {
            let vm = api.get(name).await?;
            let status = vm.status.clone().unwrap_or_default();
            let current = status.observed_generation == vm.metadata.generation;
            Ok::<_, anyhow::Error>(if current && wanted(&status) {
                Seen::Done(vm)
            } else {
                Seen::NotYet(serde_json::to_string(&status)?)
            })
        })
        .await?;
        Ok(found)
    }

    pub async fn ready_vm(&self, name: &str) -> Result<VirtualMachine> {
        self.wait_vm(name, "Ready", LONG, |s| condition::is_true(&s.conditions, "Ready")).await
    }

    /// A machine of the tiny guest with one interface on `wan`, its agent, and what `more` says.
    pub async fn tiny_vm(&self, name: &str, more: Value) -> Result<Uuid> {
        let id = Uuid::new_v4();
        let mut spec = json!({
            "id": id.to_string(), "appliance": "local", "vcpus": 1, "memoryMiB": 256, "image": "tiny",
            "kernelArgs": "console=ttyS0", "guestAgent": true, "interfaces": [{ "network": "wan" }],
        });
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        self.create::<VirtualMachine>(name, spec).await?;
        Ok(id)
    }

    /// Names of all volumes of the instance's pool.
    pub fn volumes(&self) -> Result<BTreeSet<String>> {
        let pool = libvirt()?.lookup_storage_pool_by_name(&format!("{}-default", self.instance))?;
        pool.refresh(0)?;
        Ok(pool.list_volumes()?.into_iter().collect())
    }

    /// Waits for something of libvirt's.
    pub async fn see(&self, what: &str, look: impl Fn(&virt::connect::Connect) -> Result<bool>) -> Result<()> {
        let connect = libvirt()?;
        eventually(what, LONG, || async { look(&connect).map(|seen| Seen::when(seen, ())) }).await?;
        Ok(())
    }

    /// The reason of condition `Ready`.
    pub async fn wait_reason(&self, name: &str, reason: &str, deadline: Duration) -> Result<VirtualMachine> {
        self.wait_vm(name, reason, deadline, |s| {
            condition::find(&s.conditions, "Ready").is_some_and(|c| c.reason == reason)
        })
        .await
    }

    pub async fn image(&self, name: &str, artifact: &str) -> Result<VirtualMachineImage> {
        self.create::<VirtualMachineImage>(name, json!({ "appliance": "local", "artifact": artifact })).await?;
        self.wait::<VirtualMachineImage>(name, "Ready", |c| condition::is_true(c, "Ready"), LONG).await
    }

    pub async fn delete<K>(&self, name: &str) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned,
        K: std::fmt::Debug,
    {
        self.api::<K>().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    pub async fn gone<K>(&self, name: &str) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Serialize,
        K: std::fmt::Debug,
    {
        let api = self.api::<K>();
        eventually(&format!("{name} to be gone"), LONG, || async {
            Ok::<_, kube::Error>(match api.get_opt(name).await? {
                None => Seen::Done(()),
                Some(object) => Seen::NotYet(serde_json::to_string(&object).unwrap_or_default()),
            })
        })
        .await?;
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some((_, task)) = self.operator.take() {
            task.abort();
        }
        purge(&self.instance);
    }
}

/// Kubeconfig file of a user, for programs; mode 0600.
pub fn kubeconfig_as(plane: &ControlPlane, user: &str) -> Result<PathBuf> {
    let mut config: Value = serde_json::from_slice(&std::fs::read(plane.kubeconfig())?)?;
    config["users"][0]["user"]["as"] = json!(user);
    config["users"][0]["user"]["as-groups"] = json!(["system:authenticated"]);
    let path = plane.dir().join(format!("{}.kubeconfig", user.replace(':', "-")));
    std::fs::write(&path, config.to_string())?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(path)
}

/// libvirt's own view, past the operator.
pub fn libvirt() -> Result<virt::connect::Connect> {
    Ok(virt::connect::Connect::open(Some("qemu:///system"))?)
}

/// Removes everything of an instance from libvirt, by name, after a test and before it in case an earlier one was
/// killed. Images of a test are its own.
pub fn purge(instance: &str) {
    let prefix = format!("{instance}-");
    let Ok(connect) = virt::connect::Connect::open(Some("qemu:///system")) else { return };
    for domain in connect.list_all_domains(0).unwrap_or_default() {
        if domain.name().is_ok_and(|name| name.starts_with(&prefix)) {
            let _off = domain.destroy();
            let _gone = domain.undefine();
        }
    }
    for network in connect.list_all_networks(0).unwrap_or_default() {
        if network.name().is_ok_and(|name| name.starts_with(&prefix)) {
            let _off = network.destroy();
            let _gone = network.undefine();
        }
    }
    for pool in connect.list_all_storage_pools(0).unwrap_or_default() {
        if pool.name().is_ok_and(|name| name.starts_with(&prefix)) {
            for volume in pool.list_all_volumes(0).unwrap_or_default() {
                let _gone = volume.delete(0);
            }
            let _off = pool.destroy();
            let _gone = pool.undefine();
        }
    }
}

/// A program of the pinned set.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = std::env::var("PCG_EDGE_PROGRAMS")
        .context("PCG_EDGE_PROGRAMS is not set: it names the folder of `edge-image build programs`")?;
    let path = Path::new(&folder).join(name);
    anyhow::ensure!(path.is_file(), "{} does not exist", path.display());
    Ok(path)
}
