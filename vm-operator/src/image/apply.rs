//! Carries the steps of one image out: hashes what is there, fetches what is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use edge_api::virtual_machine_image::{ImageVolume, VolumeRole};
use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::qcow2;
use super::registry::{self, Registry};
use super::transfer::{Hashing, Incoming, Piece, Refuse};
use super::validate::{Layer, ValidatedImage};
use crate::errors::chain;
use crate::libvirt::connection::Host;
use crate::libvirt::volumes::NewVolume;
use crate::libvirt::{self, Hypervisor};

/// Chunks on their way: with the registry's chunks of some 16 KiB and libvirt's of 256 KiB, about 1 MiB in memory.
const CHUNKS: usize = 16;

/// Why a layer did not become a volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libvirt refused.
    #[error("libvirt")]
    Libvirt(#[from] libvirt::Error),
    /// The registry refused.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The stream broke off.
    #[error("layer {digest} broke off")]
    Stream {
        /// Digest of the layer.
        digest: String,
        /// The reader's error.
        source: std::io::Error,
    },
    /// The content is not what its digest says.
    #[error("layer {expected} has content of digest {found}")]
    Digest {
        /// Digest in the manifest.
        expected: String,
        /// Digest of what came.
        found: String,
    },
    /// The disk is refused for good.
    #[error("the image is refused")]
    Refused(#[source] qcow2::Refused),
    /// A broken volume that something depends on.
    #[error("volume {0} has wrong content and is in use; stop and delete what uses it")]
    CorruptInUse(String),
    /// The image is being deleted.
    #[error("the image is being deleted")]
    Deleted,
}

/// Hashes a volume that no record vouches for. `None` where its content is wrong.
pub async fn verify(host: &Host, pool: &str, layer: &Layer) -> Result<Option<ImageVolume>, Error> {
    let (pool, layer) = (pool.to_owned(), layer.clone());
    tracing::info!(volume = layer.volume, "hashing a volume that is there already");
    let checked = host
        .call(move |libvirt| {
            let mut seen = Hashing::default();
            match libvirt.download(&pool, &layer.volume, layer.size, &mut seen) {
                // Too short: the upload broke off.
                Err(libvirt::Error::Length { .. }) => return Ok(Ok(None)),
                other => other?,
            }
            let (digest, header) = seen.finish();
            if digest != layer.digest {
                return Ok(Ok(None));
            }
            Ok(finished(&layer, &header).map(Some))
        })
        .await?;
    checked.map_err(Error::Refused)
}

/// Deletes a volume with wrong content, unless something depends on it.
pub async fn discard(host: &Host, pool: &str, layer: &Layer) -> Result<(), Error> {
    let (pool, volume) = (pool.to_owned(), layer.volume.clone());
    host.call(move |libvirt| {
        let Some(found) = libvirt.volume(&pool, &volume)? else { return Ok(Ok(())) };
        if users(libvirt, &found.path)?.is_empty() {
            libvirt.delete_volume(&pool, &volume)?;
            Ok(Ok(()))
        } else {
            Ok(Err(Error::CorruptInUse(volume)))
        }
    })
    .await?
}

/// Volumes and domains that would break without the file at `path`.
pub fn users(libvirt: &dyn Hypervisor, path: &str) -> Result<Vec<String>, libvirt::Error> {
    let mut users = Vec::new();
    for pool in libvirt.pools()?.into_iter().filter(|p| p.active) {
        let overlays = libvirt.volumes(&pool.name)?.into_iter().filter(|v| v.backing.as_deref() == Some(path));
        users.extend(overlays.map(|v| format!("volume {} of pool {}", v.name, pool.name)));
    }
    let domains = libvirt.descriptions()?.into_iter().filter(|d| d.files.iter().any(|f| f == path));
    users.extend(domains.map(|d| format!("domain {}", d.name)));
    Ok(users)
}

/// Brings a layer into a new volume.
pub async fn fetch(
    host: &Host,
    pool: &str,
    registry: &Registry,
    image: &ValidatedImage,
    layer: &Layer,
    progress: &Arc<AtomicU64>,
    is_deleted: impl Fn() -> bool,
) -> Result<ImageVolume, Error> {
    tracing::info!(volume = layer.volume, bytes = layer.size, "fetching a layer");
    let mut stream = registry.layer(image, &layer.digest, layer.size).await?;
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let incoming = Incoming::new(receiver, progress.clone(), refusal(layer));
    // Made before anything flows: a volume that was there already is not for this transfer to delete.
    {
        let (pool, name) = (pool.to_owned(), layer.volume.clone());
        let xml = NewVolume::Raw { size: layer.size, private: false }.xml(&name);
        host.call(move |libvirt| libvirt.create_volume(&pool, &xml)).await?;
    }
    let uploading = {
        let (pool, layer) = (pool.to_owned(), layer.clone());
        host.call(move |libvirt| upload(libvirt, &pool, &layer, incoming))
    };
    let sending = async {
        let mut sent: u64 = 0;
        let mut checked: u64 = 0;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|source| Error::Stream { digest: layer.digest.clone(), source })?;
            sent += piece.len() as u64;
            // A registry may not fill the disk with more than it announced.
            if sent > layer.size {
                let found = format!("unknown, with more than {} bytes", layer.size);
                return Err(Error::Digest { expected: layer.digest.clone(), found });
            }
            if sent - checked > 8 << 20 {
                checked = sent;
                if is_deleted() {
                    return Err(Error::Deleted);
                }
            }
            if sender.send(Piece::Data(piece)).await.is_err() {
                // The other end has failed and says why.
                return Ok(());
            }
        }
        let _receiver_failed = sender.send(Piece::End).await;
        drop(sender);
        Ok(())
    };
    // Both ends run until each has stopped: the blocking one stops once the channel is closed.
    let (sent, uploaded) = tokio::join!(sending, uploading);
    let outcome = match (sent, uploaded) {
        (Err(error), _) => Err(error),
        (Ok(()), Err(error)) => Err(refused(error)),
        (Ok(()), Ok((digest, header))) => {
            if digest == layer.digest {
                finished(layer, &header).map_err(Error::Refused)
            } else {
                Err(Error::Digest { expected: layer.digest.clone(), found: digest })
            }
        }
    };
    if outcome.is_err() {
        // Whatever is left is replaced next time; an orderly failure leaves nothing.
        let (pool, volume) = (pool.to_owned(), layer.volume.clone());
        if let Err(error) = host.call(move |libvirt| libvirt.delete_volume(&pool, &volume)).await {
            tracing::warn!(volume = layer.volume, error = chain(&error), "cannot delete a partial volume");
        }
    }
    outcome
}

