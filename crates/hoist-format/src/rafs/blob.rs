//! What a bootstrap says of the blobs that hold the chunks.

use std::ops::Range;

use super::RafsError;
use super::bytes::digest;
use crate::digest::Digest;
use crate::erofs::{le32, le64};

/// How chunks are compressed (`nydus_utils::compress::Algorithm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compressor {
    /// Not at all.
    None,
    /// LZ4 blocks.
    Lz4Block,
    /// gzip members.
    Gzip,
    /// zstd frames.
    Zstd,
}

/// How chunks are digested (`nydus_utils::digest::Algorithm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digester {
    /// BLAKE3.
    Blake3,
    /// SHA-256.
    Sha256,
}

/// A blob with chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The OCI blob. Of a zran blob: the gzip layer.
    pub digest: Digest,
    /// How its chunks are compressed, but for those that say that they are not.
    pub compressor: Compressor,
    /// Chunks lie before this byte of it.
    pub data_size: u64,
    /// Chunks that it holds, of whatever image; 0 where that is not known.
    pub chunks: u32,
    /// How its chunks are put together, where that is not one by one.
    pub layout: Layout,
    /// Where its contexts are; none in version 5.
    pub contexts: Option<Location>,
    /// It has a table of its chunks' digests besides the bootstrap's.
    pub(super) inlined_digests: bool,
}

/// How chunks are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One by one, described by records of version 1.
    V1,
    /// One by one, described by records of version 2.
    V2,
    /// Parts of a gzip layer.
    Zran,
    /// Some of them many at once.
    Batch,
}

/// Where a blob's contexts are stored, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The OCI blob that holds them.
    pub blob: Digest,
    /// Bytes of it: the compressed array and the header behind it.
    pub stored: Range<u64>,
    /// Bytes of the array when decompressed.
    pub raw_len: u64,
    /// SHA-256 of that blob's table of contents.
    pub toc: Option<[u8; 32]>,
}

/// Bytes of a blob's record in version 6 (`RafsV6Blob`).
pub(super) const RECORD: u64 = 256;
/// Bytes of the header behind a blob's contexts.
pub(super) const CONTEXT_HEADER: u64 = 4096;

/// Feature bits (`BlobFeatures`).
const CHUNK_INFO_V2: u32 = 0x4;
const ZRAN: u32 = 0x8;
const SEPARATE: u32 = 0x10;
const INLINED_CHUNK_DIGEST: u32 = 0x20;
const TARFS: u32 = 0x40;
const BATCH: u32 = 0x80;
const ENCRYPTED: u32 = 0x100;
/// Those that a reader must know, and those that this one does.
const INCOMPATIBLE: u32 = 0xffff;
const KNOWN: u32 = 0x3ff;
/// Largest blob with chunks, bytes (`BLOB_MAX_SIZE_COMPRESSED`).
const MAX_BLOB: u64 = 1 << 40;

impl TryFrom<u32> for Compressor {
    type Error = RafsError;
    fn try_from(code: u32) -> Result<Self, RafsError> {
        match code {
            0 => Ok(Self::None),
            1 => Ok(Self::Lz4Block),
            2 => Ok(Self::Gzip),
            3 => Ok(Self::Zstd),
            _ => Err(RafsError::Unsupported("a compression newer than none, lz4, gzip and zstd")),
        }
    }
}

impl TryFrom<u32> for Digester {
    type Error = RafsError;
    fn try_from(code: u32) -> Result<Self, RafsError> {
        match code {
            0 => Ok(Self::Blake3),
            1 => Ok(Self::Sha256),
            _ => Err(RafsError::Unsupported("a chunk digest newer than BLAKE3 and SHA-256")),
        }
    }
}

/// What a superblock of either version says of all its chunks (`RafsSuperFlags`).
pub(super) struct Flags {
    pub compressor: Compressor,
    pub digester: Digester,
    /// Owners are stored; else everything is root's.
    pub owners: bool,
}

