//! A blob's *contexts*: where each of its chunks lies, and how zran and batch chunks are decoded
//! (`storage/src/meta/*`). An array of chunk records, then zran contexts and their windows or batch contexts, all
//! compressed as one, and behind it a header of 4 KiB.

use std::ops::Range;

use super::blob::{CONTEXT_HEADER, Layout};
use super::bytes::{cut, expand};
use super::{Blob, Compressor, MAX_CHUNK, MAX_UNIT, RafsError, UnitCodec};
use crate::erofs::{le32, le64};

const MAGIC: u32 = 0xb10b_b10b;
/// Bytes of a record of version 1 and 2, and of a zran or batch context.
const V1: u64 = 16;
const V2: u64 = 24;
const CONTEXT: u64 = 40;
/// How far deflate data may refer back, bytes.
const WINDOW: u64 = 32 << 10;

/// What is known of a blob's chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts {
    /// By their index in the blob.
    pub(super) chunks: Vec<Record>,
    /// What zran and batch chunks are parts of.
    pub(super) units: Vec<Shared>,
    /// The windows of zran units.
    pub(super) windows: Vec<u8>,
}

/// A chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub stored: Range<u64>,
    pub compressed: bool,
    /// Byte offset in the blob's uncompressed address space.
    pub raw_offset: u64,
    pub raw_len: u32,
    /// Which of the shared units it is a part of, and from which byte on.
    pub part: Option<(u32, u32)>,
}

/// A unit that several chunks are parts of. A batch is compressed as its blob is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shared {
    /// Byte offset in the blob; none of a batch that no chunk is a part of.
    pub at: Option<u64>,
    pub stored_len: u32,
    pub raw_len: u32,
    /// Of zran; its window counts from the first byte of these contexts' windows.
    pub deflate: Option<UnitCodec>,
}

impl Contexts {
    /// Reads `image/BLOB.blob.meta` of a bootstrap's layer: the array as it is, padded to 4 KiB, and the header.
    ///
    /// # Errors
    /// [`RafsError`]: it is damaged, or not this blob's.
    pub fn unpacked(file: &[u8], blob: &Blob) -> Result<Self, RafsError> {
        let header = Header::read(file, blob)?;
        let array = cut(file, "contexts", 0, header.raw_len)?;
        if header.raw_len.next_multiple_of(4096) + CONTEXT_HEADER != file.len() as u64 {
            return Err(RafsError::Lie("contexts whose size is not what their header says"));
        }
        Self::decode(array, &header, blob)
    }

    /// Reads what is stored in a blob ([`Location::stored`](super::blob::Location::stored)).
    ///
    /// # Errors
    /// The same.
    pub fn stored(stored: &[u8], blob: &Blob) -> Result<Self, RafsError> {
        let header = Header::read(stored, blob)?;
        let packed = &stored[..stored.len() - CONTEXT_HEADER as usize];
        if header.stored_len != packed.len() as u64 {
            return Err(RafsError::Lie("contexts whose size is not what their header says"));
        }
        Self::decode(&expand(packed, header.compressor, header.raw_len, "contexts")?, &header, blob)
    }

    /// Reads the array and the header, which stand apart in a table of contents.
    ///
    /// # Errors
    /// The same.
    pub fn parts(array: &[u8], header: &[u8], blob: &Blob) -> Result<Self, RafsError> {
        let header = Header::read(header, blob)?;
        if header.raw_len != array.len() as u64 {
            return Err(RafsError::Lie("contexts whose size is not what their header says"));
        }
        Self::decode(array, &header, blob)
    }

    fn decode(array: &[u8], header: &Header, blob: &Blob) -> Result<Self, RafsError> {
        let size = if blob.layout == Layout::V1 { V1 } else { V2 };
        let records = cut(array, "chunk records", 0, u64::from(header.chunks) * size)?;
        let mut contexts = Self { chunks: Vec::new(), units: Vec::new(), windows: Vec::new() };
        if blob.needs_contexts() {
            if header.units_offset < records.len() as u64 {
                return Err(RafsError::Lie("zran or batch contexts in the middle of chunk records"));
            }
            let all = cut(array, "zran or batch contexts", header.units_offset, header.units_size)?;
            let len = u64::from(header.units) * CONTEXT;
            let units = cut(all, "zran or batch contexts", 0, len)?;
            if blob.layout == Layout::Zran {
                contexts.windows = all[units.len()..].to_vec();
            }
            for unit in units.chunks_exact(CONTEXT as usize) {
                let shared = match blob.layout {
                    Layout::Zran => contexts.zran(unit)?,
                    _ => {
                        Shared { at: None, stored_len: le32(unit, 0), raw_len: le32(unit, 4), deflate: None }
                    }
                };
                if shared.raw_len == 0 || u64::from(shared.raw_len) > MAX_UNIT {
                    return Err(RafsError::Lie("a zran or batch context of nothing, or of more than 64 MiB"));
                }
                contexts.units.push(shared);
            }
        }
        for record in records.chunks_exact(size as usize) {
            let record = if size == V1 { v1(record) } else { v2(record)? };
            contexts.place(&record)?;
            contexts.chunks.push(record);
        }
        Ok(contexts)
    }

