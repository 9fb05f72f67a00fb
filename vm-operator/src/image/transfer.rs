//! Bytes of a layer on their way into a volume: hashed and looked at in flight, in bounded memory.
//!
//! ```text
//!  registry ──async──► channel of a few chunks ──blocking thread──► Hashing ──► virStorageVolUpload
//! ```

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::qcow2;

/// What went by.
pub struct Hashing {
    hash: Sha256,
    header: Vec<u8>,
}

impl Default for Hashing {
    fn default() -> Self {
        Self { hash: Sha256::new(), header: Vec::with_capacity(qcow2::HEADER) }
    }
}

impl Hashing {
    fn take(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        let missing = qcow2::HEADER - self.header.len();
        self.header.extend_from_slice(&bytes[..bytes.len().min(missing)]);
    }

    /// `sha256:<hex>` and the first bytes.
    pub fn finish(self) -> (String, Vec<u8>) {
        (super::registry::hex(&self.hash.finalize()), self.header)
    }
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One piece of a stream; its end is said, so that a sender that went away is not taken for one.
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// All was sent.
    End,
}

/// The blocking end of the channel.
pub struct Incoming {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
    /// Digest and header of what was read.
    pub seen: Hashing,
    progress: Arc<AtomicU64>,
    refuse: Option<Refuse>,
}

/// Looks at the first bytes and may refuse the rest.
pub type Refuse = Box<dyn Fn(&[u8]) -> Result<(), qcow2::Refused> + Send>;

impl Incoming {
    /// The receiving end; `progress` counts bytes.
    pub fn new(receiver: mpsc::Receiver<Piece>, progress: Arc<AtomicU64>, refuse: Option<Refuse>) -> Self {
        Self { receiver, current: Bytes::new(), ended: false, seen: Hashing::default(), progress, refuse }
    }
}

impl Read for Incoming {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the transfer was cut off")),
            }
        }
        let taken = self.current.len().min(out.len());
        out[..taken].copy_from_slice(&self.current[..taken]);
        self.current.advance(taken);
        self.seen.take(&out[..taken]);
        if self.seen.header.len() == qcow2::HEADER
            && let Some(refuse) = self.refuse.take()
        {
            refuse(&self.seen.header).map_err(io::Error::other)?;
        }
        self.progress.fetch_add(taken as u64, Ordering::Relaxed);
        Ok(taken)
    }
}

/// One lock per volume, so that two images that share a layer do not fill it at once.
#[derive(Default)]
pub struct Locks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Locks {
    /// The lock of a volume.
    pub fn of(&self, pool: &str, volume: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        let key = format!("{pool}/{volume}");
        if let Some(lock) = locks.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(key, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: Vec<Piece>, refuse: Option<Refuse>) -> io::Result<(Vec<u8>, String)> {
        let (sender, receiver) = mpsc::channel(8);
        for piece in pieces {
            sender.try_send(piece).unwrap_or_else(|_| panic!("room"));
        }
        drop(sender);
        let mut incoming = Incoming::new(receiver, Arc::default(), refuse);
        let mut all = Vec::new();
        incoming.read_to_end(&mut all)?;
        Ok((all, incoming.seen.finish().0))
    }

    #[test]
    fn pieces_come_out_whole_and_hashed() {
        let (all, digest) = read(vec![Piece::Data("ab".into()), Piece::Data("c".into()), Piece::End], None).unwrap();
        assert_eq!(all, b"abc");
        assert_eq!(digest, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_lost_sender_is_no_end() {
        assert_eq!(read(vec![Piece::Data("ab".into())], None).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_bad_header_stops_the_stream() {
        let refuse: Refuse = Box::new(|header| qcow2::check(header, None).map(drop));
        let data = Piece::Data(Bytes::from(vec![0_u8; 300]));
        assert!(read(vec![data, Piece::End], Some(refuse)).unwrap_err().to_string().contains("not in qcow2"));
    }
}