fn refusal(layer: &Layer) -> Option<Refuse> {
    let announced = layer.virtual_size;
    (layer.role == VolumeRole::Disk).then(|| -> Refuse { Box::new(move |h| qcow2::check(h, announced).map(drop)) })
}

/// A refusal travels through libvirt's reader as an I/O error.
fn refused(error: libvirt::Error) -> Error {
    if let libvirt::Error::Data { source, .. } = &error
        && let Some(refused) = source.get_ref().and_then(|inner| inner.downcast_ref::<qcow2::Refused>())
    {
        return Error::Refused(refused.clone());
    }
    Error::Libvirt(error)
}

fn upload(
    libvirt: &dyn Hypervisor,
    pool: &str,
    layer: &Layer,
    mut incoming: Incoming,
) -> Result<(String, Vec<u8>), libvirt::Error> {
    libvirt.upload(pool, &layer.volume, layer.size, &mut incoming)?;
    // The pool learns the volume's format by looking again. It refuses while another volume is made, and looks by
    // itself a moment later.
    if let Err(error) = libvirt.refresh_pool(pool) {
        tracing::debug!(error = chain(&error), pool, "pool not refreshed");
    }
    Ok(incoming.seen.finish())
}

fn finished(layer: &Layer, header: &[u8]) -> Result<ImageVolume, qcow2::Refused> {
    let Layer { role, volume, digest, size, virtual_size } = layer;
    let virtual_size = match role {
        VolumeRole::Disk => Some(qcow2::check(header, *virtual_size)?),
        VolumeRole::Kernel | VolumeRole::Initrd => None,
    };
    Ok(ImageVolume { role: *role, name: volume.clone(), digest: digest.clone(), size: *size, virtual_size })
}

/// Runs `work` and tells `report` of its progress every ten seconds.
pub async fn reporting<T, F, R>(work: F, progress: &AtomicU64, mut report: impl FnMut(u64) -> R) -> T
where
    F: Future<Output = T>,
    R: Future<Output = ()>,
{
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_secs(10)) => report(progress.load(Ordering::Relaxed)).await,
        }
    }
}
