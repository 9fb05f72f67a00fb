//! A tar reader that knows only what a profile needs: regular files and folders with short names.
//!
//! General readers follow long-name and sparse extensions, hold what a header declares in memory, and take a file that
//! stops between two entries for a whole one. Here a header's claim is checked against the limit before anything
//! is read, and the two zero blocks at the end have to be there.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use super::Refusal;

const BLOCK: usize = 512;
/// Bytes that one PAX header may have.
const MAX_PAX: u64 = 64 << 10;
/// Zero bytes that may follow the end, from writers that fill up a record of a tape.
const MAX_PADDING: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// Path as in the header; a folder's without its trailing slash.
    pub path: String,
    /// A folder, not a file.
    pub is_dir: bool,
    /// Bytes of a file.
    pub size: u64,
    /// Whether anybody may execute it.
    pub executable: bool,
}

/// Reads entries one after the other.
pub(super) struct StrictTar<R> {
    input: R,
    /// For messages: `the archive`, `layer web`.
    what: String,
    /// Bytes of the current file not yet read, and zero bytes after it.
    remaining: u64,
    padding: u64,
}

impl<R: Read> StrictTar<R> {
    pub fn new(input: R, what: impl Into<String>) -> Self {
        Self { input, what: what.into(), remaining: 0, padding: 0 }
    }

    /// The next file or folder, or nothing at the end. What was not read of the last file is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Refusal> {
        self.copy_file(&mut io::sink())?;
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let path = header.path_bytes().into_owned();
            let path =
                String::from_utf8(path).map_err(|e| Refusal::BadPath(String::from_utf8_lossy(e.as_bytes()).into()))?;
            // Readers differ over what does not fit, and nothing here needs it.
            if header.as_old().size[0] & 0x80 != 0 {
                return Err(self.damaged("its size is in binary, as of 8 GiB and more"));
            }
            let size = header.entry_size().map_err(|_| self.damaged("its size is no number"))?;
            let refuse = |found| Err(Refusal::BadType { path: path.clone(), found });
            match header.entry_type() {
                EntryType::Regular | EntryType::Continuous if path.ends_with('/') => {
                    return refuse("a file with a folder's name");
                }
                EntryType::Regular => {
                    self.expect(size);
                    let mode = header.mode().map_err(|_| self.damaged("its mode is no number"))?;
                    return Ok(Some(Entry { path, is_dir: false, size, executable: mode & 0o111 != 0 }));
                }
                EntryType::Directory if size != 0 => return Err(self.damaged("a folder with content")),
                EntryType::Directory => {
                    let path = path.strip_suffix('/').map_or(path.clone(), str::to_owned);
                    return Ok(Some(Entry { path, is_dir: true, size: 0, executable: true }));
                }
                EntryType::XHeader | EntryType::XGlobalHeader => self.pax(size)?,
                EntryType::Symlink => return refuse("a symbolic link"),
                EntryType::Link => return refuse("a hard link"),
                EntryType::Char | EntryType::Block => return refuse("a device"),
                EntryType::Fifo => return refuse("a pipe"),
                EntryType::GNULongName | EntryType::GNULongLink => return refuse("an entry with a long name"),
                EntryType::GNUSparse => return refuse("a sparse file"),
                _ => return refuse("of an unknown type"),
            }
        }
    }

    /// Copies the current file.
    pub fn copy_file(&mut self, to: &mut impl Write) -> Result<u64, Refusal> {
        let size = self.remaining;
        let copied = io::copy(&mut (&mut self.input).take(size), to).map_err(|e| self.unreadable(e))?;
        self.remaining -= copied;
        if self.remaining > 0 {
            return Err(Refusal::Truncated(self.what.clone()));
        }
        let padding = std::mem::take(&mut self.padding);
        let skipped =
            io::copy(&mut (&mut self.input).take(padding), &mut io::sink()).map_err(|e| self.unreadable(e))?;
        if skipped < padding { Err(Refusal::Truncated(self.what.clone())) } else { Ok(size) }
    }

    /// The input, for whoever has to see that nothing follows.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn expect(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    /// The next header that is not the end mark; nothing after a right end.
    fn header(&mut self) -> Result<Option<Header>, Refusal> {
        let block = self.block()?;
        if block.iter().all(|b| *b == 0) {
            if self.block()?.iter().any(|b| *b != 0) {
                return Err(self.damaged("something follows the end mark"));
            }
            self.zeros_to_the_end()?;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let expected = header.cksum().map_err(|_| self.damaged("its checksum is no number"))?;
        // The checksum counts its own field as spaces.
        let sum: u32 =
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        if sum != expected {
            return Err(self.damaged("its checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn block(&mut self) -> Result<[u8; BLOCK], Refusal> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Refusal::Truncated(self.what.clone()),
            _ => self.unreadable(e),
        })?;
        Ok(block)
    }

    fn zeros_to_the_end(&mut self) -> Result<(), Refusal> {
        let mut seen = 0;
        let mut buffer = [0; 4096];
        loop {
            let read = self.input.read(&mut buffer).map_err(|e| self.unreadable(e))?;
            seen += read as u64;
            match read {
                0 => return Ok(()),
                _ if seen > MAX_PADDING => return Err(self.damaged("too much follows the end mark")),
                _ if buffer[..read].iter().any(|b| *b != 0) => {
                    return Err(self.damaged("something follows the end mark"));
                }
                _ => {}
            }
        }
    }

    /// PAX headers carry times and the like; what would change a name, a size or a type is refused.
    fn pax(&mut self, size: u64) -> Result<(), Refusal> {
        if size > MAX_PAX {
            return Err(Refusal::TooLarge {
                what: format!("a PAX header of {}", self.what),
                found: size,
                limit: MAX_PAX,
            });
        }
        self.expect(size);
        let mut content = Vec::new();
        self.copy_file(&mut content)?;
        let mut rest = &content[..];
        while !rest.is_empty() {
            let bad = || self.damaged("a PAX record is malformed");
            let space = rest.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let length: usize =
                std::str::from_utf8(&rest[..space]).ok().and_then(|t| t.parse().ok()).ok_or_else(bad)?;
            let record = rest.get(space + 1..length).ok_or_else(bad)?;
            let key = record.split(|b| *b == b'=').next().unwrap_or_default();
            if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse") {
                return Err(self.damaged("a PAX record changes a name or a size"));
            }
            rest = &rest[length..];
        }
        Ok(())
    }

    fn damaged(&self, why: &'static str) -> Refusal {
        Refusal::BadHeader(self.what.clone(), why)
    }

    /// Decompressors report an early end as `UnexpectedEof` too.
    fn unreadable(&self, source: io::Error) -> Refusal {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Refusal::Truncated(self.what.clone()),
            _ => Refusal::Unreadable { what: self.what.clone(), source },
        }
    }
}
