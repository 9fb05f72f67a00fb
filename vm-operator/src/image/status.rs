//! What an image's status says.

use edge_api::virtual_machine_image::{ImageVolume, VirtualMachineImageStatus};

use crate::status::{Verdict, set};

/// The new status. Volumes are replaced where they are known.
pub fn status(
    old: &VirtualMachineImageStatus,
    generation: Option<i64>,
    ready: &Verdict,
    volumes: Option<&[ImageVolume]>,
) -> VirtualMachineImageStatus {
    let mut new = old.clone();
    new.observed_generation = generation;
    set(&mut new.conditions, "Ready", ready, generation);
    if let Some(volumes) = volumes {
        new.volumes = volumes.to_vec();
    }
    new
}
