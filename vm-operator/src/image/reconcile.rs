//! The way of an image: validate → observe → plan → apply → status.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use edge_api::virtual_machine_image::ImageVolume;
use edge_api::{VirtualMachineImage, condition};
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::controller::Action as Next;
use kube::{Resource as _, ResourceExt as _};

use super::apply::{self, fetch, verify};
use super::plan::{self, Step};
use super::registry::{self, Registry};
use super::status;
use super::validate::{self, Layer, ValidatedImage};
use crate::appliance::validate::{ValidatedAppliance, validate as validate_appliance};
use crate::context::Context;
use crate::errors::chain;
use crate::libvirt;
use crate::libvirt::connection::Host;
use crate::reconcile::{self, Reconcile, note, noted};
use crate::space::{self, NO_SPACE};
use crate::status::{Verdict, newest};

/// Volumes that an image may have begun to fill, so that its removal finds them even when it never became ready.
pub const ANNOTATION_VOLUMES: &str = "pcg-edge.io/volumes";

/// Reason of an image that never will be ready: its content cannot change.
const REFUSED: &str = "ImageRefused";

type Error = reconcile::Error<apply::Error>;

impl From<apply::Error> for Error {
    fn from(error: apply::Error) -> Self {
        Self::Own(error)
    }
}

impl From<registry::Error> for Error {
    fn from(error: registry::Error) -> Self {
        Self::Own(error.into())
    }
}

/// What an attempt came to.
enum Outcome {
    Ready(Vec<ImageVolume>),
    /// Waits for a change of something that is watched.
    Waiting(Verdict),
    /// Waits for space, of which nothing tells.
    NoSpace(String),
}

impl Reconcile for VirtualMachineImage {
    type Failure = apply::Error;

    async fn ensure(&self, context: &Context) -> Result<Next, Error> {
        match bring(self, context).await {
            Ok(Outcome::Ready(volumes)) => {
                publish(self, context, &Verdict::yes("Ready", "all volumes are there"), Some(&volumes)).await?;
            }
            Ok(Outcome::Waiting(verdict)) => publish(self, context, &verdict, None).await?,
            Ok(Outcome::NoSpace(message)) => {
                tracing::warn!(image = self.name_any(), message, "no space");
                publish(self, context, &Verdict::no(NO_SPACE, message), None).await?;
                return Ok(Next::requeue(space::LOOK_AGAIN));
            }
            Err(Error::Own(apply::Error::Deleted)) => {}
            // The connection's return is an event.
            Err(
                Error::Libvirt(error @ libvirt::Error::NotConnected { .. })
                | Error::Own(apply::Error::Libvirt(error @ libvirt::Error::NotConnected { .. })),
            ) => {
                let status = self.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
                if !condition::is_true(status, "Ready") {
                    publish(self, context, &Verdict::unknown("NotConnected", chain(&error)), None).await?;
                }
            }
            Err(Error::Own(error @ apply::Error::Refused(_))) => {
                publish(self, context, &Verdict::no(REFUSED, chain(&error)), None).await?;
            }
            Err(error) => {
                let reason = match &error {
                    Error::Own(
                        apply::Error::Digest { .. } | apply::Error::Registry(registry::Error::Digest { .. }),
                    ) => "DigestMismatch",
                    Error::Own(apply::Error::Registry(_) | apply::Error::Stream { .. }) => "RegistryError",
                    Error::Own(apply::Error::CorruptInUse(_)) => "VolumeCorrupt",
                    _ => "LibvirtError",
                };
                publish(self, context, &Verdict::no(reason, chain(&error)), None).await?;
                return Err(error);
            }
        }
        Ok(Next::requeue(context.times.resync))
    }

    /// Deletes volumes that no other image claims and nothing depends on.
    async fn cleanup(&self, context: &Context) -> Result<(), Error> {
        let name = self.name_any();
        let users =
            context.machines(|m| m.spec.image.as_deref() == Some(&name) && m.spec.appliance == self.spec.appliance);
        if !users.is_empty() {
            let message = format!("cannot be deleted while these machines use it: {}", users.join(", "));
            publish(self, context, &Verdict::no("ImageInUse", message.clone()), None).await?;
            return Err(Error::Waiting(message));
        }
        let mut volumes = claimed(self);
        for other in context.images() {
            if other.name_any() != name && other.spec.appliance == self.spec.appliance {
                let others = claimed_by_other(&other);
                volumes.retain(|v| !others.contains(v));
            }
        }
        if !volumes.is_empty() {
            let Some(appliance) = context.appliance(&self.spec.appliance) else {
                let message = format!(
                    "waits for Appliance {} to come back: without it nobody knows where {} volumes are",
                    self.spec.appliance,
                    volumes.len()
                );
                return Err(Error::Waiting(message));
            };
            let host = context.hosts.get(&appliance.spec.libvirt_uri);
            // Identity only: the rest of the specification may be wrong by now.
            let pool = format!("{}-{}", appliance.spec.instance, appliance.spec.image_pool);
            let blocked = host.call(move |libvirt| remove(libvirt, &pool, &volumes)).await?;
            if !blocked.is_empty() {
                let message = format!("cannot be deleted while it is below {}", blocked.join(", "));
                publish(self, context, &Verdict::no("ImageInUse", message.clone()), None).await?;
                return Err(Error::Waiting(message));
            }
        }
        Ok(())
    }
}

