//! Layers and trees: deterministic tar archives (sorted, one time stamp, no names of users), gzip, both digests at once.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use crate::cache::hex;
use crate::oci::{Descriptor, Error, LAYER, Layer, io_at};

/// Time stamp of every file that we make: 2026-01-01.
pub const EPOCH: u64 = 1_767_225_600;
/// Good enough: level 6 takes twice as long for 3 % less.
const LEVEL: u32 = 4;

/// Where a file's content comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Memory.
    Bytes(Vec<u8>),
    /// A file, opened when written.
    Path(PathBuf),
}

#[derive(Clone, Debug)]
enum Entry {
    Dir { mode: u32, owner: (u64, u64) },
    File { mode: u32, owner: (u64, u64), source: Source },
    Symlink { target: PathBuf, owner: (u64, u64) },
    HardLink { target: PathBuf },
}

/// Files to be written, by path without leading slash. Parent folders are not added: they are there in a lower layer,
/// or made by whoever unpacks.
#[derive(Clone, Debug, Default)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

impl Tree {
    /// Adds a folder.
    pub fn dir(&mut self, path: &str, mode: u32) {
        self.0.insert(path.into(), Entry::Dir { mode, owner: (0, 0) });
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, source: Source) {
        self.0.insert(path.into(), Entry::File { mode, owner: (0, 0), source });
    }

    /// Adds a text file, mode 0644.
    pub fn text(&mut self, path: &str, text: &str) {
        self.file(path, 0o644, Source::Bytes(text.into()));
    }

    /// Adds a program from a file, mode 0755.
    pub fn program(&mut self, path: &str, from: PathBuf) {
        self.file(path, 0o755, Source::Path(from));
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.0.insert(path.into(), Entry::Symlink { target: target.into(), owner: (0, 0) });
    }

    /// Adds everything below a folder, with its modes, owners and hard links, at this path.
    pub fn folder(&mut self, path: &str, from: &Path) -> Result<(), Error> {
        let mut seen = HashMap::new();
        self.walk(Path::new(path), from, &mut seen)
    }

