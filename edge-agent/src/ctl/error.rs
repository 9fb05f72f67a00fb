//! Why a command failed.

use std::io;
use std::path::{Path, PathBuf};

use super::text::complain;
use crate::engine::chain;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Standard output is gone or full.
    #[error("cannot write the result")]
    Output(#[source] io::Error),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent cannot be asked, or said no.
    #[error(transparent)]
    Agent(#[from] edge_client::Error),
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] crate::durable::Error),
    /// A bundle does not fit.
    #[error("{}: the bundle needs {} MiB, and {} are free", place.display(), needs >> 20, free >> 20)]
    NoSpace {
        /// Where it would be copied to.
        place: PathBuf,
        /// Bytes of the bundle.
        needs: u64,
        /// Bytes.
        free: u64,
    },
    /// A backup cannot be made or restored.
    #[error(transparent)]
    Backup(#[from] crate::backup::Error),
    /// A profile folder or archive is not as it has to be.
    #[error(transparent)]
    Profile(#[from] edge_profiles::Error),
    /// A result cannot be written in the format that was asked for.
    #[error("cannot write the result as {0}")]
    Format(&'static str),
    /// A sentence for people and what to do.
    #[error("{message}")]
    Other {
        /// What went wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

impl Error {
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    pub(super) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Agent(error) => error.hint(),
            Self::Other { hint, .. } => hint.clone(),
            Self::NoSpace { .. } => Some("free space there, and upgrade again".to_owned()),
            Self::Backup(crate::backup::Error::Refused { hint, .. }) => Some(hint.clone()),
            _ => None,
        }
    }

    /// Prints the error, which may be several in a line each, with its causes and what to do.
    pub(super) fn print(&self) {
        for line in chain(self).lines() {
            complain(&format!("error: {line}"));
        }
        if let Some(hint) = self.hint() {
            complain(&format!("hint: {hint}"));
        }
    }
}
