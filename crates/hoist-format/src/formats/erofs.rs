//! Layers that are EROFS images (containerd 2.3 `docs/snapshotters/erofs.md`), told by their media type: as they are,
//! or as one zstd stream.
//!
//! They have no digest finer than the blob's. So the blob is fetched whole and verified first, and digests of all its
//! parts are taken then: what is fetched later is held to these.

use std::collections::HashMap;

use super::{Covers, Found, LayerFacts, MAX_ANSWER, Reader, Refusal, Step, Want};
use crate::build::{Builder, ChunkId, Described, Run, StoredChunk};
use crate::chunk::{ChunkCodec, ContentDigest, MAX_CHUNK};
use crate::digest::Digest;
use crate::erofs::{Bytes, decode_foreign};
use crate::volume::{Stretch, Volume};

const MEDIA_TYPE: &str = "application/vnd.erofs.layer.v1";
const ZSTD: &str = "application/vnd.erofs.layer.v1+zstd";
/// Bytes of a file that are fetched and checked at once.
const RUN: u64 = 256 << 10;

/// Most bytes that the files of a layer have.
const MOST_CONTENTS: u64 = 8 << 30;

/// The reader of a layer, if it is one.
pub(super) fn reader(number: usize, layer: &LayerFacts) -> Option<Box<dyn Reader>> {
    let zstd = match &*layer.media_type {
        MEDIA_TYPE => false,
        ZSTD => true,
        _ => return None,
    };
    Some(Box::new(Erofs { number, digest: layer.digest, size: layer.size, zstd }))
}

struct Erofs {
    number: usize,
    digest: Digest,
    size: u64,
    zstd: bool,
}

impl Reader for Erofs {
    fn covers(&self) -> Covers {
        Covers::Layer(self.number)
    }

    fn format(&self) -> &'static str {
        if self.zstd { "EROFS within zstd" } else { "EROFS" }
    }

    fn is_certain(&self) -> bool {
        true
    }

    fn step(&mut self, answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        if self.size > MAX_ANSWER {
            let why = "it has no digests but the blob's, and more than 256 MiB: mount it by the kernel, or convert it";
            return Err(Refusal::because(why));
        }
        let Some(answer) = answers.into_iter().next() else {
            return Ok(Step::Fetch(vec![Want::Blob { blob: self.digest, size: self.size }]));
        };
        let blob = answer.ok_or_else(|| Refusal::because("its blob is not there"))?;
        let described = match self.zstd {
            true => {
                let image = crate::table::decompress(&blob, MAX_CHUNK as usize);
                let image = image.map_err(|e| Refusal::because(format!("its zstd stream: {e}")))?;
                describe(&image, Whole::new(self.digest, &blob, &image)?)?
            }
            false => describe(&blob, Parts::new(self.digest, &blob)?)?,
        };
        let compressed = described.1.contents.values().flatten().any(|s| matches!(s, Stretch::Packed { .. }));
        let inner = if compressed { ", compressed clusters" } else { "" };
        let format = format!("{} (whole blob verified first{inner})", self.format());
        Ok(Step::Done(Found::one(format, true, self.covers(), described.0)))
    }
}

/// How the image's bytes are had from the blob.
trait Source {
    fn builder(&mut self) -> &mut Builder;
    /// Appends the runs that a stretch of a file is.
    fn runs(&mut self, stretch: &Stretch, out: &mut Vec<Run>) -> Result<(), Refusal>;
    fn finish(self) -> Builder;
}

fn describe(image: &[u8], mut source: impl Source) -> Result<(Described, Volume), Refusal> {
    let volume = decode_foreign(Bytes::Whole(image)).map_err(|e| Refusal::because(e.to_string()))?;
    for (inode, stretches) in &volume.contents {
        let mut runs = Vec::new();
        for stretch in stretches {
            source.runs(stretch, &mut runs)?;
        }
        source.builder().file(*inode, runs)?;
    }
    let described = source.finish().build(volume.tree.clone())?;
    Ok((described, volume))
}

/// The blob is the image.
struct Parts<'a> {
    image: &'a [u8],
    blob: u16,
    builder: Builder,
    /// Bytes of contents that may still be looked at.
    left: u64,
    /// By first stored byte.
    chunks: HashMap<u64, ChunkId>,
}

