//! Where decoding may start: the checkpoints of a zTOC (soci-snapshotter `ztoc/compression/gzip_zinfo.c`,
//! `tar_zinfo.go`).

use std::ops::{Range, RangeInclusive};

use super::SociError;
use super::flat::Flat;
use crate::build::StoredChunk;
use crate::chunk::ChunkCodec;
use crate::le::{le32, le64};

const WINDOW: usize = 32 << 10;
/// Offsets in blob and stream, bits, window.
const CHECKPOINT: usize = 8 + 8 + 1 + WINDOW;
/// Of a layer that is not compressed, as it was written at first: version, span size and the layer's size.
const BARE: usize = 4 + 8 + 8;
/// How many there are, and the span size.
const HEAD: usize = 4 + 8;
/// Where the deflate stream starts behind a gzip header without optional fields (RFC 1952): the first version of checkpoints
/// takes that for granted.
pub(super) const FIRST: u64 = 10;

/// A place where decoding may start.
struct Checkpoint<'a> {
    /// Byte offset in the blob of the first whole byte of input.
    input: u64,
    /// Byte offset in the tar stream.
    output: u64,
    /// How many high bits of the byte before belong to it, 0 to 7.
    bits: u8,
    /// The stream before it, oldest byte first; None at the start.
    window: Option<&'a [u8]>,
}

enum Kind<'a> {
    Gzip { checkpoints: Vec<Checkpoint<'a>>, stream_size: u64 },
    Plain { span_size: u64 },
}

/// The spans of a layer.
pub(super) struct Spans<'a> {
    kind: Kind<'a>,
    layer_size: u64,
    /// Does nothing say where the first one starts?
    pub start_is_guessed: bool,
    /// SHA-256 of the stored bytes of each.
    pub digests: Vec<[u8; 32]>,
}

impl<'a> Spans<'a> {
    pub fn gzip(bytes: &'a [u8], count: usize, layer_size: u64, stream_size: u64) -> Result<Self, SociError> {
        let bad = |what: &str| Err(SociError::ztoc(what));
        let Some((head, body)) = bytes.split_at_checked(HEAD) else {
            return bad("its checkpoints are cut off");
        };
        if le32(head, 0) as usize != count {
            return bad("it has not one checkpoint for each span");
        }
        let stored = body.len() / CHECKPOINT;
        if body.len() % CHECKPOINT != 0 || stored != count && stored + 1 != count {
            return bad("its checkpoints are cut off");
        }
        let mut checkpoints = Vec::with_capacity(count);
        if stored < count {
            checkpoints.push(Checkpoint { input: FIRST, output: 0, bits: 0, window: None });
        }
        for entry in body.chunks_exact(CHECKPOINT) {
            let (input, output, bits) = (le64(entry, 0), le64(entry, 8), entry[16]);
            let window = (output > 0).then_some(&entry[17..]);
            checkpoints.push(Checkpoint { input, output, bits, window });
        }
        let ascend =
            |pair: &[Checkpoint<'_>]| pair[0].input < pair[1].input && pair[0].output < pair[1].output;
        let fits = |c: &Checkpoint<'_>| c.input > 0 && c.input < layer_size && c.bits < 8;
        if checkpoints[0].output != 0 || !checkpoints.windows(2).all(ascend) || !checkpoints.iter().all(fits)
        {
            return bad("its checkpoints are not in order, or lie beyond the layer");
        }
        let kind = Kind::Gzip { checkpoints, stream_size };
        Ok(Self { kind, layer_size, start_is_guessed: stored < count, digests: Vec::new() })
    }

    pub fn plain(bytes: &[u8], count: usize, layer_size: u64) -> Result<Self, SociError> {
        let bad = |what: &str| Err(SociError::ztoc(what));
        let (span_size, size) = match bytes.len() {
            BARE => (le64(bytes, 4), le64(bytes, 12)),
            _ => {
                // A buffer in the buffer (`ztoc/compression/fbs/tar_zinfo.fbs`).
                let mut flat = Flat::new(bytes);
                let root = flat.root()?;
                (flat.u64(root, 1)?, flat.u64(root, 2)?)
            }
        };
        if span_size == 0 || size != layer_size || layer_size.div_ceil(span_size) != count as u64 {
            return bad("its spans are not those of this layer");
        }
        let kind = Kind::Plain { span_size };
        Ok(Self { kind, layer_size, start_is_guessed: false, digests: Vec::new() })
    }

    /// The span that holds byte `at` of the tar stream, if any does.
    pub fn containing(&self, at: u64) -> Option<usize> {
        let span = match &self.kind {
            Kind::Gzip { checkpoints, .. } => checkpoints.partition_point(|c| c.output <= at) - 1,
            Kind::Plain { span_size } => usize::try_from(at / span_size).ok()?,
        };
        (span < self.digests.len() && self.output(span).contains(&at)).then_some(span)
    }

    /// The range of the tar stream that a span decodes to, as far as it is of use.
    pub fn output(&self, span: usize) -> Range<u64> {
        match &self.kind {
            Kind::Gzip { checkpoints, stream_size } => {
                let end = checkpoints.get(span + 1).map_or(*stream_size, |c| c.output.min(*stream_size));
                checkpoints[span].output..end
            }
            Kind::Plain { .. } => self.stored(span),
        }
    }

    /// The range of the tar stream that a range of spans decodes to, as far as there are such spans.
    pub fn outputs(&self, spans: &RangeInclusive<u64>) -> Option<Range<u64>> {
        let first = usize::try_from(*spans.start()).ok().filter(|first| *first < self.digests.len())?;
        let last = usize::try_from(*spans.end()).unwrap_or(usize::MAX).min(self.digests.len() - 1);
        (first <= last).then(|| self.output(first).start..self.output(last).end)
    }

    /// The range of the blob that it needs.
    fn stored(&self, span: usize) -> Range<u64> {
        match &self.kind {
            Kind::Gzip { checkpoints, .. } => {
                let c = &checkpoints[span];
                let end = checkpoints.get(span + 1).map_or(self.layer_size, |next| next.input);
                c.input - u64::from(c.bits > 0)..end
            }
            // `span` is below the number of spans, so this does not overflow.
            Kind::Plain { span_size } => {
                let start = span as u64 * span_size;
                start..start.saturating_add(*span_size).min(self.layer_size)
            }
        }
    }

    /// A span as it is stored.
    pub fn chunk(&self, span: usize, blob: u16) -> StoredChunk {
        let output = self.output(span);
        let (codec, bits, state) = match &self.kind {
            Kind::Gzip { checkpoints, .. } => {
                let c = &checkpoints[span];
                (ChunkCodec::Inflate, c.bits, c.window.map(<[u8]>::to_vec))
            }
            Kind::Plain { .. } => (ChunkCodec::Plain, 0, None),
        };
        StoredChunk {
            blob,
            stored: self.stored(span),
            codec,
            raw_len: output.end.saturating_sub(output.start),
            bits,
            state,
            stored_digest: Some(self.digests[span]),
        }
    }
}
