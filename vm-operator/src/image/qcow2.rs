//! The header of a qcow2 disk: an image from elsewhere must not make QEMU open another file of the host.
//!
//! <https://www.qemu.org/docs/master/interop/qcow2.html>

/// Bytes of a header that are looked at.
pub const HEADER: usize = 104;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;

/// Why a disk is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Too short, or another format.
    #[error("the disk is not in qcow2 format")]
    NotQcow2,
    /// A version this project does not know.
    #[error("qcow2 version {0} is not supported")]
    Version(u32),
    /// It would read another file.
    #[error("the disk has a backing file, which an image must not have")]
    BackingFile,
    /// It would read another file.
    #[error("the disk has an external data file, which an image must not have")]
    DataFile,
    /// Nobody could give the key.
    #[error("the disk is encrypted")]
    Encrypted,
    /// Marked by QEMU.
    #[error("the disk is marked corrupt")]
    Corrupt,
    /// What the manifest says and what the disk says differ.
    #[error("the manifest announces a virtual size of {announced} bytes, the disk has {found}")]
    Size {
        /// From the layer's annotation.
        announced: u64,
        /// From the header.
        found: u64,
    },
}

/// Checks the first bytes of a disk and gives its virtual size in bytes.
pub fn check(header: &[u8], announced: Option<u64>) -> Result<u64, Refused> {
    let u32_at = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let u64_at = |at: usize| header.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
    if header.get(..4) != Some(&MAGIC) {
        return Err(Refused::NotQcow2);
    }
    let version = u32_at(4).ok_or(Refused::NotQcow2)?;
    if !(2..=3).contains(&version) {
        return Err(Refused::Version(version));
    }
    if u64_at(8).ok_or(Refused::NotQcow2)? != 0 || u32_at(16).ok_or(Refused::NotQcow2)? != 0 {
        return Err(Refused::BackingFile);
    }
    let found = u64_at(24).ok_or(Refused::NotQcow2)?;
    if u32_at(32).ok_or(Refused::NotQcow2)? != 0 {
        return Err(Refused::Encrypted);
    }
    if version == 3 {
        let incompatible = u64_at(72).ok_or(Refused::NotQcow2)?;
        if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
            return Err(Refused::DataFile);
        }
        if incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err(Refused::Corrupt);
        }
    }
    match announced {
        Some(announced) if announced != found => Err(Refused::Size { announced, found }),
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn header(edit: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut bytes = vec![0_u8; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[7] = 3;
        bytes[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        edit(&mut bytes);
        bytes
    }

    #[test]
    fn each_danger_is_named() {
        assert_eq!(check(&header(|_| ()), Some(1 << 30)), Ok(1 << 30));
        assert_eq!(check(&header(|b| b[0] = 0), None), Err(Refused::NotQcow2));
        assert_eq!(check(&header(|b| b[7] = 4), None), Err(Refused::Version(4)));
        assert_eq!(check(&header(|b| b[15] = 1), None), Err(Refused::BackingFile));
        assert_eq!(check(&header(|b| b[19] = 1), None), Err(Refused::BackingFile));
        assert_eq!(check(&header(|b| b[35] = 2), None), Err(Refused::Encrypted));
        assert_eq!(check(&header(|b| b[79] = 4), None), Err(Refused::DataFile));
        assert_eq!(check(&header(|b| b[79] = 2), None), Err(Refused::Corrupt));
        assert_eq!(check(&header(|_| ()), Some(5)), Err(Refused::Size { announced: 5, found: 1 << 30 }));
    }

    #[test]
    fn disks_by_qemu_img() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let make = |args: &[&str]| {
            let out = Command::new("qemu-img").arg("create").args(args).output().expect("qemu-img runs");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        };
        let (plain, overlay, external) = (path("plain"), path("overlay"), path("external"));
        make(&["-f", "qcow2", &plain, "64M"]);
        make(&["-f", "qcow2", "-b", &plain, "-F", "qcow2", &overlay]);
        let option = format!("data_file={}", path("data"));
        make(&["-f", "qcow2", "-o", &option, &external, "64M"]);
        let look = |file: &str| check(&std::fs::read(file).unwrap()[..HEADER], None);
        assert_eq!(look(&plain), Ok(64 << 20));
        assert_eq!(look(&overlay), Err(Refused::BackingFile));
        assert_eq!(look(&external), Err(Refused::DataFile));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..HEADER + 8), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            let _outcome = check(&bytes, None);
        }
    }
}
