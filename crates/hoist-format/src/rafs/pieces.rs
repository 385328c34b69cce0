//! Chunks on their way to units and pieces: each once, whoever names it, and only those that a file names.

use std::collections::HashMap;
use std::ops::Range;

use super::context::Shared;
use super::{Blob, Compressor, File, MAX_CHUNK, Piece, RafsError, Run, Unit, UnitCodec};

/// What one chunk is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Chunk {
    pub blob: u32,
    pub stored: Range<u64>,
    pub compressed: bool,
    pub raw_len: u32,
    pub digest: [u8; 32],
}

/// Units and pieces so far.
#[derive(Default)]
pub(super) struct Pieces {
    pub units: Vec<Unit>,
    pub pieces: Vec<Piece>,
    /// The units that chunks are parts of, by blob and index in its contexts.
    shared: HashMap<(u32, u32), u32>,
}

impl Pieces {
    /// Adds a chunk that is decoded alone.
    pub fn whole(&mut self, blobs: &[Blob], chunk: &Chunk) -> Result<u32, RafsError> {
        let blob = blobs.get(chunk.blob as usize).ok_or(RafsError::Lie("a chunk of no blob"))?;
        let codec = match blob.compressor {
            _ if !chunk.compressed => UnitCodec::Plain,
            Compressor::None => return Err(RafsError::Lie("a compressed chunk in a blob that is not")),
            Compressor::Lz4Block => UnitCodec::Lz4Block,
            Compressor::Zstd => UnitCodec::Zstd,
            Compressor::Gzip => UnitCodec::Gzip,
        };
        let (stored, raw_len) = (&chunk.stored, chunk.raw_len);
        if raw_len == 0 || u64::from(raw_len) > MAX_CHUNK {
            return Err(RafsError::Lie("a chunk of nothing, or of more than 16 MiB"));
        }
        if stored.is_empty() || stored.end > blob.data_size {
            return Err(RafsError::Lie("a chunk beyond its blob"));
        }
        if codec == UnitCodec::Plain && stored.end - stored.start != u64::from(raw_len) {
            return Err(RafsError::Lie("a chunk that is not compressed, of two sizes"));
        }
        let unit = Unit { blob: chunk.blob, stored: stored.clone(), codec, raw_len };
        let unit = push(&mut self.units, unit)?;
        push(&mut self.pieces, Piece { unit, offset: 0, len: raw_len, digest: chunk.digest })
    }

    /// Adds a chunk that is part of unit `index` of its blob's contexts. What that decodes to was checked already.
    pub fn part(
        &mut self,
        blob: &Blob,
        chunk: &Chunk,
        (index, offset): (u32, u32),
        unit: &Shared,
        windows: u32,
    ) -> Result<u32, RafsError> {
        let key = (chunk.blob, index);
        let unit = match self.shared.get(&key) {
            Some(&unit) => unit,
            None => {
                let at = unit.at.ok_or(RafsError::Lie("a batch that is nowhere"))?;
                let codec = match (&unit.deflate, blob.compressor) {
                    (Some(UnitCodec::Deflate { bits, window }), _) => {
                        let window = window.start + windows..window.end + windows;
                        UnitCodec::Deflate { bits: *bits, window }
                    }
                    (_, Compressor::None) => UnitCodec::Plain,
                    (_, Compressor::Lz4Block) => UnitCodec::Lz4Block,
                    (_, Compressor::Zstd) => UnitCodec::Zstd,
                    (_, Compressor::Gzip) => UnitCodec::Gzip,
                };
                // Offsets have 40 bits at most.
                let stored = at..at + u64::from(unit.stored_len);
                if stored.is_empty() || stored.end > blob.data_size {
                    return Err(RafsError::Lie("a zran or batch context beyond its blob"));
                }
                let unit = Unit { blob: chunk.blob, stored, codec, raw_len: unit.raw_len };
                let unit = push(&mut self.units, unit)?;
                self.shared.insert(key, unit);
                unit
            }
        };
        push(&mut self.pieces, Piece { unit, offset, len: chunk.raw_len, digest: chunk.digest })
    }
}

fn push<T>(all: &mut Vec<T>, one: T) -> Result<u32, RafsError> {
    let index = u32::try_from(all.len()).map_err(|_| RafsError::Lie("more than 2^32 chunks"))?;
    all.push(one);
    Ok(index)
}

/// Bounds what files may come to: runs that no inode of its own stands for are copies, which are rare.
pub(super) struct Budget {
    runs: u64,
    own: u64,
}

impl Budget {
    pub fn new(bootstrap: &[u8]) -> Self {
        let size = bootstrap.len() as u64;
        Self { runs: (1 << 20) + size / 16, own: size }
    }

    /// An inode claims bytes of the bootstrap for itself: those of sound ones do not overlap.
    pub fn own(&mut self, bytes: u64) -> Option<()> {
        self.own = self.own.checked_sub(bytes)?;
        Some(())
    }

    /// A file has one run more.
    pub fn run(&mut self, file: &mut File, run: Run) -> Result<(), RafsError> {
        let left = self.runs.checked_sub(1);
        self.runs = left.ok_or(RafsError::Lie("its files have more chunks than its size allows"))?;
        file.runs.push(run);
        Ok(())
    }
}
