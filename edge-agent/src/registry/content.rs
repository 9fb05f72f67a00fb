//! What bundles have brought into the registry. What an earlier one brought goes when nothing needs it any more: nothing
//! names an artifact that only that bundle has. Until then all that it brought stays, because a layer or a version of
//! Kubernetes that is named needs others which are not.

use std::collections::{BTreeMap, BTreeSet};

use edge_api::bundle::Index;
use futures::future::try_join_all;
use kube::api::{AttachParams, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::objects::PUSH_CONFIG;
use super::reference::Reference;
use super::upload::{Push, ready_pod};
use crate::durable;
use crate::effects::Effect;
use crate::engine::{Failure, chain};
use crate::paths::Paths;

/// Where artifacts of the registry are named: what runs in the system cluster, and what makes machines and clusters.
const NAMING: [(&str, &str, &str); 9] = [
    ("", "v1", "Pod"),
    ("apps", "v1", "DaemonSet"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "StatefulSet"),
    ("batch", "v1", "CronJob"),
    ("batch", "v1", "Job"),
    ("pcg-edge.io", "v1alpha1", "ClusterProfile"),
    ("pcg-edge.io", "v1alpha1", "EdgeCluster"),
    ("pcg-edge.io", "v1alpha1", "VirtualMachineImage"),
];

/// What a bundle has for the registry.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Share {
    version: String,
    /// Digests by full references.
    artifacts: BTreeMap<String, String>,
}

impl Share {
    fn of(index: &Index) -> Self {
        let artifacts = index.artifacts.iter().filter(|artifact| artifact.registry);
        let artifacts = artifacts.map(|artifact| (artifact.name.clone(), artifact.digest.clone())).collect();
        Self { version: index.version.clone(), artifacts }
    }

    /// Repositories, and digests of manifests there.
    fn manifests(&self) -> BTreeSet<(String, String)> {
        let parsed = self.artifacts.iter().filter_map(|(name, digest)| Some((Reference::parse(name)?, digest)));
        parsed.map(|(reference, digest)| (reference.repository(), digest.clone())).collect()
    }
}

/// Shares in the order in which they came, the one in force last.
#[derive(Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Content(Vec<Share>);

impl Content {
    /// What is there, and from now on also what this bundle has: written down before the first of it is uploaded.
    pub fn with(paths: &Paths, index: &Index) -> Result<Self, durable::Error> {
        let mut content: Self = durable::read_json(&paths.registry_content())?.unwrap_or_default();
        let share = Share::of(index);
        if content.0.last() != Some(&share) {
            content.0.retain(|earlier| *earlier != share);
            content.0.push(share);
            durable::write_json(&paths.registry_content(), &content)?;
        }
        Ok(content)
    }

    /// Whether there is anything of earlier bundles.
    pub fn has_earlier(&self) -> bool {
        self.0.len() > 1
    }

    /// Removes what earlier bundles brought and nothing needs. Can be done again.
    pub async fn prune(&mut self, paths: &Paths, client: &Client) -> Result<(), Failure> {
        let dropped = self.drop_unnamed(&names(client).await?);
        if dropped.is_empty() {
            return Ok(());
        }
        let stays: BTreeSet<_> = self.0.iter().flat_map(Share::manifests).collect();
        let goes: BTreeSet<_> = dropped.iter().flat_map(Share::manifests).filter(|one| !stays.contains(one)).collect();
        let mut push = Push::connect(client).await.map_err(|e| Failure::of(&e))?;
        for (repository, digest) in &goes {
            push.forget(repository, digest).await.map_err(|e| Failure::of(&e))?;
        }
        Effect::CollectGarbage.around_async(collect_garbage(client)).await?;
        durable::write_json(&paths.registry_content(), self).map_err(|e| Failure::of(&e))?;
        let versions: Vec<_> = dropped.iter().map(|share| share.version.as_str()).collect();
        info!(
            step = "registry",
            "removed {} artifacts of bundle {}: nothing names them",
            goes.len(),
            versions.join(", ")
        );
        Ok(())
    }

    /// Takes those shares out of which nothing is named that the one in force has not.
    fn drop_unnamed(&mut self, names: &str) -> Vec<Share> {
        let Some(present) = self.0.pop() else { return Vec::new() };
        let needed = |share: &Share| {
            share.artifacts.keys().any(|name| !present.artifacts.contains_key(name) && names.contains(name.as_str()))
        };
        let (stays, goes) = std::mem::take(&mut self.0).into_iter().partition(needed);
        self.0 = stays;
        self.0.push(present);
        goes
    }
}

