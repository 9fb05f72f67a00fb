//! What can go wrong, as text for the person who made the profile or carries the archive.

use std::io;
use std::path::{Path, PathBuf};

use crate::archive::Refusal;

/// Why a profile could not be built, read or rendered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, for instance `read`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of the profile is not as it has to be.
    #[error("{file}:{line}: {message}")]
    Invalid {
        /// File, relative to the profile's folder.
        file: String,
        /// Line, from 1; 0 where the file as a whole is meant.
        line: usize,
        /// What was found and what was expected.
        message: String,
    },
    /// The archive was refused; nothing of it was published.
    #[error("archive {} refused: {reason}", path.display())]
    Refused {
        /// The archive.
        path: PathBuf,
        /// Why.
        reason: Refusal,
    },
    /// A VM layer names an image that the appliance does not have.
    #[error("layer {layer}: image {image} is not in the appliance's registry; it has {available}")]
    UnknownImage {
        /// Layer name.
        layer: String,
        /// The image that `vm.yaml` names.
        image: String,
        /// Images there are, comma-separated.
        available: String,
    },
}

impl Error {
    /// Whether a file system is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn invalid(file: impl Into<String>, line: usize, message: impl Into<String>) -> Self {
        Self::Invalid { file: file.into(), line, message: message.into() }
    }
}
