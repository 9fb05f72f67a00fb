//! Waiting until a layer's objects are healthy: by watches, with a deadline, saying what is waited for (law 4).

use std::time::Duration;

use edge_api::agent::StepState;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use tokio::time::Instant;

use crate::Pass;
use crate::error::{Failure, chain};
use crate::health::{Health, health};
use crate::objects::{Live, with_types};

/// How often the pods behind a workload are asked for the reason of a delay.
const LOOK_AT_PODS: Duration = Duration::from_secs(10);

/// How often a webhook is asked again.
const ASK_WEBHOOK: Duration = Duration::from_secs(5);

/// Does what a webhook has a say in, again and again until that can be asked: a layer may bring both the webhook and what
/// the webhook looks at.
pub(crate) async fn for_webhook<T, F>(pass: &Pass<'_>, act: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let deadline = Instant::now() + pass.layer.timeout;
    loop {
        match act().await {
            Err(refusal) if refusal.is_silent_webhook() => {
                let waited_for = refusal.to_string();
                pass.tell(StepState::Waiting, &waited_for);
                if Instant::now() + ASK_WEBHOOK > deadline {
                    return Err(Failure::Unhealthy { seconds: pass.layer.timeout.as_secs(), waited_for });
                }
                tokio::time::sleep(ASK_WEBHOOK).await;
            }
            outcome => return outcome,
        }
    }
}

/// Waits until every object is healthy, one after the other; those that already are cost nothing.
pub(crate) async fn healthy(pass: &Pass<'_>, live: &[Live]) -> Result<(), Failure> {
    let deadline = Instant::now() + pass.layer.timeout;
    for one in live {
        match verdict(&one.object) {
            Health::Healthy => {}
            Health::Failed(reason) => return Err(Failure::Broken { object: one.shown(), reason }),
            Health::Waiting(missing) => until_healthy(pass, one, missing, deadline).await?,
        }
    }
    Ok(())
}

fn verdict(object: &DynamicObject) -> Health {
    serde_json::to_value(object).map_or_else(|e| Health::Waiting(e.to_string()), |value| health(&value))
}

async fn until_healthy(pass: &Pass<'_>, one: &Live, mut missing: String, deadline: Instant) -> Result<(), Failure> {
    let shown = one.shown();
    let api = one.kind.api(&pass.cluster.client, &one.item.namespace);
    let mut changes = std::pin::pin!(watcher::watch_object(api, &one.item.name).default_backoff());
    let mut object = one.object.clone();
    let mut trouble = None;
    let mut told = String::new();
    loop {
        let now = match &trouble {
            Some(trouble) => format!("{shown}: {missing} ({trouble})"),
            None => format!("{shown}: {missing}"),
        };
        if now != told {
            pass.tell(StepState::Waiting, &now);
            told = now;
        }
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => {
                let seconds = pass.layer.timeout.as_secs();
                return Err(Failure::Unhealthy { seconds, waited_for: told });
            }
            () = tokio::time::sleep(LOOK_AT_PODS) => trouble = pod_trouble(&pass.cluster.client, &object).await,
            change = changes.next() => match change {
                Some(Ok(Some(seen))) => {
                    object = with_types(seen, &one.item);
                    match verdict(&object) {
                        Health::Healthy => return Ok(()),
                        Health::Failed(reason) => return Err(Failure::Broken { object: shown, reason }),
                        Health::Waiting(text) => missing = text,
                    }
                }
                Some(Ok(None)) => "was removed by somebody else".clone_into(&mut missing),
                // The watch comes back by itself, more and more slowly.
                Some(Err(error)) => missing = format!("cannot be watched: {}", chain(&error)),
                None => {
                    return Err(Failure::Malformed { object: shown, reason: "its watch ended".to_owned() });
                }
            },
        }
    }
}

/// Why the pods of a workload do not run, in the words of the first one that says so.
async fn pod_trouble(client: &kube::Client, object: &DynamicObject) -> Option<String> {
    let labels = object.data["spec"]["selector"]["matchLabels"].as_object()?;
    let selector: Vec<_> =
        labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    let api: Api<Pod> = Api::namespaced(client.clone(), &object.namespace()?);
    let pods = api.list(&ListParams::default().labels(&selector.join(","))).await.ok()?;
    pods.into_iter().find_map(|pod| {
        let name = pod.name_any();
        let status = serde_json::to_value(pod.status?).ok()?;
        reason_of(&status).map(|reason| format!("Pod {name}: {reason}"))
    })
}

fn reason_of(status: &Value) -> Option<String> {
    let text = |value: &Value, key: &str| value[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let both = |value: &Value| match (text(value, "reason"), text(value, "message")) {
        (Some(reason), Some(message)) => Some(format!("{reason}: {message}")),
        (reason, message) => reason.or(message),
    };
    let containers =
        ["initContainerStatuses", "containerStatuses"].into_iter().filter_map(|key| status[key].as_array());
    let mut waiting = containers.flatten().map(|container| &container["state"]["waiting"]);
    waiting.find_map(both).or_else(|| {
        let conditions = status["conditions"].as_array()?;
        conditions.iter().find(|c| c["type"] == "PodScheduled" && c["status"] == "False").and_then(both)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_say_why_they_do_not_run() {
        let status = json!({"containerStatuses": [{"state": {"running": {}}},
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]});
        assert_eq!(reason_of(&status).as_deref(), Some("ImagePullBackOff: no such image"));
        let status = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]});
        assert_eq!(reason_of(&status).as_deref(), Some("Unschedulable"));
        assert_eq!(reason_of(&json!({})), None);
    }
}
