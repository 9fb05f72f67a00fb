//! The agent, and the commands that change a box beside it, are ended with SIGKILL before and after every one of their
//! side effects, and get where they get undisturbed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at once where something is not as it must be")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use crash_points::{Point, points};
use edge_agent::effects::Effect;
use edge_api::Instance;
use edge_api::agent::{Phase, Status, StepState, UpgradeState};
use edge_api::bundle::{ArtifactKind, Index};
use edge_client::Client;
use edge_profiles::build_archive;
use edge_tests::Fault;
use edge_tests::bundles::{self, variant};
use edge_tests::crashes::{Armed, until_it_is_done, while_it_ends};
use edge_tests::inventory::{Inventory, run};
use edge_tests::wait::{Seen, eventually};
use kube::api::{DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Config, ResourceExt as _};
use serde_json::{Value, json};
use tokio::process::Command;

/// A node is made within minutes, once for each point around it.
const PATIENCE: Duration = Duration::from_mins(20);
/// What an agent reaches that has no bundle.
const QUICK: [Effect; 10] = [
    Effect::MakeFolder,
    Effect::WriteInstance,
    Effect::WriteNumber,
    Effect::WriteTemplate,
    Effect::WriteSchema,
    Effect::WriteIdentity,
    Effect::WriteSiteInForce,
    Effect::WriteSteps,
    Effect::WriteClock,
    Effect::WriteSiteFile,
];
/// What one reaches that finds an upgrade whose time is over.
const RETURN: [Effect; 6] = [
    Effect::WriteUpgrade,
    Effect::TurnBack,
    Effect::GiveProgramsBack,
    Effect::WriteProgram,
    Effect::ForgetPrograms,
    Effect::EndReturn,
];
const FAULT: &str = "the agent ends before or after one of its side effects";

const SITE: &str = "device_id: store-crash
profile: profile.tar
router:
  lan_ip: 192.168.211.1/24
  wan_ip: 192.168.161.2/24
  dhcp_range: {start: 192.168.211.100, end: 192.168.211.150}
networks:
  - {name: wan, type: nat, address: 192.168.161.1/24}
  - {name: lan, type: isolated}
";
const SECOND: &str = "profile crash 2: objects";

/// An agent that waits for its bundle, with a site file that comes, changes and goes.
#[tokio::test]
async fn the_agent_ends_at_every_point_of_its_start() -> Result<()> {
    async fn life(armed: &Armed) -> Result<BTreeSet<String>> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("root");
        let agent = || Command::from(support::command(&root, &[]));
        while_it_ends(agent, armed, async {
            reached(&root, "waits", |s| s.phase == Phase::WaitingForSite).await?;
            let has = async |device: &str| {
                let seen = |s: &Status| s.device_id.as_deref() == Some(device) && s.phase == Phase::Failing;
                reached(&root, "has the site", seen).await
            };
            support::write_site(&root, &SITE.replace("store-crash", "store-1"));
            has("store-1").await?;
            apply(&root, &SITE.replace("store-crash", "store-2")).await?;
            has("store-2").await?;
            files(&root)
        })
        .await
    }
    at_each(&QUICK, life).await
}

/// An agent that an upgrade has brought, and that has not become ready in time, becomes the agent before.
#[tokio::test]
async fn the_agent_ends_at_every_point_of_a_return() -> Result<()> {
    async fn life(armed: &Armed) -> Result<BTreeSet<String>> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("root");
        for made in ["bin/.before", "state", "conf"] {
            fs::create_dir_all(root.join(made))?;
        }
        let program = root.join(bundles::AGENT);
        fs::copy(env!("CARGO_BIN_EXE_edge-agent"), &program)?;
        let mut before = fs::read(&program)?;
        before.push(0);
        fs::write(root.join("bin/.before/edge-agent"), &before)?;
        fs::set_permissions(root.join("bin/.before/edge-agent"), fs::Permissions::from_mode(0o755))?;
        let side = |version| json!({"bundle": "/nowhere", "version": version, "kubernetesVersion": "v1.36.3"});
        let record = json!({"given": "/nonexistent", "from": side("1"), "to": side("2"), "state": "Running",
            "deadline": 0, "kept": null, "message": "the new agent takes over"});
        fs::write(root.join("state/upgrade.json"), record.to_string())?;
        support::write_site(&root, SITE);
        while_it_ends(|| Command::from(support::command_of(&program, &root, &[])), armed, async {
            let returned = |s: &Status| {
                s.upgrade.as_ref().is_some_and(|upgrade| upgrade.state == UpgradeState::Returned)
                    && s.phase == Phase::Failing
            };
            reached(&root, "is as before", returned).await?;
            anyhow::ensure!(fs::read(&program)? == before, "the agent is not the one before");
            files(&root)
        })
        .await
    }
    at_each(&RETURN, life).await
}

