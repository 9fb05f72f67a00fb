//! The way of a machine: dereference → validate → observe → plan → apply → status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_api::virtual_machine::{Phase, PowerState};
use edge_api::{ConditionStatus, VirtualMachine, condition};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::runtime::controller::Action as Next;
use uuid::Uuid;

use super::apply::{self, apply};
use super::configdisk::{self, ConfigImage};
use super::observe::Observed;
use super::plan::{self, Clock};
use super::status::{self, Answer, Findings};
use super::validate::{self, ImageVolumes, Site, ValidatedMachine};
use super::{addresses, cleanup as removal, reservations};
use crate::appliance::validate::validate as validate_appliance;
use crate::context::Context;
use crate::errors::chain;
use crate::libvirt::capabilities::Accelerator;
use crate::libvirt::connection::Host;
use crate::libvirt::{self, AddressSource, DomainFacts, DomainState};
use crate::reconcile::{self, Reconcile};
use crate::space::{self, NO_SPACE};
use crate::status::Verdict;

type Error = reconcile::Error<apply::Error>;

impl From<apply::Error> for Error {
    fn from(error: apply::Error) -> Self {
        Self::Own(error)
    }
}

impl Reconcile for VirtualMachine {
    type Failure = apply::Error;

    async fn ensure(&self, context: &Context) -> Result<Next, Error> {
        match bring(self, context).await {
            Ok((findings, next)) => {
                publish(self, context, &findings).await?;
                Ok(Next::requeue(next))
            }
            Err(error) => {
                let (phase, reason) = match &error {
                    // The connection's return is an event.
                    Error::Libvirt(lost @ libvirt::Error::NotConnected { .. }) => {
                        publish(self, context, &not_connected(self, chain(lost))).await?;
                        return Ok(Next::requeue(context.times.resync));
                    }
                    Error::Own(apply::Error::Blocked(blocked)) => (Some(Phase::Pending), blocked.reason),
                    Error::Kube(_) | Error::Own(apply::Error::Kube(_)) => return Err(error),
                    _ => (None, "LibvirtError"),
                };
                let phase = phase.or_else(|| Some(self.status.as_ref()?.phase)).unwrap_or_default();
                // Something may have been made already, which removal must know.
                let phase = if phase == Phase::Pending { Phase::Preparing } else { phase };
                let verdict = Verdict::no(reason, chain(&error));
                publish(self, context, &Findings::waiting(phase, verdict)).await?;
                Err(error)
            }
        }
    }

    async fn cleanup(&self, context: &Context) -> Result<(), Error> {
        // Without an identity nothing was ever made either.
        if let Ok(id) = Uuid::try_parse(&self.spec.id) {
            match remove(self, context, id).await {
                // Deleting does not wait for what creating waited for (law 1).
                Err(Error::Waiting(_) | Error::Libvirt(libvirt::Error::NotConnected { .. })) if nothing_made(self) => {}
                other => other?,
            }
            context.memories.forget(id);
        }
        Ok(())
    }
}

/// A lost connection says nothing about the guest (law 3).
fn not_connected(machine: &VirtualMachine, message: String) -> Findings {
    let phase = machine.status.as_ref().map(|s| s.phase).unwrap_or_default();
    Findings::waiting(phase, Verdict::unknown("NotConnected", message))
}

/// What a machine refers to.
struct Referenced {
    host: Arc<Host>,
    accelerator: Accelerator,
    machine: ValidatedMachine,
    config_digest: String,
}

