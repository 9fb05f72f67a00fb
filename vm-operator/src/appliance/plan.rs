//! What to do about networks and pools: pure.

use std::collections::BTreeMap;

use edge_api::Instance;
use uuid::Uuid;

use super::validate::{Pool, ValidatedAppliance};
use crate::identity;
use crate::libvirt::networks::Network;
use crate::libvirt::{NetworkFacts, PoolFacts};

/// One thing to do. Names are libvirt's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Define a network.
    DefineNetwork(Network),
    /// Start it.
    StartNetwork(String),
    /// Let it start with the host.
    AutostartNetwork(String),
    /// Stop it.
    StopNetwork(String),
    /// Remove its definition.
    UndefineNetwork(String),
    /// Define a pool.
    DefinePool(Pool),
    /// Make its directory and start it.
    StartPool(String),
    /// Let it start with the host.
    AutostartPool(String),
    /// Remove its definition; files stay.
    RemovePool(String),
}

/// What stands in the way of a network or pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Obstacle {
    /// Reason for the condition.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
}

/// What is to be done, and what cannot be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// About networks.
    pub networks: Vec<Obstacle>,
    /// About pools.
    pub pools: Vec<Obstacle>,
}

/// Compares what is wanted with what there is.
pub fn plan(wanted: &ValidatedAppliance, networks: &[NetworkFacts], pools: &[PoolFacts]) -> Plan {
    let mut plan = Plan::default();
    let by_name: BTreeMap<&str, &NetworkFacts> = networks.iter().map(|n| (n.name.as_str(), n)).collect();
    for network in &wanted.networks {
        plan_network(&mut plan, network, by_name.get(network.name.as_str()).copied());
    }
    for stale in own_networks(wanted.id, &wanted.instance, networks) {
        if !wanted.networks.iter().any(|n| n.name == stale.name) {
            remove_network(&mut plan, stale);
        }
    }
    let by_name: BTreeMap<&str, &PoolFacts> = pools.iter().map(|p| (p.name.as_str(), p)).collect();
    for pool in &wanted.pools {
        plan_pool(&mut plan, pool, by_name.get(pool.libvirt_name.as_str()).copied());
    }
    for stale in own_pools(wanted.id, &wanted.instance, pools) {
        if !wanted.pools.iter().any(|p| p.libvirt_name == stale.name) {
            // Only the definition goes: the disks in it may be wanted back.
            plan.actions.push(Action::RemovePool(stale.name.clone()));
        }
    }
    plan
}

fn plan_network(plan: &mut Plan, wanted: &Network, found: Option<&NetworkFacts>) {
    let name = || wanted.name.clone();
    let Some(found) = found else {
        plan.actions.extend([
            Action::DefineNetwork(wanted.clone()),
            Action::StartNetwork(name()),
            Action::AutostartNetwork(name()),
        ]);
        return;
    };
    if found.uuid != wanted.uuid {
        plan.networks.push(Obstacle {
            reason: "NetworkNotOurs",
            message: format!(
                "a libvirt network named {} exists and does not carry this appliance's mark; \
                 rename or remove it, or change spec.instance",
                found.name
            ),
        });
        return;
    }
    if found.shape != wanted.shape {
        if found.active && found.connections > 0 {
            plan.networks.push(Obstacle {
                reason: "NetworkInUse",
                message: format!(
                    "network {} differs from the specification and has {} interfaces attached; \
                     it is changed once the machines on it are stopped",
                    found.name, found.connections
                ),
            });
            return;
        }
        if found.active {
            plan.actions.push(Action::StopNetwork(name()));
        }
        let kept = wanted.keeping(&found.reservations);
        plan.actions.extend([Action::DefineNetwork(kept), Action::StartNetwork(name())]);
    } else if !found.active {
        plan.actions.push(Action::StartNetwork(name()));
    }
    if !found.autostart {
        plan.actions.push(Action::AutostartNetwork(name()));
    }
}

fn remove_network(plan: &mut Plan, found: &NetworkFacts) {
    if found.active && found.connections > 0 {
        plan.networks.push(Obstacle {
            reason: "NetworkInUse",
            message: format!(
                "network {} is no longer in the specification and has {} interfaces attached; \
                 it is removed once the machines on it are stopped",
                found.name, found.connections
            ),
        });
        return;
    }
    if found.active {
        plan.actions.push(Action::StopNetwork(found.name.clone()));
    }
    plan.actions.push(Action::UndefineNetwork(found.name.clone()));
}