/// One life without an end, and one that ends before and after each of these effects: the same files.
async fn at_each(effects: &[Effect], life: impl AsyncFn(&Armed) -> Result<BTreeSet<String>>) -> Result<()> {
    let undisturbed = life(&Armed::default()).await.context("undisturbed")?;
    let points: Vec<Point> = points::<Effect>().into_iter().filter(|point| of(effects, point)).collect();
    assert_eq!(points.len(), 2 * effects.len());
    let fault = Fault::strikes(FAULT).times(points.len());
    let armed = Armed::new(points);
    assert_eq!(life(&armed).await?, undisturbed);
    assert!(armed.left().is_empty(), "not reached: {:?}", armed.left());
    fault.survived();
    Ok(())
}

fn of(effects: &[Effect], point: &Point) -> bool {
    effects.iter().any(|effect| crash_points::Effects::name(*effect) == point.effect)
}

/// One life of a whole appliance without, one with an end at each point.
#[tokio::test]
#[ignore = "long: a system cluster, several times"]
async fn the_agent_ends_before_and_after_every_effect() -> Result<()> {
    let instance: Instance = "agcrash".parse().map_err(anyhow::Error::msg)?;
    let site = Site::new(instance, bundles::given()?)?;
    let baseline = Inventory::take()?;
    let mut all: Vec<Point> = points::<Effect>().into_iter().chain(points::<edge_layers::Effect>()).collect();
    // An upgrade comes to the programs when all is ready, so none goes back from there here.
    all.retain(|point| !of(&[Effect::GiveProgramsBack], point));
    let undisturbed = life(&site, &Armed::default()).await.context("undisturbed")?;

    let fault =
        Fault::strikes(FAULT).times(all.iter().filter(|point| !of(&QUICK, point) && !of(&RETURN, point)).count());
    let armed = Armed::new(all.clone());
    let outcome = life(&site, &armed).await;
    println!("{} of {} points passed", all.len() - armed.left().len(), all.len());
    let disturbed = outcome.context("with an end at each point")?;
    for (expected, found) in undisturbed.iter().zip(&disturbed) {
        expected.assert_is(found);
    }
    assert!(armed.left().is_empty(), "not reached: {:?}", armed.left());
    let difference = baseline.difference(&Inventory::take()?);
    assert!(difference.is_empty(), "the host differs:\n{difference}");
    fault.survived();
    Ok(())
}

/// An appliance of its own, which is gone with this.
struct Site {
    instance: Instance,
    root: PathBuf,
    bundle: PathBuf,
    /// Profile archives, other bundles and the backup.
    folder: tempfile::TempDir,
    /// Of the site file.
    proxy: String,
}

/// Version of a bundle that is taken on, and of one that is left again.
const VERSIONS: [&str; 2] = ["0.1.1", "0.1.2"];

