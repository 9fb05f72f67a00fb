//! What to do about a machine: pure.
//!
//! ```text
//!  disks missing ──► make them, record them ──► (re)write seed and config ──► define ──► autostart ──► start
//!  running, differs, Restart ──► shut down ──► … 60 s … ──► cut the power ──► (off: as above)
//! ```
//! A disk that was recorded and is missing is lost, and nothing blank takes its place (law 2). A running guest is
//! touched only when its specification asks for it (law 3).

use std::collections::BTreeSet;
use std::time::Duration;

use edge_api::virtual_machine::{OnConfigChange, PowerState};

use super::observe::Observed;
use super::validate::{Disk, ValidatedMachine};
use crate::identity;
use crate::libvirt::capabilities::Accelerator;
use crate::libvirt::domains::{self, DiskKind, Interface, Kernel, Marks};
use crate::libvirt::volumes::NewVolume;
use crate::libvirt::{DomainFacts, DomainState};

/// One thing to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Make a volume.
    CreateVolume {
        /// libvirt name of the pool.
        pool: String,
        /// Volume name.
        name: String,
        /// What it is.
        volume: NewVolume,
    },
    /// Note in the object which disks were made.
    RecordDisks(BTreeSet<String>),
    /// Write seed or configuration disk anew.
    WriteConfig {
        /// libvirt name of the pool.
        pool: String,
        /// `seed` or `config`.
        role: &'static str,
    },
    /// Delete a seed or configuration disk that is no longer wanted.
    DeleteVolume {
        /// libvirt name of the pool.
        pool: String,
        /// Volume name.
        name: String,
    },
    /// Define the domain. Paths of volumes that earlier actions make are filled in when it is carried out.
    Define {
        /// Digest over seed and configuration disk; `None` while they are being written.
        config: Option<String>,
        /// Disks that were made.
        disks: BTreeSet<String>,
    },
    /// Whether it starts with the host.
    Autostart(bool),
    /// Start it.
    Start,
    /// Ask the guest to shut down.
    Shutdown,
    /// Cut the power.
    Destroy,
}

/// What time it is for a machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Since the guest was first asked to shut down.
    pub shutting_down: Option<Duration>,
    /// Since it was last asked.
    pub asked: Option<Duration>,
    /// How long a start must wait yet.
    pub start_wait: Duration,
    /// How long a guest may take to shut down.
    pub deadline: Duration,
}

/// Why nothing can be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Blocked {
    /// Reason for the condition.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
}

/// What is to be done.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// When to look again, where no event will say so.
    pub again: Option<Duration>,
}

/// A guest that does not react is asked again after this long: it may not have been listening yet.
const ASK_AGAIN: Duration = Duration::from_secs(15);

/// Compares what is wanted with what there is. `recorded` are the disks that the object says were made, `config` is
/// the digest over seed and configuration disk as they should be.
pub fn plan(
    wanted: &ValidatedMachine,
    observed: &Observed,
    recorded: &BTreeSet<String>,
    config: &str,
    clock: &Clock,
) -> Result<Plan, Blocked> {
    check_ownership(wanted, observed)?;
    let mut plan = Plan::default();
    let made = plan_disks(&mut plan, wanted, observed, recorded)?;
    let should_run = wanted.power == PowerState::Running;
    match &observed.domain {
        Some(domain) if domain.state.is_active() => plan_active(&mut plan, wanted, domain, &made, config, clock),
        _ => {
            plan_off(&mut plan, wanted, observed, &made, config);
            if should_run {
                if clock.start_wait.is_zero() {
                    plan.actions.push(Action::Start);
                } else {
                    plan.again = Some(clock.start_wait);
                }
            }
        }
    }
    Ok(plan)
}

fn check_ownership(wanted: &ValidatedMachine, observed: &Observed) -> Result<(), Blocked> {
    if let Some(other) = observed.name_taken {
        return Err(Blocked {
            reason: "NameTaken",
            message: format!("domain {} exists with UUID {other}; rename or remove it", wanted.domain),
        });
    }
    match &observed.domain {
        Some(domain) if !is_ours(domain, wanted.id) => Err(Blocked {
            reason: "DomainNotOurs",
            message: format!(
                "domain {} has this machine's UUID and not its mark; remove it, or give the machine another id",
                domain.name
            ),
        }),
        _ => Ok(()),
    }
}