async fn bring(image: &VirtualMachineImage, context: &Context) -> Result<Outcome, Error> {
    let waiting = |reason, message: String| Ok(Outcome::Waiting(Verdict::no(reason, message)));
    let wanted = match validate::validate(&image.spec) {
        Ok(wanted) => wanted,
        Err(invalid) => return waiting("Invalid", chain(&invalid)),
    };
    let name = &image.spec.appliance;
    let Some(appliance) = context.appliance(name) else {
        return waiting("ApplianceNotFound", format!("waits for Appliance {name}"));
    };
    let Ok(site) = validate_appliance(&appliance.spec) else {
        return waiting("ApplianceNotReady", format!("waits for Appliance {name}, whose specification is invalid"));
    };
    let old = newest(context, image);
    let was_ready = condition::is_true(&old.conditions, "Ready");
    let conditions = appliance.status.map(|s| s.conditions).unwrap_or_default();
    // A lost connection says nothing about the volumes.
    if was_ready && !condition::is_true(&conditions, "Connected") {
        return Ok(Outcome::Ready(old.volumes));
    }
    if !condition::is_true(&conditions, "StoragePoolsReady") {
        return waiting("ApplianceNotReady", format!("waits for the storage pools of Appliance {name}"));
    }
    let host = context.hosts.get(&appliance.spec.libvirt_uri);
    if let Some(refused) = condition::find(&old.conditions, "Ready").filter(|c| c.reason == REFUSED) {
        return waiting(REFUSED, refused.message.clone());
    }
    let recorded: BTreeSet<String> = old.volumes.iter().map(|v| v.name.clone()).collect();
    let present = present(&host, &site, recorded).await?;
    if plan::is_complete(was_ready, &old.volumes, &present) {
        return Ok(Outcome::Ready(old.volumes));
    }
    let secret_name = &site.registry.secret_name;
    let Some(secret) = context.api::<Secret>().get_opt(secret_name).await? else {
        return waiting("SecretNotFound", format!("waits for Secret {secret_name} with the registry's login"));
    };
    let registry = Registry::new(&site.registry.host, secret_name, &secret)?;
    let layers = match validate::layers(&registry.manifest(&wanted).await?) {
        Ok(layers) => layers,
        Err(invalid) => return waiting(REFUSED, chain(&invalid)),
    };
    if let Some(short) = short(&host, &site, &layers).await? {
        return Ok(Outcome::NoSpace(short));
    }
    claim(image, context, &layers).await?;
    let transfer = Transfer { image, context, site: &site, host: &host, registry: &registry, wanted: &wanted };
    let mut volumes = Vec::new();
    for layer in &layers {
        match transfer.layer(layer, &layers).await {
            Ok(volume) => volumes.push(volume),
            // Somebody else took it meanwhile.
            Err(Error::Own(apply::Error::Libvirt(error))) if error.is_no_space() => {
                let why = short(&host, &site, &layers).await?.unwrap_or_else(|| "there is space by now".to_owned());
                return Ok(Outcome::NoSpace(format!("{why}: {}", chain(&error))));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Outcome::Ready(volumes))
}

/// What is short, where the layers that are not there yet do not fit into the image pool.
async fn short(host: &Host, site: &ValidatedAppliance, layers: &[Layer]) -> Result<Option<String>, Error> {
    let present = present(host, site, layers.iter().map(|l| l.volume.clone()).collect()).await?;
    let missing: u64 = layers.iter().filter(|l| !present.contains(&l.volume)).map(|l| l.size).sum();
    let pool = site.image_pool.clone();
    let pools = host.call(move |libvirt| space::look(libvirt, std::iter::once(pool.as_str()))).await?;
    Ok(pools.first().filter(|space| space.free < missing).map(|space| space.needs(missing)))
}

async fn present(
    host: &Host,
    site: &ValidatedAppliance,
    names: BTreeSet<String>,
) -> Result<BTreeSet<String>, libvirt::Error> {
    let pool = site.image_pool.clone();
    host.call(move |libvirt| {
        let mut refreshed = false;
        let mut present = BTreeSet::new();
        for name in names {
            let mut found = libvirt.volume(&pool, &name)?.is_some();
            // Files come and go behind libvirt's back: nothing is called missing before the disk was asked.
            if !found && !refreshed {
                refreshed = true;
                libvirt.refresh_pool(&pool)?;
                found = libvirt.volume(&pool, &name)?.is_some();
            }
            if found {
                present.insert(name);
            }
        }
        Ok(present)
    })
    .await
}

/// Notes the volumes before the first byte, so that removal knows them (law 1).
async fn claim(image: &VirtualMachineImage, context: &Context, layers: &[Layer]) -> Result<(), Error> {
    let names: Vec<&str> = layers.iter().map(|l| l.volume.as_str()).collect();
    Ok(note(context, image, ANNOTATION_VOLUMES, &names.join(" ")).await?)
}

/// What one image's transfer needs.
struct Transfer<'a> {
    image: &'a VirtualMachineImage,
    context: &'a Context,
    site: &'a ValidatedAppliance,
    host: &'a Host,
    registry: &'a Registry,
    wanted: &'a ValidatedImage,
}

impl Transfer<'_> {
    async fn layer(&self, layer: &Layer, all: &[Layer]) -> Result<ImageVolume, Error> {
        let Self { image, context, site, host, registry, wanted } = self;
        let pool = &site.image_pool;
        let lock = context.locks.of(pool, &layer.volume);
        let _held = lock.lock().await;
        // Another image with the same layer may have brought it while this one waited.
        let present = present(host, site, BTreeSet::from([layer.volume.clone()])).await?;
        let recorded: Vec<ImageVolume> = context
            .images()
            .into_iter()
            .filter(|other| other.spec.appliance == image.spec.appliance)
            .filter_map(|other| other.status)
            .flat_map(|status| status.volumes)
            .collect();
        let step = plan::plan(std::slice::from_ref(layer), &recorded, &present).pop();
        if let Some(Step::Keep(volume)) = step {
            return Ok(volume);
        }
        let Ok(_slot) = context.transfers.acquire().await else {
            return Err(libvirt::Error::Interrupted.into());
        };
        if let Some(Step::Verify(_)) = step {
            if let Some(volume) = verify(host, pool, layer).await? {
                return Ok(volume);
            }
            apply::discard(host, pool, layer).await?;
        }
        let total: u64 = all.iter().map(|l| l.size).sum();
        let report = |done: u64| async move {
            let message = format!(
                "{} of {} MiB of {:?} have come, {} MiB in all",
                done >> 20,
                layer.size >> 20,
                layer.role,
                total >> 20
            );
            if let Err(error) = publish(image, context, &Verdict::no("Downloading", message), None).await {
                tracing::debug!(error = chain(&error), "cannot tell of progress");
            }
        };
        report(0).await;
        let progress = Arc::new(AtomicU64::new(0));
        let is_deleted = || context.image(&image.name_any()).is_none_or(|i| i.meta().deletion_timestamp.is_some());
        let fetching = fetch(host, pool, registry, wanted, layer, &progress, is_deleted);
        Ok(apply::reporting(fetching, &progress, report).await?)
    }
}

