//! Why the agent could not be asked, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens on the socket.
    #[error("the agent does not run: nobody listens on {}", .socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket is not for this user.
    #[error("{} may be used by root only", .socket.display())]
    Forbidden {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be opened for another reason.
    #[error("cannot open {}", .socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("no answer from {} within {seconds} seconds", .socket.display())]
    Late {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The connection ended within an answer.
    #[error("the connection to the agent broke: {0}")]
    Broken(String),
    /// An answer that is none of the API's.
    #[error("the agent's answer cannot be read: {0}")]
    Unreadable(String),
    /// Not a name that an object can have.
    #[error("`{name}` is no name of a {}", kind.words())]
    NoName {
        /// What was to be named.
        kind: Named,
        /// What was given.
        name: String,
    },
    /// The agent said no.
    #[error("{error}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What went wrong.
        error: String,
        /// What to do.
        hint: Option<String>,
    },
}

/// What a request names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Named {
    /// A virtual machine.
    Vm,
    /// A workload cluster.
    Cluster,
}

impl Named {
    fn words(self) -> &'static str {
        match self {
            Self::Vm => "virtual machine",
            Self::Cluster => "cluster",
        }
    }
}

impl Error {
    pub(crate) fn connect(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NotRunning { socket },
            io::ErrorKind::PermissionDenied => Self::Forbidden { socket },
            _ => Self::Connect { socket, source },
        }
    }

    pub(crate) fn broken(error: &hyper::Error) -> Self {
        Self::Broken(error.to_string())
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotRunning { .. } => {
                "start it with `systemctl start edge-agent`, or `cargo xtask up` in a checkout; \
                 another instance is named with --instance, another folder with --root"
                    .to_owned()
            }
            Self::Forbidden { .. } => "run the command as root, for instance with sudo".to_owned(),
            Self::Connect { .. } => "check the path given with --socket, --root or --instance".to_owned(),
            Self::Late { .. } | Self::Broken(_) => "try again; `edge.log` below the agent's root tells more".to_owned(),
            Self::Unreadable(_) => "agent and client may be of different versions".to_owned(),
            Self::NoName { kind: Named::Vm, .. } => "`edgectl vm list` shows the names".to_owned(),
            Self::NoName { kind: Named::Cluster, .. } => "`edgectl cluster list` shows the names".to_owned(),
            Self::Refused { hint, .. } => return hint.clone(),
        })
    }

    /// True where the agent may be there soon: it starts, restarts, or is being installed.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::Late { .. } | Self::Broken(_))
    }
}