/// Whether a domain carries the mark of a machine.
pub fn is_ours(domain: &DomainFacts, id: uuid::Uuid) -> bool {
    let id = id.to_string();
    let marked = |d: &domains::Description| d.marks.as_ref().is_some_and(|m| m.id == id);
    marked(&domain.config) || domain.live.as_ref().is_some_and(marked)
}

/// Plans missing disks and gives the roles of all disks there will be, and ever were.
fn plan_disks(
    plan: &mut Plan,
    wanted: &ValidatedMachine,
    observed: &Observed,
    recorded: &BTreeSet<String>,
) -> Result<BTreeSet<String>, Blocked> {
    let mut made = recorded.clone();
    if let Some(domain) = &observed.domain {
        for marks in [&domain.config, domain.live.as_ref().unwrap_or(&domain.config)] {
            let noted = marks.marks.iter().flat_map(|m| m.disks.split_whitespace());
            made.extend(noted.map(ToOwned::to_owned));
        }
    }
    let before = recorded.clone();
    for disk in &wanted.definition.disks {
        match observed.volumes.get(&disk.role) {
            Some(found) => check_disk(wanted, observed, disk, found)?,
            None if made.contains(&disk.role) => {
                return Err(Blocked {
                    reason: "DiskLost",
                    message: format!(
                        "volume {} was made and is no longer in pool {}; restore it, or delete the machine",
                        identity::volume(wanted.id, &disk.role),
                        disk.pool
                    ),
                });
            }
            None => plan.actions.push(Action::CreateVolume {
                pool: disk.pool.clone(),
                name: identity::volume(wanted.id, &disk.role),
                volume: new_volume(observed, disk)?,
            }),
        }
        made.insert(disk.role.clone());
    }
    if made != before {
        plan.actions.push(Action::RecordDisks(made.clone()));
    }
    Ok(made)
}

fn check_disk(
    wanted: &ValidatedMachine,
    observed: &Observed,
    disk: &Disk,
    found: &super::observe::Found,
) -> Result<(), Blocked> {
    if found.pool != disk.pool {
        return Err(Blocked {
            reason: "DiskElsewhere",
            message: format!(
                "volume {} lies in pool {}, not in {}; disks do not move between pools",
                found.volume.name, found.pool, disk.pool
            ),
        });
    }
    let base = disk.base.as_ref().and_then(|name| observed.image.get(name));
    match (&found.volume.backing, base) {
        (Some(backing), Some(base)) if backing != base => Err(Blocked {
            reason: "ImageChanged",
            message: format!(
                "volume {} holds changes to {backing}, an earlier image; a disk cannot change what it is based on: \
                 go back to that image, or make a new machine in place of {}",
                found.volume.name, wanted.object
            ),
        }),
        _ => Ok(()),
    }
}

fn new_volume(observed: &Observed, disk: &Disk) -> Result<NewVolume, Blocked> {
    match &disk.base {
        None => Ok(NewVolume::Empty { size: disk.size }),
        Some(base) => match observed.image.get(base) {
            Some(path) => Ok(NewVolume::Overlay { size: disk.size, backing: path.clone() }),
            None => Err(image_missing(base)),
        },
    }
}

fn image_missing(volume: &str) -> Blocked {
    Blocked { reason: "ImageNotReady", message: format!("waits for image volume {volume}") }
}

/// The domain is off or not defined: everything may be written.
fn plan_off(plan: &mut Plan, wanted: &ValidatedMachine, observed: &Observed, made: &BTreeSet<String>, config: &str) {
    let marks = observed.domain.as_ref().and_then(|d| d.config.marks.as_ref());
    let volumes_there = (!wanted.definition.seed || observed.volumes.contains_key("seed"))
        && (!wanted.definition.config || observed.volumes.contains_key("config"));
    let written = volumes_there && marks.is_some_and(|m| m.config.as_deref() == Some(config));
    let define = |config: Option<&str>| Action::Define { config: config.map(ToOwned::to_owned), disks: made.clone() };
    if !written {
        // A crash in the middle must not leave a domain that claims the new content (law 1).
        if marks.is_some_and(|m| m.config.is_some()) {
            plan.actions.push(define(None));
        }
        for (role, there) in [("seed", wanted.definition.seed), ("config", wanted.definition.config)] {
            if there {
                plan.actions.push(Action::WriteConfig { pool: wanted.config_pool.clone(), role });
            }
        }
    }
    if !written || !is_current(marks, wanted, made) {
        plan.actions.push(define(Some(config)));
        for (role, there) in [("seed", wanted.definition.seed), ("config", wanted.definition.config)] {
            if let Some(found) = observed.volumes.get(role).filter(|_| !there) {
                let (pool, name) = (found.pool.clone(), found.volume.name.clone());
                plan.actions.push(Action::DeleteVolume { pool, name });
            }
        }
    }
    plan_autostart(plan, wanted, observed.domain.as_ref());
}

