//! Where a layer's bytes stand when they were stored in *chunks* that are decoded each by itself, as other systems'
//! formats have them.
//!
//! The stream of such a layer is ours: the chunks' outputs one after another, in the order of the data file. Nothing
//! is promised of where the chunks stand: they may be in several blobs, in any order, and a chunk whose output is
//! wanted at several places of the data file has an entry for each.

use std::ops::Range;

use crate::digest::Digest;

/// Largest output of one chunk, bytes: it is checked as a whole before any of it is used.
pub const MAX_CHUNK: u64 = 64 << 20;
/// Largest stored chunk, bytes: it is held in memory.
pub const MAX_STORED: u64 = 64 << 20;
/// Largest state that a chunk may need, bytes: gzip's window has 32 KiB.
pub const MAX_STATE: usize = 64 << 10;

/// Chunks that are as near to each other as this come by one request, bytes.
const GAP: u64 = 16 << 10;

/// How one chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChunkCodec {
    /// As it is.
    Plain,
    /// gzip members (RFC 1952), one or more, from a member's header on.
    Gzip,
    /// zstd frames (RFC 8878), one or more.
    Zstd,
    /// Raw deflate (RFC 1951) from between two blocks on; its state is the window before it, if it needs one.
    Inflate,
    /// One block of LZ4 (lz4 `doc/lz4_Block_format.md`) without frame or length.
    Lz4,
    /// A run of blocks, each compressed alone, with a checksum behind each if the state says so (overlaybd's ZFile);
    /// its state is [`crate::codec::BlockRun`].
    BlockRun,
}

impl ChunkCodec {
    const ALL: [Self; 6] = [Self::Plain, Self::Gzip, Self::Zstd, Self::Inflate, Self::Lz4, Self::BlockRun];

    pub(crate) fn number(self) -> u8 {
        self as u8
    }
    pub(crate) fn of_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
    /// Most bytes that so many stored ones can decode to.
    pub(crate) fn most_output(self, stored: u64) -> u64 {
        let ratio = match self {
            Self::Plain => 1,
            Self::Gzip | Self::Inflate => 1032,
            // A byte of length is worth 255.
            Self::Lz4 => 256,
            Self::Zstd | Self::BlockRun => 32 << 10,
        };
        stored.saturating_mul(ratio)
    }
}

/// A blob that chunks stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// The digest of contents, by one of the functions that formats use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContentDigest {
    /// SHA-256.
    Sha256([u8; 32]),
    /// BLAKE3.
    Blake3([u8; 32]),
}

impl ContentDigest {
    /// Are these the bytes?
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Sha256(digest) => Digest::of(bytes).as_bytes() == digest,
            Self::Blake3(digest) => blake3::hash(bytes).as_bytes() == digest,
        }
    }
    /// The raw digest.
    pub fn bytes(&self) -> &[u8; 32] {
        match self {
            Self::Sha256(digest) | Self::Blake3(digest) => digest,
        }
    }
}

/// A range of a chunk's output that has a digest. None of the output is used before all its parts were found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Byte offset in the chunk's output.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// Digest of these bytes.
    pub digest: ContentDigest,
}

/// One chunk at one place of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Byte offset in the stream at which its output starts; it reaches to the next chunk's.
    pub stream_offset: u64,
    /// Byte offset in its blob. For [`ChunkCodec::Inflate`] with `bits` the byte with these bits, which the chunk
    /// before it may share.
    pub start: u64,
    /// Stored bytes, at most [`MAX_STORED`].
    pub len: u64,
    /// Index into [`ChunkTable::blobs`].
    pub blob: u16,
    /// How it is stored.
    pub codec: ChunkCodec,
    /// [`ChunkCodec::Inflate`] only: how many high bits of the first byte belong to it, 0 to 7; 0: all of it.
    pub bits: u8,
    /// Index into [`ChunkTable::states`], if it needs one.
    pub state: Option<u32>,
    /// Index into [`ChunkTable::stored_digests`], if its stored bytes have a digest.
    pub stored_digest: Option<u32>,
    /// First of its parts in [`ChunkTable::parts`]; they reach to the next chunk's first.
    pub first_part: u32,
}

