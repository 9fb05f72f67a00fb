//! An appliance is backed up and removed, and its backup becomes the same appliance again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result};
use edge_api::{Appliance as ApplianceObject, names};
use edge_tests::Fault;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};

use crate::appliance::Appliance;
use crate::{phase, up_without_the_cluster};

/// Somebody's own object, which no file of the site brings back.
const NOTE: &str = "left-by-somebody";

/// All of it, on an appliance that is ready.
pub async fn play(appliance: &Appliance) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("store.backup");
    let path = file.to_str().context("a path that is no text")?;
    let note = ConfigMap {
        data: Some(BTreeMap::from([("text".to_owned(), "still here".to_owned())])),
        ..serde_json::from_value(serde_json::json!({"metadata": {"name": NOTE}}))?
    };
    let notes: Api<ConfigMap> = Api::namespaced(appliance.client().await?, "default");
    notes.create(&PostParams::default(), &note).await?;
    let before = Identity::of(appliance).await?;
    phase("backup", async {
        println!("    {}", edgectl(appliance, &["backup", path]).await?.trim());
        let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
        anyhow::ensure!(mode == 0o600, "mode {mode:o}");
        anyhow::ensure!(!appliance.root.join("etcd/backup.db").exists(), "the snapshot is left");
        let refused = edgectl(appliance, &["restore", path]).await;
        let why = refused.err().context("it was restored over a running appliance")?.to_string();
        anyhow::ensure!(why.contains("has an appliance already"), "{why}");
        // Nothing has happened to it.
        appliance.status().await.map(drop)
    })
    .await?;
    let fault = Fault::strikes("an appliance is removed, and its backup given back");
    phase("reset", async { edgectl(appliance, &["reset", "--yes"]).await.map(drop) }).await?;
    phase("restore", async {
        println!("    {}", edgectl(appliance, &["restore", path]).await?.trim());
        Ok(())
    })
    .await?;
    up_without_the_cluster(appliance).await?;
    let after = Identity::of(appliance).await?;
    anyhow::ensure!(after == before, "{before:?}, then {after:?}");
    let notes: Api<ConfigMap> = Api::namespaced(appliance.client().await?, "default");
    let text = notes.get(NOTE).await?.data.unwrap_or_default().remove("text");
    anyhow::ensure!(text.as_deref() == Some("still here"), "{text:?}");
    for gone in ["etcd/backup.db", "etcd/restored", "restore"] {
        anyhow::ensure!(!appliance.root.join(gone).exists(), "{gone} is left");
    }
    fault.survived();
    Ok(())
}

async fn edgectl(appliance: &Appliance, arguments: &[&str]) -> Result<String> {
    let output = appliance.edgectl(&[&["--instance", appliance.instance.as_str()], arguments].concat()).await?;
    Ok(String::from_utf8(output.stdout)?)
}

/// What makes it this appliance.
#[derive(Debug, Eq, PartialEq)]
struct Identity {
    authority: String,
    login: String,
    mark: String,
    objects: [Option<String>; 2],
}

impl Identity {
    async fn of(appliance: &Appliance) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(appliance.root.join(path)).with_context(|| path.to_owned());
        let client = appliance.client().await?;
        let object =
            Api::<ApplianceObject>::namespaced(client.clone(), names::NAMESPACE).get(names::LOCAL_APPLIANCE).await?;
        let cluster = Api::<Namespace>::all(client).get("kube-system").await?;
        Ok(Self {
            authority: read("ca/ca.crt")?,
            login: read("state/registry-pull")?,
            mark: read("state/identity.json")?,
            objects: [object.uid(), cluster.uid()],
        })
    }
}
