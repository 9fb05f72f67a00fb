//! Follows one file by watching its folder, because editors and copies replace a file rather than write into it. A
//! burst of events is one change: it is reported when the folder has been quiet for a moment.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Quiet time after which a burst of events counts as over.
const SETTLE: Duration = Duration::from_millis(250);

/// A watched file; dropping it ends the watch.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Watched {
    /// Sends `()` on `changes` after every settled change of `path`. Its folder must exist.
    pub fn new(path: &Path, changes: mpsc::Sender<()>) -> io::Result<Self> {
        let name = path.file_name().map(OsString::from).ok_or(io::ErrorKind::InvalidInput)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::ONLYDIR;
        inotify.watches().add(folder, mask)?;
        let mut events = inotify.into_event_stream([0; 4096])?;
        let task = tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                // Without a name: the queue overflowed, anything may have happened.
                if event.name.as_ref().is_some_and(|n| *n != name) {
                    continue;
                }
                while let Ok(Some(Ok(_))) = tokio::time::timeout(SETTLE, events.next()).await {}
                if changes.send(()).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { path: path.to_owned(), task })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_way_of_saving_is_one_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("unattended.yaml");
        let (sender, mut changes) = mpsc::channel(8);
        let _watched = Watched::new(&path, sender).unwrap();
        let mut next = async || tokio::time::timeout(Duration::from_secs(5), changes.recv()).await.is_ok();
        std::fs::write(&path, "a").unwrap();
        assert!(next().await, "written in place");
        std::fs::write(folder.path().join(".x.swp"), "b").unwrap();
        std::fs::rename(folder.path().join(".x.swp"), &path).unwrap();
        assert!(next().await, "renamed over");
        std::fs::remove_file(&path).unwrap();
        assert!(next().await, "removed");
        std::fs::write(folder.path().join("other"), "c").unwrap();
        assert!(changes.try_recv().is_err());
    }
}
