//! Restores a backup on a box that has no system cluster yet.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use edge_api::Instance;
use edge_profiles::digest::HashingWriter;
use flate2::read::GzDecoder;

use super::{Error, FOLDERS, FORMAT, MANIFEST, Manifest, RECORD, SITE_FILE, SNAPSHOT, STATE, io, refused};
use crate::paths::Paths;
use crate::ports::docker::Docker;
use crate::{daemon, durable, site};

/// Bytes that the manifest may have.
const MANIFEST_BYTES: u64 = 1 << 20;
/// Entries that a backup may have: it has some fifty.
const ENTRIES: usize = 1000;

/// What was done.
#[derive(Debug)]
pub struct Restored {
    /// Of which backup.
    pub manifest: Manifest,
    /// Whether the site file of this box was kept.
    pub kept_site_file: bool,
}

/// Puts a backup below the root. An agent that runs there is ended. What is interrupted can be run again.
pub async fn restore(paths: &Paths, instance: &Instance, backup: &Path) -> Result<Restored, Error> {
    // Before an agent is ended for nothing; and again when none can begin any more.
    has_none(paths, instance).await?;
    paths.ensure()?;
    let _lock = daemon::take_over(paths).await?;
    daemon::claim(paths, instance)?;
    has_none(paths, instance).await?;
    let (paths, instance, backup) = (paths.clone(), instance.clone(), backup.to_owned());
    let root = paths.root().to_owned();
    let placed = tokio::task::spawn_blocking(move || unpack_and_place(&paths, &instance, &backup));
    placed.await.map_err(|e| io("restore", &root)(io::Error::other(e)))?
}

/// Refuses where there is an appliance.
async fn has_none(paths: &Paths, instance: &Instance) -> Result<(), Error> {
    let node = format!("{}-control-plane", instance.kind_cluster());
    let look = Docker::default().container(&node).await;
    let container = look.map_err(|source| Error::Program { what: "look for a system cluster", source })?;
    if container.is_none() && !paths.join("etcd/member").exists() {
        return Ok(());
    }
    let message = format!("{} has an appliance already", paths.root().display());
    Err(refused(message, "`edgectl reset` removes it, if it is not wanted any more"))
}

/// Puts a backup below a root that no agent has. A refusal leaves nothing behind.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Refused`], or what the file system said.
pub fn unpack_and_place(paths: &Paths, instance: &Instance, backup: &Path) -> Result<Restored, Error> {
    let staging = paths.join("restore");
    durable::remove_folder(&staging)?;
    let placed = (|| {
        let manifest = unpack(backup, &staging)?;
        let kept_site_file = check(paths, instance, &manifest)?;
        place(paths, &staging, &manifest, kept_site_file)?;
        Ok(Restored { manifest, kept_site_file })
    })();
    durable::remove_folder(&staging)?;
    placed
}

/// Unpacks a backup and sees that it is whole.
fn unpack(backup: &Path, staging: &Path) -> Result<Manifest, Error> {
    let damaged = |why: String| Error::Damaged { path: backup.to_owned(), why };
    let torn = |e: io::Error| damaged(e.to_string());
    let file = File::open(backup).map_err(io("open", backup))?;
    let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(file)));
    let (mut found, mut manifest) = (BTreeMap::new(), None::<Manifest>);
    for entry in tar.entries().map_err(torn)? {
        let mut entry = entry.map_err(torn)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if manifest.is_some() || found.len() == ENTRIES {
            return Err(damaged(format!("{path:?} is more than belongs into one")));
        }
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(damaged(format!("{path:?} is no file")));
        }
        if path == MANIFEST {
            let mut text = Vec::new();
            entry.take(MANIFEST_BYTES).read_to_end(&mut text).map_err(torn)?;
            manifest = Some(serde_json::from_slice(&text).map_err(|e| damaged(format!("{MANIFEST}: {e}")))?);
            continue;
        }
        if !belongs(&path) || found.contains_key(&path) {
            return Err(damaged(format!("{path:?} does not belong into one")));
        }
        let place = staging.join(&path);
        let folder = place.parent().unwrap_or(staging);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io("make folder", folder))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place);
        let mut hash = HashingWriter::new(file.map_err(io("write", &place))?);
        let size = entry.size();
        let copied = io::copy(&mut entry, &mut hash).map_err(io("write", &place))?;
        let (file, digest, _) = hash.finish();
        file.sync_all().map_err(io("write", &place))?;
        if copied != size {
            return Err(damaged(format!("it ends in the middle of {path}")));
        }
        found.insert(path, digest);
    }
    // The checksum of the compressed data stands at its end.
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(torn)?;
    let manifest = manifest.ok_or_else(|| damaged("it ends too early".to_owned()))?;
    if manifest.format != FORMAT {
        return Err(damaged(format!("format {}, this version knows {FORMAT}", manifest.format)));
    }
    if manifest.files != found {
        let differs = |path: &&String| manifest.files.get(*path) != found.get(*path);
        let which = manifest.files.keys().chain(found.keys()).find(differs);
        return Err(damaged(format!("{} is not what was backed up", which.map_or("", String::as_str))));
    }
    if !found.contains_key(SNAPSHOT) {
        return Err(damaged(format!("it has no {SNAPSHOT}")));
    }
    Ok(manifest)
}

