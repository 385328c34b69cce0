//! Where decoding of a stored layer may start: the checkpoints of a compressed blob.

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
    pub fn stream_range(&self, i: usize) -> std::ops::Range<u64> {
        self.spans[i].stream_offset..self.spans.get(i + 1).map_or(self.stream_size, |s| s.stream_offset)
    }
    /// The blob range needed to decode span `i` whole. Neighbours may share a byte.
    pub fn blob_range(&self, i: usize) -> std::ops::Range<u64> {
        let s = &self.spans[i];
        s.blob_offset - u64::from(s.bits > 0)..self.spans.get(i + 1).map_or(self.blob_size, |n| n.blob_offset)
    }
}
