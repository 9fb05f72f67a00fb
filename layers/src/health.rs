//! Whether an object does what it is there for, from the object alone.

use serde_json::Value;

/// What an object's status says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Health {
    /// It does.
    Healthy,
    /// Not yet; says what is missing.
    Waiting(String),
    /// It will not by waiting; says why.
    Failed(String),
}

/// Judges an object by its kind; kinds without a known rule by a condition `Ready` where they have one.
pub fn health(object: &Value) -> Health {
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return Health::Waiting("is being removed".to_owned());
    }
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    match (group, object["kind"].as_str().unwrap_or_default()) {
        ("apps", kind @ ("Deployment" | "StatefulSet" | "DaemonSet")) => workload(object, kind),
        ("batch", "Job") => job(object),
        ("", "Pod") => pod(object),
        ("", "Namespace") => match object["status"]["phase"].as_str() {
            Some("Terminating") => Health::Waiting("is being removed".to_owned()),
            _ => Health::Healthy,
        },
        ("apiextensions.k8s.io", "CustomResourceDefinition") => condition(object, "Established", true),
        ("apiregistration.k8s.io", "APIService") => condition(object, "Available", true),
        (edge_api::names::GROUP, "VirtualMachine") => machine(object),
        (edge_api::names::GROUP, _) => condition(object, "Ready", true),
        _ => condition(object, "Ready", false),
    }
}

fn workload(object: &Value, kind: &str) -> Health {
    let status = &object["status"];
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    if number("observedGeneration") < object["metadata"]["generation"].as_i64().unwrap_or(0) {
        return Health::Waiting("has not been looked at by its controller".to_owned());
    }
    let (wanted, updated, available) = match kind {
        "DaemonSet" => (number("desiredNumberScheduled"), number("updatedNumberScheduled"), number("numberAvailable")),
        _ => (object["spec"]["replicas"].as_i64().unwrap_or(1), number("updatedReplicas"), number("availableReplicas")),
    };
    // Partitioned and on-delete updates stop before all are new: by intent.
    let staged = kind != "Deployment"
        && (object["spec"]["updateStrategy"]["type"] == "OnDelete"
            || object["spec"]["updateStrategy"]["rollingUpdate"]["partition"].as_i64().unwrap_or(0) > 0);
    if available < wanted {
        let stuck = find_condition(object, "Progressing").filter(|c| c["reason"] == "ProgressDeadlineExceeded");
        let stuck = stuck.and_then(|c| c["message"].as_str()).map(|m| format!("; {m}")).unwrap_or_default();
        return Health::Waiting(format!("{available} of {wanted} available{stuck}"));
    }
    if updated < wanted && !staged {
        return Health::Waiting(format!("{updated} of {wanted} updated"));
    }
    if kind == "Deployment" && number("replicas") > updated {
        return Health::Waiting(format!("{} old replicas are still there", number("replicas") - updated));
    }
    Health::Healthy
}

fn job(object: &Value) -> Health {
    let holds = |name: &str| find_condition(object, name).filter(|c| c["status"] == "True");
    if let Some(failed) = holds("Failed") {
        return Health::Failed(words(failed));
    }
    if holds("Complete").is_some() || object["spec"]["suspend"] == true {
        return Health::Healthy;
    }
    let succeeded = object["status"]["succeeded"].as_i64().unwrap_or(0);
    Health::Waiting(format!("{succeeded} of {} completed", object["spec"]["completions"].as_i64().unwrap_or(1)))
}

fn pod(object: &Value) -> Health {
    match object["status"]["phase"].as_str() {
        Some("Succeeded") => Health::Healthy,
        Some("Failed") => {
            Health::Failed(object["status"]["message"].as_str().unwrap_or("a container failed").to_owned())
        }
        _ => condition(object, "Ready", true),
    }
}

/// A machine that restarts with its configuration does its work with the configuration that it should have. With
/// `onConfigChange: Wait` a restart that is due is a notice.
///
/// Both conditions speak of the newest generation only. That covers the content of Secrets as far as a new content is a
/// change of the machine, too: rendered Secrets are named by what they hold, and are written before it.
fn machine(object: &Value) -> Health {
    match condition(object, "Ready", true) {
        Health::Healthy if object["spec"]["onConfigChange"] == "Restart" => condition(object, "ConfigCurrent", true),
        ready => ready,
    }
}

/// By a condition; `needed` where the absence of a status means that nobody looked yet.
fn condition(object: &Value, name: &str, needed: bool) -> Health {
    let Some(found) = find_condition(object, name) else {
        return if needed { Health::Waiting(format!("has no condition {name} yet")) } else { Health::Healthy };
    };
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    let observed = found["observedGeneration"].as_i64().or_else(|| object["status"]["observedGeneration"].as_i64());
    if observed.is_some_and(|observed| observed < generation) {
        return Health::Waiting("its newest change has not been looked at".to_owned());
    }
    if found["status"] == "True" { Health::Healthy } else { Health::Waiting(words(found)) }
}

