//! From another format's metadata to ours: a tree, the chunks that were stored, and which of them each file is made
//! of, become the layout of a data file and the table that fills it.
//!
//! A decoder of a format says what it found and in whatever order it found it; here the data file is laid out, so that
//! what stands together where it is stored stands together in it.

mod layout;
mod names;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::chunk::{Blob, ChunkCodec, ContentDigest, MAX_CHUNK, MAX_STATE, MAX_STORED, Part};
use crate::digest::Digest;
use crate::table::{MAX_SIZE, Table};
use crate::tree::{InodeId, Tree};

pub(crate) use names::name_extents;

/// A chunk as it is stored: what is fetched and decoded at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    /// Which of the builder's blobs.
    pub blob: u16,
    /// Byte range in the blob; of [`ChunkCodec::Inflate`] with `bits` from the byte that has them.
    pub stored: Range<u64>,
    /// How.
    pub codec: ChunkCodec,
    /// Bytes of its output that are of use; of [`ChunkCodec::Lz4`] and [`ChunkCodec::BlockRun`] all of it.
    pub raw_len: u64,
    /// [`ChunkCodec::Inflate`]: high bits of the first byte that belong to it; 0: all of it.
    pub bits: u8,
    /// What decoding needs besides: a window of at most 32 KiB, or [`crate::codec::BlockRun::encode`].
    pub state: Option<Vec<u8>>,
    /// SHA-256 of the stored bytes, if the format has one.
    pub stored_digest: Option<[u8; 32]>,
}

/// A chunk that the builder was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(u32);

/// A run of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Zeros.
    Hole {
        /// Bytes.
        len: u64,
    },
    /// Output of a chunk.
    Data {
        /// Bytes.
        len: u64,
        /// Of which chunk.
        chunk: ChunkId,
        /// Byte offset in its output.
        offset: u64,
    },
}

impl Run {
    fn len(&self) -> u64 {
        match self {
            Self::Hole { len } | Self::Data { len, .. } => *len,
        }
    }
}

/// What a layer, or an image, of another format is in ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its files, whiteouts and folders, with their places in the data file.
    pub tree: Tree,
    /// What fills the data file.
    pub table: Table,
    /// The states that the table's chunks need, one after another.
    pub windows: Vec<u8>,
    /// Ranges of the data file that are read first, as the format tells; in order.
    pub prefetch: Vec<Range<u64>>,
}

/// Why what a format says makes no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A chunk that cannot be.
    #[error("a chunk at byte {start} of blob {blob}: {what}")]
    Chunk {
        /// Where it starts.
        start: u64,
        /// In which blob.
        blob: u16,
        /// What is wrong.
        what: &'static str,
    },
    /// A file whose contents cannot be.
    #[error("the contents of inode {inode}: {what}")]
    File {
        /// Which inode of the tree.
        inode: InodeId,
        /// What is wrong.
        what: &'static str,
    },
    /// More than hoist takes.
    #[error("{0}")]
    TooMuch(&'static str),
    /// A state could not be compressed.
    #[error("compressing what a chunk needs: {0}")]
    State(String),
}

/// Most chunks and runs of files that are taken: bounds memory.
const MOST: usize = 1 << 24;

/// Gathers chunks and files.
#[derive(Debug, Default)]
pub struct Builder {
    blobs: Vec<Blob>,
    chunks: Vec<StoredChunk>,
    parts: Vec<(ChunkId, Part)>,
    files: BTreeMap<InodeId, Vec<Run>>,
    runs: usize,
    /// Of which files which bytes.
    prefetch: Vec<(InodeId, Range<u64>)>,
}

impl Builder {
    /// A builder of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of a blob that chunks stand in, given once or again.
    ///
    /// # Errors
    /// When there are too many, or it is too large.
    pub fn blob(&mut self, digest: Digest, size: u64) -> Result<u16, BuildError> {
        if size > MAX_SIZE {
            return Err(BuildError::TooMuch("a blob has more than 8 TiB"));
        }
        let blob = Blob { digest, size };
        let at = self.blobs.iter().position(|b| *b == blob).unwrap_or(self.blobs.len());
        if at == self.blobs.len() {
            self.blobs.push(blob);
        }
        u16::try_from(at).ok().filter(|&n| n < u16::MAX).ok_or(BuildError::TooMuch("more than 65534 blobs"))
    }

