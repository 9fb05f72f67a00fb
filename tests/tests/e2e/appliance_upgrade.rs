//! An appliance gets another bundle while its machines run on; one that does not become ready goes back, with its data.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use edge_api::agent::{Phase, StepState, UpgradeState};
use edge_api::bundle::{ArtifactKind, INDEX_FILE, Index};
use edge_image::pins::{CURRENT, PREVIOUS};
use edge_tests::Fault;
use edge_tests::bundles::{AGENT, UNNAMED, given, variant};
use edge_tests::inventory::run;
use edge_tests::wait::{Seen, eventually};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;

use crate::PATIENCE;
use crate::appliance::Appliance;

const BETTER: &str = "0.1.1";
const WORSE: &str = "0.1.2";
/// The node is there after half of that.
const DEADLINE: &str = "100s";

/// Machines run on while the appliance, which is ready, takes it on.
pub async fn is_taken_on(appliance: &Appliance) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let better = folder.path().join("better");
    variant(&given()?, &better, &given()?.join(AGENT), |index| BETTER.clone_into(&mut index.version))?;
    let (processes, node, agent) = (appliance.processes()?, node(appliance)?, appliance.agent_pid()?);
    let fault = Fault::strikes("an appliance gets another bundle");
    upgrade(appliance, &better, &[]).await?;
    anyhow::ensure!(self::node(appliance)? != node, "the node is the same");
    is(appliance, UpgradeState::Done, BETTER).await?;
    anyhow::ensure!(appliance.processes()? == processes, "{:?}, they were {processes:?}", appliance.processes()?);
    // The agent is another program in the same process, and what it was before is not kept any longer.
    anyhow::ensure!(appliance.agent_pid()? == agent, "the agent was {agent}, and is {}", appliance.agent_pid()?);
    let (running, brought) = (fs::read(format!("/proc/{agent}/exe"))?, fs::read(better.join(AGENT))?);
    anyhow::ensure!(running == brought && running != fs::read(given()?.join(AGENT))?, "the agent is the one before");
    anyhow::ensure!(!appliance.root.join("bin/.before").exists(), "the agent before is left");
    fault.survived();
    registry_is_pruned(appliance).await
}

