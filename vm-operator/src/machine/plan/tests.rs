//! The plan against every situation it must get right, and against random ones.

use proptest::prelude::*;

use super::*;
use crate::libvirt::VolumeFacts;
use crate::libvirt::domains::Description;
use crate::machine::observe::Found;
use crate::machine::validate::tests::{check, spec};
use crate::space::{ENOUGH, LOOK_AGAIN, Space};

const CONFIG: &str = "sha256:c";

fn wanted(edit: impl Fn(&mut edge_api::VirtualMachineSpec)) -> ValidatedMachine {
    let mut spec = spec();
    edit(&mut spec);
    check(&spec).unwrap()
}

fn marks(wanted: &ValidatedMachine, config: Option<&str>) -> Marks {
    Marks {
        id: wanted.id.to_string(),
        definition: wanted.definition.digest(),
        config: config.map(ToOwned::to_owned),
        disks: "data-a root".into(),
        ..Marks::default()
    }
}

/// A host on which everything is as wanted.
fn settled(wanted: &ValidatedMachine, state: DomainState) -> Observed {
    let mut observed = Observed::default();
    for disk in &wanted.definition.disks {
        let volume = VolumeFacts {
            name: identity::volume(wanted.id, &disk.role),
            path: format!("/pool/{}", disk.role),
            capacity: disk.size,
            backing: disk.base.as_ref().map(|b| format!("/pool/{b}")),
        };
        observed.volumes.insert(disk.role.clone(), Found { pool: disk.pool.clone(), volume });
    }
    let files = observed.volumes.values().map(|found| found.volume.path.clone()).collect();
    for name in ["pcg-img-d", "pcg-img-k"] {
        observed.image.insert(name.into(), format!("/pool/{name}"));
    }
    let description = Description {
        marks: Some(marks(wanted, Some(CONFIG))),
        name: wanted.domain.clone(),
        files,
        ..Description::default()
    };
    observed.domain = Some(DomainFacts {
        uuid: wanted.id,
        name: wanted.domain.clone(),
        state,
        persistent: true,
        autostart: wanted.power == PowerState::Running,
        live: state.is_active().then(|| description.clone()),
        config: description,
    });
    observed
}

fn recorded() -> BTreeSet<String> {
    ["root".to_owned(), "data-a".to_owned()].into()
}

fn clock() -> Clock {
    Clock { deadline: Duration::from_mins(1), ..Clock::default() }
}

fn actions(wanted: &ValidatedMachine, observed: &Observed) -> Vec<Action> {
    plan(wanted, observed, &recorded(), CONFIG, &clock()).unwrap().actions
}

#[test]
fn nothing_is_done_when_all_is_well() {
    let machine = wanted(|_| ());
    assert_eq!(actions(&machine, &settled(&machine, DomainState::Running)), []);
    let stopped = wanted(|s| s.power_state = PowerState::Stopped);
    assert_eq!(actions(&stopped, &settled(&stopped, DomainState::Off)), []);
}

