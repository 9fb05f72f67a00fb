//! Makes a backup, while the appliance runs on.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path};

use edge_api::Instance;
use edge_profiles::Digest;
use edge_profiles::digest::HashingWriter;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};

use super::{Error, FOLDERS, FORMAT, MANIFEST, Manifest, SITE_FILE, SNAPSHOT, STATE, io, refused};
use crate::durable;
use crate::engine::chain;
use crate::paths::Paths;
use crate::ports::docker::Docker;
use crate::site;
use crate::world;

/// Script for the node, which sees `<root>/etcd` as `/var/lib/etcd`: makes a snapshot of this name there.
pub fn take_snapshot(name: &str) -> String {
    format!(
        "umask 077; cd /var/lib/etcd && rm -f {name} {name}.part && pki=/etc/kubernetes/pki/etcd && \
        etcdctl --endpoints=https://127.0.0.1:2379 --cacert=$pki/ca.crt --cert=$pki/healthcheck-client.crt \
        --key=$pki/healthcheck-client.key snapshot save {name}"
    )
}

/// Makes a backup of a running appliance at `out`, which appears as a whole or not at all.
pub async fn make(paths: &Paths, instance: &Instance, out: &Path) -> Result<Manifest, Error> {
    if !paths.join("etcd/member").exists() {
        let hint = "--instance or --root names another one";
        return Err(refused(format!("there is no appliance in {} yet", paths.root().display()), hint));
    }
    let lock = paths.join("run/backup.lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
    let file = file.map_err(io("open", &lock))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| refused("another backup is being made", "try again when it is done"))?;

    let answers = "the system cluster has to answer; `edgectl status` shows what it waits for";
    let client = world::client(paths).await.map_err(|e| refused(e.reason, answers))?;
    let version = client.apiserver_version().await.map_err(|e| refused(chain(&e), answers))?;
    let node = format!("{}-control-plane", instance.kind_cluster());
    let taken = Docker::default().run_in(&node, &take_snapshot("backup.db")).await;
    taken.map_err(|source| Error::Program { what: "take a snapshot of the system cluster", source })?;

    let site = durable::read(&paths.site_in_force(), site::MAX_BYTES as u64)?.unwrap_or_default();
    let site = site::load_bytes(&site).unwrap_or_default();
    let manifest = Manifest {
        format: FORMAT,
        made: Timestamp::now(),
        instance: instance.to_string(),
        device_id: site.device_id,
        kubernetes_version: version.git_version,
        files: BTreeMap::new(),
    };
    let (paths, out) = (paths.clone(), out.to_owned());
    let written = tokio::task::spawn_blocking(move || {
        let written = write(&paths, site.profile.as_deref(), manifest, &out);
        durable::remove_file(&paths.join(SNAPSHOT))?;
        written
    });
    written.await.map_err(|e| io("write", lock.as_path())(io::Error::other(e)))?
}

fn write(paths: &Paths, profile: Option<&str>, mut manifest: Manifest, out: &Path) -> Result<Manifest, Error> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Of mode 0600, and gone where this fails.
    let mut temporary = tempfile::Builder::new().prefix(".backup-").tempfile_in(folder).map_err(io("write", out))?;
    let gzip = GzEncoder::new(io::BufWriter::new(temporary.as_file_mut()), Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for path in files(paths, profile)? {
        let digest = append_file(&mut tar, &paths.join(&path), &path)?;
        manifest.files.insert(path, digest);
    }
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| io("write", out)(e.into()))?;
    let finished = append(&mut tar, MANIFEST, text.len() as u64, &text[..])
        .and_then(|()| tar.into_inner())
        .and_then(GzEncoder::finish)
        .and_then(|mut file| file.flush());
    finished.map_err(io("write", out))?;
    let file = temporary.persist(out).map_err(|e| io("write", out)(e.error))?;
    let synced = file.sync_all().and_then(|()| File::open(folder)?.sync_all());
    synced.map_err(io("write", out))?;
    Ok(manifest)
}

/// What is backed up, by its path below the root.
fn files(paths: &Paths, profile: Option<&str>) -> Result<Vec<String>, Error> {
    let mut all = vec![SNAPSHOT.to_owned(), SITE_FILE.to_owned()];
    all.extend(STATE.map(ToOwned::to_owned));
    let plain = |path: &&str| Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    all.extend(profile.filter(plain).map(|profile| format!("conf/{profile}")));
    all.retain(|path| paths.join(path).is_file());
    for folder in FOLDERS {
        collect(paths, folder, &mut all)?;
    }
    Ok(all)
}