/// What the bundle before had for the registry, and nothing names, is removed there.
async fn registry_is_pruned(appliance: &Appliance) -> Result<()> {
    let index: Index = serde_json::from_slice(&fs::read(given()?.join(INDEX_FILE))?)?;
    let artifact = |prefix: &str| index.artifacts.iter().find(|artifact| artifact.name.starts_with(prefix));
    let blob = |prefix: &str| {
        let digest = &artifact(prefix).with_context(|| format!("the bundle has no {prefix}"))?.digest;
        let hex = digest.trim_start_matches("sha256:");
        let path = format!("registry/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        anyhow::Ok(appliance.root.join(path))
    };
    let (named, unnamed) = (blob("pcg-edge.io/registry:")?, blob(UNNAMED)?);
    eventually("what nothing names to be gone", PATIENCE, || async {
        let there = unnamed.exists();
        anyhow::Ok(Seen::when(!there, unnamed.clone()))
    })
    .await?;
    anyhow::ensure!(named.exists(), "{} is gone", named.display());
    Ok(())
}

/// Also where its Kubernetes is of the next minor.
pub async fn next_minor(appliance: &Appliance) -> Result<()> {
    let fault = Fault::strikes("an appliance goes to the next Kubernetes minor");
    has_version(appliance, PREVIOUS.version()).await?;
    is_taken_on(appliance).await?;
    has_version(appliance, CURRENT.version()).await?;
    fault.survived();
    Ok(())
}

/// One of the next minor that does not become ready: the appliance goes back, with its data.
pub async fn is_left(appliance: &Appliance) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let worse = folder.path().join("worse");
    let mut version = String::new();
    variant(&given()?, &worse, &given()?.join(AGENT), |index| {
        version = std::mem::replace(&mut index.version, WORSE.to_owned());
        index.artifacts.retain(|artifact| artifact.registry || artifact.kind != ArtifactKind::Manifests);
    })?;
    has_version(appliance, PREVIOUS.version()).await?;
    let processes = appliance.processes()?;
    let notes: Api<ConfigMap> = Api::namespaced(appliance.client().await?, "default");
    notes.create(&PostParams::default(), &note("before")?).await?;
    let meanwhile = async {
        eventually("a note on the data of the new bundle", PATIENCE, || async {
            let status = appliance.status().await?;
            let running = status.upgrade.is_some_and(|upgrade| upgrade.state == UpgradeState::Running);
            let step = status.steps.iter().find(|step| step.name == "cluster-api").context("no such step")?;
            // That step fails on the new node.
            if !running || step.state != StepState::Failed {
                return Ok(Seen::NotYet(format!("{running}: {step:?}")));
            }
            let notes: Api<ConfigMap> = Api::namespaced(appliance.client().await?, "default");
            let made = notes.create(&PostParams::default(), &note("meanwhile")?).await;
            anyhow::Ok(made.map_or_else(|e| Seen::NotYet(e.to_string()), |_| Seen::Done(())))
        })
        .await
    };
    let fault = Fault::strikes("an appliance gets a bundle that does not become ready");
    let (returned, made) = tokio::join!(upgrade(appliance, &worse, &["--deadline", DEADLINE]), meanwhile);
    made?;
    let why = returned.err().context("it counts as done")?.to_string();
    anyhow::ensure!(why.contains("the appliance is as before"), "{why}");
    eventually("the appliance to be ready again", PATIENCE, || async {
        let status = appliance.status().await?;
        anyhow::Ok(Seen::when(status.phase == Phase::Ready, status.message))
    })
    .await?;
    is(appliance, UpgradeState::Returned, &version).await?;
    let notes: Api<ConfigMap> = Api::namespaced(appliance.client().await?, "default");
    has_version(appliance, PREVIOUS.version()).await?;
    anyhow::ensure!(notes.get_opt("before").await?.is_some(), "what was there before is gone");
    anyhow::ensure!(notes.get_opt("meanwhile").await?.is_none(), "the data are those of the new bundle");
    anyhow::ensure!(appliance.processes()? == processes, "{:?}, they were {processes:?}", appliance.processes()?);
    fault.survived();
    Ok(())
}

/// `edgectl upgrade --wait`.
async fn upgrade(appliance: &Appliance, bundle: &Path, more: &[&str]) -> Result<()> {
    let bundle = bundle.to_str().context("a path that is no text")?;
    appliance.edgectl(&[&["upgrade", bundle, "--wait"], more].concat()).await.map(drop)
}

/// Of the system cluster.
async fn has_version(appliance: &Appliance, version: &str) -> Result<()> {
    let found = appliance.client().await?.apiserver_version().await?.git_version;
    anyhow::ensure!(found == version, "the API server is {found}, not {version}");
    Ok(())
}

/// What the agent says of the upgrade and of the bundle in force; nothing of it is left half-done.
async fn is(appliance: &Appliance, state: UpgradeState, version: &str) -> Result<()> {
    let status = appliance.status().await?;
    anyhow::ensure!(status.phase == Phase::Ready, "{:?}: {}", status.phase, status.message);
    let upgrade = status.upgrade.context("the agent knows of no upgrade")?;
    anyhow::ensure!(upgrade.state == state, "{upgrade:?}");
    println!("    {:?}: {}", upgrade.state, upgrade.message);
    let step = status.steps.iter().find(|step| step.name == "bundle").context("no step bundle")?;
    anyhow::ensure!(step.message.ends_with(&format!("version {version}")), "{step:?}");
    for gone in ["etcd/upgrade.db", "etcd/backup.db", "etcd/restored"] {
        anyhow::ensure!(!appliance.root.join(gone).exists(), "{gone} is left");
    }
    Ok(())
}

fn node(appliance: &Appliance) -> Result<String> {
    run("docker", &["inspect", "-f", "{{.Id}}", &appliance.node()])
}

fn note(name: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(serde_json::json!({"metadata": {"name": name}}))?)
}
