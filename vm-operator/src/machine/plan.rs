//! What to do about a machine: pure.
//!
//! ```text
//!  disks missing ──► make them, record them ──► grow ──► (re)write seed and config ──► define ──► autostart ──► start
//!  running, differs, Restart ──► shut down ──► … 60 s … ──► cut the power ──► (off: as above)
//!  paused for want of space ──► … space … ──► resume
//! ```
//! A disk that was recorded and is missing is lost, and nothing blank takes its place (law 2). Disks only grow, and one
//! that the specification no longer names is detached by the next start and kept. A running guest is touched only when
//! its specification asks for it (law 3).

use std::collections::BTreeSet;
use std::time::Duration;

use edge_api::virtual_machine::{OnConfigChange, PowerState};

use super::observe::{Found, Observed};
use super::validate::{Disk, ValidatedMachine};
use crate::identity;
use crate::libvirt::capabilities::Accelerator;
use crate::libvirt::domains::{self, DiskKind, Interface, Kernel, Marks};
use crate::libvirt::volumes::NewVolume;
use crate::libvirt::{DomainFacts, DomainState};
use crate::space;

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
    /// Make a disk larger.
    Grow {
        /// libvirt name of the pool.
        pool: String,
        /// Volume name.
        name: String,
        /// Bytes that the guest shall see.
        size: u64,
        /// Whether the running domain has it open: then nobody else may write it.
        open: bool,
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
    /// Let it go on after a pause.
    Resume,
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
    /// How long a resume must wait yet.
    pub resume_wait: Duration,
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
        // Paused, it can neither shut down nor be told of a larger disk: all else waits until it runs.
        Some(domain) if domain.state == DomainState::NoSpace && should_run => {
            plan_resume(&mut plan, observed, clock);
        }
        Some(domain) if domain.state.is_active() => {
            plan_active(&mut plan, wanted, domain, &made, config, clock);
            // Last: a disk that cannot grow holds nothing else up.
            plan_growth(&mut plan, wanted, observed);
        }
        _ => {
            plan_growth(&mut plan, wanted, observed);
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
    made.extend(observed.domain.iter().flat_map(super::observe::made).map(ToOwned::to_owned));
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

fn check_disk(wanted: &ValidatedMachine, observed: &Observed, disk: &Disk, found: &Found) -> Result<(), Blocked> {
    if found.pool != disk.pool {
        return Err(Blocked {
            reason: "DiskElsewhere",
            message: format!(
                "volume {} lies in pool {}, not in {}; disks do not move between pools",
                found.volume.name, found.pool, disk.pool
            ),
        });
    }
    if disk.sized && found.volume.capacity > disk.size {
        return Err(Blocked {
            reason: "DiskShrink",
            message: format!(
                "volume {} has {} GiB, and {} are asked for; disks only grow",
                found.volume.name,
                found.volume.capacity.div_ceil(1 << 30),
                disk.size >> 30
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

fn plan_growth(plan: &mut Plan, wanted: &ValidatedMachine, observed: &Observed) {
    let domain = observed.domain.as_ref();
    for disk in wanted.definition.disks.iter().filter(|disk| disk.sized) {
        let Some(Found { pool, volume }) = observed.volumes.get(&disk.role) else { continue };
        let open = domain.and_then(|d| d.live.as_ref()).is_some_and(|live| live.files.contains(&volume.path));
        // On its way down: it grows when it is off.
        let leaving = open && domain.is_some_and(|d| d.state == DomainState::ShuttingDown);
        if volume.capacity < disk.size && !leaving {
            plan.actions.push(Action::Grow { pool: pool.clone(), name: volume.name.clone(), size: disk.size, open });
        }
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

/// Resumed without enough space, the guest would be paused again at once.
fn plan_resume(plan: &mut Plan, observed: &Observed, clock: &Clock) {
    if space::short(&observed.space).is_some() {
        plan.again = Some(space::LOOK_AGAIN);
    } else if clock.resume_wait.is_zero() {
        plan.actions.push(Action::Resume);
    } else {
        plan.again = Some(clock.resume_wait);
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
    let Clock { shutting_down, asked, start_wait: _, resume_wait: _, deadline } = clock;
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
        cpu_set: definition.cpu_set.clone(),
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
mod tests;