fn plan_pool(plan: &mut Plan, wanted: &Pool, found: Option<&PoolFacts>) {
    let name = || wanted.libvirt_name.clone();
    let Some(found) = found else {
        plan.actions.extend([
            Action::DefinePool(wanted.clone()),
            Action::StartPool(name()),
            Action::AutostartPool(name()),
        ]);
        return;
    };
    if found.uuid != wanted.uuid {
        plan.pools.push(Obstacle {
            reason: "StoragePoolNotOurs",
            message: format!(
                "a libvirt storage pool named {} exists and does not carry this appliance's mark; \
                 rename or remove it, or change spec.instance",
                found.name
            ),
        });
        return;
    }
    if found.kind != "dir" || found.path.trim_end_matches('/') != wanted.path {
        plan.pools.push(Obstacle {
            reason: "StoragePoolDiffers",
            message: format!(
                "storage pool {} is a {} pool at {}, not at {}; a pool does not move: give the new directory a new name",
                found.name, found.kind, found.path, wanted.path
            ),
        });
        return;
    }
    if !found.active {
        plan.actions.push(Action::StartPool(name()));
    }
    if !found.autostart {
        plan.actions.push(Action::AutostartPool(name()));
    }
}

/// Networks with the appliance's mark.
pub fn own_networks<'a>(
    id: Uuid,
    instance: &'a Instance,
    networks: &'a [NetworkFacts],
) -> impl Iterator<Item = &'a NetworkFacts> {
    networks.iter().filter(move |n| {
        identity::own_name(instance, &n.name, n.uuid, |name| identity::network_uuid(id, name)).is_some()
    })
}

/// Pools with the appliance's mark.
pub fn own_pools<'a>(id: Uuid, instance: &'a Instance, pools: &'a [PoolFacts]) -> impl Iterator<Item = &'a PoolFacts> {
    pools
        .iter()
        .filter(move |p| identity::own_name(instance, &p.name, p.uuid, |name| identity::pool_uuid(id, name)).is_some())
}

#[cfg(test)]
mod tests {
    use super::super::validate::{tests::spec, validate};
    use super::*;
    use crate::libvirt::networks::Shape;

    fn facts(wanted: &ValidatedAppliance) -> (Vec<NetworkFacts>, Vec<PoolFacts>) {
        let networks = wanted.networks.iter().map(|n| NetworkFacts {
            name: n.name.clone(),
            uuid: n.uuid,
            active: true,
            autostart: true,
            connections: 0,
            shape: n.shape.clone(),
            reservations: Vec::new(),
        });
        let pools = wanted.pools.iter().map(|p| PoolFacts {
            name: p.libvirt_name.clone(),
            uuid: p.uuid,
            active: true,
            autostart: true,
            kind: "dir".into(),
            path: p.path.clone(),
            capacity: 1,
            available: 1,
        });
        (networks.collect(), pools.collect())
    }

    #[test]
    fn nothing_is_done_when_all_is_well() {
        let wanted = validate(&spec()).unwrap();
        let (networks, pools) = facts(&wanted);
        assert_eq!(plan(&wanted, &networks, &pools), Plan::default());
    }

    #[test]
    fn an_empty_host_gets_everything() {
        let wanted = validate(&spec()).unwrap();
        let plan = plan(&wanted, &[], &[]);
        assert_eq!(plan.actions.len(), 9);
        assert!(plan.networks.is_empty() && plan.pools.is_empty());
    }

    #[test]
    fn what_is_not_ours_is_never_touched() {
        let wanted = validate(&spec()).unwrap();
        let (mut networks, mut pools) = facts(&wanted);
        networks[0].uuid = Uuid::nil();
        networks[0].shape = Shape::Foreign;
        pools[0].uuid = Uuid::nil();
        pools[0].active = false;
        networks.push(NetworkFacts { name: "default".into(), uuid: Uuid::from_u128(4), ..networks[0].clone() });
        networks.push(NetworkFacts { name: "optest-old".into(), uuid: Uuid::from_u128(5), ..networks[0].clone() });
        let plan = plan(&wanted, &networks, &pools);
        assert_eq!(plan.actions, []);
        assert_eq!(plan.networks[0].reason, "NetworkNotOurs");
        assert_eq!(plan.pools[0].reason, "StoragePoolNotOurs");
    }

    #[test]
    fn a_network_changes_only_while_nobody_uses_it() {
        let wanted = validate(&spec()).unwrap();
        let (mut networks, pools) = facts(&wanted);
        networks[1].shape = Shape::Isolated { bridge: "other".into() };
        networks[1].connections = 1;
        let busy = plan(&wanted, &networks, &pools);
        assert_eq!((busy.actions.len(), busy.networks[0].reason), (0, "NetworkInUse"));
        networks[1].connections = 0;
        let idle = plan(&wanted, &networks, &pools);
        assert_eq!(idle.actions.len(), 3);
        assert_eq!(idle.actions[0], Action::StopNetwork("optest-lan".into()));
    }

    #[test]
    fn a_network_that_left_the_specification_goes() {
        let mut spec = spec();
        let before = validate(&spec).unwrap();
        let (networks, pools) = facts(&before);
        spec.networks.pop();
        let plan = plan(&validate(&spec).unwrap(), &networks, &pools);
        assert_eq!(
            plan.actions,
            [Action::StopNetwork("optest-lan".into()), Action::UndefineNetwork("optest-lan".into())]
        );
    }
}
