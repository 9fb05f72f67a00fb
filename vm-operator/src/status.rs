//! Status: conditions computed from the old ones, written by server-side apply and only when something changed (D14).

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

use edge_api::appliance::ApplianceStatus;
use edge_api::condition::{self, Condition, ConditionStatus};
use edge_api::edge_cluster::EdgeClusterStatus;
use edge_api::ip_pool::IPPoolStatus;
use edge_api::libvirt_cluster::LibvirtClusterStatus;
use edge_api::libvirt_machine::LibvirtMachineStatus;
use edge_api::virtual_machine::VirtualMachineStatus;
use edge_api::virtual_machine_image::VirtualMachineImageStatus;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::core::object::HasStatus;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cluster_api::upstream::IPAddressClaimStatus;
use crate::context::Context;

/// Field manager of everything this operator writes.
pub const FIELD_MANAGER: &str = "vm-operator";

/// What a condition says, without its times.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Reason in `CamelCase`.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
}

impl Verdict {
    /// It holds.
    pub fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::True, reason, message: message.into() }
    }

    /// It does not hold.
    pub fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::False, reason, message: message.into() }
    }

    /// Not known.
    pub fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::Unknown, reason, message: message.into() }
    }

    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.status == ConditionStatus::True
    }
}

/// Puts a verdict into a list of conditions.
pub fn set(conditions: &mut Vec<Condition>, type_: &str, verdict: &Verdict, generation: Option<i64>) {
    let Verdict { status, reason, message } = verdict;
    condition::set(
        conditions,
        Condition {
            type_: type_.to_owned(),
            status: *status,
            reason: (*reason).to_owned(),
            message: message.clone(),
            last_transition_time: now(),
            observed_generation: generation,
        },
    );
}

/// Now, in whole seconds, as `metav1.Time` has it.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()
}

/// The newest status this process wrote, per object: the cache behind a watch lags, and a status computed from an old
/// one would get new transition times and be written again.
#[derive(Default)]
pub struct Written(Mutex<HashMap<String, (u64, Value)>>);

impl Written {
    /// The status to compute from: the object's own, or the one written since.
    pub fn newest<S: DeserializeOwned>(&self, uid: Option<&str>, version: Option<&str>, own: S) -> S {
        let written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((newer, status)) = uid.and_then(|uid| written.get(uid)) else { return own };
        if number(version) < *newer { serde_json::from_value(status.clone()).unwrap_or(own) } else { own }
    }

    fn remember(&self, uid: &str, version: Option<&str>, status: Value) {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.insert(uid.to_owned(), (number(version), status));
    }

    /// Forgets what the cache has seen by now: there is one entry per status under way, not one per object.
    pub fn seen(&self, uid: &str, version: Option<&str>) {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if written.get(uid).is_some_and(|(newest, _)| *newest <= number(version)) {
            written.remove(uid);
            if written.is_empty() {
                written.shrink_to_fit();
            }
        }
    }

