//! A file system on a block device, of which only some bytes are here: what its decoders read from and what they
//! find.
//!
//! A decoder is a function of what is here. What it lacks the device notes, and whoever drives it fetches that and
//! calls the decoder again, until nothing is lacking. So it needs to know nothing of where bytes come from, and asks
//! for all it can foresee at once: one round trip each.

use std::collections::BTreeMap;

use crate::chunk::ChunkCodec;
use crate::tree::{InodeId, Tree};

/// Why a read gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// The bytes are not here yet. The device has noted them.
    Absent,
    /// They can't be had: why.
    Damaged(String),
}

/// A block device, as far as it is here.
pub trait Device {
    /// Bytes of the device.
    fn size(&self) -> u64;
    /// Reads `len` bytes from byte `offset`.
    ///
    /// # Errors
    /// [`Lack`].
    fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, Lack>;
    /// The first byte of `start..end` that may be other than zero, as is known without reading; `end` where none is.
    fn next_data(&self, start: u64, end: u64) -> u64;
}

/// A run of a file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stretch {
    /// Zeros.
    Hole {
        /// Bytes.
        len: u64,
    },
    /// As they stand on the device.
    Plain {
        /// Byte offset on the device.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A part of what a cluster on the device decodes to.
    Packed {
        /// Bytes of the device that the cluster takes.
        stored: std::ops::Range<u64>,
        /// How it is compressed.
        codec: ChunkCodec,
        /// Bytes that it decodes to.
        raw_len: u64,
        /// Byte offset in these.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Stretch {
    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Hole { len } | Self::Plain { len, .. } | Self::Packed { len, .. } => *len,
        }
    }
    /// None of them?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a file system holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Volume {
    /// Its files and folders. Where the contents stand in a data file is not said here.
    pub tree: Tree,
    /// Of each regular file that has bytes: all of them, in order.
    pub contents: BTreeMap<InodeId, Vec<Stretch>>,
}

/// A device whose bytes are all here.
impl Device for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }
    fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, Lack> {
        let range =
            usize::try_from(offset).ok().zip(offset.checked_add(len).and_then(|e| usize::try_from(e).ok()));
        let bytes = range.and_then(|(start, end)| self.get(start..end));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| Lack::Damaged(beyond(offset, len, self.len() as u64)))
    }
    fn next_data(&self, start: u64, _: u64) -> u64 {
        start
    }
}

/// The message for a read beyond the end.
pub(crate) fn beyond(offset: u64, len: u64, size: u64) -> String {
    format!("{len} bytes at {offset} are beyond its end at {size}")
}
