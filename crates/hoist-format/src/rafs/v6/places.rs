//! All chunks of an image by where they are: on which device, and from which byte of it on.

use std::collections::BTreeMap;

use super::super::bootstrap::Beside;
use super::super::bytes::digest;
use super::super::pieces::Chunk;
use super::super::{Blob, RafsError};
use super::{CHUNK, Super};
use crate::erofs::{le32, le64};

/// Chunk flags (`BlobChunkFlags`).
const COMPRESSED: u32 = 0x1;
const ENCRYPTED: u32 = 0x4;
/// No piece yet.
pub(super) const NONE: u32 = u32::MAX;

/// A chunk and where it is.
pub(super) struct Place {
    pub chunk: Chunk,
    /// Its index in its blob.
    pub index: u32,
    /// Byte offset on its blob's device.
    pub at: u64,
    /// Which piece it is, once a file has named it.
    pub piece: u32,
}

/// All chunks, by device and offset.
pub(super) struct Places {
    pub all: Vec<Place>,
}

impl Places {
    pub fn new(
        bytes: &[u8],
        head: &Super,
        blobs: &[Blob],
        beside: &BTreeMap<u32, Beside>,
    ) -> Result<Self, RafsError> {
        let mut all = Vec::new();
        let table = &bytes[head.chunks.start as usize..head.chunks.end as usize];
        for record in table.chunks_exact(CHUNK as usize) {
            all.push(from_table(record)?);
        }
        if !head.has_chunks() {
            for (blob, known) in beside {
                from_blob(*blob, known, &mut all)?;
            }
        }
        all.sort_unstable_by_key(|p: &Place| (p.chunk.blob, p.at));
        for two in all.windows(2) {
            let (a, b) = (&two[0], &two[1]);
            if a.chunk.blob == b.chunk.blob && a.at + u64::from(a.chunk.raw_len) > b.at {
                return Err(RafsError::Lie("chunks that overlap"));
            }
        }
        match all.last() {
            Some(last) if last.chunk.blob as usize >= blobs.len() => {
                Err(RafsError::Lie("a chunk of no blob"))
            }
            _ => Ok(Self { all }),
        }
    }

    /// The chunk that starts there.
    pub fn find(&self, blob: u32, at: u64) -> Option<usize> {
        self.all.binary_search_by_key(&(blob, at), |p| (p.chunk.blob, p.at)).ok()
    }
}

/// Chunks as the bootstrap has them.
fn from_table(record: &[u8]) -> Result<Place, RafsError> {
    let flags = le32(record, 36);
    if flags & ENCRYPTED != 0 {
        return Err(RafsError::Encrypted);
    }
    let (start, at) = (le64(record, 48), le64(record, 56));
    if start > 1 << 40 || at > 1 << 44 {
        return Err(RafsError::Lie("a chunk beyond all blobs"));
    }
    let chunk = Chunk {
        blob: le32(record, 32),
        stored: start..start + u64::from(le32(record, 40)),
        compressed: flags & COMPRESSED != 0,
        raw_len: le32(record, 44),
        digest: digest(record, 0),
    };
    Ok(Place { chunk, index: le32(record, 72), at, piece: NONE })
}

/// Chunks as their blob has them.
fn from_blob(blob: u32, known: &Beside, all: &mut Vec<Place>) -> Result<(), RafsError> {
    let (Some(contexts), Some(digests)) = (&known.contexts, &known.digests) else { return Ok(()) };
    if digests.len() as u64 != contexts.chunks.len() as u64 * 32 {
        return Err(RafsError::Lie("a blob with another number of digests than of chunks"));
    }
    for (index, (record, sum)) in (0..).zip(contexts.chunks.iter().zip(digests.chunks_exact(32))) {
        let chunk = Chunk {
            blob,
            stored: record.stored.clone(),
            compressed: record.compressed,
            raw_len: record.raw_len,
            digest: digest(sum, 0),
        };
        all.push(Place { chunk, index, at: record.raw_offset, piece: NONE });
    }
    Ok(())
}