/// What decoding a chunk needs besides its bytes: where it stands, compressed, in the index's windows blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// Byte offset in the windows blob.
    pub offset: u64,
    /// Stored bytes; 0: none needed.
    pub len: u32,
    /// BLAKE3 of the stored bytes.
    pub digest: [u8; 32],
}

/// What holds the extents of a table of chunks to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Check {
    /// The BLAKE3 of the extent, as in a table of our own.
    #[default]
    Extents,
    /// The chunks that an extent is cut from. The BLAKE3 of the extent is not known before it is fetched first, and is
    /// recorded then. [`crate::extent::Extent::digest`] is a name: equal names are of equal bytes, zero is no name.
    Chunks,
}

/// All chunks of a layer or an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChunkTable {
    /// The blobs that they stand in.
    pub blobs: Vec<Blob>,
    /// Bytes of the stream: of all chunks' outputs.
    pub stream_size: u64,
    /// Ascending by `stream_offset`; the first has 0.
    pub chunks: Vec<Chunk>,
    /// The parts of all chunks, those of one ascending.
    pub parts: Vec<Part>,
    /// Each state once, ascending by offset.
    pub states: Vec<State>,
    /// SHA-256 of stored bytes.
    pub stored_digests: Vec<[u8; 32]>,
    /// What the extents' digests are.
    pub check: Check,
}

impl ChunkTable {
    /// The chunk whose output holds byte `stream_offset`.
    pub fn containing(&self, stream_offset: u64) -> usize {
        self.chunks.partition_point(|c| c.stream_offset <= stream_offset).saturating_sub(1)
    }
    /// The range of the stream that chunk `i` decodes to. What it decodes to beyond is of no use.
    pub fn stream_range(&self, i: usize) -> Range<u64> {
        self.chunks[i].stream_offset..self.chunks.get(i + 1).map_or(self.stream_size, |c| c.stream_offset)
    }
    /// Bytes between chunk `i` and the next in their blob, where one request brings both: none, or padding, or what
    /// nobody wants.
    pub fn gap_behind(&self, i: usize) -> Option<u64> {
        let (this, next) = (self.chunks.get(i)?, self.chunks.get(i + 1)?);
        let end = this.start + this.len;
        // Neighbours in mid-byte share it.
        let gap = if next.bits > 0 && next.start + 1 == end { Some(0) } else { next.start.checked_sub(end) };
        gap.filter(|&gap| next.blob == this.blob && gap <= GAP)
    }
    /// Where chunk `i` stands in its blob.
    pub fn stored_range(&self, i: usize) -> Range<u64> {
        self.chunks[i].start..self.chunks[i].start + self.chunks[i].len
    }
    /// The parts of chunk `i`.
    pub fn parts_of(&self, i: usize) -> &[Part] {
        let end = self.chunks.get(i + 1).map_or(self.parts.len(), |c| c.first_part as usize);
        &self.parts[self.chunks[i].first_part as usize..end]
    }
    /// The digest of chunk `i`'s stored bytes.
    pub fn stored_digest(&self, i: usize) -> Option<&[u8; 32]> {
        self.stored_digests.get(self.chunks[i].stored_digest? as usize)
    }
    /// Its extents have digests of their own from now on: those of parts and stored bytes are not needed any more.
    pub fn rest_on_extents(&mut self) {
        self.check = Check::Extents;
        self.parts.clear();
        self.stored_digests.clear();
        for chunk in &mut self.chunks {
            (chunk.first_part, chunk.stored_digest) = (0, None);
        }
    }
    /// The state that chunk `i` needs.
    pub fn state(&self, i: usize) -> Option<&State> {
        self.states.get(self.chunks[i].state? as usize)
    }
}