fn is_current(marks: Option<&Marks>, wanted: &ValidatedMachine, made: &BTreeSet<String>) -> bool {
    marks.is_some_and(|m| m.definition == wanted.definition.digest() && m.disks == join(made))
}

/// Disks as the mark has them.
pub fn join(disks: &BTreeSet<String>) -> String {
    disks.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn plan_autostart(plan: &mut Plan, wanted: &ValidatedMachine, domain: Option<&DomainFacts>) {
    let autostart = wanted.power == PowerState::Running;
    // A domain that is defined for the first time does not start with the host.
    if domain.is_some_and(|d| d.persistent && d.autostart) != autostart {
        plan.actions.push(Action::Autostart(autostart));
    }
}

/// The domain runs: only its next start may be prepared, unless a restart or stop is asked for.
fn plan_active(
    plan: &mut Plan,
    wanted: &ValidatedMachine,
    domain: &DomainFacts,
    made: &BTreeSet<String>,
    config: &str,
    clock: &Clock,
) {
    let marks = domain.config.marks.as_ref();
    if !domain.persistent || !is_current(marks, wanted, made) {
        // What the volumes hold now, which is not for this definition to change.
        let config = marks.and_then(|m| m.config.clone());
        plan.actions.push(Action::Define { config, disks: made.clone() });
    }
    plan_autostart(plan, wanted, Some(domain));
    let due = due(wanted, domain, config);
    let restart = due != Due::Nothing && wanted.on_change == OnConfigChange::Restart;
    if wanted.power == PowerState::Stopped || restart {
        plan_shutdown(plan, domain, clock);
    }
}

/// What a running machine's restart would bring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// New content of seed or configuration disk.
    Config,
    /// Another definition.
    Definition,
}

/// Compares what runs with what is wanted.
pub fn due(wanted: &ValidatedMachine, domain: &DomainFacts, config: &str) -> Due {
    let Some(marks) = domain.live.as_ref().and_then(|live| live.marks.as_ref()) else { return Due::Nothing };
    if marks.config.as_deref() != Some(config) {
        Due::Config
    } else if marks.definition != wanted.definition.digest() {
        Due::Definition
    } else {
        Due::Nothing
    }
}

fn plan_shutdown(plan: &mut Plan, domain: &DomainFacts, clock: &Clock) {
    let Clock { shutting_down, asked, start_wait: _, deadline } = clock;
    match shutting_down {
        // Nobody is there to shut a crashed guest down.
        _ if domain.state == DomainState::Crashed => plan.actions.push(Action::Destroy),
        None => {
            plan.actions.push(Action::Shutdown);
            plan.again = Some(ASK_AGAIN.min(*deadline));
        }
        Some(since) if since >= deadline => plan.actions.push(Action::Destroy),
        Some(since) => {
            let asked = asked.unwrap_or(*since);
            if asked >= ASK_AGAIN {
                plan.actions.push(Action::Shutdown);
            }
            plan.again = Some(ASK_AGAIN.min(deadline.saturating_sub(*since)));
        }
    }
}