/// Whether a backup may have a file of this path. What it names decides where something is written.
fn belongs(path: &str) -> bool {
    let plain = !path.contains('\\') && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let below = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    plain && (path == SNAPSHOT || STATE.contains(&path) || below("conf") || FOLDERS.into_iter().any(below))
}

/// Whether it may be restored here; tells whether this box has a site file of its own already.
fn check(paths: &Paths, instance: &Instance, manifest: &Manifest) -> Result<bool, Error> {
    if manifest.instance != instance.as_str() {
        let message = format!("this is a backup of instance {}, not of {instance}", manifest.instance);
        return Err(refused(message, format!("--instance {} restores it", manifest.instance)));
    }
    let Some(own) = durable::read(&paths.site_file(), site::MAX_BYTES as u64)? else { return Ok(false) };
    let path = paths.site_file();
    let own = site::load_bytes(&own).map_err(|_| {
        refused(format!("{} is not valid", path.display()), "correct or remove it: the backup has one as well")
    })?;
    if own.device_id != manifest.device_id {
        let name = |id: &Option<String>| id.clone().unwrap_or_else(|| "none".to_owned());
        return Err(refused(
            format!("this box is device {}, the backup is of {}", name(&own.device_id), name(&manifest.device_id)),
            format!("remove {} if it is to become that one", path.display()),
        ));
    }
    Ok(true)
}

/// Moves what was unpacked to its place, after the record of it, which alone takes space, and the site file last: without
/// it no agent begins.
fn place(paths: &Paths, staging: &Path, manifest: &Manifest, keep_site_file: bool) -> Result<(), Error> {
    durable::write_json(&paths.join(RECORD), manifest)?;
    let first = |path: &&String| path.as_str() != SITE_FILE;
    let last = manifest.files.keys().filter(|path| !first(path) && !keep_site_file);
    for path in manifest.files.keys().filter(first) {
        take(&staging.join(path), &paths.join(path))?;
    }
    for path in last {
        take(&staging.join(path), &paths.join(path))?;
    }
    Ok(())
}

fn take(from: &Path, to: &Path) -> Result<(), Error> {
    let folder = to.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io("make folder", folder))?;
    Ok(durable::rename(from, to)?)
}

#[cfg(test)]
mod tests {
    use edge_tests::{Fault, SmallDisk};

    use super::super::make::tests::made;
    use super::*;

    fn empty(folder: &Path) -> Paths {
        let paths = Paths::new(folder.join("other"));
        paths.ensure().unwrap();
        paths
    }

    fn refusal(result: Result<Restored, Error>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn what_was_backed_up_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let (from, manifest) = made(folder.path());
        let to = empty(folder.path());
        // This box has an identity of its own already, which counts no more.
        fs::write(to.join("state/identity.json"), "another").unwrap();
        let restored = unpack_and_place(&to, &Instance::default(), &folder.path().join("backup")).unwrap();
        assert_eq!((&restored.manifest, restored.kept_site_file), (&manifest, false));
        for path in manifest.files.keys() {
            assert_eq!(fs::read(to.join(path)).unwrap(), fs::read(from.join(path)).unwrap(), "{path}");
        }
        assert_eq!(durable::read_json::<Manifest>(&to.join(RECORD)).unwrap(), Some(manifest));
        assert!(!to.join("restore").exists());
    }

