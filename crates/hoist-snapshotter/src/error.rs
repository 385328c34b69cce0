//! What can go wrong, and what containerd is told of it.

use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

/// See the module. Each says what was being done and to what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such snapshot.
    #[error("there is no snapshot {0:?}")]
    NotFound(String),
    /// There is one already.
    #[error("there is a snapshot {0:?} already")]
    Exists(String),
    /// It is not in the state for this.
    #[error("{0}")]
    Precondition(String),
    /// What was asked makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The records can't be read or written.
    #[error("the records of snapshots in {}: {why}", path.display())]
    Records {
        /// The file.
        path: PathBuf,
        /// What it says.
        why: String,
    },
    /// A folder can't.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// As "make".
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image that a snapshot stands on can't be mounted.
    #[error("cannot mount {image}, which the snapshot stands on: {why}")]
    Image {
        /// Its name.
        image: String,
        /// Why.
        why: String,
    },
    /// A fault of this program.
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { doing, path, source }
    }
}

impl From<Error> for Status {
    /// By containerd's errdefs/pkg/errgrpc.
    fn from(error: Error) -> Status {
        let code = match &error {
            Error::NotFound(_) => Code::NotFound,
            Error::Exists(_) => Code::AlreadyExists,
            Error::Precondition(_) => Code::FailedPrecondition,
            Error::Invalid(_) => Code::InvalidArgument,
            Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Code::ResourceExhausted
            }
            Error::Records { .. } | Error::Io { .. } | Error::Image { .. } => Code::Unavailable,
            Error::Internal(_) => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}
