//! Puts objects into the system cluster: reads first, and writes by server-side apply only what differs (D14).

use std::time::Duration;

use edge_api::names::ANNOTATION_DIGEST;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::bundle;
use crate::engine::{Failure, Run};

/// Field manager of everything that this project applies.
pub const FIELD_MANAGER: &str = "pcg-edge";

/// Kinds without a namespace that are applied from here.
const CLUSTER_WIDE: [&str; 8] = [
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
    "PriorityClass",
    "StorageClass",
    "ValidatingWebhookConfiguration",
];

/// An object that was made so, for telling by its mark alone that it still is.
pub struct Applied {
    object: Value,
    digest: String,
}

impl Applied {
    /// Whether the object is there with the mark it was written with; what else is in it is not looked at.
    pub async fn holds(&self, client: &Client) -> bool {
        let Ok((api, name)) = api_of(client, &self.object) else { return false };
        let live = api.get_metadata_opt(&name).await;
        live.is_ok_and(|live| live.is_some_and(|l| l.annotations().get(ANNOTATION_DIGEST) == Some(&self.digest)))
    }
}

/// Makes `wanted` so; tells whether it wrote.
pub async fn ensure(client: &Client, run: &Run, wanted: &Value) -> Result<bool, Failure> {
    Ok(ensure_marked(client, run, wanted).await?.0)
}

/// Makes `wanted` so; tells whether it wrote, and how to look at it later.
pub async fn ensure_marked(client: &Client, run: &Run, wanted: &Value) -> Result<(bool, Applied), Failure> {
    let mut wanted = wanted.clone();
    let digest = bundle::sha256(wanted.to_string().as_bytes());
    wanted["metadata"]["annotations"][ANNOTATION_DIGEST] = json!(digest);
    let (api, name) = api_of(client, &wanted)?;
    let metadata = &wanted["metadata"];
    let reference = json!({
        "apiVersion": wanted["apiVersion"], "kind": wanted["kind"],
        "metadata": {"name": name, "namespace": metadata["namespace"]},
    });
    let applied = Applied { object: reference, digest };
    let kind = wanted["kind"].as_str().unwrap_or_default();
    let named = |e: kube::Error| Failure::new(format!("{kind} {name}: {}", crate::engine::chain(&e)));
    let live = api.get_opt(&name).await.map_err(named)?;
    if let Some(live) = live {
        let live = serde_json::to_value(&live).map_err(|e| Failure::of(&e))?;
        if covers(&live, &wanted) {
            return Ok((false, applied));
        }
    }
    run.working(format!("applies {kind} {name}"));
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(&wanted)).await.map_err(named)?;
    Ok((true, applied))
}

/// API and name of an object in JSON.
fn api_of(client: &Client, object: &Value) -> Result<(Api<DynamicObject>, String), Failure> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let name = text(&object["metadata"]["name"]);
    if api_version.is_empty() || kind.is_empty() || name.is_empty() {
        return Err(Failure::new("a manifest of this program has an object without apiVersion, kind or name"));
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api = if CLUSTER_WIDE.contains(&kind.as_str()) {
        Api::all_with(client.clone(), &resource)
    } else {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or(edge_api::names::NAMESPACE);
        Api::namespaced_with(client.clone(), namespace, &resource)
    };
    Ok((api, name))
}

/// True where everything in `wanted` is in `live`. What the API server adds does not matter; that a field was dropped
/// from `wanted` shows in its digest.
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| covers(live.get(key).unwrap_or(&Value::Null), value))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| covers(live, wanted))
        }
        // The API server drops what is empty.
        (Value::Null, Value::Object(wanted)) => wanted.is_empty(),
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        // 512.0 is written and 512 comes back.
        (Value::Number(live), Value::Number(wanted)) => live == wanted || live.as_f64() == wanted.as_f64(),
        (live, wanted) => live == wanted,
    }
}