impl Flags {
    pub fn read(flags: u64) -> Result<Self, RafsError> {
        let one_of = |all: &[u64]| {
            let mut set = (0u32..).zip(all).filter(|&(_, bit)| flags & bit != 0).map(|(code, _)| code);
            (set.next(), set.next())
        };
        let compressor = match one_of(&[0x1, 0x2, 0x40, 0x80]) {
            (Some(code), None) => Compressor::try_from(code)?,
            (None, None) => Compressor::None,
            _ => return Err(RafsError::Lie("its chunks have several compressions")),
        };
        let digester = match one_of(&[0x4, 0x8]) {
            (Some(code), None) => Digester::try_from(code)?,
            _ => return Err(RafsError::Lie("its chunks have no digest, or several")),
        };
        if flags & 0x200 != 0 {
            return Err(RafsError::Unsupported("a tar file in place of chunks (tarfs)"));
        }
        if flags & 0x0200_0000 != 0 {
            return Err(RafsError::Encrypted);
        }
        Ok(Self { compressor, digester, owners: flags & 0x10 != 0 })
    }
}

/// A blob's name as both versions have it: the hexadecimal digits of its digest.
pub(super) fn blob_digest(id: &[u8]) -> Result<Digest, RafsError> {
    let text = std::str::from_utf8(id).ok().and_then(|id| format!("sha256:{id}").parse().ok());
    text.ok_or(RafsError::Unsupported("a blob that is not named by its SHA-256"))
}

impl Blob {
    /// Reads record `index` of version 6's blob table.
    pub(super) fn read(record: &[u8], index: u32) -> Result<Self, RafsError> {
        let features = le32(record, 84);
        if features & ENCRYPTED != 0 || le32(record, 216) != 0 {
            return Err(RafsError::Encrypted);
        }
        if features & TARFS != 0 || features & INCOMPATIBLE & !KNOWN != 0 {
            return Err(RafsError::Unsupported("a blob with a feature newer than this reader"));
        }
        if le32(record, 64) != index {
            return Err(RafsError::Lie("its blobs are out of order"));
        }
        Digester::try_from(le32(record, 80))?;
        let layout = match (features & CHUNK_INFO_V2 != 0, features & ZRAN != 0, features & BATCH != 0) {
            (false, false, false) => Layout::V1,
            (true, false, false) => Layout::V2,
            (true, true, false) => Layout::Zran,
            (true, false, true) => Layout::Batch,
            _ => return Err(RafsError::Lie("a blob's features contradict each other")),
        };
        let data_size = le64(record, 88);
        if data_size > MAX_BLOB {
            return Err(RafsError::Lie("a blob of more than 1 TiB"));
        }
        let digest = blob_digest(&record[..64])?;
        let contexts = Location::read(record, digest, features & SEPARATE != 0)?;
        Ok(Self {
            digest,
            compressor: Compressor::try_from(le32(record, 76))?,
            data_size,
            chunks: le32(record, 72),
            layout,
            contexts: Some(contexts),
            inlined_digests: features & INLINED_CHUNK_DIGEST != 0,
        })
    }

    /// Chunks can't be decoded without its contexts.
    pub fn needs_contexts(&self) -> bool {
        matches!(self.layout, Layout::Zran | Layout::Batch)
    }
}

impl Location {
    fn read(record: &[u8], blob: Digest, separate: bool) -> Result<Self, RafsError> {
        let (start, len) = (le64(record, 112), le64(record, 120));
        let end = start.checked_add(len).and_then(|end| end.checked_add(CONTEXT_HEADER));
        let end = end.filter(|end| *end <= MAX_BLOB).ok_or(RafsError::Lie("contexts beyond 1 TiB"))?;
        let (toc, own) = (digest(record, 136), digest(record, 168));
        let toc = (toc != [0; 32]).then_some(toc);
        let blob = if separate && own != [0; 32] { Digest::from_bytes(own) } else { blob };
        Ok(Self { blob, stored: start..end, raw_len: le64(record, 128), toc })
    }
}
