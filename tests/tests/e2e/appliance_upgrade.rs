//! An appliance gets another bundle while its machines run on; one that does not become ready goes back, with its data.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use edge_api::agent::{Phase, StepState, UpgradeState};
use edge_api::bundle::{ArtifactKind, INDEX_FILE, Index};
use edge_tests::Fault;
use edge_tests::inventory::run;
use edge_tests::wait::{Seen, eventually};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use sha2::{Digest, Sha256};

use crate::appliance::Appliance;
use crate::{PATIENCE, phase};

const BETTER: &str = "0.1.1";
const WORSE: &str = "0.1.2";
/// The node is there after half of that.
const DEADLINE: &str = "100s";

/// All of it, on an appliance that is ready.
pub async fn play(appliance: &Appliance) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let processes = appliance.processes()?;
    let given = std::env::var("PCG_EDGE_BUNDLE").context("PCG_EDGE_BUNDLE is not set: run `cargo xtask test`")?;

    let better = folder.path().join("better");
    variant(Path::new(&given), &better, |index| BETTER.clone_into(&mut index.version))?;
    phase("another bundle, while machines run on", async {
        let node = node(appliance)?;
        let fault = Fault::strikes("an appliance gets another bundle");
        upgrade(appliance, &better, &[]).await?;
        anyhow::ensure!(self::node(appliance)? != node, "the node is the same");
        is(appliance, UpgradeState::Done, BETTER).await?;
        anyhow::ensure!(appliance.processes()? == processes, "{:?}, they were {processes:?}", appliance.processes()?);
        fault.survived();
        Ok(())
    })
    .await?;

    let worse = folder.path().join("worse");
    variant(Path::new(&given), &worse, |index| {
        WORSE.clone_into(&mut index.version);
        // Of the next minor, by its own word: the way back has to begin with the data.
        "v1.37.0".clone_into(&mut index.kubernetes_version);
        index.artifacts.retain(|artifact| artifact.registry || artifact.kind != ArtifactKind::Manifests);
    })?;
    phase("a bundle that does not become ready goes back", async {
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
        is(appliance, UpgradeState::Returned, BETTER).await?;
        let notes: Api<ConfigMap> = Api::namespaced(appliance.client().await?, "default");
        anyhow::ensure!(notes.get_opt("before").await?.is_some(), "what was there before is gone");
        anyhow::ensure!(notes.get_opt("meanwhile").await?.is_none(), "the data are those of the new bundle");
        anyhow::ensure!(appliance.processes()? == processes, "{:?}, they were {processes:?}", appliance.processes()?);
        fault.survived();
        Ok(())
    })
    .await
}

/// `edgectl upgrade --wait`.
async fn upgrade(appliance: &Appliance, bundle: &Path, more: &[&str]) -> Result<()> {
    let bundle = bundle.to_str().context("a path that is no text")?;
    appliance.edgectl(&[&["upgrade", bundle, "--wait"], more].concat()).await.map(drop)
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

/// A bundle with another node image (one more annotation) and an edited index; its other files are those of `from`.
fn variant(from: &Path, to: &Path, edit: impl FnOnce(&mut Index)) -> Result<()> {
    link(from, to)?;
    let path = to.join(INDEX_FILE);
    let mut index: Index = serde_json::from_slice(&fs::read(&path)?)?;
    edit(&mut index);
    let version = index.version.clone();
    let node = index.artifacts.iter_mut().find(|artifact| artifact.kind == ArtifactKind::Node);
    let node = node.context("the bundle has no node image")?;
    let blob = |digest: &str| to.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(blob(&node.digest))?)?;
    manifest["annotations"]["pcg-edge.io/variant"] = version.into();
    let text = manifest.to_string();
    node.digest = format!("sha256:{}", edge_image::cache::hex(&Sha256::digest(&text)));
    fs::write(blob(&node.digest), text)?;
    // Not through the link.
    fs::remove_file(&path)?;
    fs::write(&path, serde_json::to_vec(&index)?)?;
    Ok(())
}

fn link(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link(&entry.path(), &place)?;
        } else if fs::hard_link(entry.path(), &place).is_err() {
            fs::copy(entry.path(), &place)?;
        }
    }
    Ok(())
}
