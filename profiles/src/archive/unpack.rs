//! A layer's blob into a folder of the staging area: no links, no way out, no bomb.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use flate2::bufread::GzDecoder;

use super::strict_tar::StrictTar;
use super::{Limits, Refusal};
use crate::model::is_relative;

/// Bytes below which a ratio says nothing: a tar of one small file is mostly zeros.
const RATIO_FLOOR: u64 = 1 << 20;
/// zstd's window, hence its memory, at most 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

/// What all layers together may still use.
pub(super) struct Budget {
    bytes: u64,
    entries: u64,
}

impl Budget {
    pub fn new(limits: &Limits) -> Self {
        Self { bytes: limits.unpacked_bytes, entries: limits.unpacked_entries }
    }
}

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

/// Unpacks `blob` into the new folder `to`; `what` names the layer in refusals.
pub(super) fn unpack_layer(
    blob: &Path,
    compression: Compression,
    to: &Path,
    what: &str,
    limits: &Limits,
    budget: &mut Budget,
) -> Result<(), Refusal> {
    let unreadable = |source| Refusal::Unreadable { what: what.to_owned(), source };
    let file = File::open(blob).map_err(unreadable)?;
    let compressed = file.metadata().map_err(unreadable)?.len();
    let by_ratio = RATIO_FLOOR.max(compressed.saturating_mul(limits.ratio));
    let file = BufReader::new(file);
    let decoder: Box<dyn Read> = match compression {
        Compression::Gzip => Box::new(WholeGzip { decoder: GzDecoder::new(file) }),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(file).map_err(unreadable)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(unreadable)?;
            Box::new(decoder)
        }
    };
    // One byte over the limit tells that there is more.
    let allowed = by_ratio.min(budget.bytes);
    let mut tar = StrictTar::new(Counted { inner: decoder, left: allowed }, what);
    let result = unpack_entries(&mut tar, to, what, limits, budget);
    let counted = tar.into_inner();
    if counted.left == 0 {
        return Err(if allowed == by_ratio {
            Refusal::Bomb { what: what.to_owned(), limit: limits.ratio }
        } else {
            let limit = limits.unpacked_bytes;
            Refusal::TooLarge { what: "all layers unpacked".to_owned(), found: limit + 1, limit }
        });
    }
    budget.bytes -= allowed - counted.left;
    result
}

fn unpack_entries<R: Read>(
    tar: &mut StrictTar<R>,
    to: &Path,
    what: &str,
    limits: &Limits,
    budget: &mut Budget,
) -> Result<(), Refusal> {
    let staging = |path: &Path| {
        let path = path.to_owned();
        move |source| Refusal::Staging { path, source }
    };
    make_dir(to).map_err(staging(to))?;
    let mut files = HashSet::new();
    let mut dirs = HashSet::new();
    let mut count = || {
        let too_many = || Refusal::TooManyEntries { what: what.to_owned(), limit: limits.unpacked_entries };
        budget.entries = budget.entries.checked_sub(1).ok_or_else(too_many)?;
        Ok(())
    };
    while let Some(entry) = tar.next_entry()? {
        count()?;
        if !is_relative(&entry.path) {
            return Err(Refusal::BadPath(entry.path));
        }
        if entry.size > budget.bytes {
            return Err(Refusal::TooLarge {
                what: format!("{what}: {:?}", entry.path),
                found: entry.size,
                limit: limits.unpacked_bytes,
            });
        }
        // Parents first, each once; a file in a folder's place is a duplicate.
        let ends = entry.path.match_indices('/').map(|(at, _)| at).chain(entry.is_dir.then_some(entry.path.len()));
        for end in ends {
            let parent = &entry.path[..end];
            if files.contains(parent) {
                return Err(Refusal::Duplicate(parent.to_owned()));
            }
            if dirs.insert(parent.to_owned()) {
                // A path brings its folders along: they count as if they were entries of their own.
                if end < entry.path.len() {
                    count()?;
                }
                make_dir(&to.join(parent)).map_err(staging(&to.join(parent)))?;
            }
        }
        if entry.is_dir {
            continue;
        }
        if dirs.contains(&entry.path) || !files.insert(entry.path.clone()) {
            return Err(Refusal::Duplicate(entry.path));
        }
        let place = to.join(&entry.path);
        let mode = if entry.executable { 0o700 } else { 0o600 };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&place).map_err(staging(&place))?;
        tar.copy_file(&mut file).map_err(|refusal| refusal.at(&place))?;
    }
    Ok(())
}

/// For the owner only: layers may hold credentials.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Makes sure that a folder with all that is in it is on the disk. Only what is published is worth the time.
pub(super) fn sync_tree(dir: &Path) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        if item.file_type()?.is_dir() {
            sync_tree(&item.path())?;
        } else {
            File::open(item.path())?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

/// One gzip member and nothing after it: what follows would be read by some tools and not by others.
struct WholeGzip<R> {
    decoder: GzDecoder<R>,
}

impl<R: io::BufRead> Read for WholeGzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buf)?;
        if read == 0 && !buf.is_empty() && !self.decoder.get_mut().fill_buf()?.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "something follows the compressed data"));
        }
        Ok(read)
    }
}

/// Ends, as if the input had, when more was read than allowed; `left` is 0 then.
struct Counted<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let read = self.inner.read(&mut buf[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}
