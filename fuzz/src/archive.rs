//! What the targets share of files: tar archives as anybody may write them, and what another reader finds in them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use arbitrary::Arbitrary;
use tar::{EntryType, Header};

/// An entry of a tar archive.
#[derive(Arbitrary, Debug, Default)]
pub struct Entry {
    /// Its name.
    pub path: Vec<u8>,
    /// What it links to.
    pub link: Vec<u8>,
    /// Up to 127 one of [`KINDS`].
    pub kind: u8,
    /// Its mode.
    pub mode: u16,
    /// To declare in place of the content's own.
    pub size: Option<u64>,
    /// What follows the header.
    pub content: Vec<u8>,
    /// Further bytes of the header: place and byte.
    pub edits: Vec<(u16, u8)>,
}

/// Types that some reader of tar does something about.
const KINDS: &[u8; 16] = b"0000\x005xgLKS12346";

/// All below a folder: files with their content, folders without.
pub fn all(dir: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for item in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, name) = (item.path(), item.file_name().into_string().unwrap());
        let kind = item.file_type().unwrap();
        assert!(kind.is_dir() || kind.is_file(), "{path:?} is {kind:?}");
        if kind.is_dir() {
            found.extend(all(&path).into_iter().map(|(below, content)| (format!("{name}/{below}"), content)));
        }
        found.insert(name, kind.is_file().then(|| fs::read(&path).unwrap()));
    }
    found
}

/// Files of a tar as another reader finds them.
pub fn files_of(tar: &[u8]) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type() == EntryType::Regular {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            found.insert(String::from_utf8_lossy(&entry.path_bytes()).into_owned(), content);
        }
    }
    Ok(found)
}

/// A file of mode 0644.
pub fn file(path: &str, content: &[u8]) -> Entry {
    Entry { path: path.into(), content: content.to_vec(), mode: 0o644, ..Entry::default() }
}

/// An archive of entries, with the checksums of their headers.
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Vec::new();
    for Entry { path, link, kind, mode, size, content, edits } in entries {
        let mut header = Header::new_ustar();
        // What is too long for the name goes into the prefix.
        let (prefix, name) = path.split_at(path.len().saturating_sub(100));
        let ustar = header.as_ustar_mut().unwrap();
        ustar.prefix.iter_mut().zip(prefix).for_each(|(to, from)| *to = *from);
        ustar.name.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
        ustar.linkname.iter_mut().zip(link).for_each(|(to, from)| *to = *from);
        ustar.typeflag = [KINDS.get(usize::from(*kind) % 16).copied().filter(|_| *kind < 128).unwrap_or(*kind)];
        header.set_mode((*mode).into());
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size.unwrap_or(content.len() as u64));
        for (at, byte) in edits {
            header.as_mut_bytes()[usize::from(*at) % 512] = *byte;
        }
        header.set_cksum();
        tar.extend(header.as_bytes());
        tar.extend(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}
