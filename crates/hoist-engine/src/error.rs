//! The engine's error: what was being done, to what, and whose failure it is.

use std::path::{Path, PathBuf};

use hoist_format::digest::Digest;
use hoist_format::merge::MergeError;

use crate::reference::ReferenceError;
use crate::registry::RegistryError;

/// Why the engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image name cannot be read.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The registry or layout did not serve what was wanted.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image itself is not what its own digests or the specification say.
    #[error("{what} of {of} is bad: {why}")]
    Image {
        /// Manifest, config, layer.
        what: &'static str,
        /// Which.
        of: String,
        /// In what way, and what to do.
        why: String,
    },
    /// Its layers, each for itself what its digests say, do not make an image.
    #[error("image of {image} is bad: {source}")]
    Merge {
        /// Its manifest.
        image: Digest,
        /// The layer at fault, and why.
        source: MergeError,
    },
    /// A layer's bytes do not match the digest that the image gives for them.
    #[error(
        "layer {blob}: {which} is {found}, but the image says {wanted}; nothing of it was kept. The registry or something on the way serves other bytes: pull again, or from another mirror"
    )]
    Digest {
        /// The layer.
        blob: Digest,
        /// Blob digest or diffID.
        which: &'static str,
        /// What the bytes have.
        found: Digest,
        /// What the manifest or config says.
        wanted: Digest,
    },
    /// A layer cannot be decoded.
    #[error("layer {blob} cannot be decoded: {why}; nothing of it was kept")]
    Layer {
        /// The layer.
        blob: Digest,
        /// The decoder's words.
        why: String,
    },
    /// What is in an image that is one file system cannot be had: which of its blobs is at fault the reason says.
    #[error("cannot fetch all of {image}: {why}")]
    Contents {
        /// Which image.
        image: String,
        /// Why.
        why: String,
    },
    /// A file of the store or a mount failed.
    #[error("cannot {doing} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// Verb.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// This kernel or machine cannot mount lazily.
    #[error("cannot mount {image}: {why}. `hoist doctor` tells what this machine can do")]
    Mount {
        /// Which image.
        image: String,
        /// What is missing.
        why: String,
    },
    /// No such image, layer or mount here.
    #[error("{0}")]
    NotFound(String),
    /// The store is not one of ours, or from another version.
    #[error("the store {}: {why}", path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// A bug in hoist.
    #[error("internal: {0}")]
    Internal(String),
}

fn hint(e: &std::io::Error) -> &'static str {
    match e.kind() {
        std::io::ErrorKind::StorageFull => {
            "; make room on that file system, or use another store with --root"
        }
        std::io::ErrorKind::PermissionDenied => "; run as root, or use a store of your own with --root",
        _ => "",
    }
}

impl Error {
    /// True when what the user gave is at fault (exit 1), false when we or the machine are (exit 2).
    pub fn is_user_failure(&self) -> bool {
        match self {
            Self::Registry(e) => e.is_user_failure(),
            Self::Reference(_) | Self::Image { .. } | Self::Digest { .. } | Self::Layer { .. } => true,
            Self::Contents { .. } => true,
            Self::Mount { .. } | Self::NotFound(_) | Self::Store { .. } | Self::Merge { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                std::io::ErrorKind::StorageFull
                    | std::io::ErrorKind::PermissionDenied
                    | std::io::ErrorKind::NotFound
            ),
            Self::Internal(_) => false,
        }
    }

    /// Is the disk full?
    pub fn is_for_room(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
    }

    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { doing, path, source }
    }

    pub(crate) fn contents(image: &str, why: impl ToString) -> Self {
        Self::Contents { image: image.to_owned(), why: why.to_string() }
    }

    pub(crate) fn image(what: &'static str, of: impl ToString, why: impl ToString) -> Self {
        Self::Image { what, of: of.to_string(), why: why.to_string() }
    }
}