#[test]
fn a_new_machine_is_recorded_before_it_is_defined_and_defined_before_it_is_started() {
    let machine = wanted(|_| ());
    let observed = Observed { image: settled(&machine, DomainState::Off).image, ..Observed::default() };
    let plan = plan(&machine, &observed, &BTreeSet::new(), CONFIG, &clock()).unwrap();
    let kinds: Vec<&str> = plan
        .actions
        .iter()
        .map(|a| match a {
            Action::CreateVolume { .. } => "create",
            Action::RecordDisks(_) => "record",
            Action::Define { config: Some(_), .. } => "define",
            Action::Autostart(true) => "autostart",
            Action::Start => "start",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["create", "create", "record", "define", "autostart", "start"]);
}

#[test]
fn a_lost_disk_is_never_replaced() {
    let machine = wanted(|_| ());
    for (state, domain_is_there) in [(DomainState::Off, true), (DomainState::Off, false)] {
        let mut observed = settled(&machine, state);
        observed.volumes.remove("root");
        if !domain_is_there {
            observed.domain = None;
        }
        let blocked = plan(&machine, &observed, &recorded(), CONFIG, &clock()).unwrap_err();
        assert_eq!(blocked.reason, "DiskLost");
    }
    // The domain's own mark is enough: the object may be a restored copy.
    let mut observed = settled(&machine, DomainState::Off);
    observed.volumes.remove("data-a");
    assert_eq!(plan(&machine, &observed, &BTreeSet::new(), CONFIG, &clock()).unwrap_err().reason, "DiskLost");
}

#[test]
fn a_disk_is_never_moved_or_put_over_another_image() {
    let machine = wanted(|_| ());
    let mut observed = settled(&machine, DomainState::Off);
    observed.volumes.get_mut("root").unwrap().pool = "optest-other".into();
    assert_eq!(plan(&machine, &observed, &recorded(), CONFIG, &clock()).unwrap_err().reason, "DiskElsewhere");
    let mut observed = settled(&machine, DomainState::Off);
    observed.volumes.get_mut("root").unwrap().volume.backing = Some("/pool/pcg-img-old".into());
    assert_eq!(plan(&machine, &observed, &recorded(), CONFIG, &clock()).unwrap_err().reason, "ImageChanged");
}

#[test]
fn disks_grow_where_they_are_open_and_never_shrink() {
    const GIB: u64 = 1 << 30;
    let before = wanted(|_| ());
    let larger = wanted(|s| s.data_disks[0].size_gib = 3);
    let grow = |open| Action::Grow {
        pool: "optest-default".into(),
        name: identity::volume(before.id, "data-a"),
        size: 3 * GIB,
        open,
    };
    // No restart: the size is no part of the definition.
    assert_eq!(actions(&larger, &settled(&before, DomainState::Running)), [grow(true)]);
    assert_eq!(actions(&larger, &settled(&before, DomainState::Off)), [grow(false), Action::Start]);
    assert_eq!(actions(&larger, &settled(&before, DomainState::ShuttingDown)), []);
    // Made while the guest runs, and not attached before its next start.
    let mut observed = settled(&before, DomainState::Running);
    observed.domain.as_mut().unwrap().live.as_mut().unwrap().files.retain(|path| !path.ends_with("data-a"));
    assert_eq!(actions(&larger, &observed), [grow(false)]);

    let smaller = wanted(|s| s.root_disk.as_mut().unwrap().size_gib = Some(1));
    for state in [DomainState::Running, DomainState::Off] {
        let blocked = plan(&smaller, &settled(&before, state), &recorded(), CONFIG, &clock()).unwrap_err();
        assert_eq!(blocked.reason, "DiskShrink");
        assert!(blocked.message.contains("has 2 GiB, and 1 are asked for"), "{}", blocked.message);
    }
    let unsaid = wanted(|s| s.root_disk.as_mut().unwrap().size_gib = None);
    assert_eq!(actions(&unsaid, &settled(&before, DomainState::Running)), []);
}

#[test]
fn a_disk_that_is_no_longer_named_is_detached_by_the_next_start_and_kept() {
    let before = wanted(|_| ());
    let after = wanted(|s| s.data_disks.clear());
    let mut observed = settled(&before, DomainState::Running);
    let removed = observed.volumes.remove("data-a").unwrap();
    observed.kept.insert("data-a".into(), removed);
    // Both disks stay noted, so that it is never made blank when it is named again.
    let define = Action::Define { config: Some(CONFIG.into()), disks: recorded() };
    assert_eq!(actions(&after, &observed), std::slice::from_ref(&define));
    assert_eq!(due(&after, observed.domain.as_ref().unwrap(), CONFIG), Due::Definition);
    let defined = domain(&after, &observed, &Accelerator::Tcg, None, &recorded()).unwrap();
    assert_eq!(defined.disks.iter().map(|d| d.serial.as_str()).collect::<Vec<_>>(), ["root"]);
    observed.domain = settled(&before, DomainState::Off).domain;
    assert_eq!(actions(&after, &observed), [define, Action::Start]);
}

#[test]
fn foreign_domains_are_never_touched() {
    let machine = wanted(|_| ());
    let mut observed = settled(&machine, DomainState::Running);
    let domain = observed.domain.as_mut().unwrap();
    domain.config.marks = None;
    domain.live.as_mut().unwrap().marks = None;
    assert_eq!(plan(&machine, &observed, &recorded(), CONFIG, &clock()).unwrap_err().reason, "DomainNotOurs");
    let observed = Observed { name_taken: Some(uuid::Uuid::nil()), ..settled(&machine, DomainState::Off) };
    assert_eq!(plan(&machine, &observed, &recorded(), CONFIG, &clock()).unwrap_err().reason, "NameTaken");
}

#[test]
fn a_running_guest_is_restarted_only_when_asked() {
    for (edit, restarts) in [(OnConfigChange::Wait, false), (OnConfigChange::Restart, true)] {
        let machine = wanted(|s| s.on_config_change = edit);
        let observed = settled(&machine, DomainState::Running);
        let plan = plan(&machine, &observed, &recorded(), "sha256:new", &clock()).unwrap();
        assert_eq!(plan.actions.contains(&Action::Shutdown), restarts);
        // Its disk is not touched under it.
        assert!(!plan.actions.iter().any(|a| matches!(a, Action::WriteConfig { .. } | Action::Define { .. })));
        assert_eq!(due(&machine, observed.domain.as_ref().unwrap(), "sha256:new"), Due::Config);
    }
}

#[test]
fn a_new_definition_is_ready_for_the_next_start() {
    let before = wanted(|_| ());
    let after = wanted(|s| s.memory_mib = 512);
    let observed = settled(&before, DomainState::Running);
    let actions = actions(&after, &observed);
    // What the volumes hold is not changed by that.
    assert_eq!(actions, [Action::Define { config: Some(CONFIG.into()), disks: recorded() }]);
    assert_eq!(due(&after, observed.domain.as_ref().unwrap(), CONFIG), Due::Definition);
}

#[test]
fn a_rewritten_disk_is_never_claimed_before_it_is_whole() {
    let mut machine = wanted(|_| ());
    machine.definition.config = true;
    let mut observed = settled(&machine, DomainState::Off);
    let config = observed.volumes["root"].clone();
    observed.volumes.insert("config".into(), config);
    let actions = plan(&machine, &observed, &recorded(), "sha256:new", &clock()).unwrap().actions;
    assert_eq!(
        actions,
        [
            Action::Define { config: None, disks: recorded() },
            Action::WriteConfig { pool: machine.config_pool.clone(), role: "config" },
            Action::Define { config: Some("sha256:new".into()), disks: recorded() },
            Action::Start,
        ]
    );
}

#[test]
fn a_guest_that_does_not_react_loses_its_power() {
    let machine = wanted(|s| s.power_state = PowerState::Stopped);
    let mut observed = settled(&machine, DomainState::Running);
    observed.domain.as_mut().unwrap().autostart = false;
    let at = |since: Option<u64>, asked: Option<u64>| {
        let clock =
            Clock { shutting_down: since.map(Duration::from_secs), asked: asked.map(Duration::from_secs), ..clock() };
        plan(&machine, &observed, &recorded(), CONFIG, &clock).unwrap()
    };
    assert_eq!(at(None, None).actions, [Action::Shutdown]);
    assert_eq!(at(Some(5), Some(5)).actions, []);
    assert_eq!(at(Some(20), Some(20)).actions, [Action::Shutdown]);
    assert_eq!(at(Some(50), Some(1)).again, Some(Duration::from_secs(10)));
    assert_eq!(at(Some(60), Some(1)).actions, [Action::Destroy]);
}

#[test]
fn a_domain_that_was_undefined_or_destroyed_comes_back_with_its_disks() {
    let machine = wanted(|_| ());
    let mut observed = settled(&machine, DomainState::Off);
    assert_eq!(actions(&machine, &observed), [Action::Start]);
    observed.domain = None;
    let actions = actions(&machine, &observed);
    assert!(!actions.iter().any(|a| matches!(a, Action::CreateVolume { .. })), "{actions:?}");
    assert_eq!(actions.last(), Some(&Action::Start));
    // Undefined while it runs: the definition returns, the guest is left alone.
    let mut transient = settled(&machine, DomainState::Running);
    transient.domain.as_mut().unwrap().persistent = false;
    let actions = self::actions(&machine, &transient);
    assert!(matches!(actions[..], [Action::Define { .. }, Action::Autostart(true)]), "{actions:?}");
}

#[test]
fn a_start_that_failed_waits() {
    let machine = wanted(|_| ());
    let observed = settled(&machine, DomainState::Off);
    let clock = Clock { start_wait: Duration::from_secs(7), ..clock() };
    let plan = plan(&machine, &observed, &recorded(), CONFIG, &clock).unwrap();
    assert_eq!((plan.actions.len(), plan.again), (0, Some(Duration::from_secs(7))));
}

#[test]
fn a_guest_without_space_waits_for_it_and_is_resumed() {
    let before = wanted(|_| ());
    // A restart is due, which must not cut off a guest that cannot shut down.
    let machine = wanted(|s| {
        s.vcpus = 2;
        s.on_config_change = OnConfigChange::Restart;
    });
    let mut observed = settled(&before, DomainState::NoSpace);
    let mut look = |free, resume_wait| {
        observed.space = vec![Space { pool: "edge-default".into(), path: "/pool".into(), free }];
        let clock = Clock { resume_wait, shutting_down: Some(Duration::from_hours(1)), ..clock() };
        plan(&machine, &observed, &recorded(), CONFIG, &clock).unwrap()
    };
    let waits = |again| Plan { actions: Vec::new(), again: Some(again) };
    assert_eq!(look(ENOUGH - 1, Duration::ZERO), waits(LOOK_AGAIN));
    assert_eq!(look(ENOUGH, Duration::from_secs(7)), waits(Duration::from_secs(7)));
    assert_eq!(look(ENOUGH, Duration::ZERO), Plan { actions: vec![Action::Resume], again: None });
}

proptest! {
    /// Laws 2 and 3, whatever is found: no recorded disk is made anew, and a running guest is neither shut down
    /// nor cut off nor are its configuration disks written unless its specification asks for it.
    #[test]
    fn data_and_running_guests_are_safe(
        state in prop::sample::select(vec![
            DomainState::Running, DomainState::Paused, DomainState::ShuttingDown, DomainState::Off,
            DomainState::Crashed, DomainState::Suspended, DomainState::NoSpace,
        ]),
        has_domain in any::<bool>(),
        missing in prop::sample::subsequence(vec!["root", "data-a"], 0..=2),
        noted in prop::sample::subsequence(vec!["root", "data-a"], 0..=2),
        persistent in any::<bool>(),
        new_config in any::<bool>(),
        new_definition in any::<bool>(),
        capacity in 1_u64..4,
        restart in any::<bool>(),
        stopped in any::<bool>(),
        since in prop::option::of(0_u64..200),
    ) {
        let machine = wanted(|s| {
            s.on_config_change = if restart { OnConfigChange::Restart } else { OnConfigChange::Wait };
            s.power_state = if stopped { PowerState::Stopped } else { PowerState::Running };
        });
        let before = if new_definition { wanted(|s| s.vcpus = 2) } else { machine.clone() };
        let mut observed = settled(&before, state);
        for role in &missing {
            observed.volumes.remove(*role);
        }
        if let Some(domain) = &mut observed.domain {
            domain.persistent = persistent;
        }
        if let Some(found) = observed.volumes.get_mut("root") {
            found.volume.capacity = capacity << 30;
        }
        if !has_domain {
            observed.domain = None;
        }
        let noted: BTreeSet<String> = noted.iter().map(|s| (*s).to_owned()).collect();
        let clock = Clock { shutting_down: since.map(Duration::from_secs), ..clock() };
        let config = if new_config { "sha256:new" } else { CONFIG };
        let planned = plan(&machine, &observed, &noted, config, &clock);
        // The domain's mark notes both disks.
        let known = |role: &str| has_domain || noted.contains(role);
        let shrinks = !missing.contains(&"root") && capacity > 2;
        if shrinks || missing.iter().any(|role| known(role)) {
            let reason = planned.unwrap_err().reason;
            prop_assert!(reason == if shrinks { "DiskShrink" } else { "DiskLost" }, "{reason}");
            return Ok(());
        }
        let runs = has_domain && state.is_active();
        let asked = stopped || (restart && (new_config || new_definition));
        for action in planned.unwrap().actions {
            match action {
                Action::CreateVolume { name, .. } => {
                    prop_assert!(missing.iter().any(|role| name.ends_with(role)) && !runs);
                }
                Action::Shutdown | Action::Destroy => {
                    prop_assert!(runs && asked && (stopped || state != DomainState::NoSpace));
                }
                Action::WriteConfig { .. } | Action::DeleteVolume { .. } => prop_assert!(!runs),
                Action::Start => prop_assert!(!runs && !stopped),
                // Ever larger, and never behind QEMU's back.
                Action::Grow { size, open, .. } => prop_assert!(size > capacity << 30 && open == runs),
                Action::Resume => prop_assert!(has_domain && state == DomainState::NoSpace),
                Action::RecordDisks(_) | Action::Define { .. } | Action::Autostart(_) => {}
            }
        }
    }
}