    #[test]
    fn a_backup_that_finds_no_space_can_be_restored_when_there_is() {
        const SIZE: u64 = 1 << 20;
        let folder = tempfile::tempdir().unwrap();
        let (from, manifest) = made(folder.path());
        let (disk, backup) = (SmallDisk::new(SIZE).unwrap(), folder.path().join("backup"));
        let to = Paths::new(disk.path().join("root"));
        let fault = Fault::strikes("a backup is restored to a full disk");
        for pages in 0.. {
            disk.leave(SIZE).unwrap();
            durable::remove_folder(to.root()).unwrap();
            to.ensure().unwrap();
            disk.leave(pages * 4096).unwrap();
            let full = unpack_and_place(&to, &Instance::default(), &backup);
            if let Err(error) = &full {
                let error = crate::engine::chain(error);
                assert!(error.contains("No space left on device"), "{error}");
                assert!(!to.site_file().exists() && !to.join("restore").exists(), "{pages}");
                disk.leave(SIZE).unwrap();
                unpack_and_place(&to, &Instance::default(), &backup).unwrap();
            }
            for path in manifest.files.keys() {
                assert_eq!(fs::read(to.join(path)).unwrap(), fs::read(from.join(path)).unwrap(), "{path}");
            }
            if full.is_ok() {
                assert!(pages > 4, "{pages}");
                fault.times(usize::try_from(pages).unwrap()).survived();
                break;
            }
        }
    }

    #[test]
    fn a_box_keeps_its_site_file_and_is_no_other_device() {
        let folder = tempfile::tempdir().unwrap();
        made(folder.path());
        let (to, backup) = (empty(folder.path()), folder.path().join("backup"));
        fs::write(to.site_file(), "device_id: store-2\n").unwrap();
        let other = refusal(unpack_and_place(&to, &Instance::default(), &backup));
        assert_eq!(other, "this box is device store-2, the backup is of store-1");
        assert!(!to.join(SNAPSHOT).exists(), "nothing is done");
        let own = "device_id: store-1\nhost: {dns: [192.168.1.1]}\n";
        fs::write(to.site_file(), own).unwrap();
        assert!(unpack_and_place(&to, &Instance::default(), &backup).unwrap().kept_site_file);
        assert_eq!(fs::read_to_string(to.site_file()).unwrap(), own);
        let instance = refusal(unpack_and_place(&to, &"lab".parse().unwrap(), &backup));
        assert_eq!(instance, "this is a backup of instance edge, not of lab");
    }

    #[test]
    fn what_is_torn_or_changed_is_refused_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        made(folder.path());
        let (to, backup) = (empty(folder.path()), folder.path().join("backup"));
        let whole = fs::read(&backup).unwrap();
        for end in [0, 1, 20, whole.len() / 2, whole.len() - 9] {
            fs::write(&backup, &whole[..end]).unwrap();
            let why = refusal(unpack_and_place(&to, &Instance::default(), &backup));
            assert!(why.contains("is no whole backup"), "{end}: {why}");
            assert!(!to.site_file().exists() && !to.join(SNAPSHOT).exists() && !to.join("restore").exists());
        }
        let hostile = |entries: &[(&str, tar::EntryType)]| {
            let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            let mut tar = tar::Builder::new(gzip);
            for (path, kind) in entries {
                let mut header = tar::Header::new_gnu();
                header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
                header.set_entry_type(*kind);
                header.set_size(0);
                header.set_cksum();
                tar.append(&header, io::empty()).unwrap();
            }
            fs::write(&backup, tar.into_inner().unwrap().finish().unwrap()).unwrap();
            refusal(unpack_and_place(&to, &Instance::default(), &backup))
        };
        let file = tar::EntryType::Regular;
        for path in ["/etc/passwd", "conf/../../x", "etcd/member/x", "state/steps.json", "kube/admin.conf", "conf/"] {
            assert!(hostile(&[(path, file)]).contains("does not belong into one"), "{path}");
        }
        assert!(hostile(&[("ca/a", file), ("ca/a", file)]).contains("does not belong into one"));
        assert!(hostile(&[("ca/a", tar::EntryType::Symlink)]).contains("is no file"));
        assert!(hostile(&[("ca/a", file)]).contains("it ends too early"));
        assert_eq!(fs::read_dir(to.conf()).unwrap().count(), 0);
    }
}