/// All objects that may name an artifact, as text.
async fn names(client: &Client) -> Result<String, Failure> {
    let texts = NAMING.map(async |(group, version, kind)| {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let list = Api::<DynamicObject>::all_with(client.clone(), &resource).list(&ListParams::default()).await;
        match list {
            Ok(list) => serde_json::to_string(&list.items).map_err(|e| Failure::of(&e)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(String::new()),
            Err(error) => Err(Failure::new(format!("list {kind}: {}", chain(&error)))),
        }
    });
    Ok(try_join_all(texts).await?.concat())
}

/// Removes blobs that no manifest names. Nobody else uploads, and nothing is being uploaded.
async fn collect_garbage(client: &Client) -> Result<(), Failure> {
    let (pods, name) = ready_pod(client).await.map_err(|e| Failure::of(&e))?;
    let words = ["registry", "garbage-collect", "--quiet", PUSH_CONFIG];
    let params = AttachParams::default().container("push").stdout(false).stderr(true);
    let failed = |why: String| Failure::new(format!("collect garbage in the registry: {why}"));
    let mut process = pods.exec(&name, words, &params).await.map_err(|e| failed(chain(&e)))?;
    let ended = process.take_status().ok_or_else(|| failed("it has no end".to_owned()))?;
    let mut said = Vec::new();
    if let Some(mut stderr) = process.stderr() {
        tokio::io::AsyncReadExt::read_to_end(&mut stderr, &mut said).await.map_err(|e| failed(e.to_string()))?;
    }
    match ended.await {
        Some(status) if status.status.as_deref() == Some("Success") => Ok(()),
        _ => Err(failed(String::from_utf8_lossy(&said).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(version: &str, artifacts: &[(&str, &str)]) -> Share {
        let artifacts = artifacts.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect();
        Share { version: version.to_owned(), artifacts }
    }

    #[test]
    fn what_only_an_earlier_bundle_has_stays_while_it_is_named() {
        let old = share("1", &[("a.io/guest:1.35.4", "sha256:1"), ("a.io/proxy:v1.35.4", "sha256:2")]);
        let present = share("2", &[("a.io/guest:1.36.3", "sha256:3"), ("a.io/web:1", "sha256:4")]);
        let content = || Content(vec![old.clone(), present.clone()]);
        let mut named = content();
        assert_eq!(named.drop_unnamed(r#"[{"spec":{"source":"a.io/guest:1.35.4"}}]"#), []);
        assert_eq!(named, content(), "what it needs is not named itself");
        let mut unnamed = content();
        assert_eq!(unnamed.drop_unnamed(r#"[{"spec":{"source":"a.io/guest:1.36.3"}}]"#), [old]);
        assert_eq!(unnamed.0, [present]);
        assert_eq!(Content::default().drop_unnamed(""), []);
    }

    #[test]
    fn a_tag_that_has_moved_does_not_hold_what_it_was() {
        let (old, present) = (share("1", &[("a.io/web:1", "sha256:1")]), share("2", &[("a.io/web:1", "sha256:2")]));
        let mut content = Content(vec![old.clone(), present]);
        let dropped = content.drop_unnamed(r#""a.io/web:1""#);
        assert_eq!(dropped, [old]);
        assert_eq!(dropped[0].manifests(), [("a.io/web".to_owned(), "sha256:1".to_owned())].into());
    }

    #[test]
    fn a_bundle_is_written_down_once_and_the_one_in_force_last() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::new(folder.path());
        paths.ensure().unwrap();
        let index = |version: &str| -> Index {
            let artifact = |name: &str, registry: bool| {
                serde_json::json!({"name": name, "digest": "sha256:1", "size": 1, "kind": "container",
                    "registry": registry, "source": ""})
            };
            let artifacts = [artifact("a.io/web:1", true), artifact("a.io/node:1", false)];
            serde_json::from_value(serde_json::json!({"formatVersion": 1, "version": version, "pinsDigest": "",
                "kubernetesVersion": "v1.36.3", "artifacts": artifacts, "programs": []}))
            .unwrap()
        };
        let [one, two] = ["1", "2"].map(|version| share(version, &[("a.io/web:1", "sha256:1")]));
        assert!(!Content::with(&paths, &index("1")).unwrap().has_earlier());
        assert_eq!(Content::with(&paths, &index("2")).unwrap().0, [one.clone(), two.clone()]);
        assert_eq!(Content::with(&paths, &index("1")).unwrap().0, [two, one], "an upgrade that went back");
    }
}
