//! RAFS, the file system of nydus images: one *bootstrap* for the whole image names the files, and the chunks that
//! their contents are cut into; the chunks lie in the image's blobs, or in other images' (a chunk dictionary's).
//!
//! Version 5 has a layout of its own; version 6 is EROFS with tables beside it. Where chunks are not decoded one by
//! one (*zran*: they lie in the gzip layer of the original image; *batch*: many small ones are compressed as one), a
//! blob has [`Contexts`] that say how.
//!
//! Facts are from nydus's `rafs/src/metadata/layout/{v5,v6}.rs` and `storage/src/{device.rs,meta/*}` (2.4). Everything
//! is little-endian, and nothing of it is believed: offsets, counts and sizes are checked, inodes may not overlap, and
//! what is decoded takes memory in proportion to the bootstrap's size.

mod blob;
mod bootstrap;
mod bytes;
mod context;
mod error;
mod package;
mod pieces;
mod toc;
mod v5;
mod v6;

pub use blob::{Blob, Compressor, Digester, Layout, Location};
pub use bootstrap::{Beside, Bootstrap, Version};
pub use context::Contexts;
pub use error::RafsError;
pub use package::{MAX_PACKAGE, Package, PackageReader};
pub use toc::{MAX_TOC, Toc, TocEntry, USUAL_TOC};

use std::ops::Range;

use crate::tree::{InodeId, Kind, ROOT, Tree};

/// Largest chunk, bytes (`RAFS_MAX_CHUNK_SIZE`).
pub const MAX_CHUNK: u64 = 16 << 20;
/// Most that a zran context or a batch may decode to, bytes: it is held in memory while it is decoded.
pub const MAX_UNIT: u64 = 64 << 20;

/// An image's file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rafs {
    /// Which layout it came in.
    pub version: Version,
    /// Names and attributes. Where the files' data is, is for the caller to settle.
    pub tree: Tree,
    /// The contents of all regular files that are not empty, each inode once.
    pub files: Vec<File>,
    /// What is decoded at once.
    pub units: Vec<Unit>,
    /// What files are made of and digests are taken of.
    pub pieces: Vec<Piece>,
    /// The gzip windows of zran units, one after the other.
    pub windows: Vec<u8>,
    /// Where the units lie.
    pub blobs: Vec<Blob>,
    /// How [`Piece::digest`] was taken.
    pub digester: Digester,
    /// Files that the image's maker wants to be fetched first, in that order. Empty where all of them are named.
    pub prefetch: Vec<InodeId>,
}

/// A regular file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its inode in the tree.
    pub inode: InodeId,
    /// From its first byte to its last.
    pub runs: Vec<Run>,
}

/// Some bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Which of [`Rafs::pieces`] they are the start of; none: they are zeros.
    pub piece: Option<u32>,
    /// Bytes, at least 1 and at most the piece's.
    pub len: u64,
}

/// A chunk: part of what a unit decodes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which of [`Rafs::units`].
    pub unit: u32,
    /// Byte offset in what that decodes to.
    pub offset: u32,
    /// Bytes, 1 to [`MAX_CHUNK`].
    pub len: u32,
    /// Digest of these bytes.
    pub digest: [u8; 32],
}

/// What must be fetched and decoded whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Which of [`Rafs::blobs`].
    pub blob: u32,
    /// Bytes of the blob.
    pub stored: Range<u64>,
    /// How they are stored.
    pub codec: UnitCodec,
    /// Bytes they decode to, 1 to [`MAX_UNIT`]. More may follow, which is of no interest.
    pub raw_len: u32,
}

/// How a unit is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitCodec {
    /// As it is.
    Plain,
    /// One LZ4 block without a frame.
    Lz4Block,
    /// One zstd frame.
    Zstd,
    /// A gzip member.
    Gzip,
    /// Deflate data from the middle of a gzip member on.
    Deflate {
        /// How many high bits of the byte before `stored` come first, 0 to 7.
        bits: u8,
        /// The window: bytes of [`Rafs::windows`], at most 32 KiB; empty where none is needed.
        window: Range<u32>,
    },
}

/// The files that a prefetch table's entries stand for, each once: a folder stands for all that is in it. Where the
/// root is named, as it is unless the image's maker chose, nothing is to come before anything else.
fn prefetch(tree: &Tree, wanted: impl Iterator<Item = InodeId>) -> Vec<InodeId> {
    let mut seen = vec![false; tree.inodes.len()];
    let mut files = Vec::new();
    for start in wanted {
        if start == ROOT {
            return Vec::new();
        }
        let mut stack = vec![start];
        while let Some(id) = stack.pop() {
            if std::mem::replace(&mut seen[id as usize], true) {
                continue;
            }
            match &tree.get(id).kind {
                Kind::Dir(entries) => stack.extend(entries.values().rev()),
                Kind::File { size, .. } if *size > 0 => files.push(id),
                _ => {}
            }
        }
    }
    files
}