fn find_condition<'o>(object: &'o Value, name: &str) -> Option<&'o Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == name)
}

/// A condition's reason and message.
fn words(condition: &Value) -> String {
    let text = |key: &str| condition[key].as_str().filter(|text| !text.is_empty());
    match (text("reason"), text("message")) {
        (Some(reason), Some(message)) => format!("{reason}: {message}"),
        (Some(one), None) | (None, Some(one)) => one.to_owned(),
        (None, None) => format!("condition {} is {}", text("type").unwrap_or("?"), text("status").unwrap_or("?")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn waiting(text: &str) -> Health {
        Health::Waiting(text.to_owned())
    }

    #[test]
    fn deployments() {
        let of = |generation: i64, status: Value| {
            health(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"generation": generation},
                "spec": {"replicas": 2}, "status": status}))
        };
        assert_eq!(of(1, json!({})), waiting("has not been looked at by its controller"));
        assert_eq!(of(1, json!({"observedGeneration": 1})), waiting("0 of 2 available"));
        let old = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2});
        assert_eq!(of(2, old), waiting("1 of 2 updated"));
        let surplus = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3});
        assert_eq!(of(2, surplus), waiting("1 old replicas are still there"));
        let good = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        assert_eq!(of(2, good), Health::Healthy);
        let stuck = json!({"observedGeneration": 1, "conditions": [{"type": "Progressing", "status": "False",
            "reason": "ProgressDeadlineExceeded", "message": "no progress"}]});
        assert_eq!(of(1, stuck), waiting("0 of 2 available; no progress"));
    }

    #[test]
    fn jobs() {
        let of =
            |status: Value| health(&json!({"apiVersion": "batch/v1", "kind": "Job", "spec": {}, "status": status}));
        assert_eq!(of(json!({})), waiting("0 of 1 completed"));
        assert_eq!(of(json!({"conditions": [{"type": "Complete", "status": "True"}]})), Health::Healthy);
        let failed = json!({"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]});
        assert_eq!(of(failed), Health::Failed("BackoffLimitExceeded".to_owned()));
    }

    #[test]
    fn our_kinds_need_a_current_ready_condition() {
        let of = |status: Value| {
            health(
                &json!({"apiVersion": "pcg-edge.io/v1alpha1", "kind": "VirtualMachine", "metadata": {"generation": 2},
                "status": status}),
            )
        };
        assert_eq!(of(json!(null)), waiting("has no condition Ready yet"));
        let ready = |status: &str, observed: i64| {
            json!({"observedGeneration": observed, "conditions": [{"type": "Ready", "status": status,
                "reason": "ImageNotReady", "message": "image is at 40 %"}]})
        };
        assert_eq!(of(ready("True", 1)), waiting("its newest change has not been looked at"));
        assert_eq!(of(ready("False", 2)), waiting("ImageNotReady: image is at 40 %"));
        assert_eq!(of(ready("True", 2)), Health::Healthy);
    }

    #[test]
    fn a_machine_that_restarts_with_its_configuration_runs_with_it() {
        let of = |policy: &str, conditions: Value| {
            health(
                &json!({"apiVersion": "pcg-edge.io/v1alpha1", "kind": "VirtualMachine", "metadata": {"generation": 2},
                "spec": {"onConfigChange": policy}, "status": {"observedGeneration": 2, "conditions": conditions}}),
            )
        };
        let is = |name: &str, status: &str, observed: i64| json!({"type": name, "status": status, "observedGeneration": observed, "reason": "R", "message": "m"});
        let ready = is("Ready", "True", 2);
        for (config, verdict) in [
            (is("ConfigCurrent", "True", 2), Health::Healthy),
            (is("ConfigCurrent", "False", 2), waiting("R: m")),
            (is("ConfigCurrent", "True", 1), waiting("its newest change has not been looked at")),
            (is("Other", "True", 2), waiting("has no condition ConfigCurrent yet")),
        ] {
            assert_eq!(of("Restart", json!([ready, config])), verdict);
            assert_eq!(of("Wait", json!([ready, config])), Health::Healthy);
        }
        let both = json!([is("Ready", "False", 2), is("ConfigCurrent", "True", 2)]);
        assert_eq!(of("Restart", both), waiting("R: m"));
    }

    #[test]
    fn other_kinds() {
        assert_eq!(health(&json!({"apiVersion": "v1", "kind": "ConfigMap"})), Health::Healthy);
        assert_eq!(
            health(&json!({"apiVersion": "x.io/v1", "kind": "X", "status": {"conditions": []}})),
            Health::Healthy
        );
        let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"});
        assert_eq!(health(&crd), waiting("has no condition Established yet"));
        let going =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(health(&going), waiting("is being removed"));
    }
}