    fn walk(&mut self, to: &Path, from: &Path, seen: &mut HashMap<(u64, u64), PathBuf>) -> Result<(), Error> {
        let mut entries: Vec<_> =
            fs::read_dir(from).and_then(Iterator::collect::<io::Result<_>>).map_err(io_at("list", from))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), to.join(entry.file_name()));
            let meta = fs::symlink_metadata(&path).map_err(io_at("read", &path))?;
            let (mode, owner) = (meta.mode() & 0o7777, (u64::from(meta.uid()), u64::from(meta.gid())));
            let kind = meta.file_type();
            if kind.is_dir() {
                self.0.insert(name.clone(), Entry::Dir { mode, owner });
                self.walk(&name, &path, seen)?;
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(io_at("read", &path))?;
                self.0.insert(name, Entry::Symlink { target, owner });
            } else if kind.is_file() {
                let first = (meta.nlink() > 1).then(|| seen.get(&(meta.dev(), meta.ino())).cloned()).flatten();
                if let Some(target) = first {
                    self.0.insert(name, Entry::HardLink { target });
                } else {
                    seen.insert((meta.dev(), meta.ino()), name.clone());
                    self.0.insert(name, Entry::File { mode, owner, source: Source::Path(path) });
                }
            } else {
                // Sockets vanish with their process; devices come from the kernel.
                debug_assert!(kind.is_socket() || kind.is_char_device() || kind.is_block_device() || kind.is_fifo());
            }
        }
        Ok(())
    }

    /// Writes the archive.
    pub fn write_tar(&self, out: impl Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        for (path, entry) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(EPOCH);
            header.set_size(0);
            let owner = |header: &mut tar::Header, (uid, gid)| {
                header.set_uid(uid);
                header.set_gid(gid);
            };
            match entry {
                Entry::Dir { mode, owner: ids } => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    owner(&mut header, *ids);
                    tar.append_data(&mut header, path, io::empty())?;
                }
                Entry::File { mode, owner: ids, source } => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(*mode);
                    owner(&mut header, *ids);
                    match source {
                        Source::Bytes(bytes) => {
                            header.set_size(bytes.len() as u64);
                            tar.append_data(&mut header, path, bytes.as_slice())?;
                        }
                        Source::Path(from) => {
                            let file = File::open(from)?;
                            header.set_size(file.metadata()?.len());
                            tar.append_data(&mut header, path, file)?;
                        }
                    }
                }
                Entry::Symlink { target, owner: ids } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    owner(&mut header, *ids);
                    tar.append_link(&mut header, path, target)?;
                }
                Entry::HardLink { target } => {
                    header.set_entry_type(tar::EntryType::Link);
                    header.set_mode(0o644);
                    header.set_uid(0);
                    header.set_gid(0);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        tar.into_inner()?.flush()
    }

    /// Writes everything below a folder; parent folders are made.
    pub fn write_folder(&self, to: &Path) -> Result<(), Error> {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        for (path, entry) in &self.0 {
            let path = to.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(io_at("create", parent))?;
            }
            let mode = |mode: u32| fs::set_permissions(&path, fs::Permissions::from_mode(mode));
            if !matches!(entry, Entry::Dir { .. }) && path.symlink_metadata().is_ok() {
                fs::remove_file(&path).map_err(io_at("replace", &path))?;
            }
            let written = match entry {
                Entry::Dir { mode: bits, .. } => fs::create_dir_all(&path).and_then(|()| mode(*bits)),
                Entry::File { mode: bits, source: Source::Bytes(bytes), .. } => {
                    fs::write(&path, bytes).and_then(|()| mode(*bits))
                }
                Entry::File { mode: bits, source: Source::Path(from), .. } => {
                    fs::copy(from, &path).and_then(|_| mode(*bits))
                }
                Entry::Symlink { target, .. } => symlink(target, &path),
                Entry::HardLink { target } => fs::hard_link(to.join(target), &path),
            };
            written.map_err(io_at("write", &path))?;
        }
        Ok(())
    }

    /// Writes an initial RAM disk: a gzip cpio archive in the kernel's `newc` format.
    pub fn write_initrd(&self, to: &Path) -> Result<(), Error> {
        let out = BufWriter::new(File::create(to).map_err(io_at("create", to))?);
        let mut gzip = GzEncoder::new(out, Compression::new(6));
        self.write_cpio(&mut gzip).map_err(io_at("write", to))?;
        gzip.finish().and_then(|mut out| out.flush()).map_err(io_at("write", to))
    }

    fn write_cpio(&self, out: &mut impl Write) -> io::Result<()> {
        for (number, (path, entry)) in self.0.iter().enumerate() {
            let (mode, content) = match entry {
                Entry::Dir { mode, .. } => (0o04_0000 | mode, vec![]),
                Entry::File { mode, source: Source::Bytes(bytes), .. } => (0o10_0000 | mode, bytes.clone()),
                Entry::File { mode, source: Source::Path(from), .. } => (0o10_0000 | mode, fs::read(from)?),
                Entry::Symlink { target, .. } => (0o12_0777, target.to_string_lossy().into_owned().into_bytes()),
                // The kernel could do without a copy; none of our trees has any.
                Entry::HardLink { .. } => return Err(io::Error::other("a hard link in an initial RAM disk")),
            };
            cpio_entry(out, number as u64 + 1, mode, &path.to_string_lossy(), &content)?;
        }
        cpio_entry(out, 0, 0, "TRAILER!!!", &[])
    }

    /// Writes a gzip layer to this file.
    pub fn write_layer(&self, to: &Path) -> Result<Layer, Error> {
        let mut writer = LayerWriter::create(to)?;
        self.write_tar(&mut writer).map_err(io_at("write", to))?;
        writer.finish()
    }
}

fn cpio_entry(out: &mut impl Write, inode: u64, mode: u32, name: &str, content: &[u8]) -> io::Result<()> {
    let padding = |length: usize| &[0; 3][..length.wrapping_neg() % 4];
    // Magic, inode, mode, uid, gid, links, mtime, size, four device numbers, name size with its NUL, checksum.
    write!(out, "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{EPOCH:08x}{:08x}", 0, 0, 1, content.len())?;
    write!(out, "{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{name}\0", 0, 0, 0, 0, name.len() + 1, 0)?;
    out.write_all(padding(110 + name.len() + 1))?;
    out.write_all(content)?;
    out.write_all(padding(content.len()))
}

/// Compresses an existing tar into a layer.
pub fn compress_layer(tar: &Path, to: &Path) -> Result<Layer, Error> {
    let mut writer = LayerWriter::create(to)?;
    let mut from = BufReader::with_capacity(1 << 18, File::open(tar).map_err(io_at("open", tar))?);
    io::copy(&mut from, &mut writer).map_err(io_at("write", to))?;
    writer.finish()
}