impl Site {
    fn new(instance: Instance, bundle: PathBuf) -> Result<Self> {
        let (root, folder) = (instance.default_root(), tempfile::tempdir()?);
        anyhow::ensure!(!root.exists(), "{} is left of an earlier test", root.display());
        let authority = rcgen::CertificateParams::default().self_signed(&rcgen::KeyPair::generate()?)?.pem();
        let proxy = format!(
            "proxy: {{http: 'http://127.0.0.1:9', https: 'http://127.0.0.1:9', no_proxy: 0.0.0.0/0, ca_certificates: [{}]}}\n",
            BASE64_STANDARD.encode(authority)
        );
        let site = Self { instance, root, bundle, folder, proxy };
        site.build_profile("1", &["one", "two"], true)?;
        site.build_profile("2", &["one"], false)?;
        let [better, worse] = VERSIONS;
        site.build_bundle(better, |_| {})?;
        site.build_bundle(worse, |index| {
            "v1.37.0".clone_into(&mut index.kubernetes_version);
            index.artifacts.retain(|artifact| artifact.registry || artifact.kind != ArtifactKind::Manifests);
        })?;
        Ok(site)
    }

    /// With an agent that has points.
    fn build_bundle(&self, version: &str, edit: impl FnOnce(&mut Index)) -> Result<()> {
        let agent = Path::new(env!("CARGO_BIN_EXE_edge-agent"));
        variant(&self.bundle, &self.folder.path().join(version), agent, |index| {
            version.clone_into(&mut index.version);
            edit(index);
        })
    }

    /// The agent where an upgrade finds it.
    fn place_agent(&self) -> Result<()> {
        fs::create_dir_all(self.root.join("bin"))?;
        fs::copy(env!("CARGO_BIN_EXE_edge-agent"), self.root.join(bundles::AGENT))?;
        Ok(())
    }

    /// Upgrades to a bundle, and waits until that is over.
    async fn upgrade(&self, version: &str, deadline: &str, armed: &Armed, state: UpgradeState) -> Result<()> {
        let bundle = self.folder.path().join(version);
        let bundle = bundle.to_str().context("a path that is no text")?;
        eventually("an upgrade is asked for", PATIENCE, || async {
            let asked = until_it_is_done(|| self.edgectl(&["upgrade", bundle, "--deadline", deadline]), armed).await;
            anyhow::Ok(asked.map_or_else(|e| Seen::NotYet(e.to_string()), Seen::Done))
        })
        .await?;
        reached(&self.root, "an upgrade is over", |status| {
            status.phase == Phase::Ready
                && status.upgrade.as_ref().is_some_and(|u| u.to.starts_with(version) && u.state == state)
        })
        .await
    }

    fn build_profile(&self, version: &str, objects: &[&str], chart: bool) -> Result<()> {
        let source = self.folder.path().join(format!("profile-{version}"));
        fs::create_dir_all(source.join("objects"))?;
        let object = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n");
        for name in objects {
            fs::write(source.join(format!("objects/{name}.yaml")), object(name))?;
        }
        let mut layers = "layers:\n  - {name: objects, kind: manifest, path: objects}\n".to_owned();
        if chart {
            layers.push_str("  - {name: release, kind: chart, path: release}\n");
            fs::create_dir_all(source.join("release/chart/templates"))?;
            fs::write(source.join("release/chart/Chart.yaml"), "apiVersion: v2\nname: release\nversion: 1.0.0\n")?;
            fs::write(source.join("release/chart/templates/three.yaml"), object("three"))?;
        }
        fs::write(source.join("profile.yaml"), format!("name: crash\nversion: \"{version}\"\n{layers}"))?;
        build_archive(&source, &self.folder.path().join(format!("{version}.tar")))?;
        Ok(())
    }

    fn agent(&self) -> Command {
        let mut agent = Command::new(self.root.join(bundles::AGENT));
        agent.args(["run", "--instance", self.instance.as_str(), "--bundle"]).arg(&self.bundle);
        agent.arg("--root").arg(&self.root);
        agent
    }

    fn edgectl(&self, arguments: &[&str]) -> Command {
        let mut edgectl = Command::new(env!("CARGO_BIN_EXE_edgectl"));
        edgectl.args(["--instance", self.instance.as_str(), "--root"]).arg(&self.root).args(arguments);
        edgectl
    }

    fn node(&self) -> String {
        format!("{}-control-plane", self.instance.kind_cluster())
    }