async fn publish(
    image: &VirtualMachineImage,
    context: &Context,
    ready: &Verdict,
    volumes: Option<&[ImageVolume]>,
) -> Result<(), Error> {
    let renew = |old: &_, generation| status::status(old, generation, ready, volumes);
    Ok(crate::status::publish(context, image, renew).await?)
}

/// Volumes that an image has or may have. What a refused image noted it will never use.
fn claimed_by_other(image: &VirtualMachineImage) -> BTreeSet<String> {
    let conditions = image.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if condition::find(conditions, "Ready").is_some_and(|c| c.reason == REFUSED) {
        return BTreeSet::new();
    }
    claimed(image)
}

/// Volumes that an image has or may have.
fn claimed(image: &VirtualMachineImage) -> BTreeSet<String> {
    let recorded = image.status.iter().flat_map(|s| s.volumes.iter().map(|v| v.name.clone()));
    noted(image, ANNOTATION_VOLUMES).map(ToOwned::to_owned).chain(recorded).collect()
}

/// Deletes what nothing depends on; says what something does.
fn remove(
    libvirt: &dyn libvirt::Hypervisor,
    pool: &str,
    volumes: &BTreeSet<String>,
) -> Result<Vec<String>, libvirt::Error> {
    if !libvirt.pools()?.iter().any(|p| p.name == pool && p.active) {
        return Ok(Vec::new());
    }
    libvirt.refresh_pool(pool)?;
    let mut blocked = Vec::new();
    for volume in volumes {
        let Some(found) = libvirt.volume(pool, volume)? else { continue };
        let users = apply::users(libvirt, &found.path)?;
        if users.is_empty() {
            libvirt.delete_volume(pool, volume)?;
        } else {
            blocked.extend(users);
        }
    }
    Ok(blocked)
}