    /// Forgets a deleted object.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// Resource versions are comparable numbers since Kubernetes 1.35, and always were with etcd.
fn number(version: Option<&str>) -> u64 {
    version.and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// A status with conditions.
pub trait Conditions: Clone + Default + DeserializeOwned + PartialEq + Serialize {
    /// They.
    fn conditions(&self) -> &[Condition];
}

macro_rules! conditions {
    ($($status:ty),*) => {
        $(impl Conditions for $status {
            fn conditions(&self) -> &[Condition] {
                &self.conditions
            }
        })*
    };
}

conditions!(
    ApplianceStatus,
    EdgeClusterStatus,
    IPAddressClaimStatus,
    IPPoolStatus,
    LibvirtClusterStatus,
    LibvirtMachineStatus,
    VirtualMachineImageStatus,
    VirtualMachineStatus
);

/// The newest status of an object that is known.
pub fn newest<K>(context: &Context, object: &K) -> K::Status
where
    K: Resource + HasStatus,
    K::Status: Conditions,
{
    let own = object.status().cloned().unwrap_or_default();
    context.written.newest(object.uid().as_deref(), object.resource_version().as_deref(), own)
}

/// Writes what `renew` makes of the newest status and the generation, where that differs, and tells of a change of
/// condition `Ready` by an event.
pub async fn publish<K>(
    context: &Context,
    object: &K,
    renew: impl FnOnce(&K::Status, Option<i64>) -> K::Status,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + HasStatus + Clone + Debug + DeserializeOwned,
    K::Status: Conditions,
{
    let old = newest(context, object);
    let new = renew(&old, object.meta().generation);
    if old == new {
        return Ok(());
    }
    let name = object.name_any();
    let status = serde_json::to_value(&new).map_err(kube::Error::SerdeError)?;
    tracing::debug!(kind = %K::kind(&()), name, %status, "status");
    let patch = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()),
        // The UID makes sure that a new object of the same name is not given an old one's status.
        "metadata": { "name": name, "uid": object.uid() },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let answer = match context.api::<K>().patch_status(&name, &params, &Patch::Apply(&patch)).await {
        Ok(answer) => answer,
        // Gone, or made anew: there is nobody to tell.
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => return Ok(()),
        Err(error) => return Err(error),
    };
    if let Some(uid) = object.uid() {
        context.written.remember(&uid, answer.resource_version().as_deref(), status);
    }
    announce(context, object, old.conditions(), new.conditions()).await;
    Ok(())
}

/// One event per change of the condition `Ready`'s status or reason.
async fn announce<K>(context: &Context, object: &K, old: &[Condition], new: &[Condition])
where
    K: Resource<DynamicType = ()>,
{
    let Some(now) = condition::find(new, "Ready") else { return };
    if condition::find(old, "Ready").is_some_and(|was| was.status == now.status && was.reason == now.reason) {
        return;
    }
    // Waiting is no news worth a warning; failing is.
    let failing = now.status == ConditionStatus::False && !is_step(&now.reason);
    let event = Event {
        type_: if failing { EventType::Warning } else { EventType::Normal },
        reason: now.reason.clone(),
        note: Some(now.message.chars().take(1000).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    // A recorder keeps what it published for minutes, to count repetitions; each condition change is told once.
    let recorder = Recorder::new(context.client.clone(), context.reporter.clone());
    if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
        tracing::debug!(%error, "cannot publish an event");
    }
}

/// Whether a reason is a step of the normal way.
fn is_step(reason: &str) -> bool {
    reason.starts_with("WaitingFor") || WAITING.contains(&reason)
}

/// Reasons that are steps of the normal way.
const WAITING: [&str; 12] = [
    "Connecting",
    "Preparing",
    "Downloading",
    "Starting",
    "ShuttingDown",
    "Restarting",
    "Deleting",
    "Pending",
    "Provisioning",
    "Updating",
    "ImageNotReady",
    "ApplianceNotReady",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_cache_does_not_hide_what_was_written() {
        let written = Written::default();
        written.remember("u", Some("10"), json!("new"));
        assert_eq!(written.newest(Some("u"), Some("9"), "own".to_owned()), "new");
        assert_eq!(written.newest(Some("u"), Some("10"), "own".to_owned()), "own");
        assert_eq!(written.newest(Some("other"), Some("1"), "own".to_owned()), "own");
        written.seen("u", Some("9"));
        assert_eq!(written.newest(Some("u"), Some("9"), "own".to_owned()), "new");
        written.seen("u", Some("10"));
        assert_eq!(written.newest(Some("u"), Some("9"), "own".to_owned()), "own");
    }

    #[test]
    fn transition_times_survive_a_new_message() {
        let mut conditions = Vec::new();
        set(&mut conditions, "Ready", &Verdict::no("A", "a"), Some(1));
        let before = Timestamp::UNIX_EPOCH;
        conditions[0].last_transition_time = before;
        set(&mut conditions, "Ready", &Verdict::no("B", "b"), Some(2));
        assert_eq!((conditions[0].last_transition_time, conditions[0].reason.as_str()), (before, "B"));
        set(&mut conditions, "Ready", &Verdict::yes("C", "c"), Some(2));
        assert_ne!(conditions[0].last_transition_time, before);
    }
}