    /// A zran context (`ZranInflateContext`).
    fn zran(&self, unit: &[u8]) -> Result<Shared, RafsError> {
        let (start, dictionary) = (le64(unit, 0), le64(unit, 16));
        let (window, bits) = (u64::from(le32(unit, 32)), unit[37]);
        if bits > 7 || window > WINDOW || start > 1 << 40 || (bits > 0 && start == 0) {
            return Err(RafsError::Lie("a zran context that nothing can be decoded from"));
        }
        cut(&self.windows, "the window of a zran context", dictionary, window)?;
        // All windows together are less than 256 MiB.
        let window = dictionary as u32..(dictionary + window) as u32;
        let deflate = Some(UnitCodec::Deflate { bits, window });
        Ok(Shared { at: Some(start), stored_len: le32(unit, 24), raw_len: le32(unit, 28), deflate })
    }

    /// Checks a chunk against the unit it is a part of.
    fn place(&mut self, record: &Record) -> Result<(), RafsError> {
        let Some((unit, offset)) = record.part else { return Ok(()) };
        let unit = self.units.get_mut(unit as usize).ok_or(RafsError::Lie("a chunk of no context"))?;
        if u64::from(offset) + u64::from(record.raw_len) > unit.raw_len.into() {
            return Err(RafsError::Lie("a chunk beyond what its context decodes to"));
        }
        // A batch's context does not say where it is: its chunks do.
        if unit.deflate.is_none() && *unit.at.get_or_insert(record.stored.start) != record.stored.start {
            return Err(RafsError::Lie("a batch in two places"));
        }
        Ok(())
    }
}

/// `BlobChunkInfoV1Ondisk`: sizes are one more than stored, in two parts.
fn v1(record: &[u8]) -> Record {
    let (raw, stored) = (le64(record, 0), le64(record, 8));
    let start = stored & 0xff_ffff_ffff;
    let len = (stored >> 44 | stored >> 20 & 0xf0_0000) + 1;
    let raw_len = (raw >> 44 | raw << 12 & 0xf0_0000) + 1;
    Record {
        stored: start..start + len,
        compressed: len != raw_len,
        raw_offset: raw & 0xfff_ffff_f000,
        raw_len: raw_len as u32,
        part: None,
    }
}

/// `BlobChunkInfoV2Ondisk`.
fn v2(record: &[u8]) -> Result<Record, RafsError> {
    let (raw, stored, data) = (le64(record, 0), le64(record, 8), le64(record, 16));
    let (compressed, zran, batch) = (raw >> 56 & 1 != 0, raw >> 56 & 2 != 0, raw >> 56 & 4 != 0);
    if raw >> 56 & 8 != 0 {
        return Err(RafsError::Encrypted);
    }
    if raw >> 56 & 0xe0 != 0 || zran && batch {
        return Err(RafsError::Unsupported("a chunk with a flag newer than this reader"));
    }
    let (start, len) = (stored & 0xff_ffff_ffff, stored >> 40);
    Ok(Record {
        stored: start..start + len,
        compressed,
        raw_offset: (raw & 0xffff_ffff) << 12,
        raw_len: (raw >> 32 & 0xff_ffff) as u32 + 1,
        part: (zran || batch).then_some(((data >> 32) as u32, data as u32)),
    })
}

/// `BlobCompressionContextHeader`.
struct Header {
    compressor: Compressor,
    chunks: u32,
    stored_len: u64,
    raw_len: u64,
    units_offset: u64,
    units_size: u64,
    units: u32,
}

impl Header {
    fn read(file: &[u8], blob: &Blob) -> Result<Self, RafsError> {
        let start = (file.len() as u64).saturating_sub(CONTEXT_HEADER);
        let header = cut(file, "the header of contexts", start, CONTEXT_HEADER)?;
        if le32(header, 0) != MAGIC || le32(header, CONTEXT_HEADER as usize - 4) != MAGIC {
            return Err(RafsError::Lie("contexts without their magic number"));
        }
        let header = Self {
            compressor: Compressor::try_from(le32(header, 8))?,
            chunks: le32(header, 12),
            stored_len: le64(header, 24),
            raw_len: le64(header, 32),
            units_offset: le64(header, 40),
            units_size: le64(header, 48),
            units: le32(header, 56),
        };
        let of_blob = blob.contexts.as_ref().is_some_and(|at| at.raw_len == header.raw_len);
        if !of_blob || header.chunks != blob.chunks || header.chunks > 1 << 24 {
            return Err(RafsError::Lie("contexts that are not those of their blob"));
        }
        if header.units > header.chunks || header.raw_len > MAX_CHUNK << 8 {
            return Err(RafsError::Lie("more contexts than chunks"));
        }
        Ok(header)
    }
}
