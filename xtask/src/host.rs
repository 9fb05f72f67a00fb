//! What this tool did to the host, in `/var/lib/pcg-edge/host.json`, so that the last `down` can undo exactly that.
//!
//! Services run as long as somebody holds them: every instance from `up` to `down`, and a run of `test` until it ends
//! or dies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// State of this tool on the host.
pub const DIR: &str = "/var/lib/pcg-edge";
/// Output of the programs it starts.
pub const LOG_DIR: &str = "/var/log/pcg-edge";

/// The file's content.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct State {
    /// Who needs the services.
    pub holders: BTreeMap<String, Holder>,
    /// Services that were started here, in the order of their start.
    pub services: Vec<Service>,
    /// Kernel settings as they were before the services were started.
    pub sysctls: BTreeMap<String, String>,
    /// Packages that were installed here.
    pub packages: BTreeSet<String>,
}

/// Somebody who needs the services.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holder {
    /// An instance; it ends with `down`.
    Instance,
    /// A run of the tests; it ends with its process.
    Run(Process),
}

/// A service that was started here.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its name.
    pub name: String,
    /// What to end.
    pub handle: Handle,
}

/// What to end.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Handle {
    /// A detached process.
    Process(Process),
    /// A systemd unit.
    Unit(String),
}

/// The host's state, locked against other runs of this tool as long as this lives.
pub struct Host {
    /// The state; [`save`](Self::save) after changing it.
    pub state: State,
    path: PathBuf,
    _lock: File,
}

impl Host {
    /// Waits for other runs to finish their preparations, then reads the state.
    pub fn lock() -> Result<Self> {
        Self::lock_in(Path::new(DIR))
    }

    fn lock_in(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let lock = File::create(dir.join("lock"))?;
        if lock.try_lock().is_err() {
            eprintln!("    waiting for another `cargo xtask` ({})", dir.join("lock").display());
            lock.lock()?;
        }
        let path = dir.join("host.json");
        let mut state: State = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        // What died without saying so, or went with a reboot.
        state.holders.retain(|_, holder| !matches!(holder, Holder::Run(process) if !process.alive()));
        state.services.retain(|service| !matches!(service.handle, Handle::Process(process) if !process.alive()));
        Ok(Self { state, path, _lock: lock })
    }

    /// Writes the state; whole or not at all.
    pub fn save(&self) -> Result<()> {
        let new = self.path.with_extension("json.new");
        let mut file = File::create(&new)?;
        serde_json::to_writer_pretty(&mut file, &self.state)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, &self.path).with_context(|| self.path.display().to_string())
    }

    /// Notes somebody who needs the services.
    pub fn hold(&mut self, name: &str, holder: Holder) -> Result<()> {
        if self.state.holders.insert(name.to_owned(), holder.clone()) != Some(holder) {
            self.save()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_the_dead_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let own = Process::own().unwrap();
        let gone = Process { start: own.start + 1, ..own };
        let mut host = Host::lock_in(dir.path()).unwrap();
        host.state.services = [own, gone].map(|p| Service { name: "a".into(), handle: Handle::Process(p) }).to_vec();
        host.hold("edge", Holder::Instance).unwrap();
        host.hold("lives", Holder::Run(own)).unwrap();
        host.hold("died", Holder::Run(gone)).unwrap();
        drop(host);

        let host = Host::lock_in(dir.path()).unwrap();
        assert_eq!(host.state.holders.keys().collect::<Vec<_>>(), ["edge", "lives"]);
        assert_eq!(host.state.services.len(), 1);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_state() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("host.json"), "{").unwrap();
        assert!(Host::lock_in(dir.path()).is_err());
    }
}