    /// As somebody with an editor does.
    fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let (beside, place) = (self.root.join("conf/.beside"), self.root.join("conf").join(name));
        fs::create_dir_all(self.root.join("conf"))?;
        fs::write(&beside, content)?;
        Ok(fs::rename(beside, place)?)
    }

    fn put_profile(&self, version: &str) -> Result<()> {
        self.put("profile.tar", &fs::read(self.folder.path().join(format!("{version}.tar")))?)
    }

    /// Digest of the settings that the node has taken on.
    fn settings(&self) -> Option<String> {
        let record: Value = serde_json::from_slice(&fs::read(self.root.join("state/node-settings.json")).ok()?).ok()?;
        Some(record["settings"].as_str()?.to_owned())
    }

    /// Waits until the appliance is ready with this profile, as the step says at its end, and settings other than those.
    async fn ready(&self, profile: &str, not: Option<&str>) -> Result<()> {
        let ready = |status: &Status| {
            status.phase == Phase::Ready
                && status.steps.iter().all(|step| step.state == StepState::Ready)
                && status.steps.last().is_some_and(|step| step.message == profile)
                && self.settings().is_some_and(|settings| Some(settings.as_str()) != not)
                && self.root.join("kube/admin.conf").exists()
        };
        reached(&self.root, "ready", ready).await
    }
}

async fn reached(root: &Path, what: &str, reached: impl Fn(&Status) -> bool) -> Result<()> {
    let client = Client::new(root.join("run/agent.sock"));
    eventually(what, PATIENCE, || async {
        let status = client.status().await?;
        Ok::<_, edge_client::Error>(if reached(&status) { Seen::Done(()) } else { Seen::NotYet(format!("{status:?}")) })
    })
    .await?;
    Ok(())
}

/// Gives the agent a site file over its socket, again where it ends meanwhile.
async fn apply(root: &Path, site: &str) -> Result<()> {
    let client = Client::new(root.join("run/agent.sock"));
    eventually("a site file over the socket", PATIENCE, || async {
        let report = match client.apply(site.as_bytes().to_vec()).await {
            Ok(report) => report,
            Err(error) => return Ok(Seen::NotYet(error.to_string())),
        };
        anyhow::ensure!(report.errors.is_empty(), "{:?}", report.errors);
        Ok(Seen::Done(()))
    })
    .await?;
    Ok(())
}

/// From nothing to nothing, with all that people do in between.
async fn life(site: &Site, armed: &Armed) -> Result<Vec<Look>> {
    let mut looks = Vec::new();
    let backup = site.folder.path().join("backup");
    let path = backup.to_str().context("a path that is no text")?;
    let [better, worse] = VERSIONS;
    site.place_agent()?;
    site.put_profile("1")?;
    site.put("unattended.yaml", SITE.as_bytes())?;
    while_it_ends(|| site.agent(), armed, async {
        site.ready("profile crash 1: objects, release", None).await.context("the first start")?;
        looks.push(Look::take(site, "the first start").await?);
        site.put_profile("2")?;
        run("docker", &["rm", "--force", &site.node()])?;
        site.ready(SECOND, None).await.context("another profile, and another node")?;
        looks.push(Look::take(site, "another profile, and another node").await?);

        let plain = site.settings();
        run("docker", &["stop", "--time", "1", &site.node()])?;
        apply(&site.root, &format!("{SITE}{}", site.proxy)).await?;
        site.ready(SECOND, plain.as_deref()).await.context("another proxy")?;
        looks.push(Look::take(site, "another proxy").await?);

        let proxied = site.settings();
        fs::remove_file(site.root.join("kube/admin.conf"))?;
        site.put("unattended.yaml", SITE.as_bytes())?;
        site.ready(SECOND, proxied.as_deref()).await.context("no proxy, and no kubeconfig")?;
        looks.push(Look::take(site, "no proxy, and no kubeconfig").await?);
        site.upgrade(better, "20m", armed, UpgradeState::Done).await.context("another bundle")?;
        looks.push(Look::take(site, "another bundle").await?);
        site.upgrade(worse, "100s", armed, UpgradeState::Returned)
            .await
            .context("a bundle that does not become ready")?;
        looks.push(Look::take(site, "a bundle that does not become ready").await?);
        until_it_is_done(|| site.edgectl(&["backup", path]), &Armed::default()).await.context("backup")
    })
    .await?;
    until_it_is_done(|| site.edgectl(&["reset", "--yes"]), armed).await.context("reset")?;
    until_it_is_done(|| site.edgectl(&["restore", path]), armed).await.context("restore")?;
    fs::remove_file(&backup)?;
    while_it_ends(|| site.agent(), armed, async {
        site.put_profile("2")?;
        site.ready(SECOND, None).await.context("a backup that was restored")?;
        looks.push(Look::take(site, "a backup that was restored").await?);
        Ok(())
    })
    .await?;
    until_it_is_done(|| site.edgectl(&["reset", "--yes"]), armed).await.context("the last reset")?;
    let left = files(&site.root)?;
    anyhow::ensure!(left.iter().all(|path| path.starts_with("bin")), "left: {left:?}");
    fs::remove_dir_all(&site.root)?;
    Ok(looks)
}