async fn bring(object: &VirtualMachine, context: &Context) -> Result<(Findings, Duration), Error> {
    let referenced = match dereference(object, context).await? {
        Ok(referenced) => referenced,
        Err(findings) => return Ok((findings, context.times.resync)),
    };
    let Referenced { host, accelerator, machine, config_digest } = &referenced;
    let machine = Arc::new(machine.clone());
    let look = {
        let machine = machine.clone();
        host.call(move |libvirt| Observed::look(libvirt, &machine)).await?
    };
    let clock = clock(context, machine.id);
    let plan = match plan::plan(&machine, &look, &apply::recorded(object), config_digest, &clock) {
        Ok(plan) => plan,
        Err(blocked) => {
            let mut findings = status::judge(
                &machine,
                look.domain.as_ref(),
                accelerator,
                config_digest,
                &Answer::Silent(String::new()),
                &look,
            );
            findings.phase = if blocked.reason == "ImageNotReady" { Phase::Pending } else { Phase::Failed };
            findings.ready = Verdict::no(blocked.reason, blocked.message);
            return Ok((findings, context.times.resync));
        }
    };
    if plan.actions.is_empty() {
        return Ok(settle(context, &referenced, look.domain.clone(), &look, plan.again).await);
    }
    if look.domain.is_none() {
        let preparing = Verdict::no("Preparing", "disks and domain are being made");
        publish(object, context, &Findings::waiting(Phase::Preparing, preparing)).await?;
    }
    match apply(context, object, host, &machine, accelerator, plan.actions).await {
        Err(apply::Error::Libvirt(error)) if error.is_no_space() => {
            return Ok((no_space(object, host, &machine, &error).await?, space::LOOK_AGAIN));
        }
        other => other?,
    }
    let id = machine.id;
    let domain = host.call(move |libvirt| libvirt.domain(id)).await?;
    Ok(settle(context, &referenced, domain, &look, plan.again).await)
}

/// Something of a machine could not be made. What was made stays, and is found by the next look.
async fn no_space(
    object: &VirtualMachine,
    host: &Host,
    machine: &Arc<ValidatedMachine>,
    error: &libvirt::Error,
) -> Result<Findings, Error> {
    let machine = machine.clone();
    let pools = host.call(move |libvirt| {
        space::look(libvirt, machine.disk_pools().chain(std::iter::once(machine.config_pool.as_str())))
    });
    let why = match space::short(&pools.await?) {
        Some(short) => short.needs(space::ENOUGH),
        None => "its pools have space: it is the host's own file system that is full".to_owned(),
    };
    let phase = object.status.as_ref().map(|s| s.phase).unwrap_or_default();
    let phase = if phase == Phase::Pending { Phase::Preparing } else { phase };
    tracing::warn!(machine = object.name_any(), error = chain(error), "no space");
    Ok(Findings::waiting(phase, Verdict::no(NO_SPACE, format!("{why}: {}", chain(error)))))
}

fn clock(context: &Context, id: Uuid) -> Clock {
    let now = Instant::now();
    context.memories.with(id, |memory| Clock {
        shutting_down: memory.shutdown_since.map(|since| now.saturating_duration_since(since)),
        asked: memory.shutdown_asked.map(|since| now.saturating_duration_since(since)),
        start_wait: memory.start_wait(now),
        resume_wait: memory.resume_wait(now),
        deadline: context.times.shutdown,
    })
}

/// Looks for addresses, judges, and says when to look again.
async fn settle(
    context: &Context,
    referenced: &Referenced,
    domain: Option<DomainFacts>,
    look: &Observed,
    again: Option<Duration>,
) -> (Findings, Duration) {
    let Referenced { host, accelerator, machine, config_digest } = referenced;
    let answer = ask(host, machine, domain.as_ref()).await;
    let mut findings = status::judge(machine, domain.as_ref(), accelerator, config_digest, &answer, look);
    let restarting = context.memories.with(machine.id, |memory| memory.shutdown_since.is_some()) && again.is_some();
    if restarting && machine.power == PowerState::Running && domain.as_ref().is_some_and(|d| d.state.is_active()) {
        let seconds = context.times.shutdown.as_secs();
        let message = format!(
            "the guest was asked to shut down for a restart with its changed configuration; \
             its power is cut {seconds} s after that"
        );
        findings.ready = Verdict::no("Restarting", message);
    }
    let running = domain.as_ref().is_some_and(|d| d.state == DomainState::Running);
    let next = context.memories.with(machine.id, |memory| {
        if again.is_none() {
            memory.note_settled();
        }
        match &answer {
            Answer::Addresses(found) if !found.is_empty() => {
                // The next change of address is looked for from the start.
                memory.looks = 4;
                context.times.addresses
            }
            _ if running && machine.power == PowerState::Running && !machine.definition.interfaces.is_empty() => {
                memory.next_look().min(context.times.addresses)
            }
            _ => context.times.resync,
        }
    });
    (findings, again.map_or(next, |again| again.min(next)))
}

