//! The table of contents at the end of a blob (`storage/src/meta/toc.rs`): a tar file turned around, in which each
//! header stands behind what it is the header of. The last is that of the table itself.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::bytes::{cut, digest, expand};
use super::{Compressor, RafsError};
use crate::erofs::{le32, le64};
use crate::tar::lone_header;

/// Most bytes that a table takes, its header included.
pub const MAX_TOC: u64 = 64 << 10;
/// What most tables take, header included: worth asking for at first.
pub const USUAL_TOC: u64 = 4096;

const ENTRY: u64 = 128;
const NAME: &[u8] = b"rafs.blob.toc";

/// A blob's table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toc {
    entries: Vec<TocEntry>,
}

/// A part of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TocEntry {
    /// `image.blob`, `image.boot`, `blob.meta`, `blob.meta.header`, `blob.digest`.
    pub name: Box<[u8]>,
    /// Bytes of the blob.
    pub stored: Range<u64>,
    /// Bytes when decompressed.
    pub raw_len: u64,
    compressor: Compressor,
    /// SHA-256 when decompressed.
    digest: [u8; 32],
}

impl Toc {
    /// Reads the table from the last bytes of a blob of `size` bytes, of which `expected` is known.
    ///
    /// # Errors
    /// [`RafsError::Cut`] where the table is longer than `tail`; others where there is none, or it is damaged.
    pub fn decode(tail: &[u8], size: u64, expected: Option<&[u8; 32]>) -> Result<Self, RafsError> {
        let no_toc = RafsError::Missing("table of contents at the end of its blob");
        let (rest, header) = tail.split_last_chunk::<512>().ok_or(no_toc.clone())?;
        let (name, len) = lone_header(header).map_err(|_| no_toc.clone())?;
        if name != NAME {
            return Err(no_toc);
        }
        if len % ENTRY != 0 || len > MAX_TOC {
            return Err(RafsError::Lie("a table of contents that is no row of entries"));
        }
        let start = (rest.len() as u64).checked_sub(len);
        let start = start.ok_or(RafsError::Cut { what: "a table of contents", start: 0, len, size })?;
        let table = &rest[start as usize..];
        if let Some(expected) = expected {
            // Of the table alone as nydus-image 2.4 has it, of table and header as its sources say.
            let whole = &tail[start as usize..];
            if ![table, whole].iter().any(|b| <[u8; 32]>::from(Sha256::digest(b)) == *expected) {
                return Err(RafsError::Digest("table of contents"));
            }
        }
        let entries = table.chunks_exact(ENTRY as usize).map(|entry| TocEntry::read(entry, size));
        Ok(Self { entries: entries.collect::<Result<_, _>>()? })
    }

    /// The part of this name.
    pub fn entry(&self, name: &[u8]) -> Option<&TocEntry> {
        self.entries.iter().find(|entry| *entry.name == *name)
    }
}

impl TocEntry {
    fn read(entry: &[u8], size: u64) -> Result<Self, RafsError> {
        let name = &entry[8..24];
        let name = &name[..name.iter().position(|&b| b == 0).unwrap_or(name.len())];
        let compressor = match le32(entry, 0) & 0xf {
            1 => Compressor::None,
            2 => Compressor::Zstd,
            4 => Compressor::Lz4Block,
            _ => return Err(RafsError::Unsupported("a part with a compression newer than this reader")),
        };
        let (start, len) = (le64(entry, 56), le64(entry, 64));
        let end = start.checked_add(len).filter(|end| *end <= size);
        let end = end.ok_or(RafsError::Cut { what: "a part of a blob", start, len, size })?;
        Ok(Self {
            name: name.into(),
            stored: start..end,
            raw_len: le64(entry, 72),
            compressor,
            digest: digest(entry, 24),
        })
    }

    /// Decompresses and verifies this part of a blob.
    ///
    /// # Errors
    /// [`RafsError::Compression`] or [`RafsError::Digest`].
    pub fn open(&self, stored: &[u8]) -> Result<Vec<u8>, RafsError> {
        let len = self.stored.end - self.stored.start;
        let stored = cut(stored, "a part of a blob", 0, len)?;
        let raw = expand(stored, self.compressor, self.raw_len, "part of a blob")?;
        if <[u8; 32]>::from(Sha256::digest(&raw)) != self.digest {
            return Err(RafsError::Digest("part of a blob"));
        }
        Ok(raw)
    }
}
