//! What a machine's status says. Pure, and made anew from other objects at any time: Cluster API moves no status.

use std::net::Ipv4Addr;
use std::time::Duration;

use edge_api::cluster_api::{Initialization, MachineAddress, MachineAddressType};
use edge_api::libvirt_machine::LibvirtMachineStatus;
use edge_api::virtual_machine::Phase;
use edge_api::{VirtualMachine, condition};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::cluster_api::provider::Finding;

/// What was found out in one look.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Findings {
    /// Condition `Ready`.
    pub ready: Finding,
    /// The machine's domain, where it was made.
    pub made: Option<Made>,
    /// Since when it is so, where it usually passes within a moment. It is told only if it does not: each status costs
    /// a write, and so does its event.
    pub since: Option<Timestamp>,
}

/// How long a moment is.
pub const MOMENT: Duration = Duration::from_secs(10);

/// What is there of a machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Made {
    /// Whether its domain runs.
    pub runs: bool,
    /// Whether its guest is still to become a node, which has no event of its own.
    pub joining: bool,
    /// Addresses.
    pub addresses: Vec<MachineAddress>,
    /// The appliance it is on.
    pub appliance: String,
}

impl Findings {
    /// Nothing can be done until something changes.
    pub fn waiting(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { ready: Finding::no(reason, message), made: None, since: None }
    }

    /// As [`Self::waiting`], for something that should come in a moment, counted from when this object was made.
    pub fn passing(reason: impl Into<String>, message: impl Into<String>, object: &ObjectMeta) -> Self {
        Self { since: made_at(object), ..Self::waiting(reason, message) }
    }

    /// Whether it may still pass by itself.
    pub fn is_passing(&self, now: Timestamp) -> bool {
        self.since.is_some_and(|since| now.duration_since(since).unsigned_abs() < MOMENT)
    }
}

/// When an object was made.
pub fn made_at(object: &ObjectMeta) -> Option<Timestamp> {
    object.creation_timestamp.as_ref().map(|t| t.0)
}

/// What a machine's domain is like.
pub fn judge(vm: &VirtualMachine) -> (Finding, bool) {
    let Some(status) = &vm.status else {
        return (Finding::no("Preparing", "the VirtualMachine was not looked at yet"), false);
    };
    let ready = condition::find(&status.conditions, "Ready");
    let runs = status.phase == Phase::Running || ready.is_some_and(|r| r.status == edge_api::ConditionStatus::True);
    let finding = ready.map_or_else(|| Finding::no("Preparing", "the VirtualMachine is being made"), Finding::of);
    (finding, runs)
}

/// Addresses, host name first: those it was given, then what the guest reports. The virtual address of the control
/// plane is not a machine's.
pub fn addresses(
    hostname: &str,
    given: &[Ipv4Addr],
    vm: Option<&VirtualMachine>,
    endpoint: Option<&str>,
) -> Vec<MachineAddress> {
    let mut found = vec![MachineAddress { type_: MachineAddressType::Hostname, address: hostname.to_owned() }];
    let reported = vm.and_then(|vm| vm.status.as_ref()).map(|s| s.addresses.as_slice()).unwrap_or_default();
    let all = given.iter().map(ToString::to_string).chain(reported.iter().map(|a| a.ip.clone()));
    for address in all.filter(|a| Some(a.as_str()) != endpoint) {
        if !found.iter().any(|f| f.address == address) {
            found.push(MachineAddress { type_: MachineAddressType::InternalIp, address });
        }
    }
    found
}

/// The new status.
pub fn status(old: &LibvirtMachineStatus, generation: Option<i64>, findings: &Findings) -> LibvirtMachineStatus {
    let Findings { ready, made, since: _ } = findings;
    let mut new = old.clone();
    new.observed_generation = generation;
    ready.put(&mut new.conditions, "Ready", generation);
    Finding::paused(false).put(&mut new.conditions, "Paused", generation);
    if let Some(Made { runs, joining: _, addresses, appliance }) = made {
        if *runs {
            new.initialization = Some(Initialization { provisioned: Some(true) });
            new.failure_domain = Some(appliance.clone());
        }
        new.addresses.clone_from(addresses);
    }
    new
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vm(phase: &str, ready: &str, reason: &str) -> VirtualMachine {
        serde_json::from_value(json!({
            "apiVersion": "pcg-edge.io/v1alpha1", "kind": "VirtualMachine", "metadata": { "name": "m" },
            "spec": { "id": "5a3f1c52-0c5b-4f3e-9d5e-4a1f60b6a4a1", "appliance": "local", "vcpus": 1, "memoryMiB": 64 },
            "status": {
                "phase": phase,
                "conditions": [{
                    "type": "Ready", "status": ready, "reason": reason, "message": "m",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"
                }],
                "addresses": [
                    { "network": "wan", "mac": "52:00:00:00:00:01", "ip": "10.0.0.20", "prefix": 24 },
                    { "network": "wan", "mac": "52:00:00:00:00:01", "ip": "10.0.0.10", "prefix": 24 },
                    { "network": "lan", "mac": "52:00:00:00:00:02", "ip": "10.1.0.9", "prefix": 24 },
                ],
            },
        }))
        .unwrap()
    }

    fn findings(vm: &VirtualMachine) -> Findings {
        let (ready, runs) = judge(vm);
        let addresses = addresses("m", &[Ipv4Addr::new(10, 0, 0, 20)], Some(vm), Some("10.0.0.10"));
        Findings { ready, made: Some(Made { runs, joining: false, addresses, appliance: "local".into() }), since: None }
    }

    #[test]
    fn a_running_domain_is_provisioned_before_its_guest_answers() {
        let running = status(&LibvirtMachineStatus::default(), Some(1), &findings(&vm("Running", "False", "NoAgent")));
        assert_eq!(running.initialization.as_ref().and_then(|i| i.provisioned), Some(true));
        assert_eq!(condition::find(&running.conditions, "Ready").unwrap().reason, "NoAgent");
        assert_eq!(running.failure_domain.as_deref(), Some("local"));
        let shown: Vec<&str> = running.addresses.iter().map(|a| a.address.as_str()).collect();
        assert_eq!(shown, ["m", "10.0.0.20", "10.1.0.9"], "once each, and never the virtual address");
        // Once, and ever after.
        let off = status(&running, Some(1), &findings(&vm("Failed", "False", "Crashed")));
        assert_eq!(off.initialization.and_then(|i| i.provisioned), Some(true));
    }

    #[test]
    fn a_moment_passes() {
        let made = Timestamp::from_second(100).unwrap();
        let findings = Findings { since: Some(made), ..Findings::waiting("A", "a") };
        assert!(findings.is_passing(made) && findings.is_passing(Timestamp::from_second(109).unwrap()));
        assert!(!findings.is_passing(Timestamp::from_second(110).unwrap()));
        assert!(!Findings::waiting("A", "a").is_passing(made));
    }

    #[test]
    fn the_reason_of_the_machine_is_passed_on() {
        let failed =
            status(&LibvirtMachineStatus::default(), Some(1), &findings(&vm("Failed", "False", "PoolNotFound")));
        assert_eq!(condition::find(&failed.conditions, "Ready").unwrap().reason, "PoolNotFound");
        assert_eq!(failed.initialization, None);
    }
}
