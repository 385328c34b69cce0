//! A bootstrap of either version, in two steps: what it says of its blobs, and then, with the contexts of those that
//! need them, everything.

use std::collections::BTreeMap;

use super::blob::{Blob, Flags};
use super::{Contexts, Rafs, RafsError, v5, v6};

/// Which layout a bootstrap has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Inodes, chunks and tables of its own.
    V5,
    /// EROFS and tables beside it.
    V6,
}

/// A bootstrap whose superblock and blob table were read.
pub struct Bootstrap<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) flags: Flags,
    blobs: Vec<Blob>,
    layout: Layout,
}

enum Layout {
    V5(v5::Super),
    V6(v6::Super),
}

/// What is known of a blob besides the bootstrap.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// Its contexts.
    pub contexts: Option<Contexts>,
    /// Digests of its chunks by index: 32 bytes each.
    pub digests: Option<Vec<u8>>,
}

impl<'a> Bootstrap<'a> {
    /// Reads the superblock and the blob table.
    ///
    /// # Errors
    /// [`RafsError::NotRafs`] for other bytes, [`RafsError::Encrypted`], or what is wrong.
    pub fn open(bytes: &'a [u8]) -> Result<Self, RafsError> {
        if v5::is_v5(bytes) {
            let (head, flags) = v5::Super::read(bytes)?;
            let blobs = head.blobs(bytes, &flags)?;
            Ok(Self { bytes, flags, blobs, layout: Layout::V5(head) })
        } else if v6::is_v6(bytes) {
            let (head, flags) = v6::Super::read(bytes)?;
            let blobs = head.blobs(bytes)?;
            Ok(Self { bytes, flags, blobs, layout: Layout::V6(head) })
        } else {
            Err(RafsError::NotRafs)
        }
    }

    /// All of it.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Which layout it has.
    pub fn version(&self) -> Version {
        match self.layout {
            Layout::V5(_) => Version::V5,
            Layout::V6(_) => Version::V6,
        }
    }

    /// The blobs, by their index.
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// Chunks are described here; else only in their blobs, by contexts and digests.
    pub fn has_chunks(&self) -> bool {
        match &self.layout {
            Layout::V5(_) => true,
            Layout::V6(head) => head.has_chunks(),
        }
    }

    /// Reads everything. `beside` has what was found of blobs, by their index.
    ///
    /// # Errors
    /// [`RafsError`]: what is wrong, or missing.
    pub fn decode(self, beside: &BTreeMap<u32, Beside>) -> Result<Rafs, RafsError> {
        match self.layout {
            Layout::V5(head) => v5::decode(self.bytes, &head, &self.flags, self.blobs),
            Layout::V6(head) => v6::decode(self.bytes, &head, &self.flags, self.blobs, beside),
        }
    }
}