fn collect(paths: &Paths, folder: &str, all: &mut Vec<String>) -> Result<(), Error> {
    let place = paths.join(folder);
    for entry in fs::read_dir(&place).map_err(io("list", &place))? {
        let entry = entry.map_err(io("list", &place))?;
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        match entry.file_type().map_err(io("look at", &place))? {
            kind if kind.is_dir() => collect(paths, &path, all)?,
            kind if kind.is_file() => all.push(path),
            _ => {}
        }
    }
    Ok(())
}

fn append_file<W: io::Write>(tar: &mut tar::Builder<W>, place: &Path, path: &str) -> Result<Digest, Error> {
    let mut file = File::open(place).map_err(io("read", place))?;
    let size = file.metadata().map_err(io("read", place))?.len();
    // Twice through the file: the digest goes into the manifest, and what is copied has to be what was hashed.
    let mut hash = HashingWriter::new(io::sink());
    io::copy(&mut (&mut file).take(size), &mut hash).map_err(io("read", place))?;
    let (_, digest, hashed) = hash.finish();
    io::Seek::rewind(&mut file).map_err(io("read", place))?;
    if hashed != size {
        return Err(io("read", place)(io::Error::other("it changed meanwhile; try again")));
    }
    append(tar, path, size, file.take(size)).map_err(io("back up", place))?;
    Ok(digest)
}

fn append<W: io::Write>(tar: &mut tar::Builder<W>, path: &str, size: u64, content: impl io::Read) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    tar.append(&header, content)
}

#[cfg(test)]
pub(super) mod tests {
    use edge_tests::{Fault, SmallDisk};

    use super::*;

    fn empty() -> Manifest {
        Manifest {
            format: FORMAT,
            made: Timestamp::UNIX_EPOCH,
            instance: "edge".to_owned(),
            device_id: Some("store-1".to_owned()),
            kubernetes_version: "v1.36.3".to_owned(),
            files: BTreeMap::new(),
        }
    }

    /// A root with what is backed up, as files of one line each, and a backup of it.
    pub(crate) fn made(folder: &Path) -> (Paths, Manifest) {
        let paths = Paths::new(folder.join("root"));
        paths.ensure().unwrap();
        fs::create_dir(paths.join("pki/etcd")).unwrap();
        for (path, text) in [
            (SNAPSHOT, "snapshot"),
            (SITE_FILE, "device_id: store-1\nprofile: store.tar\n"),
            ("conf/store.tar", "profile"),
            ("conf/notes.txt", "somebody's own"),
            ("state/identity.json", "identity"),
            ("state/cluster.json", "of this host only"),
            ("state/registry-pull", "login"),
            ("ca/ca.crt", "authority"),
            ("pki/etcd/ca.key", "key"),
        ] {
            fs::write(paths.join(path), text).unwrap();
        }
        let manifest = write(&paths, Some("store.tar"), empty(), &folder.join("backup")).unwrap();
        (paths, manifest)
    }

    #[test]
    fn a_backup_that_finds_no_space_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let (paths, _) = made(folder.path());
        // It shall not be small when compressed.
        let bytes: Vec<u8> = (0..1_u32 << 14).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        fs::write(paths.join(SNAPSHOT), bytes).unwrap();
        let stick = SmallDisk::new(256 << 10).unwrap();
        let out = stick.path().join("backup");
        fs::write(&out, "the one before").unwrap();
        let fault = Fault::strikes("a backup is made to a full disk");
        stick.leave(8192).unwrap();
        let error = write(&paths, None, empty(), &out).unwrap_err();
        assert!(chain(&error).contains("No space left on device"), "{}", chain(&error));
        assert_eq!(fs::read(&out).unwrap(), b"the one before");
        assert_eq!(stick.free().unwrap(), 8192, "nothing half-written stays");
        stick.leave(256 << 10).unwrap();
        write(&paths, None, empty(), &out).unwrap();
        assert!(fs::metadata(&out).unwrap().len() > 8192);
        fault.survived();
    }

    #[test]
    fn a_backup_has_what_cannot_be_made_anew_and_is_for_its_owner() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let (_, manifest) = made(folder.path());
        let names: Vec<_> = manifest.files.keys().map(String::as_str).collect();
        let all = [
            "ca/ca.crt",
            "conf/store.tar",
            "conf/unattended.yaml",
            "etcd/backup.db",
            "pki/etcd/ca.key",
            "state/identity.json",
            "state/registry-pull",
        ];
        assert_eq!(names, all);
        let mode = fs::metadata(folder.path().join("backup")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["backup", "root"], "nothing temporary stays");
    }

    #[test]
    fn an_archive_elsewhere_does_not_travel() {
        let folder = tempfile::tempdir().unwrap();
        let (paths, _) = made(folder.path());
        for elsewhere in ["/media/stick/store.tar", "../state/store.tar"] {
            assert!(!files(&paths, Some(elsewhere)).unwrap().iter().any(|path| path.contains("store.tar")));
        }
    }
}