/// What there is of the appliance.
struct Look {
    title: &'static str,
    items: BTreeSet<String>,
}

impl Look {
    async fn take(site: &Site, title: &'static str) -> Result<Self> {
        let mut items = files(&site.root)?;
        let host = Inventory::take()?;
        for section in ["container", "docker network", "nftables", "iptables", "libvirt network", "pool", "volume"] {
            // docker names its bridges by chance, and its own rules by them.
            let ours = host.section(section).filter(|item| !item.contains("br-"));
            items.extend(ours.map(|item| format!("{section}: {item}")));
        }
        items.extend(objects(&site.root).await?);
        Ok(Self { title, items })
    }

    fn assert_is(&self, other: &Self) {
        let differences: Vec<_> = self.items.symmetric_difference(&other.items).collect();
        assert!(differences.is_empty(), "{}: {differences:#?}", self.title);
    }
}

/// Files of the agent below its root, with their modes; not its log, its socket, and what others keep there.
fn files(root: &Path) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
            let name = path.strip_prefix(root)?.display().to_string();
            // The last is written with the first look at the site file after the installation: a start of the agent is one.
            let others =
                ["edge.log", "run/", "etcd/", "registry/", "audit/audit", "console/", "pools/", "state/installed.yaml"];
            if others.iter().any(|other| name.starts_with(other)) {
                continue;
            }
            all.insert(format!("{name} {:o}", metadata.permissions().mode()));
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(all)
}

/// Objects of the system cluster whose names are no accident.
async fn objects(root: &Path) -> Result<BTreeSet<String>> {
    let file = Kubeconfig::read_from(root.join("kube/admin.conf"))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config)?;
    let mut all = BTreeSet::new();
    for (group, version, kind) in [
        ("", "v1", "Namespace"),
        ("", "v1", "ConfigMap"),
        ("", "v1", "Secret"),
        ("", "v1", "Service"),
        ("", "v1", "ServiceAccount"),
        ("apps", "v1", "Deployment"),
        ("apps", "v1", "DaemonSet"),
        ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
        ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
        ("rbac.authorization.k8s.io", "v1", "Role"),
        ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
        ("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration"),
        ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration"),
        ("pcg-edge.io", "v1alpha1", "Appliance"),
        ("pcg-edge.io", "v1alpha1", "VirtualMachineImage"),
        ("cluster.x-k8s.io", "v1beta2", "ClusterClass"),
    ] {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        for object in Api::<DynamicObject>::all_with(client.clone(), &resource).list(&ListParams::default()).await? {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            // Helm keeps a record of each try, and kubeadm makes a token each time.
            let name = match name.split_once(".v") {
                Some((release, _)) if name.starts_with("sh.helm.release") => release.to_owned(),
                _ if name.starts_with("bootstrap-token-") => continue,
                _ => name,
            };
            all.insert(format!("{kind} {namespace}/{name}"));
        }
    }
    Ok(all)
}
