//! Which bytes of a layer's uncompressed stream stand where in its data file, and their digests.
//!
//! The *data file* is hoist's own address space of a layer: every regular file contiguous and
//! 4 KiB aligned, in the order of the layer's stream. A *piece* is a run of one file's bytes.
//! An *extent* is what is verified and published at once: one or more neighbouring pieces, their
//! digest taken over the data file's bytes from the extent's start to the end of its last piece
//! (padding between pieces included, as zeros). Ranges of the data file that no extent covers are
//! holes of sparse files or padding and are rightly zeros.

/// Alignment of files and extents in the data file, bytes: EROFS's block.
pub const BLOCK: u64 = 4096;

/// A file is cut into extents of this many bytes.
pub const EXTENT_MAX: u64 = 256 * 1024;

/// A run of bytes of the layer's uncompressed stream and its place in the data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Byte offset in the uncompressed layer stream.
    pub stream_offset: u64,
    /// Byte offset in the data file.
    pub data_offset: u64,
    /// Bytes, at least 1.
    pub len: u64,
}

/// The unit of verification and presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Byte offset in the data file, a multiple of [`BLOCK`].
    pub data_offset: u64,
    /// Bytes from there to the end of the last piece.
    pub len: u64,
    /// BLAKE3 of the data file's bytes `data_offset .. data_offset + len`; or a mere name of them, in a table of
    /// chunks ([`crate::chunk::Check`]).
    pub digest: [u8; 32],
    /// First of its pieces in [`ExtentTable::pieces`]; they reach to the next extent's first.
    pub first_piece: u32,
}

/// All extents of a layer. Extents and pieces ascend in both data and stream offset and do not overlap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtentTable {
    /// Ascending by `data_offset`.
    pub extents: Vec<Extent>,
    /// Ascending by `data_offset` and by `stream_offset`.
    pub pieces: Vec<Piece>,
    /// Size of the data file, bytes, a multiple of [`BLOCK`].
    pub data_size: u64,
}

impl ExtentTable {
    /// The pieces of extent `i`.
    pub fn pieces_of(&self, i: usize) -> &[Piece] {
        let end = self.extents.get(i + 1).map_or(self.pieces.len(), |e| e.first_piece as usize);
        &self.pieces[self.extents[i].first_piece as usize..end]
    }
    /// The indices of the extents that touch `start..end` of the data file (whole blocks count:
    /// an extent owns the padding up to its last block's end).
    pub fn touching(&self, start: u64, end: u64) -> std::ops::Range<usize> {
        let first =
            self.extents.partition_point(|e| (e.data_offset + e.len).next_multiple_of(BLOCK) <= start);
        let last = self.extents.partition_point(|e| e.data_offset < end);
        first..last.max(first)
    }
    /// The range of the uncompressed stream that extent `i` is made of.
    pub fn stream_range(&self, i: usize) -> std::ops::Range<u64> {
        let pieces = self.pieces_of(i);
        let (first, last) = (&pieces[0], &pieces[pieces.len() - 1]);
        first.stream_offset..last.stream_offset + last.len
    }
}
