//! The artifact cache: one folder per artifact, `<name>-<key>`, where the key is a digest over pins, recipe and inputs.
//!
//! An artifact is made in a staging folder and published by rename, so a folder under its final name is always whole.
//! A lock file per artifact keeps two processes from building the same thing twice.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The cache folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither `PCG_EDGE_CACHE`, `XDG_CACHE_HOME` nor `HOME` is set.
    #[error("no cache folder: set PCG_EDGE_CACHE or HOME")]
    NoHome,
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// Verb: `create`, `rename to`…
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Collects what an artifact is made from.
#[derive(Clone)]
pub struct Key(Sha256);

impl Key {
    /// A key for artifacts of this name.
    pub fn new(name: &str) -> Self {
        Self(Sha256::new()).with("name", name)
    }

    /// Adds one input. Label and data are length-prefixed: no two different lists of inputs give the same key.
    #[must_use]
    pub fn with(mut self, label: &str, data: impl AsRef<[u8]>) -> Self {
        for part in [label.as_bytes(), data.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The key, 16 hexadecimal digits.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())[..16].to_owned()
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$PCG_EDGE_CACHE`, else `pcg-edge` in the user's cache folder; created where missing.
    pub fn open() -> Result<Self, Error> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("PCG_EDGE_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("pcg-edge")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/pcg-edge")))
            .ok_or(Error::NoHome)?;
        Self::at(root)
    }

    /// A cache in this folder, created where missing.
    pub fn at(root: PathBuf) -> Result<Self, Error> {
        for dir in [root.join(".locks"), root.join(".staging")] {
            fs::create_dir_all(&dir).map_err(|source| Error::Io { what: "create", path: dir, source })?;
        }
        let root = root.canonicalize().map_err(|source| Error::Io { what: "open", path: root, source })?;
        Ok(Self { root })
    }

    /// Where an artifact lies once it is built.
    pub fn path(&self, name: &str, key: &str) -> PathBuf {
        self.root.join(format!("{name}-{key}"))
    }

    /// The artifact's folder; calls `build` with an empty staging folder when it is not there yet.
    pub fn get_or_build<E: From<Error>>(
        &self,
        name: &str,
        key: &str,
        build: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let target = self.path(name, key);
        if target.is_dir() {
            return Ok(target);
        }
        let lock = self.root.join(".locks").join(format!("{name}-{key}"));
        let guard = File::create(&lock).map_err(|source| Error::Io { what: "create", path: lock.clone(), source })?;
        guard.lock().map_err(|source| Error::Io { what: "lock", path: lock.clone(), source })?;
        if target.is_dir() {
            return Ok(target);
        }
        // The lock is ours, so whatever lies here was left by a process that died.
        let staging = Staging(self.root.join(".staging").join(format!("{name}-{key}")));
        staging.clear()?;
        fs::create_dir(&staging.0).map_err(|source| Error::Io { what: "create", path: staging.0.clone(), source })?;
        build(&staging.0)?;
        fs::rename(&staging.0, &target).map_err(|source| Error::Io {
            what: "rename to",
            path: target.clone(),
            source,
        })?;
        Ok(target)
    }
}

/// Removes the staging folder when building failed or was interrupted.
struct Staging(PathBuf);

impl Staging {
    fn clear(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.0) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { what: "remove", path: self.0.clone(), source })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_every_input_and_its_boundaries() {
        let key = |parts: &[(&str, &str)]| {
            parts.iter().fold(Key::new("a"), |key, (label, data)| key.with(label, data)).finish()
        };
        assert_eq!(key(&[("x", "12")]), key(&[("x", "12")]));
        assert_eq!(key(&[]).len(), 16);
        assert_ne!(key(&[("x", "12")]), key(&[("x1", "2")]));
        assert_ne!(key(&[("x", "1"), ("y", "2")]), key(&[("x", "1")]));
        assert_ne!(Key::new("a").finish(), Key::new("b").finish());
    }

    #[test]
    fn an_artifact_is_built_once_and_a_failed_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned()).unwrap();
        let failed = cache.get_or_build::<Error>("thing", "1", |staging| {
            fs::write(staging.join("half"), "").unwrap();
            Err(Error::NoHome)
        });
        assert!(failed.is_err());
        assert!(!cache.path("thing", "1").exists());
        assert_eq!(fs::read_dir(dir.path().join(".staging")).unwrap().count(), 0);

        let mut builds = 0;
        for _ in 0..2 {
            let made = cache
                .get_or_build::<Error>("thing", "1", |staging| {
                    builds += 1;
                    fs::write(staging.join("whole"), "1").unwrap();
                    Ok(())
                })
                .unwrap();
            assert_eq!(fs::read(made.join("whole")).unwrap(), b"1");
        }
        assert_eq!(builds, 1);
    }

    #[test]
    fn leftovers_of_a_killed_build_are_not_published() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned()).unwrap();
        let stale = dir.path().join(".staging/thing-1");
        fs::create_dir_all(&stale).unwrap();
        fs::write(stale.join("stale"), "").unwrap();
        let made = cache.get_or_build::<Error>("thing", "1", |_| Ok(())).unwrap();
        assert_eq!(fs::read_dir(made).unwrap().count(), 0);
    }
}
