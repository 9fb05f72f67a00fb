//! Step `bundle`: every file of the bundle has the size and digest that its index says.
//!
//! Hashing some gigabytes takes seconds, so its result is kept, for exactly these files: path, sizes, times of change
//! and digest of the index. A bundle is not written to while it is used.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use edge_api::bundle::Index;
use futures::future::{LocalBoxFuture, try_join_all};
use serde::{Deserialize, Serialize};

use crate::bundle::{self, Error, Expected};
use crate::durable;
use crate::engine::{Failure, Run, Step, Verdict};
use crate::upgrade;
use crate::world::World;

/// See the module.
pub struct Bundle {
    world: Arc<World>,
    upgraded: upgrade::Since,
}

/// What was verified.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Verified {
    bundle: String,
    index: String,
    files: String,
}

impl Bundle {
    /// The step.
    pub fn new(world: Arc<World>) -> Self {
        Self { world, upgraded: upgrade::Since::default() }
    }

    async fn ensure_bundle(&self, run: &Run) -> Result<Verdict, Failure> {
        upgrade::advance(&self.world, &self.upgraded, async |folder| self.verified(run, folder).await.map(drop))
            .await?;
        let folder = self.world.bundle();
        let index = self.verified(run, &folder).await?;
        let size: u64 = index.artifacts.iter().map(|artifact| artifact.size).sum();
        let message = format!("{} artifacts, {} MiB, version {}", index.artifacts.len(), size >> 20, index.version);
        self.world.set_index(index);
        Ok(Verdict::Ready(message))
    }

    /// The index of a bundle whose files are what it says.
    async fn verified(&self, run: &Run, folder: &Path) -> Result<Index, Failure> {
        let failed = |e: Error| {
            Failure::of(&e)
                .hint(format!("the bundle at {} is damaged or incomplete: build or copy it again", folder.display()))
        };
        let (index, index_digest) = bundle::read_index(folder).map_err(failed)?;
        let files = bundle::expected(folder, &index).map_err(failed)?;
        let now = Verified {
            bundle: folder.display().to_string(),
            index: index_digest,
            files: fingerprint(&files).map_err(failed)?,
        };
        let record = self.world.paths.join("state/bundle.json");
        let all: u64 = files.iter().map(|f| f.size).sum();
        if durable::read_json::<Verified>(&record).ok().flatten().as_ref() != Some(&now) {
            run.working(format!("verifies {} files, {} MiB", files.len(), all >> 20));
            verify_all(run, files, all).await.map_err(failed)?;
            durable::write_json(&record, &now).map_err(|e| Failure::of(&e))?;
        }
        Ok(index)
    }
}

impl Step for Bundle {
    fn name(&self) -> &'static str {
        "bundle"
    }

    fn ensure<'a>(&'a self, run: &'a Run) -> LocalBoxFuture<'a, Result<Verdict, Failure>> {
        Box::pin(self.ensure_bundle(run))
    }
}

/// Hashes on all CPUs but at most four threads, largest files first, and shows progress.
async fn verify_all(run: &Run, mut files: Vec<Expected>, all: u64) -> Result<(), Error> {
    files.sort_by_key(|f| std::cmp::Reverse(f.size));
    let files = Arc::new(files);
    let next = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let stop = StopOnDrop(Arc::clone(&next));
    let workers = (0..threads).map(|_| {
        let (files, next, done) = (Arc::clone(&files), Arc::clone(&next), Arc::clone(&done));
        let work = move || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                bundle::verify(file, |n| {
                    done.fetch_add(n, Ordering::Relaxed);
                })?;
            }
            Ok(())
        };
        async { tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(panicked(&e))) }
    });
    let show = async {
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            tick.tick().await;
            run.progress(done.load(Ordering::Relaxed), all);
        }
    };
    let result = tokio::select! {
        result = try_join_all(workers) => result.map(drop),
        () = show => Ok(()),
    };
    drop(stop);
    run.no_progress();
    result
}

fn panicked(error: &tokio::task::JoinError) -> Error {
    Error::Read { path: "the bundle".into(), source: std::io::Error::other(error.to_string()) }
}

/// Makes the threads end with their file when the step is dropped.
struct StopOnDrop(Arc<AtomicUsize>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(usize::MAX / 2, Ordering::Relaxed);
    }
}

fn fingerprint(files: &[Expected]) -> Result<String, Error> {
    let mut text = String::new();
    for file in files {
        let metadata =
            std::fs::metadata(&file.path).map_err(|source| Error::Read { path: file.path.clone(), source })?;
        // Not the time of change: a blob is a hard link, and one more link changes it.
        let _ = writeln!(text, "{} {} {}.{}", file.digest, metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    }
    Ok(bundle::sha256(text.as_bytes()))
}