/// The domain as it is wanted, with the paths of its volumes.
pub fn domain(
    wanted: &ValidatedMachine,
    observed: &Observed,
    accelerator: &Accelerator,
    config: Option<String>,
    made: &BTreeSet<String>,
) -> Result<domains::Domain, Blocked> {
    let definition = &wanted.definition;
    let image = |name: &String| observed.image.get(name).cloned().ok_or_else(|| image_missing(name));
    let mut disks = Vec::new();
    let data = definition.disks.iter().map(|d| (d.role.as_str(), d.serial.as_str(), DiskKind::Data));
    let read_only = [("seed", definition.seed), ("config", definition.config)];
    let read_only = read_only.into_iter().filter(|(_, there)| *there).map(|(role, _)| (role, role, DiskKind::ReadOnly));
    for (role, serial, kind) in data.chain(read_only) {
        let found = observed.volumes.get(role).ok_or_else(|| Blocked {
            reason: "Preparing",
            message: format!("waits for volume {}", identity::volume(wanted.id, role)),
        })?;
        disks.push(domains::Disk { path: found.volume.path.clone(), kind, serial: serial.to_owned() });
    }
    let kernel = match &definition.kernel {
        None => None,
        Some(kernel) => Some(Kernel {
            kernel: image(kernel)?,
            initrd: definition.initrd.as_ref().map(image).transpose()?,
            args: definition.kernel_args.clone(),
        }),
    };
    Ok(domains::Domain {
        uuid: wanted.id,
        name: wanted.domain.clone(),
        title: format!("PCG-Edge machine {}", wanted.object),
        marks: Marks {
            id: wanted.id.to_string(),
            appliance: wanted.appliance.to_string(),
            object: wanted.object.clone(),
            definition: definition.digest(),
            config,
            disks: join(made),
        },
        accelerator: accelerator.clone(),
        vcpus: definition.vcpus,
        memory_mib: definition.memory_mib,
        kernel,
        disks,
        interfaces: definition
            .interfaces
            .iter()
            .map(|n| Interface { mac: n.mac.clone(), network: n.libvirt_network.clone() })
            .collect(),
        console_log: wanted.console_log.clone(),
        guest_agent: definition.guest_agent,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::observe::Found;
    use super::super::validate::tests::{check, spec};
    use super::*;
    use crate::libvirt::VolumeFacts;
    use crate::libvirt::domains::Description;

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
        for name in ["pcg-img-d", "pcg-img-k"] {
            observed.image.insert(name.into(), format!("/pool/{name}"));
        }
        let description = Description {
            marks: Some(marks(wanted, Some(CONFIG))),
            name: wanted.domain.clone(),
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
            let clock = Clock {
                shutting_down: since.map(Duration::from_secs),
                asked: asked.map(Duration::from_secs),
                ..clock()
            };
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
        let actions = super::tests::actions(&machine, &transient);
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

    proptest! {
        /// Laws 2 and 3, whatever is found: no recorded disk is made anew, and a running guest is neither shut down
        /// nor cut off nor are its configuration disks written unless its specification asks for it.
        #[test]
        fn data_and_running_guests_are_safe(
            state in prop::sample::select(vec![
                DomainState::Running, DomainState::Paused, DomainState::ShuttingDown, DomainState::Off,
                DomainState::Crashed, DomainState::Suspended,
            ]),
            has_domain in any::<bool>(),
            missing in prop::sample::subsequence(vec!["root", "data-a"], 0..=2),
            noted in prop::sample::subsequence(vec!["root", "data-a"], 0..=2),
            persistent in any::<bool>(),
            new_config in any::<bool>(),
            new_definition in any::<bool>(),
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
            if !has_domain {
                observed.domain = None;
            }
            let noted: BTreeSet<String> = noted.iter().map(|s| (*s).to_owned()).collect();
            let clock = Clock { shutting_down: since.map(Duration::from_secs), ..clock() };
            let config = if new_config { "sha256:new" } else { CONFIG };
            let planned = plan(&machine, &observed, &noted, config, &clock);
            // The domain's mark notes both disks.
            let known = |role: &str| has_domain || noted.contains(role);
            if missing.iter().any(|role| known(role)) {
                prop_assert_eq!(planned.unwrap_err().reason, "DiskLost");
                return Ok(());
            }
            let runs = has_domain && state.is_active();
            let asked = stopped || (restart && (new_config || new_definition));
            for action in planned.unwrap().actions {
                match action {
                    Action::CreateVolume { name, .. } => {
                        prop_assert!(missing.iter().any(|role| name.ends_with(role)) && !runs);
                    }
                    Action::Shutdown | Action::Destroy => prop_assert!(runs && asked),
                    Action::WriteConfig { .. } | Action::DeleteVolume { .. } => prop_assert!(!runs),
                    Action::Start => prop_assert!(!runs && !stopped),
                    Action::RecordDisks(_) | Action::Define { .. } | Action::Autostart(_) => {}
                }
            }
        }
    }
}