/// Waits until a Deployment has its current pods available. Says what holds it up.
pub async fn deployment_available(
    client: &Client,
    run: &Run,
    namespace: &str,
    name: &str,
    deadline: Duration,
) -> Result<(), Failure> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let begun = Instant::now();
    let mut last = String::new();
    loop {
        let available = await_condition(api.clone(), name, |d: Option<&Deployment>| d.is_some_and(is_available));
        match tokio::time::timeout(Duration::from_secs(2), available).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(e)) => last = crate::engine::chain(&e),
            Err(_) => {
                if let Some(reason) = pod_reason(client, namespace, name).await {
                    last = reason;
                }
            }
        }
        let what =
            format!("Deployment {namespace}/{name} to be available{}{last}", if last.is_empty() { "" } else { ": " });
        if begun.elapsed() > deadline {
            return Err(Failure::new(format!("after {} s: still waits for {what}", deadline.as_secs())).hint(format!(
                "`kubectl --kubeconfig <root>/kube/admin.conf -n {namespace} describe deployment {name}`, and its pods, tell more"
            )));
        }
        run.working(format!("waits for {what}"));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Whether a pod answers an HTTP question now, asked through the API server. After a node was made anew, all objects
/// still say what was true of the old one: only an answer is a proof.
pub async fn pod_answers(client: &Client, namespace: &str, selector: &str, port: u16, path: &str) -> bool {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let Ok(pods) = api.list(&ListParams::default().labels(selector)).await else { return false };
    for pod in pods.items.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let url = format!("/api/v1/namespaces/{namespace}/pods/http:{name}:{port}/proxy{path}");
        let Ok(request) = hyper::Request::get(url).body(Vec::new()) else { continue };
        let answer = tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await;
        if matches!(answer, Ok(Ok(_))) {
            return true;
        }
    }
    false
}

fn is_available(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    deployment.status.as_ref().is_some_and(|status| {
        status.observed_generation == deployment.metadata.generation
            && status.updated_replicas.unwrap_or(0) >= wanted
            && status.available_replicas.unwrap_or(0) >= wanted
            && status.replicas.unwrap_or(0) == wanted
    })
}

/// Why a pod of a Deployment does not run, in one line.
async fn pod_reason(client: &Client, namespace: &str, name: &str) -> Option<String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let labels = deployments.get(name).await.ok()?.spec?.selector.match_labels?;
    let selector: Vec<String> = labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    let pods = api.list(&ListParams::default().labels(&selector.join(","))).await.ok()?;
    pods.items.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).find_map(|pod| {
        let status = pod.status.as_ref()?;
        let waiting = status.container_statuses.iter().flatten().find_map(|c| {
            let waiting = c.state.as_ref()?.waiting.as_ref()?;
            let message = waiting.message.as_deref().unwrap_or_default();
            Some(format!("container {} {} {message}", c.name, waiting.reason.as_deref().unwrap_or("waits")))
        });
        let condition = || {
            let conditions = status.conditions.as_deref().unwrap_or_default();
            let unmet = conditions.iter().find(|c| c.status != "True" && c.message.is_some())?;
            unmet.message.clone()
        };
        waiting.or_else(condition)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_state_covers_what_is_wanted() {
        let live = json!({"spec": {"a": 1, "b": [{"x": 1, "default": true}], "c": {"d": 1}}, "status": {}});
        for same in [
            json!({"spec": {"a": 1}}),
            json!({"spec": {"a": 1.0}}),
            json!({"spec": {"b": [{"x": 1}]}}),
            json!({"spec": {"empty": {}, "none": []}}),
        ] {
            assert!(covers(&live, &same), "{same}");
        }
        for other in [
            json!({"spec": {"a": 2}}),
            json!({"spec": {"b": []}}),
            json!({"spec": {"b": [{"x": 1}, {"x": 2}]}}),
            json!({"spec": {"c": {"e": 1}}}),
            json!({"new": "x"}),
        ] {
            assert!(!covers(&live, &other), "{other}");
        }
    }
}