impl<'a> Parts<'a> {
    fn new(digest: Digest, image: &'a [u8]) -> Result<Self, Refusal> {
        let mut builder = Builder::new();
        let blob = builder.blob(digest, image.len() as u64)?;
        Ok(Self { image, blob, builder, left: MOST_CONTENTS, chunks: HashMap::new() })
    }

    fn chunk(
        &mut self,
        stored: std::ops::Range<u64>,
        codec: ChunkCodec,
        raw_len: u64,
    ) -> Result<ChunkId, Refusal> {
        let bytes = self.image.get(stored.start as usize..stored.end as usize);
        let bytes = bytes.ok_or_else(|| Refusal::because("a file's data is beyond the image"))?;
        let chunk = StoredChunk {
            blob: self.blob,
            stored,
            codec,
            raw_len,
            bits: 0,
            state: None,
            stored_digest: None,
        };
        let id = self.builder.chunk(chunk)?;
        let left = self.left.checked_sub(raw_len);
        self.left = left.ok_or_else(|| Refusal::because("its files have more than 8 GiB"))?;
        let raw = crate::codec::decode_bytes(codec, 0, &[], bytes, raw_len);
        let raw = raw.map_err(|e| Refusal::because(format!("a cluster: {e}")))?;
        if raw.len() as u64 != raw_len {
            return Err(Refusal::because("a cluster decodes to less than it should"));
        }
        self.builder.check(id, 0..raw_len, ContentDigest::Blake3(blake3::hash(&raw).into()))?;
        Ok(id)
    }
}

impl Source for Parts<'_> {
    fn builder(&mut self) -> &mut Builder {
        &mut self.builder
    }

    fn runs(&mut self, stretch: &Stretch, out: &mut Vec<Run>) -> Result<(), Refusal> {
        match stretch {
            Stretch::Hole { len } => out.push(Run::Hole { len: *len }),
            Stretch::Plain { offset, len } => {
                let mut at = 0;
                while at < *len {
                    let n = RUN.min(len - at);
                    let chunk = self.chunk(offset + at..offset + at + n, ChunkCodec::Plain, n)?;
                    out.push(Run::Data { len: n, chunk, offset: 0 });
                    at += n;
                }
            }
            Stretch::Packed { stored, codec, raw_len, offset, len } => {
                let chunk = match self.chunks.get(&stored.start) {
                    Some(&chunk) => chunk,
                    None => {
                        let chunk = self.chunk(stored.clone(), *codec, *raw_len)?;
                        self.chunks.insert(stored.start, chunk);
                        chunk
                    }
                };
                out.push(Run::Data { len: *len, chunk, offset: *offset });
            }
        }
        Ok(())
    }

    fn finish(self) -> Builder {
        self.builder
    }
}

/// The blob is one zstd stream around the image: only all of it can be decoded.
struct Whole {
    builder: Builder,
    chunk: ChunkId,
}

impl Whole {
    fn new(digest: Digest, blob: &[u8], image: &[u8]) -> Result<Self, Refusal> {
        let mut builder = Builder::new();
        let size = blob.len() as u64;
        let number = builder.blob(digest, size)?;
        let raw_len = image.len() as u64;
        let chunk = builder.chunk(StoredChunk {
            blob: number,
            stored: 0..size,
            codec: ChunkCodec::Zstd,
            raw_len,
            bits: 0,
            state: None,
            stored_digest: None,
        })?;
        builder.check(chunk, 0..raw_len, ContentDigest::Blake3(blake3::hash(image).into()))?;
        Ok(Self { builder, chunk })
    }
}

impl Source for Whole {
    fn builder(&mut self) -> &mut Builder {
        &mut self.builder
    }

    fn runs(&mut self, stretch: &Stretch, out: &mut Vec<Run>) -> Result<(), Refusal> {
        match *stretch {
            Stretch::Hole { len } => out.push(Run::Hole { len }),
            Stretch::Plain { offset, len } => out.push(Run::Data { len, chunk: self.chunk, offset }),
            Stretch::Packed { .. } => {
                return Err(Refusal::because("its files are compressed twice, which hoist does not read"));
            }
        }
        Ok(())
    }

    fn finish(self) -> Builder {
        self.builder
    }
}
