//! A small file system of a test's own, that can be made full and have space again. Mounting it takes root.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::fcntl::posix_fallocate;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

/// What takes the space.
const BALLAST: &str = ".ballast";

/// In memory, and gone when dropped.
pub struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// A file system of so many bytes. Everybody may look into it, as libvirt's QEMU must.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("small-disk-").tempdir_in("/var/tmp")?;
        let options = format!("size={bytes},mode=755");
        mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Bytes that are free.
    ///
    /// # Errors
    /// As of the system call.
    pub fn free(&self) -> io::Result<u64> {
        let stat = statvfs(self.path())?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Takes or gives space until so many bytes are free; as many as there can be, where they are more.
    ///
    /// # Errors
    /// As of the system calls.
    pub fn leave(&self, bytes: u64) -> io::Result<()> {
        let ballast = File::options().create(true).append(true).open(self.path().join(BALLAST))?;
        let size = (ballast.metadata()?.len() + self.free()?).saturating_sub(bytes);
        ballast.set_len(size)?;
        if size > 0 {
            posix_fallocate(&ballast, 0, size.cast_signed())?;
        }
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached at once, whoever still has a file of it open.
        if let Err(error) = umount2(self.path(), MntFlags::MNT_DETACH) {
            eprintln!("{} is still mounted: {error}", self.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_full_as_is_asked_for_and_leaves_nothing() {
        let disk = SmallDisk::new(1 << 20).unwrap();
        let path = disk.path().to_owned();
        for free in [0, 8192, 1 << 20, 4096, 0] {
            disk.leave(free).unwrap();
            assert_eq!(disk.free().unwrap(), free);
        }
        let error = std::fs::write(path.join("file"), "text").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        drop(disk);
        assert!(!path.exists());
    }
}