async fn ask(host: &Host, machine: &ValidatedMachine, domain: Option<&DomainFacts>) -> Answer {
    let Some(live) = domain.filter(|d| d.state == DomainState::Running).and_then(|d| d.live.as_ref()) else {
        return Answer::NotAsked;
    };
    let source = if machine.definition.guest_agent { AddressSource::Agent } else { AddressSource::Lease };
    if source == AddressSource::Agent && live.agent_connected != Some(true) {
        return Answer::NoAgent;
    }
    if machine.definition.interfaces.is_empty() {
        return Answer::NotAsked;
    }
    let id = machine.id;
    let interfaces = machine.definition.interfaces.clone();
    let asked = host.call(move |libvirt| {
        let found = addresses::sort(&libvirt.addresses(id, source)?, &interfaces);
        Ok((reservations::keep(libvirt, &interfaces, &found), found))
    });
    match asked.await {
        Ok((kept, found)) => {
            if let Err(error) = kept {
                // The next look tries again.
                tracing::warn!(machine = machine.object, error = chain(&error), "reservation");
            }
            Answer::Addresses(found)
        }
        Err(error) => Answer::Silent(chain(&error)),
    }
}

/// Looks everything up that a machine names. The inner error is a state to wait in.
async fn dereference(object: &VirtualMachine, context: &Context) -> Result<Result<Referenced, Findings>, Error> {
    let waiting = |phase, reason, message: String| Ok(Err(Findings::waiting(phase, Verdict::no(reason, message))));
    let spec = &object.spec;
    let Some(appliance_object) = context.appliance(&spec.appliance) else {
        return waiting(Phase::Pending, "ApplianceNotFound", format!("waits for Appliance {}", spec.appliance));
    };
    let appliance = match validate_appliance(&appliance_object.spec) {
        Ok(appliance) => appliance,
        Err(invalid) => {
            let message = format!("Appliance {} is invalid: {}", spec.appliance, chain(&invalid));
            return waiting(Phase::Pending, "ApplianceNotReady", message);
        }
    };
    let conditions = appliance_object.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if let Some(lost) = condition::find(conditions, "Connected").filter(|c| c.status == ConditionStatus::False) {
        let message = format!("Appliance {}: {}", spec.appliance, lost.message);
        return Ok(Err(not_connected(object, message)));
    }
    let seed = match &spec.cloud_init_secret {
        None => None,
        Some(name) => match secret(context, name).await? {
            None => return waiting(Phase::Pending, "SecretNotFound", format!("waits for Secret {name}")),
            Some(files) => Some(configdisk::make("CIDATA", &configdisk::nocloud(files, &spec.id, &object.name_any()))),
        },
    };
    let config = match &spec.config_disk {
        None => None,
        Some(disk) => match secret(context, &disk.secret_name).await? {
            None => {
                return waiting(Phase::Pending, "SecretNotFound", format!("waits for Secret {}", disk.secret_name));
            }
            Some(files) => Some(configdisk::make(&disk.label, &files)),
        },
    };
    let (seed, config): (Option<ConfigImage>, Option<ConfigImage>) = match (seed.transpose(), config.transpose()) {
        (Ok(seed), Ok(config)) => (seed, config),
        (Err(error), _) | (_, Err(error)) => {
            return waiting(Phase::Failed, "ConfigInvalid", chain(&error));
        }
    };
    let (image, image_wait) = image(object, context);
    let host_status = appliance_object.status.as_ref().and_then(|s| s.host.as_ref());
    let config_digest = configdisk::digest(seed.as_ref(), config.as_ref());
    let namespace = object.namespace().unwrap_or_default();
    let site = Site { appliance: &appliance, host: host_status, image, seed, config };
    let validated = validate::validate(&namespace, &object.name_any(), spec, site);
    let machine = match validated {
        Ok(machine) => machine,
        Err(invalid) => {
            // Without its image a machine cannot be judged in full.
            if let (Some((reason, message)), "Invalid") = (&image_wait, invalid.reason()) {
                return waiting(Phase::Pending, reason, message.clone());
            }
            return waiting(Phase::Failed, invalid.reason(), chain(&invalid));
        }
    };
    if let Some((reason, message)) = image_wait {
        let phase = if reason == "ImageNotReady" { Phase::Pending } else { Phase::Failed };
        return waiting(phase, reason, message);
    }
    if !condition::is_true(conditions, "StoragePoolsReady") {
        let why = condition::find(conditions, "Ready").map(|c| c.message.clone()).unwrap_or_default();
        return waiting(Phase::Pending, "ApplianceNotReady", format!("waits for Appliance {}: {why}", spec.appliance));
    }
    let host = context.hosts.get(&appliance_object.spec.libvirt_uri);
    let accelerator = context.facts(&appliance_object.spec.libvirt_uri).await?.accelerator;
    Ok(Ok(Referenced { host, accelerator, machine, config_digest }))
}

