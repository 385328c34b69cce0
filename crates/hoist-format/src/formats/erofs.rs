//! Layers that are EROFS images (containerd 2.3 `docs/snapshotters/erofs.md`), told by their media type: as they are,
//! or as one zstd stream.
//!
//! They have no digest finer than the blob's. So they are fetched whole and verified like a tar layer, and read once
//! all of the image is here; the index that comes of it has digests of all parts.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::ops::Range;

use crate::build::{BuildError, Builder, ChunkId, Described, Run, StoredChunk};
use crate::chunk::{Check, ChunkCodec, ChunkTable, MAX_CHUNK, MAX_STORED};
use crate::codec::decode_bytes;
use crate::digest::Digest;
use crate::erofs::{Bytes, DecodeError, decode_foreign};
use crate::layer::DataSink;
use crate::span::{Codec, Spans};
use crate::volume::Stretch;

const MEDIA_TYPE: &str = "application/vnd.erofs.layer.v1";
const ZSTD: &str = "application/vnd.erofs.layer.v1+zstd";
/// Bytes of a file that a published index has fetched at once.
const RUN: u64 = 256 << 10;

/// Most bytes that decoding all files takes, where the image has fewer than a 32nd of them: they may share clusters.
const FREE_CONTENTS: u64 = 8 << 30;
const MOST_SHARED: u64 = 32;

/// What such a layer is called, for people; None where it is none.
pub fn image_format(media_type: &str) -> Option<&'static str> {
    image_codec(media_type).map(|codec| if codec == Codec::Zstd { "EROFS within zstd" } else { "EROFS" })
}

/// How a layer that is a file system's image is stored; None where it is none.
pub fn image_codec(media_type: &str) -> Option<Codec> {
    match media_type {
        MEDIA_TYPE => Some(Codec::Plain),
        ZSTD => Some(Codec::Zstd),
        _ => None,
    }
}

/// A layer that is a file system's image, and all of it here.
#[derive(Debug, Clone, Copy)]
pub struct ImageLayer<'a> {
    /// The image, uncompressed.
    pub image: &'a [u8],
    /// Its digest.
    pub digest: Digest,
    /// How the blob stores it.
    pub codec: Codec,
    /// The blob's digest and size.
    pub blob: (Digest, u64),
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is damaged, or not read by hoist.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its files make no data file.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A cluster of it.
    #[error("the cluster at byte {at} of the image is damaged")]
    Cluster {
        /// Byte offset in the image.
        at: u64,
    },
    /// Its files share clusters beyond measure.
    #[error("its files have more than 8 GiB and 32 times the image's bytes")]
    TooMuch,
    /// The data could not be stored.
    #[error("writing {len} bytes of layer data at {offset}")]
    Write {
        /// Offset in the data file.
        offset: u64,
        /// Bytes.
        len: usize,
        /// Why.
        source: io::Error,
    },
}

