//! The ledger of faults that tests play. `cargo xtask test` prints it, and holds `docs/reliability.md` against it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Instant;

/// Names the ledger's file; without it nothing is written down. Each line is a fault's name, how often it was tried and
/// survived, and, where it was tried once, the seconds until all was well again, with tabs between.
pub const LEDGER: &str = "PCG_EDGE_FAULTS";

/// A fault that is being played. It counts as not survived unless [`Fault::survived`] says so.
#[must_use]
pub struct Fault {
    name: String,
    tried: usize,
    begun: Instant,
    survived: bool,
}

impl Fault {
    /// It strikes now. The name is the first column of a row in `docs/reliability.md`.
    pub fn strikes(name: impl Into<String>) -> Self {
        Self { name: name.into(), tried: 1, begun: Instant::now(), survived: false }
    }

    /// It strikes so often, at places that are all different.
    pub fn times(mut self, tried: usize) -> Self {
        self.tried = tried;
        self
    }

    /// All is well again.
    pub fn survived(mut self) {
        self.survived = true;
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let Some(ledger) = std::env::var_os(LEDGER) else { return };
        let survived = if self.survived { self.tried } else { 0 };
        let seconds =
            if self.tried == 1 { format!("{:.1}", self.begun.elapsed().as_secs_f64()) } else { String::new() };
        let line = format!("{}\t{}\t{survived}\t{seconds}\n", self.name, self.tried);
        // One write: other tests append at the same time.
        let file = OpenOptions::new().create(true).append(true).open(&ledger);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            eprintln!("{}: {error}", ledger.display());
        }
    }
}
