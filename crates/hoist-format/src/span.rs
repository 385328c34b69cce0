//! Where decoding of a stored layer may start: the checkpoints of a compressed blob, or chunks that are each decoded
//! alone ([`crate::chunk`]).

use std::ops::Range;

use crate::chunk::{Blob, ChunkTable, State};
use crate::digest::Digest;

/// How a blob stores its uncompressed stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Plain,
    /// gzip members (RFC 1952), one or more.
    Gzip,
    /// zstd frames (RFC 8878), one or more, skippable ones among them.
    Zstd,
}

/// A place where decoding may start. A span reaches to the next checkpoint or the stream's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Byte offset in the uncompressed stream at which this span's output starts.
    pub stream_offset: u64,
    /// Byte offset in the blob of the first whole byte of input. For gzip with `bits > 0` the byte
    /// before it is needed too.
    pub blob_offset: u64,
    /// gzip only: how many high bits of byte `blob_offset - 1` belong to this span, 0 to 7.
    pub bits: u8,
    /// gzip only: false when `blob_offset` is the first byte of a member (its header), which needs
    /// neither window nor priming; true in the middle of a member.
    pub raw: bool,
    /// Byte offset of the zstd-compressed window in the index's windows blob.
    pub window_offset: u64,
    /// Its stored length in bytes; 0: no window needed.
    pub window_len: u32,
    /// BLAKE3 of the stored window, all zero when there is none.
    pub window_digest: [u8; 32],
}

/// All checkpoints of a blob; the first has `stream_offset == 0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanTable {
    /// How the blob is stored.
    pub codec: Codec,
    /// Bytes of the blob.
    pub blob_size: u64,
    /// Bytes of the uncompressed stream.
    pub stream_size: u64,
    /// Ascending by both offsets.
    pub spans: Vec<Span>,
}

impl SpanTable {
    /// The span whose output holds byte `stream_offset`.
    pub fn containing(&self, stream_offset: u64) -> usize {
        self.spans.partition_point(|s| s.stream_offset <= stream_offset).saturating_sub(1)
    }
    /// The uncompressed range that span `i` produces.
    pub fn stream_range(&self, i: usize) -> Range<u64> {
        self.spans[i].stream_offset..self.spans.get(i + 1).map_or(self.stream_size, |s| s.stream_offset)
    }
    /// The blob range needed to decode span `i` whole. Neighbours may share a byte.
    pub fn blob_range(&self, i: usize) -> Range<u64> {
        let s = &self.spans[i];
        s.blob_offset - u64::from(s.bits > 0)..self.spans.get(i + 1).map_or(self.blob_size, |n| n.blob_offset)
    }
}

/// The spans of a table: what is fetched and decoded at once. Those of one blob follow each other, those of a table of
/// chunks stand wherever they do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spans {
    /// One blob, decoded from any span on through the following ones.
    Linear(SpanTable),
    /// Chunks, each decoded alone.
    Chunks(ChunkTable),
}

impl Spans {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Linear(spans) => spans.spans.len(),
            Self::Chunks(chunks) => chunks.chunks.len(),
        }
    }
    /// Is there none? A table of a layer without any contents may have no chunks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of the stream.
    pub fn stream_size(&self) -> u64 {
        match self {
            Self::Linear(spans) => spans.stream_size,
            Self::Chunks(chunks) => chunks.stream_size,
        }
    }
    /// The span whose output holds byte `stream_offset`.
    pub fn containing(&self, stream_offset: u64) -> usize {
        match self {
            Self::Linear(spans) => spans.containing(stream_offset),
            Self::Chunks(chunks) => chunks.containing(stream_offset),
        }
    }
    /// The range of the stream that span `i` produces.
    pub fn stream_range(&self, i: usize) -> Range<u64> {
        match self {
            Self::Linear(spans) => spans.stream_range(i),
            Self::Chunks(chunks) => chunks.stream_range(i),
        }
    }
    /// The range of its blob that is needed to decode span `i` whole.
    pub fn blob_range(&self, i: usize) -> Range<u64> {
        match self {
            Self::Linear(spans) => spans.blob_range(i),
            Self::Chunks(chunks) => chunks.stored_range(i),
        }
    }
    /// The blob that span `i` stands in; `own`: the one blob of a linear table.
    pub fn blob<'a>(&'a self, i: usize, own: &'a Digest) -> &'a Digest {
        match self {
            Self::Linear(_) => own,
            Self::Chunks(chunks) => &chunks.blobs[usize::from(chunks.chunks[i].blob)].digest,
        }
    }
    /// Does span `i + 1` stand right behind span `i`, or nearly so, so that one request brings both?
    pub fn is_followed(&self, i: usize) -> bool {
        match self {
            Self::Linear(spans) => i + 1 < spans.spans.len(),
            Self::Chunks(table) => table.gap_behind(i).is_some(),
        }
    }
    /// Bytes of stored spans `i`, each counted once, and of what stands between those that one request brings.
    pub fn stored_bytes(&self, spans: Range<usize>) -> u64 {
        match self {
            Self::Linear(_) if spans.is_empty() => 0,
            Self::Linear(all) => all.blob_range(spans.end - 1).end - all.blob_range(spans.start).start,
            Self::Chunks(all) => {
                let own = |i: usize| all.chunks[i].len;
                let gap = |i: usize| all.gap_behind(i).filter(|_| i + 1 < spans.end).unwrap_or(0);
                spans.clone().map(|i| own(i) + gap(i)).sum()
            }
        }
    }
    /// What decoding from span `i` needs besides its bytes; its length is 0 where that is nothing.
    pub fn state(&self, i: usize) -> State {
        match self {
            Self::Linear(all) => {
                let span = &all.spans[i];
                State { offset: span.window_offset, len: span.window_len, digest: span.window_digest }
            }
            Self::Chunks(all) => all.state(i).copied().unwrap_or_default(),
        }
    }
    /// The spans of one blob, where they are that.
    pub fn linear(&self) -> Option<&SpanTable> {
        match self {
            Self::Linear(spans) => Some(spans),
            Self::Chunks(_) => None,
        }
    }
    /// The chunks, where they are that.
    pub fn chunks(&self) -> Option<&ChunkTable> {
        match self {
            Self::Linear(_) => None,
            Self::Chunks(chunks) => Some(chunks),
        }
    }
    /// The blobs of a table of chunks.
    pub fn blobs(&self) -> &[Blob] {
        self.chunks().map_or(&[], |chunks| &chunks.blobs)
    }
}
