//! Cluster API's kinds for tests: the real definitions where `PCG_EDGE_BUNDLE` has its install manifests, else ones that
//! take anything.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use edge_api::bundle::MANIFESTS_ARTIFACT;
use edge_tests::eventually;
use edge_tests::wait::Seen;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// Kinds that the provider looks at: group, kind, plural, and whether it has a status.
const KINDS: [(&str, &str, &str, bool); 4] = [
    ("cluster.x-k8s.io", "Cluster", "clusters", true),
    ("cluster.x-k8s.io", "Machine", "machines", true),
    ("ipam.cluster.x-k8s.io", "IPAddressClaim", "ipaddressclaims", true),
    ("ipam.cluster.x-k8s.io", "IPAddress", "ipaddresses", false),
];

/// Serves our kinds and Cluster API's.
pub async fn install(client: &Client) -> Result<()> {
    let mut definitions: Vec<Value> =
        edge_api::definitions().iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    let real = real()?;
    println!("Cluster API's kinds: {}", if real.is_empty() { "of the test" } else { "of Cluster API" });
    definitions.extend(if real.is_empty() { KINDS.iter().map(open).collect() } else { real });
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let params = PatchParams::apply("edge-tests").force();
    for definition in &definitions {
        let name = definition["metadata"]["name"].as_str().context("a name")?;
        api.patch(name, &params, &Patch::Apply(definition)).await?;
    }
    for definition in &definitions {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        eventually(&format!("CRD {name} to be established"), Duration::from_secs(30), || async {
            let conditions = api.get(name).await?.status.and_then(|s| s.conditions).unwrap_or_default();
            let established = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
            Ok::<_, kube::Error>(Seen::when(established, conditions))
        })
        .await?;
    }
    Ok(())
}

fn open((group, kind, plural, status): &(&str, &str, &str, bool)) -> Value {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            // Names below k8s.io are for approved definitions.
            "annotations": { "api-approved.kubernetes.io": "unapproved, for a test" },
        },
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List") },
            "versions": [{
                "name": "v1beta2", "served": true, "storage": true, "schema": { "openAPIV3Schema": any },
                "subresources": if *status { json!({ "status": {} }) } else { json!({}) },
            }],
        },
    })
}

/// Cluster API's definitions out of the bundle, without conversion: nothing here speaks older versions.
fn real() -> Result<Vec<Value>> {
    let Some(layout) = std::env::var_os("PCG_EDGE_BUNDLE") else { return Ok(Vec::new()) };
    let layout = Path::new(&layout);
    let blob = |descriptor: &Value| -> Result<Vec<u8>> {
        let digest = descriptor["digest"].as_str().context("a digest")?.replace(':', "/");
        let path = layout.join("blobs").join(digest);
        std::fs::read(&path).with_context(|| path.display().to_string())
    };
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
    let mut found = Vec::new();
    for descriptor in index["manifests"].as_array().into_iter().flatten() {
        let manifest: Value = serde_json::from_slice(&blob(descriptor)?)?;
        if manifest["artifactType"] != MANIFESTS_ARTIFACT {
            continue;
        }
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            let text = String::from_utf8(blob(layer)?)?;
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
            found.extend(documents.into_iter().filter(|d| d["kind"] == "CustomResourceDefinition").filter(|d| {
                let names = |(group, _, plural, _): &(&str, &str, &str, bool)| {
                    d["spec"]["group"] == *group && d["spec"]["names"]["plural"] == *plural
                };
                KINDS.iter().any(names)
            }));
        }
    }
    for definition in &mut found {
        definition["spec"]["conversion"] = json!({ "strategy": "None" });
    }
    anyhow::ensure!(found.is_empty() || found.len() == KINDS.len(), "the bundle has {} of the kinds", found.len());
    Ok(found)
}
