//! A backup of the appliance: what cannot be made anew of site file, profile and bundle, in one file.
//!
//! | entry | content |
//! |---|---|
//! | `etcd/backup.db` | snapshot of the system cluster's data, with its own checksum |
//! | `ca/…`, `pki/…` | authorities of appliance and system cluster, with their keys |
//! | `state/…` | identity, pull login, site file in force, how late it certainly is |
//! | `conf/…` | site file, and the profile archive where it lies beside it |
//! | `backup.json` | the last entry: [`Manifest`] |
//!
//! A gzip-compressed tar of mode 0600: it holds every key of the appliance. The registry is filled from the bundle again.
//! Disks of machines are not in it.
//!
//! Restoring puts the files below the root of a box that has no system cluster yet; the step `system-cluster` then makes
//! etcd's data of the snapshot before it makes its node ([`SNAPSHOT`] is there, and `etcd/member` is not).

mod make;
mod restore;

use std::collections::BTreeMap;
use std::path::PathBuf;

use edge_api::Instance;
use edge_profiles::Digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use make::{make, take_snapshot};
pub use restore::{Restored, restore, unpack_and_place};

use crate::{daemon, durable};

/// Below the root: a snapshot that was restored, and is not yet etcd's data.
pub const SNAPSHOT: &str = "etcd/backup.db";
/// Below the root: the manifest of the backup that was restored.
pub const RECORD: &str = "state/restored.json";

/// Entry with the manifest.
const MANIFEST: &str = "backup.json";
/// Folders that are backed up as a whole.
const FOLDERS: [&str; 2] = ["ca", "pki"];
/// Files of the agent's state that are backed up, where they are there.
const STATE: [&str; 5] =
    ["state/identity.json", "state/registry-pull", "state/site.yaml", "state/installed.yaml", "state/clock.json"];
const SITE_FILE: &str = "conf/unattended.yaml";
/// Version of the format.
const FORMAT: u32 = 1;

/// What a backup is of, and what is in it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format.
    pub format: u32,
    /// When it was made.
    pub made: Timestamp,
    /// Instance, which every name on the host and in the cluster comes from.
    pub instance: String,
    /// `device_id` of the site file, where it has one.
    pub device_id: Option<String>,
    /// Version of Kubernetes that wrote the data, for instance `v1.36.3`.
    pub kubernetes_version: String,
    /// Every other entry by its path, with its digest.
    pub files: BTreeMap<String, Digest>,
}

impl Manifest {
    /// Of the appliance's own data, which become the same appliance's again.
    pub fn of_own_data(instance: &Instance, made: Timestamp, kubernetes_version: String) -> Self {
        let instance = instance.to_string();
        Self { format: FORMAT, made, instance, device_id: None, kubernetes_version, files: BTreeMap::new() }
    }

    /// The appliance in words.
    pub fn of_what(&self) -> String {
        match &self.device_id {
            Some(device) => format!("appliance {} ({device})", self.instance),
            None => format!("appliance {}", self.instance),
        }
    }
}

/// A backup could not be made or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] durable::Error),
    /// The root could not be taken.
    #[error(transparent)]
    Root(#[from] daemon::Error),
    /// docker or etcd did not do their part.
    #[error("{what}")]
    Program {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: crate::ports::process::Error,
    },
    /// A file of the host could not be read or written.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The file is no whole backup.
    #[error("{} is no whole backup: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is not to be done here.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
        /// What to do.
        hint: String,
    },
}

fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

fn refused(message: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Refused { message: message.into(), hint: hint.into() }
}
