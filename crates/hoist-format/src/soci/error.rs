//! Why a zTOC cannot be used.

use crate::build::BuildError;
use crate::layer::lossy;

/// Why a zTOC cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SociError {
    /// It is no flatbuffer of the form that a zTOC has.
    #[error("its zTOC cannot be read: {0}")]
    Flat(&'static str),
    /// What it says of the layer as a whole.
    #[error("its zTOC cannot be used: {0}")]
    Ztoc(String),
    /// What it says of a file.
    #[error("its zTOC cannot be used: entry {path:?}: {what}")]
    Entry {
        /// Its path, cut to 300 characters.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The table that it was to become.
    #[error("its zTOC makes no table: {0}")]
    Build(#[from] BuildError),
}

impl SociError {
    pub(super) fn ztoc(what: impl Into<String>) -> Self {
        Self::Ztoc(what.into())
    }

    pub(super) fn entry(path: &[u8], what: String) -> Self {
        Self::Entry { path: lossy(path), what }
    }
}
