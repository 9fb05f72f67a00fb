//! Seed and configuration disks: VFAT images made in memory. Equal content gives equal bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Cursor, Write as _};

use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use sha2::{Digest as _, Sha256};

/// Largest content: a Secret holds 1 MiB at most.
const LIMIT: usize = 4 << 20;

/// Why no disk could be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key that cannot be a file name.
    #[error("{0:?} cannot be a file name on a VFAT disk")]
    Name(String),
    /// Two keys that are one file name.
    #[error("{0:?} differs from another file name by case only, which VFAT does not tell apart")]
    Twice(String),
    /// Too much.
    #[error("the files hold {0} bytes; at most {LIMIT} are possible")]
    Size(usize),
    /// The file system could not be written.
    #[error("cannot write the VFAT file system")]
    Write(#[from] io::Error),
}

/// The bytes of a disk, which may hold secrets: `Debug` does not show them (law 5).
#[derive(Clone, Eq, PartialEq)]
pub struct ConfigImage(Vec<u8>);

impl fmt::Debug for ConfigImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigImage({} bytes)", self.0.len())
    }
}

impl ConfigImage {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The same moment for every file: 1980-01-01, where FAT's time begins.
#[derive(Debug)]
struct Epoch;

static EPOCH: Epoch = Epoch;

impl TimeProvider for Epoch {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

/// Makes a disk with these files.
pub fn make(label: &str, files: &BTreeMap<String, Vec<u8>>) -> Result<ConfigImage, Error> {
    let content: usize = files.values().map(Vec::len).sum();
    if content > LIMIT {
        return Err(Error::Size(content));
    }
    let mut seen = std::collections::BTreeSet::new();
    for name in files.keys() {
        check_name(name)?;
        if !seen.insert(name.to_lowercase()) {
            return Err(Error::Twice(name.clone()));
        }
    }
    // Room for clusters that are not full and for directory entries with long names.
    let needed = content + files.len() * 8192;
    let size = (needed + needed / 8 + (1 << 20)).next_multiple_of(1 << 20);
    let mut disk = Cursor::new(vec![0_u8; size]);
    let mut padded = [b' '; 11];
    for (to, from) in padded.iter_mut().zip(label.to_ascii_uppercase().bytes()) {
        *to = from;
    }
    let options = FormatVolumeOptions::new().volume_label(padded).volume_id(volume_id(label));
    fatfs::format_volume(&mut disk, options)?;
    {
        let options = FsOptions::new().update_accessed_date(false).time_provider(&EPOCH);
        let filesystem = FileSystem::new(&mut disk, options)?;
        {
            let root = filesystem.root_dir();
            for (name, data) in files {
                let mut file = root.create_file(name)?;
                file.write_all(data)?;
                file.flush()?;
            }
        }
        filesystem.unmount()?;
    }
    Ok(ConfigImage(disk.into_inner()))
}

fn check_name(name: &str) -> Result<(), Error> {
    let fits = |c: char| !c.is_control() && !"\\/:*?\"<>|".contains(c);
    // VFAT drops dots and spaces at the end, which also rules out `.` and `..`.
    let odd = name.is_empty() || name.len() > 200 || name.ends_with(['.', ' ']) || name.starts_with(' ');
    if odd || !name.chars().all(fits) { Err(Error::Name(name.to_owned())) } else { Ok(()) }
}

fn volume_id(label: &str) -> u32 {
    let hash = Sha256::digest(label.as_bytes());
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

/// Digest over both disks, `sha256:<hex>`; the empty text where there is neither.
pub fn digest(seed: Option<&ConfigImage>, config: Option<&ConfigImage>) -> String {
    if seed.is_none() && config.is_none() {
        return String::new();
    }
    let mut hash = Sha256::new();
    for image in [seed, config] {
        match image {
            Some(image) => {
                hash.update((image.bytes().len() as u64).to_be_bytes());
                hash.update(image.bytes());
            }
            None => hash.update(u64::MAX.to_be_bytes()),
        }
    }
    crate::image::registry::hex(&hash.finalize())
}

/// The NoCloud files of a Secret; `meta-data` is made where it lacks.
pub fn nocloud(mut files: BTreeMap<String, Vec<u8>>, id: &str, hostname: &str) -> BTreeMap<String, Vec<u8>> {
    files.retain(|name, _| ["user-data", "meta-data", "network-config", "vendor-data"].contains(&name.as_str()));
    files
        .entry("meta-data".to_owned())
        .or_insert_with(|| format!("instance-id: {id}\nlocal-hostname: {hostname}\n").into_bytes());
    // cloud-init takes a seed without user-data for no seed at all.
    files.entry("user-data".to_owned()).or_default();
    files
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    fn read_back(image: &ConfigImage) -> (String, BTreeMap<String, Vec<u8>>) {
        let mut bytes = image.bytes().to_vec();
        let filesystem = FileSystem::new(Cursor::new(&mut bytes), FsOptions::new()).unwrap();
        let label = filesystem.read_volume_label_from_root_dir().unwrap().unwrap_or_default();
        let files = filesystem
            .root_dir()
            .iter()
            .map(|entry| {
                let entry = entry.unwrap();
                let mut data = Vec::new();
                entry.to_file().read_to_end(&mut data).unwrap();
                (entry.file_name(), data)
            })
            .collect();
        (label, files)
    }

    #[test]
    fn equal_content_gives_equal_bytes() {
        let files = BTreeMap::from([("user-data".to_owned(), b"#cloud-config\n".to_vec())]);
        let files = nocloud(files, "i", "h");
        let (one, two) = (make("cidata", &files).unwrap(), make("cidata", &files).unwrap());
        assert!(one == two);
        assert_eq!(digest(Some(&one), None), digest(Some(&two), None));
        assert_ne!(digest(Some(&one), None), digest(None, Some(&one)));
        assert_eq!(digest(None, None), "");
        let (label, read) = read_back(&one);
        assert_eq!(label, "CIDATA");
        assert_eq!(read, files);
        assert!(read["meta-data"].starts_with(b"instance-id: i"));
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        for name in ["", "..", "a/b", "a\\b", "con?", "x."] {
            let files = BTreeMap::from([(name.to_owned(), Vec::new())]);
            assert!(matches!(make("L", &files), Err(Error::Name(_))), "{name:?}");
        }
        let twice = BTreeMap::from([("a".to_owned(), Vec::new()), ("A".to_owned(), Vec::new())]);
        assert!(matches!(make("L", &twice), Err(Error::Twice(_))));
        let big = BTreeMap::from([("a".to_owned(), vec![0; LIMIT + 1])]);
        assert!(matches!(make("L", &big), Err(Error::Size(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn whatever_goes_in_comes_out(
            files in proptest::collection::btree_map("[a-z][a-zA-Z0-9._-]{0,30}[a-z0-9]",
                proptest::collection::vec(any::<u8>(), 0..20_000), 0..12)
        ) {
            let unique: std::collections::BTreeSet<String> = files.keys().map(|k| k.to_lowercase()).collect();
            prop_assume!(unique.len() == files.len());
            let image = make("PCGCONFIG", &files).unwrap();
            prop_assert_eq!(image.bytes().len() % (1 << 20), 0);
            prop_assert_eq!(read_back(&image), ("PCGCONFIG".to_owned(), files));
        }
    }
}