/// The content of one file of a gzip layer.
pub fn read_from_layer(layer: &Path, path: &str) -> Result<Option<Vec<u8>>, Error> {
    let file = File::open(layer).map_err(io_at("open", layer))?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(BufReader::new(file)));
    for entry in archive.entries().map_err(io_at("read", layer))? {
        let mut entry = entry.map_err(io_at("read", layer))?;
        let found = entry.path().map_err(io_at("read", layer))?;
        if found.strip_prefix(".").unwrap_or(&found) == Path::new(path) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(io_at("read", layer))?;
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// Hashes before and after compression.
struct LayerWriter {
    path: PathBuf,
    plain: Sha256,
    gzip: GzEncoder<Hashed<BufWriter<File>>>,
}

struct Hashed<W> {
    hasher: Sha256,
    size: u64,
    inner: W,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl LayerWriter {
    fn create(path: &Path) -> Result<Self, Error> {
        let inner = BufWriter::with_capacity(1 << 18, File::create(path).map_err(io_at("create", path))?);
        let gzip = GzEncoder::new(Hashed { hasher: Sha256::new(), size: 0, inner }, Compression::new(LEVEL));
        Ok(Self { path: path.to_owned(), plain: Sha256::new(), gzip })
    }

    fn finish(self) -> Result<Layer, Error> {
        let mut hashed = self.gzip.finish().map_err(io_at("write", &self.path))?;
        hashed.flush().map_err(io_at("write", &self.path))?;
        let digest = format!("sha256:{}", hex(&hashed.hasher.finalize()));
        let diff_id = format!("sha256:{}", hex(&self.plain.finalize()));
        Ok(Layer { descriptor: Descriptor::new(LAYER, digest, hashed.size), diff_id })
    }
}

impl Write for LayerWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if crate::process::stopping() {
            return Err(io::Error::other("interrupted"));
        }
        let written = self.gzip.write(bytes)?;
        self.plain.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.gzip.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::sha256_file;

    #[test]
    fn the_kernels_cpio_format_is_what_cpio_lists() {
        let mut tree = Tree::default();
        tree.dir("bin", 0o755);
        tree.file("bin/a", 0o755, Source::Bytes(b"12345".to_vec()));
        tree.symlink("bin/sh", "a");
        tree.text("init", "x");
        let mut archive = Vec::new();
        tree.write_cpio(&mut archive).unwrap();
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        let names: Vec<_> = text.match_indices("070701").map(|(at, _)| &text[at + 110..]).collect();
        let starts = ["bin\0", "bin/a\0", "bin/sh\0", "init\0", "TRAILER!!!\0"];
        assert_eq!(names.len(), starts.len());
        for (name, start) in names.iter().zip(starts) {
            assert!(name.starts_with(start), "{start}");
        }
        assert!(names[1].contains("12345"));
        assert_eq!(&text[14..22], "000041ed");
    }

    #[test]
    fn a_folder_gets_files_with_modes_and_links_replaced() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("old"), "old").unwrap();
        let mut tree = Tree::default();
        tree.symlink("old", "/dev/null");
        tree.file("deep/er/tool", 0o755, Source::Bytes(b"x".to_vec()));
        tree.write_folder(dir.path()).unwrap();
        assert_eq!(fs::read_link(dir.path().join("old")).unwrap(), Path::new("/dev/null"));
        let tool = fs::metadata(dir.path().join("deep/er/tool")).unwrap();
        assert_eq!(tool.permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_layer_is_sorted_keeps_modes_and_links_and_knows_its_digests() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("d")).unwrap();
        fs::write(from.join("d/a"), "same").unwrap();
        fs::hard_link(from.join("d/a"), from.join("d/b")).unwrap();
        let mut tree = Tree::default();
        tree.text("z", "last");
        tree.symlink("etc/link", "/dev/null");
        tree.file("a", 0o755, Source::Bytes(b"first".to_vec()));
        tree.folder("var", &from).unwrap();
        let gz = dir.path().join("layer");
        let layer = tree.write_layer(&gz).unwrap();

        let (digest, size) = sha256_file(&gz).unwrap();
        assert_eq!((format!("sha256:{digest}"), size), (layer.descriptor.digest.clone(), layer.descriptor.size));
        let plain = dir.path().join("plain");
        let mut decoder = flate2::read::GzDecoder::new(File::open(&gz).unwrap());
        io::copy(&mut decoder, &mut File::create(&plain).unwrap()).unwrap();
        assert_eq!(format!("sha256:{}", sha256_file(&plain).unwrap().0), layer.diff_id);

        let mut archive = tar::Archive::new(File::open(&plain).unwrap());
        let list: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                assert_eq!(entry.header().mtime().unwrap(), EPOCH);
                (entry.path().unwrap().display().to_string(), entry.header().entry_type())
            })
            .collect();
        let names: Vec<_> = list.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "etc/link", "var/d", "var/d/a", "var/d/b", "z"]);
        assert_eq!(list[4].1, tar::EntryType::Link);
        assert_eq!(read_from_layer(&gz, "a").unwrap().unwrap(), b"first");
        assert!(read_from_layer(&gz, "b").unwrap().is_none());

        let again = compress_layer(&plain, &dir.path().join("again")).unwrap();
        assert_eq!(again.diff_id, layer.diff_id);
    }
}
