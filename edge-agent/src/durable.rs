//! Files that survive a kill or a power cut at any instant: written beside, synced, renamed over, folder synced.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::effects::Effect;

/// A file or folder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file system is full. What was there stays.
    #[error("write {}: {needs} bytes are needed, and {free} are free; free space there", path.display())]
    NoSpace {
        /// On which path.
        path: PathBuf,
        /// Bytes of the content.
        needs: u64,
        /// Bytes that are free.
        free: u64,
        /// What the operating system says.
        source: io::Error,
    },
    /// The content is not what this program writes.
    #[error("read {}: not valid JSON of the expected shape", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// Where it is damaged.
        source: serde_json::Error,
    },
    /// The file is larger than anything that belongs there.
    #[error("read {}: larger than {limit} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// Writes `content` with `mode`, all or nothing.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = Effect::write(path).around(|| {
        remove_torn(folder, &name)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The mode above is masked by the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    });
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        if source.kind() != io::ErrorKind::StorageFull {
            return io("write", path)(source);
        }
        let free = free(folder).unwrap_or(0);
        Error::NoSpace { path: path.to_owned(), needs: content.len() as u64, free, source }
    })
}

/// Bytes that are free in the file system of a path.
pub fn free(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Removes what killed processes, and this one's number before, have left of their writes of a file.
fn remove_torn(folder: &Path, name: &str) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?.file_name();
        let writer = entry.to_str().and_then(|entry| {
            entry.strip_prefix('.')?.strip_prefix(name)?.strip_prefix('.')?.strip_suffix(".tmp")?.parse::<u32>().ok()
        });
        if let Some(writer) = writer
            && (writer == std::process::id() || !Path::new(&format!("/proc/{writer}")).exists())
        {
            match fs::remove_file(folder.join(&entry)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Writes only where content or mode differ; tells whether it wrote.
pub fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> Result<bool, Error> {
    if let Ok(metadata) = fs::symlink_metadata(path)
        && metadata.is_file()
        && metadata.permissions().mode() & 0o7777 == mode
        && metadata.len() == content.len() as u64
        && fs::read(path).is_ok_and(|old| old == content)
    {
        return Ok(false);
    }
    write(path, content, mode).map(|()| true)
}

/// Writes a value as JSON with `mode` 0600.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    text.push(b'\n');
    write(path, &text, 0o600)
}

/// Reads a file of at most `limit` bytes; `None` where it does not exist.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io("open", path)(e)),
    };
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(io("read", path))?;
    if content.len() as u64 > limit {
        return Err(Error::TooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(content))
}

/// Reads a JSON file; `None` where it does not exist.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let Some(content) = read(path, 64 << 20)? else { return Ok(None) };
    serde_json::from_slice(&content).map(Some).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Makes a folder and its parents, and gives the folder itself `mode`.
pub fn ensure_folder(path: &Path, mode: u32) -> Result<(), Error> {
    if !path.is_dir() {
        let result = Effect::MakeFolder.around(|| fs::DirBuilder::new().recursive(true).mode(0o755).create(path));
        result.map_err(io("make folder", path))?;
    }
    let metadata = fs::metadata(path).map_err(io("look at", path))?;
    if metadata.permissions().mode() & 0o7777 != mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io("set the mode of", path))?;
    }
    Ok(())
}

/// Sees to it that a folder has these files, by their names, and no other.
pub fn only_files(folder: &Path, files: &BTreeMap<String, String>, mode: u32) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(io("list", folder))? {
        let entry = entry.map_err(io("list", folder))?;
        if !entry.file_name().to_str().is_some_and(|name| files.contains_key(name)) {
            remove_file(&entry.path())?;
        }
    }
    files.iter().try_for_each(|(name, text)| write_if_changed(&folder.join(name), text.as_bytes(), mode).map(drop))
}

/// Gives a file or folder, whose content is on the disk, another path on the same file system.
pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    let folder = to.parent().unwrap_or(Path::new("/"));
    let renamed = Effect::rename(to).around(|| fs::rename(from, to).and_then(|()| File::open(folder)?.sync_all()));
    renamed.map_err(io("write", to))
}

/// Removes a file; not there is done.
pub fn remove_file(path: &Path) -> Result<bool, Error> {
    match Effect::remove_file(path).around(|| fs::remove_file(path)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io("remove", path)(e)),
    }
}

/// Removes a folder with all that is in it; not there is done.
pub fn remove_folder(path: &Path) -> Result<bool, Error> {
    match Effect::remove_folder(path).around(|| fs::remove_dir_all(path)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io("remove", path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_all_or_nothing_and_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write(&path, b"one", 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!write_if_changed(&path, b"one", 0o600).unwrap(), "same content is not written again");
        assert!(write_if_changed(&path, b"one", 0o644).unwrap(), "another mode is");
        assert!(write_if_changed(&path, b"two", 0o600).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"], "no temporary file stays");
    }

    #[test]
    fn on_a_full_disk_the_old_content_stays_and_the_error_says_what_is_short() {
        let disk = edge_tests::SmallDisk::new(1 << 20).unwrap();
        let path = disk.path().join("state.json");
        write(&path, b"old", 0o600).unwrap();
        for free in [0, 4096, 8192] {
            disk.leave(free).unwrap();
            let error = write(&path, &[1; 10_000], 0o600).unwrap_err();
            let expected =
                format!("write {}: 10000 bytes are needed, and {free} are free; free space there", path.display());
            assert_eq!(error.to_string(), expected);
            assert_eq!(fs::read(&path).unwrap(), b"old");
            assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 2, "the file and the ballast");
        }
        disk.leave(12_288).unwrap();
        write(&path, &[1; 10_000], 0o600).unwrap();
    }

    #[test]
    fn what_a_killed_write_has_left_goes_with_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        // No process can have the last number; process 1 lives.
        for writer in [std::process::id(), u32::MAX, 1] {
            fs::write(folder.path().join(format!(".state.json.{writer}.tmp")), b"torn").unwrap();
        }
        write_json(&path, &vec![1, 2]).unwrap();
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), Some(vec![1, 2]));
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".state.json.1.tmp", "state.json"], "one that may still be at work keeps its own");
    }

    #[test]
    fn a_folder_has_what_is_wanted_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let files = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), format!("content of {n}"))).collect();
        only_files(folder.path(), &files(&["a", "b"]), 0o644).unwrap();
        assert_eq!(names(), ["a", "b"]);
        let written = fs::metadata(folder.path().join("b")).unwrap().modified().unwrap();
        only_files(folder.path(), &files(&["b", "c"]), 0o644).unwrap();
        assert_eq!(names(), ["b", "c"]);
        assert_eq!(fs::metadata(folder.path().join("b")).unwrap().modified().unwrap(), written);
        only_files(folder.path(), &files(&[]), 0o644).unwrap();
        assert!(names().is_empty());
    }

    #[test]
    fn reading_is_bounded_and_absence_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big");
        assert_eq!(read(&path, 10).unwrap(), None);
        fs::write(&path, [0; 11]).unwrap();
        assert!(matches!(read(&path, 10), Err(Error::TooLarge { .. })));
        assert!(read_json::<u8>(&path).is_err());
    }
}
