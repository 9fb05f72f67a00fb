//! A socket in front of libvirtd's, to cut a connection without touching the libvirtd that others use.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

/// The relay; closed when dropped.
pub struct Relay {
    path: PathBuf,
    open: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
    _dir: tempfile::TempDir,
}

impl Relay {
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("libvirt-sock");
        let listener = UnixListener::bind(&path)?;
        let open = Arc::new(AtomicBool::new(true));
        let streams: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let (accepting, known) = (open.clone(), streams.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(client) = stream else { return };
                if !accepting.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = UnixStream::connect("/run/libvirt/libvirt-sock") else { continue };
                let pairs = [(&client, &server), (&server, &client)];
                for (from, to) in pairs {
                    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { continue };
                    std::thread::spawn(move || {
                        let _ended = std::io::copy(&mut from, &mut to);
                        let _ended = to.shutdown(std::net::Shutdown::Both);
                    });
                }
                known.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
            }
        });
        Ok(Self { path, open, streams, _dir: dir })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts every connection and takes no new ones.
    pub fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _gone = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Takes connections again.
    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.close();
    }
}
