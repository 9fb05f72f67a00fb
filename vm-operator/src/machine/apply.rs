//! Carries a plan out. Stops at the first failure; the next reconcile looks and plans anew.

use std::collections::BTreeSet;
use std::time::Instant;

use edge_api::VirtualMachine;

use super::observe::Observed;
use super::plan::{self, Action, Blocked};
use super::validate::ValidatedMachine;
use crate::context::Context;
use crate::identity;
use crate::libvirt::capabilities::Accelerator;
use crate::libvirt::connection::Host;
use crate::libvirt::volumes::NewVolume;
use crate::libvirt::{self, Hypervisor};
use crate::reconcile::{note, noted};

/// Disks that were made for a machine, separated by spaces. One of them missing is lost data, not a disk to make.
pub const ANNOTATION_DISKS: &str = "pcg-edge.io/disks";

/// Why a plan could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("API server")]
    Kube(#[from] kube::Error),
    /// libvirt refused.
    #[error("libvirt")]
    Libvirt(#[from] libvirt::Error),
    /// Something is missing.
    #[error("{}", .0.message)]
    Blocked(Blocked),
}

/// Does what the plan says, in order.
pub async fn apply(
    context: &Context,
    object: &VirtualMachine,
    host: &Host,
    machine: &ValidatedMachine,
    accelerator: &Accelerator,
    actions: Vec<Action>,
) -> Result<(), Error> {
    for action in actions {
        tracing::info!(machine = machine.object, ?action, "machine");
        let id = machine.id;
        match action {
            Action::RecordDisks(disks) => note(context, object, ANNOTATION_DISKS, &plan::join(&disks)).await?,
            Action::CreateVolume { pool, name, volume } => {
                host.call(move |libvirt| libvirt.create_volume(&pool, &volume.xml(&name))).await?;
            }
            Action::Grow { pool, name, size, open: false } => {
                host.call(move |libvirt| libvirt.grow_volume(&pool, &name, size)).await?;
            }
            Action::Grow { pool, name, size, open: true } => {
                host.call(move |libvirt| libvirt.grow_disk(id, &pool, &name, size)).await?;
            }
            Action::DeleteVolume { pool, name } => {
                host.call(move |libvirt| libvirt.delete_volume(&pool, &name)).await?;
            }
            Action::WriteConfig { pool, role } => {
                let machine = machine.clone();
                host.call(move |libvirt| write_config(libvirt, &machine, &pool, role)).await?;
            }
            Action::Define { config, disks } => {
                let (machine, accelerator) = (machine.clone(), accelerator.clone());
                host.call(move |libvirt| {
                    let observed = Observed::look(libvirt, &machine)?;
                    match plan::domain(&machine, &observed, &accelerator, config, &disks) {
                        Ok(domain) => libvirt.define_domain(&domain.xml()).map(Ok),
                        Err(blocked) => Ok(Err(Error::Blocked(blocked))),
                    }
                })
                .await??;
            }
            Action::Autostart(autostart) => {
                host.call(move |libvirt| libvirt.autostart_domain(id, autostart)).await?;
            }
            Action::Start => {
                context.memories.with(id, |memory| memory.note_start(Instant::now()));
                host.call(move |libvirt| libvirt.start_domain(id)).await?;
            }
            Action::Resume => {
                context.memories.with(id, |memory| memory.note_resume(Instant::now()));
                host.call(move |libvirt| libvirt.resume_domain(id)).await?;
            }
            Action::Shutdown => {
                context.memories.with(id, |memory| memory.note_shutdown(Instant::now()));
                let asked = host.call(move |libvirt| libvirt.shutdown_domain(id)).await;
                if let Err(error) = asked {
                    // The deadline decides, not the guest.
                    tracing::warn!(machine = machine.object, error = crate::errors::chain(&error), "shutdown");
                }
            }
            Action::Destroy => host.call(move |libvirt| libvirt.destroy_domain(id)).await?,
        }
    }
    Ok(())
}

/// Disks that the object says were made.
pub fn recorded(object: &VirtualMachine) -> BTreeSet<String> {
    noted(object, ANNOTATION_DISKS).map(ToOwned::to_owned).collect()
}

fn write_config(
    libvirt: &dyn Hypervisor,
    machine: &ValidatedMachine,
    pool: &str,
    role: &str,
) -> Result<(), libvirt::Error> {
    let image = if role == "seed" { &machine.seed } else { &machine.config };
    let Some(image) = image else { return Ok(()) };
    let name = identity::volume(machine.id, role);
    // Anew, because the size may have changed; wherever an earlier one lies.
    for pool in &machine.pools {
        libvirt.delete_volume(pool, &name)?;
    }
    let size = image.bytes().len() as u64;
    libvirt.create_volume(pool, &NewVolume::Raw { size, private: true }.xml(&name))?;
    libvirt.upload(pool, &name, size, &mut image.bytes())
}