type Files = BTreeMap<String, Vec<u8>>;

async fn secret(context: &Context, name: &str) -> Result<Option<Files>, Error> {
    let found = context.api::<Secret>().get_opt(name).await?;
    Ok(found.map(|secret| secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect()))
}

type Wait = Option<(&'static str, String)>;

fn image(object: &VirtualMachine, context: &Context) -> (Option<ImageVolumes>, Wait) {
    let Some(name) = &object.spec.image else { return (None, None) };
    let Some(image) = context.image(name) else {
        return (None, Some(("ImageNotFound", format!("there is no VirtualMachineImage {name}"))));
    };
    if image.spec.appliance != object.spec.appliance {
        let message = format!("VirtualMachineImage {name} belongs to Appliance {}", image.spec.appliance);
        return (None, Some(("ImageNotFound", message)));
    }
    let status = image.status.unwrap_or_default();
    if !condition::is_true(&status.conditions, "Ready") {
        let why = condition::find(&status.conditions, "Ready").map_or("it was not looked at yet", |c| &c.message);
        return (None, Some(("ImageNotReady", format!("waits for VirtualMachineImage {name}: {why}"))));
    }
    (Some(ImageVolumes::new(&status.volumes)), None)
}

async fn publish(machine: &VirtualMachine, context: &Context, findings: &Findings) -> Result<(), Error> {
    let renew = |old: &_, generation| status::status(old, generation, findings);
    Ok(crate::status::publish(context, machine, renew).await?)
}

/// Whether nothing can have been made for a machine: before the first act its phase is `Preparing`, then its disks are
/// noted, then its domain.
fn nothing_made(machine: &VirtualMachine) -> bool {
    let status = machine.status.clone().unwrap_or_default();
    apply::recorded(machine).is_empty()
        && status.domain.is_none()
        && matches!(status.phase, Phase::Pending | Phase::Failed)
}

async fn remove(machine: &VirtualMachine, context: &Context, id: Uuid) -> Result<(), Error> {
    let deleting = |reason, message: &str| Findings::waiting(Phase::Deleting, Verdict::no(reason, message));
    let Some(appliance) = context.appliance(&machine.spec.appliance) else {
        let message = format!(
            "waits for Appliance {} to come back: without it nobody knows where domain and disks are",
            machine.spec.appliance
        );
        if !nothing_made(machine) {
            publish(machine, context, &deleting("ApplianceNotFound", &message)).await?;
        }
        return Err(Error::Waiting(message));
    };
    if !nothing_made(machine) {
        publish(machine, context, &deleting("Deleting", "domain and disks are being removed")).await?;
    }
    let host = context.hosts.get(&appliance.spec.libvirt_uri);
    let instance = appliance.spec.instance.clone();
    let macs = reservations::macs(id, &machine.spec);
    host.call(move |libvirt| removal::remove(libvirt, id, &macs, &instance)).await?;
    Ok(())
}