impl ImageLayer<'_> {
    /// Reads it: its tree and its table, whose extents have their digests. The contents of its files go to `out`.
    ///
    /// Where the blob cannot be read in parts, the table's chunks are of a blob that has the digest of the image: then
    /// it says what is in the data file, and nothing can be fetched by it.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn read(&self, out: &mut dyn DataSink) -> Result<Described, ImageError> {
        let volume = decode_foreign(Bytes::Whole(self.image))?;
        let size = self.image.len() as u64;
        let packed =
            volume.contents.values().flatten().any(|stretch| matches!(stretch, Stretch::Packed { .. }));
        let at_once = !packed && size <= MAX_CHUNK && self.blob.1 <= MAX_STORED;
        let stored = match self.codec {
            Codec::Plain => Stored::Parts(self.blob),
            _ if at_once => Stored::Whole(self.blob.1),
            _ => Stored::Parts((self.digest, size)),
        };
        let mut chunks = Chunks::new(stored, self.blob.0, size)?;
        for (inode, stretches) in &volume.contents {
            let mut runs = Vec::new();
            for stretch in stretches {
                chunks.runs(stretch, &mut runs)?;
            }
            chunks.builder.file(*inode, runs)?;
        }
        let mut described = chunks.builder.build(volume.tree)?;
        if let Spans::Chunks(table) = &mut described.table.spans {
            if table.stream_size > FREE_CONTENTS.max(size.saturating_mul(MOST_SHARED)) {
                return Err(ImageError::TooMuch);
            }
            table.check = Check::Extents;
        }
        self.write(&mut described, matches!(stored, Stored::Whole(_)), out)?;
        Ok(described)
    }

    /// Writes the data file, extent by extent, and notes their digests. `whole`: every chunk is the image.
    fn write(
        &self,
        described: &mut Described,
        whole: bool,
        out: &mut dyn DataSink,
    ) -> Result<(), ImageError> {
        let table = &mut described.table;
        let Spans::Chunks(chunks) = &table.spans else { return Ok(()) };
        let mut held: Option<(usize, Cow<'_, [u8]>)> = None;
        let mut bytes = Vec::new();
        for i in 0..table.extents.extents.len() {
            let (offset, len) = (table.extents.extents[i].data_offset, table.extents.extents[i].len);
            bytes.clear();
            bytes.resize(len as usize, 0);
            for piece in table.extents.pieces_of(i) {
                let (mut at, end) = (piece.stream_offset, piece.stream_offset + piece.len);
                let mut to = (piece.data_offset - offset) as usize;
                while at < end {
                    let chunk = chunks.containing(at);
                    if held.as_ref().is_none_or(|(known, _)| *known != chunk) {
                        let output =
                            if whole { Cow::Borrowed(self.image) } else { self.output(chunks, chunk)? };
                        held = Some((chunk, output));
                    }
                    let Some((_, output)) = &held else { break };
                    let start = chunks.stream_range(chunk).start;
                    let from = (at - start) as usize;
                    let n = (end - at).min(output.len().saturating_sub(from) as u64) as usize;
                    if n == 0 {
                        return Err(ImageError::Cluster { at: chunks.chunks[chunk].start });
                    }
                    bytes[to..to + n].copy_from_slice(&output[from..from + n]);
                    (at, to) = (at + n as u64, to + n);
                }
            }
            table.extents.extents[i].digest = blake3::hash(&bytes).into();
            let written = out.write(offset, &bytes);
            written.map_err(|source| ImageError::Write { offset, len: bytes.len(), source })?;
        }
        Ok(())
    }

    /// What a chunk of the image decodes to.
    fn output(&self, table: &ChunkTable, i: usize) -> Result<Cow<'_, [u8]>, ImageError> {
        let (stored, output) = (table.stored_range(i), table.stream_range(i));
        let cluster = || ImageError::Cluster { at: stored.start };
        let bytes = self.image.get(stored.start as usize..stored.end as usize).ok_or_else(cluster)?;
        let raw_len = output.end - output.start;
        let raw = decode_bytes(table.chunks[i].codec, 0, &[], bytes, raw_len).map_err(|_| cluster())?;
        if raw.len() as u64 == raw_len { Ok(raw) } else { Err(cluster()) }
    }
}

/// How the image's bytes are had from a blob.
#[derive(Clone, Copy)]
enum Stored {
    /// They stand in it as they are, in a blob of this digest and size.
    Parts((Digest, u64)),
    /// All of it, so many bytes, is one zstd stream.
    Whole(u64),
}

/// What tells a cluster from others.
type Cluster = (Range<u64>, ChunkCodec, u64);

struct Chunks {
    builder: Builder,
    blob: u16,
    /// Where every chunk is the image.
    whole: Option<ChunkId>,
    clusters: HashMap<Cluster, ChunkId>,
}

impl Chunks {
    /// `size`: bytes of the image.
    fn new(stored: Stored, digest: Digest, size: u64) -> Result<Self, BuildError> {
        let mut builder = Builder::new();
        let (blob, whole) = match stored {
            Stored::Parts((digest, size)) => (builder.blob(digest, size)?, None),
            Stored::Whole(len) => {
                let blob = builder.blob(digest, len)?;
                (blob, Some(builder.chunk(chunk(blob, 0..len, ChunkCodec::Zstd, size))?))
            }
        };
        Ok(Self { builder, blob, whole, clusters: HashMap::new() })
    }

    /// Appends the runs that a stretch of a file is.
    fn runs(&mut self, stretch: &Stretch, out: &mut Vec<Run>) -> Result<(), BuildError> {
        match (stretch, self.whole) {
            (Stretch::Hole { len }, _) => out.push(Run::Hole { len: *len }),
            (Stretch::Plain { offset, len }, Some(chunk)) => {
                out.push(Run::Data { len: *len, chunk, offset: *offset });
            }
            (Stretch::Plain { offset, len }, None) => {
                let mut at = 0;
                while at < *len {
                    let n = RUN.min(len - at);
                    let stored = offset + at..offset + at + n;
                    let chunk = self.builder.chunk(chunk(self.blob, stored, ChunkCodec::Plain, n))?;
                    out.push(Run::Data { len: n, chunk, offset: 0 });
                    at += n;
                }
            }
            (Stretch::Packed { stored, codec, raw_len, offset, len }, _) => {
                let key = (stored.clone(), *codec, *raw_len);
                let known = match self.clusters.get(&key) {
                    Some(&known) => known,
                    None => {
                        let fresh = self.builder.chunk(chunk(self.blob, stored.clone(), *codec, *raw_len))?;
                        self.clusters.insert(key, fresh);
                        fresh
                    }
                };
                out.push(Run::Data { len: *len, chunk: known, offset: *offset });
            }
        }
        Ok(())
    }
}

fn chunk(blob: u16, stored: Range<u64>, codec: ChunkCodec, raw_len: u64) -> StoredChunk {
    StoredChunk { blob, stored, codec, raw_len, bits: 0, state: None, stored_digest: None }
}
