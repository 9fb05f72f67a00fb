//! What a machine's status says.

use edge_api::virtual_machine::{GuestAddress, KeptDisk, Phase, PowerState, VirtualMachineStatus};

use super::observe::{Found, Observed};
use super::plan::{self, Due};
use super::validate::ValidatedMachine;
use crate::libvirt::capabilities::Accelerator;
use crate::libvirt::{DomainFacts, DomainState};
use crate::space::{self, NO_SPACE, Space};
use crate::status::{Verdict, set};

/// What was found out in one reconcile.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    /// Phase.
    pub phase: Phase,
    /// Condition `Ready`.
    pub ready: Verdict,
    /// Condition `ConfigCurrent`, where it can be told.
    pub config: Option<Verdict>,
    /// The rest, where the domain could be seen.
    pub seen: Option<Seen>,
}

/// What was seen of a domain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Name of the domain.
    pub domain: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Digest that the guest was started with.
    pub config_digest: Option<String>,
    /// Console log.
    pub console_log: String,
    /// Addresses; `None` where nobody could tell, so that the known ones stay.
    pub addresses: Option<Vec<GuestAddress>>,
    /// Disks that the specification no longer names.
    pub kept_disks: Vec<KeptDisk>,
}

impl Findings {
    /// Nothing can be done until something changes.
    pub fn waiting(phase: Phase, ready: Verdict) -> Self {
        Self { phase, ready, config: None, seen: None }
    }
}

/// What the guest agent or libvirt's DHCP said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Nobody was asked: the guest is off, or has no interfaces.
    NotAsked,
    /// The agent has not connected.
    NoAgent,
    /// Asked without success.
    Silent(String),
    /// These.
    Addresses(Vec<GuestAddress>),
}

/// Judges a machine by what runs.
pub fn judge(
    wanted: &ValidatedMachine,
    domain: Option<&DomainFacts>,
    accelerator: &Accelerator,
    config: &str,
    answer: &Answer,
    look: &Observed,
) -> Findings {
    let live = domain.and_then(|d| d.live.as_ref());
    let started_with = live.and_then(|l| l.marks.as_ref()).and_then(|m| m.config.clone());
    let seen = domain.map(|domain| Seen {
        domain: domain.name.clone(),
        accelerator: accelerator.as_str().to_owned(),
        config_digest: started_with.filter(|digest| !digest.is_empty()),
        console_log: wanted.console_log.clone(),
        addresses: match answer {
            Answer::Addresses(found) => Some(found.clone()),
            Answer::Silent(_) => None,
            Answer::NotAsked | Answer::NoAgent => Some(Vec::new()),
        },
        kept_disks: look.kept.iter().map(|(role, found)| kept_disk(role, found, domain)).collect(),
    });
    let state = domain.map_or(DomainState::Off, |d| d.state);
    let (phase, ready) = match (wanted.power, state) {
        (PowerState::Stopped, DomainState::Off) => (Phase::Stopped, Verdict::yes("Stopped", "off, as asked")),
        (PowerState::Stopped, _) => (Phase::Running, Verdict::no("ShuttingDown", "the guest was asked to shut down")),
        (PowerState::Running, DomainState::Off) => {
            (Phase::Preparing, Verdict::no("Starting", "the domain is being started"))
        }
        (PowerState::Running, DomainState::Running) => (Phase::Running, judge_running(wanted, answer)),
        (PowerState::Running, DomainState::ShuttingDown) => {
            (Phase::Running, Verdict::no("ShuttingDown", "the guest is shutting down; it is started again"))
        }
        (PowerState::Running, DomainState::Paused) => {
            (Phase::Running, Verdict::no("Paused", "the domain is paused by hand; resume it with virsh resume"))
        }
        (PowerState::Running, DomainState::NoSpace) => (Phase::Running, Verdict::no(NO_SPACE, paused(&look.space))),
        (PowerState::Running, DomainState::Suspended) => {
            (Phase::Running, Verdict::no("Suspended", "the guest suspended itself; wake it with virsh dompmwakeup"))
        }
        (PowerState::Running, DomainState::Crashed) => {
            (Phase::Failed, Verdict::no("Crashed", "the guest crashed and is kept for inspection"))
        }
    };
    let config = domain.filter(|d| d.state.is_active()).map(|d| match plan::due(wanted, d, config) {
        Due::Nothing => Verdict::yes("Current", "the guest runs with what the specification says"),
        Due::Config => Verdict::no(
            "ConfigChanged",
            "seed or configuration disk changed since the guest was started; a restart brings it",
        ),
        Due::Definition => Verdict::no(
            "DefinitionChanged",
            "the specification changed since the guest was started; a restart brings it",
        ),
    });
    let config = config.or_else(|| Some(Verdict::yes("Off", "the next start brings what the specification says")));
    Findings { phase, ready, config, seen }
}

fn paused(pools: &[Space]) -> String {
    let why = match space::short(pools) {
        Some(short) => short.needs(space::ENOUGH),
        // Or so it seems: a part that a file system keeps for root is none for a guest.
        None => "its pools have space by now".to_owned(),
    };
    format!("paused at a write to a full pool, and goes on by itself: {why}")
}

fn kept_disk(role: &str, found: &Found, domain: &DomainFacts) -> KeptDisk {
    let Found { pool, volume } = found;
    KeptDisk {
        name: role.strip_prefix("data-").unwrap_or(role).to_owned(),
        pool: pool.clone(),
        volume: volume.name.clone(),
        attached: domain.live.as_ref().is_some_and(|live| live.files.contains(&volume.path)),
    }
}

fn judge_running(wanted: &ValidatedMachine, answer: &Answer) -> Verdict {
    if !wanted.definition.guest_agent {
        return Verdict::yes("Running", "runs as asked");
    }
    match answer {
        Answer::NoAgent => Verdict::no("WaitingForAgent", "runs; waits for the guest's qemu-guest-agent to connect"),
        Answer::Silent(why) => Verdict::no("AgentSilent", format!("runs, but the guest agent does not answer: {why}")),
        Answer::Addresses(found) if found.is_empty() => {
            Verdict::no("WaitingForAddress", "runs, and the guest agent answers; waits for an address on its networks")
        }
        // Not asked for addresses, because it has no interfaces: its agent has connected.
        Answer::Addresses(_) | Answer::NotAsked => Verdict::yes("Running", "runs, and the guest agent answers"),
    }
}

/// The new status.
pub fn status(old: &VirtualMachineStatus, generation: Option<i64>, findings: &Findings) -> VirtualMachineStatus {
    let Findings { phase, ready, config, seen } = findings;
    let mut new = old.clone();
    new.observed_generation = generation;
    new.phase = *phase;
    set(&mut new.conditions, "Ready", ready, generation);
    if let Some(config) = config {
        set(&mut new.conditions, "ConfigCurrent", config, generation);
    }
    if let Some(Seen { domain, accelerator, config_digest, console_log, addresses, kept_disks }) = seen {
        new.kept_disks.clone_from(kept_disks);
        new.domain = Some(domain.clone());
        new.accelerator = Some(accelerator.clone());
        new.config_digest.clone_from(config_digest);
        new.console_log = Some(console_log.clone());
        if let Some(addresses) = addresses {
            new.addresses.clone_from(addresses);
        }
    }
    new
}