    /// Takes a chunk.
    ///
    /// # Errors
    /// When it is not within its blob, or larger than it may be.
    pub fn chunk(&mut self, mut chunk: StoredChunk) -> Result<ChunkId, BuildError> {
        let bad = |what| Err(BuildError::Chunk { start: chunk.stored.start, blob: chunk.blob, what });
        let Some(blob) = self.blobs.get(usize::from(chunk.blob)) else {
            return bad("there is no such blob");
        };
        if chunk.stored.start >= chunk.stored.end || chunk.stored.end > blob.size {
            return bad("it is empty or reaches beyond its blob");
        }
        let len = chunk.stored.end - chunk.stored.start;
        if len > MAX_STORED || chunk.raw_len > MAX_CHUNK {
            return bad("it has more than 64 MiB");
        }
        if chunk.raw_len == 0 || chunk.raw_len > chunk.codec.most_output(len) {
            return bad("its output is empty, or more than its bytes can hold");
        }
        if chunk.bits > 7 || chunk.bits > 0 && chunk.codec != ChunkCodec::Inflate {
            return bad("it has bits that its codec has not");
        }
        if chunk.state.as_ref().is_some_and(|s| s.len() > MAX_STATE) {
            return bad("it needs a state of more than 64 KiB");
        }
        // Held as it is stored: a large layer has gigabytes of windows.
        if let Some(state) = &mut chunk.state {
            *state = zstd::bulk::compress(state, 3).map_err(|e| BuildError::State(e.to_string()))?;
        }
        let id =
            ChunkId(u32::try_from(self.chunks.len()).map_err(|_| BuildError::TooMuch("too many chunks"))?);
        if self.chunks.len() >= MOST {
            return Err(BuildError::TooMuch("more than 16 million chunks"));
        }
        self.chunks.push(chunk);
        Ok(id)
    }

    /// Bytes `output` of what the chunk decodes to have this digest. Nothing of a chunk is used before all of its
    /// digests were found right.
    ///
    /// # Errors
    /// When the range is empty or not within the chunk's output.
    pub fn check(
        &mut self,
        chunk: ChunkId,
        output: Range<u64>,
        digest: ContentDigest,
    ) -> Result<(), BuildError> {
        let stored = &self.chunks[chunk.0 as usize];
        if output.start >= output.end || output.end > stored.raw_len {
            let what = "a digest of bytes that it has not";
            return Err(BuildError::Chunk { start: stored.stored.start, blob: stored.blob, what });
        }
        if self.parts.len() >= MOST {
            return Err(BuildError::TooMuch("more than 16 million digests"));
        }
        let part = Part { offset: output.start, len: output.end - output.start, digest };
        self.parts.push((chunk, part));
        Ok(())
    }

    /// What a file of the tree is made of, in order. Hard links are one inode and so one file.
    ///
    /// # Errors
    /// When a run is not within its chunk, or the file has contents already.
    pub fn file(&mut self, inode: InodeId, runs: Vec<Run>) -> Result<(), BuildError> {
        let bad = |what| Err(BuildError::File { inode, what });
        self.runs += runs.len();
        if self.runs > MOST {
            return Err(BuildError::TooMuch("files of more than 16 million runs"));
        }
        for run in &runs {
            if run.len() == 0 {
                return bad("an empty run");
            }
            if let Run::Data { len, chunk, offset } = *run {
                let Some(stored) = self.chunks.get(chunk.0 as usize) else { return bad("an unknown chunk") };
                if offset.checked_add(len).is_none_or(|end| end > stored.raw_len) {
                    return bad("more bytes than its chunk decodes to");
                }
            }
        }
        match self.files.insert(inode, runs) {
            Some(_) => bad("it is described twice"),
            None => Ok(()),
        }
    }

    /// Whoever uses the image reads this file soon: fetch it early, after those given before.
    pub fn prefetch(&mut self, inode: InodeId) {
        self.prefetch_part(inode, 0..u64::MAX);
    }

    /// The same of a part of it, bytes.
    pub fn prefetch_part(&mut self, inode: InodeId, part: Range<u64>) {
        if self.prefetch.len() < MOST {
            self.prefetch.push((inode, part));
        }
    }

    /// Lays out the data file and makes the table. The tree's files get their places in it.
    ///
    /// # Errors
    /// When a file's runs are not what the tree says of its size, or there is too much of something.
    pub fn build(self, tree: Tree) -> Result<Described, BuildError> {
        layout::build(self, tree)
    }
}

#[cfg(test)]
mod tests;
