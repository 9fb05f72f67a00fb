//! Helm's records of a release, read from the cluster without running Helm: one Secret per revision.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, ListParams};
use kube::{Client, ResourceExt};
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::display;
use crate::error::Failure;

/// Bytes of a record, unpacked; Helm's own limit follows from that of a Secret.
const MAX_RECORD: u64 = 64 << 20;

/// One revision of a release.
pub(crate) struct Record {
    pub revision: u64,
    /// `deployed`, `failed`, `pending-install`, `superseded`, …
    pub status: String,
    secret: Secret,
}

/// An object as a chart's templates gave it.
#[derive(Clone, Debug)]
pub(crate) struct ChartObject {
    pub api_version: String,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
}

/// All revisions, oldest first.
pub(crate) async fn records(client: &Client, release: &str, namespace: &str) -> Result<Vec<Record>, Failure> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&format!("owner=helm,name={release}"));
    let shown = format!("records of release {release}");
    let secrets = api.list(&params).await.map_err(Failure::api("list", shown))?;
    let mut records: Vec<_> = secrets
        .items
        .into_iter()
        .map(|secret| {
            let label = |key: &str| secret.labels().get(key).cloned().unwrap_or_default();
            Record { revision: label("version").parse().unwrap_or(0), status: label("status"), secret }
        })
        .collect();
    records.sort_by_key(|record| record.revision);
    Ok(records)
}

impl Record {
    pub fn label(&self, key: &str) -> Option<&str> {
        self.secret.labels().get(key).map(String::as_str)
    }

    /// Whether Helm was at work when this was written: it refuses to go on from there by itself.
    pub fn is_unfinished(&self) -> bool {
        self.status.starts_with("pending-") || self.status == "uninstalling"
    }

    /// Objects of the chart's templates, hooks left out.
    pub fn objects(&self) -> Result<Vec<ChartObject>, Failure> {
        let malformed = |reason: String| Failure::Malformed { object: self.shown(), reason };
        let data = self.secret.data.as_ref().and_then(|data| data.get("release"));
        let encoded = &data.ok_or_else(|| malformed("it has no release".to_owned()))?.0;
        let packed = STANDARD.decode(encoded).map_err(|e| malformed(e.to_string()))?;
        let mut text = Vec::new();
        let mut unpacked = flate2::read::GzDecoder::new(&packed[..]).take(MAX_RECORD);
        unpacked.read_to_end(&mut text).map_err(|e| malformed(e.to_string()))?;
        let record: Manifest = serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))?;
        parse_manifest(&record.manifest).map_err(malformed)
    }

    /// Removes this record, and nothing of what it describes.
    pub async fn forget(&self, client: &Client) -> Result<(), Failure> {
        let api: Api<Secret> = Api::namespaced(client.clone(), &self.secret.namespace().unwrap_or_default());
        match api.delete(&self.secret.name_any(), &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            result => result.map(drop).map_err(Failure::api("remove", self.shown())),
        }
    }

    fn shown(&self) -> String {
        display("Secret", &self.secret.namespace().unwrap_or_default(), &self.secret.name_any())
    }
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    manifest: String,
}

fn parse_manifest(text: &str) -> Result<Vec<ChartObject>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| e.without_snippet().to_string())?;
    let mut objects = Vec::new();
    for document in documents {
        let kind = document["kind"].as_str().unwrap_or_default();
        let items = if kind.ends_with("List") { document["items"].as_array() } else { None };
        for object in items.map_or(std::slice::from_ref(&document), Vec::as_slice) {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            if let (Some(api_version), Some(kind), Some(name)) =
                (text("/apiVersion"), text("/kind"), text("/metadata/name"))
            {
                objects.push(ChartObject { api_version, kind, namespace: text("/metadata/namespace"), name });
            }
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_give_their_objects() {
        let text = "---\n# Source: web/templates/a.yaml\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n---\n\n---\n\
                    apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: b\n  namespace: other\n";
        let objects = parse_manifest(text).unwrap();
        let shown: Vec<_> =
            objects.iter().map(|o| (o.kind.as_str(), o.name.as_str(), o.namespace.as_deref())).collect();
        assert_eq!(shown, [("ConfigMap", "a", None), ("Deployment", "b", Some("other"))]);
        assert!(parse_manifest("").unwrap().is_empty());
    }
}
