//! A whole blob, from its first byte to its last.

use super::buffer::{Buffer, Output};
use super::checkpoint::Checkpoints;
use super::gzip::Gzip;
use super::zstd::Zstd;
use super::{CodecError, FUZZING, OUTPUT_LIMIT};
use crate::span::{Codec, SpanTable};

/// What a whole blob came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Its checkpoints (a single one if they were not wanted).
    pub spans: SpanTable,
    /// The windows that the spans point into, each zstd-compressed, one after the other.
    pub windows: Vec<u8>,
}

/// Decodes a blob that is pushed from its start, and finds its checkpoints.
pub struct StreamDecoder {
    codec: Codec,
    kind: Kind,
    buf: Buffer,
    spans: Checkpoints,
    want_spans: bool,
}

enum Kind {
    Plain,
    Gzip(Box<Gzip>),
    Zstd(Zstd),
}

impl StreamDecoder {
    /// A decoder that gives at most [`OUTPUT_LIMIT`] bytes.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(codec: Codec, want_spans: bool) -> Result<Self, CodecError> {
        Self::with_limit(codec, want_spans, OUTPUT_LIMIT)
    }

    /// A decoder that gives at most `limit` bytes.
    ///
    /// # Errors
    /// When memory is short.
    pub fn with_limit(codec: Codec, want_spans: bool, limit: u64) -> Result<Self, CodecError> {
        let kind = match codec {
            Codec::Plain => Kind::Plain,
            Codec::Gzip => Kind::Gzip(Box::new(Gzip::at_member(0, 0, !FUZZING)?)),
            Codec::Zstd => Kind::Zstd(Zstd::at_frame(0)?),
        };
        Ok(Self { codec, kind, buf: Buffer::new(0, limit), spans: Checkpoints::new(codec), want_spans })
    }

    /// Leaves out the checksums of gzip members: for those who hold all output to a digest, which finds all that they
    /// would. Lengths are checked all the same.
    #[must_use]
    pub fn without_checksums(mut self) -> Self {
        if let Kind::Gzip(gzip) = &mut self.kind {
            gzip.leave_checksums();
        }
        self
    }

    /// Takes the blob's next bytes and gives output to `out`, in slices of 256 KiB but for the
    /// last of the stream. After an error, of its own or of `out`, the decoder is of no more use.
    ///
    /// # Errors
    /// [`CodecError`] for damaged or too large data, or what `out` returns.
    pub fn feed<E: From<CodecError>>(
        &mut self,
        input: &[u8],
        out: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.feed_taking(input, &mut |output| out(&output))
    }

    /// The same, for those who take the output's memory along ([`Output::take`]) rather than copy it.
    ///
    /// # Errors
    /// As [`StreamDecoder::feed`].
    pub fn feed_taking<E: From<CodecError>>(
        &mut self,
        input: &[u8],
        out: &mut dyn FnMut(Output<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let spans = self.want_spans.then_some(&mut self.spans);
        let may_end = match &mut self.kind {
            Kind::Plain => {
                plain(input, &mut self.buf, spans, out)?;
                true
            }
            Kind::Gzip(gzip) => {
                gzip.feed(input, &mut self.buf, spans, out)?;
                gzip.may_end()
            }
            Kind::Zstd(zstd) => {
                zstd.feed(input, &mut self.buf, spans, out)?;
                zstd.may_end()
            }
        };
        if may_end { self.buf.flush(out) } else { Ok(()) }
    }

    /// Bytes of output so far, those not handed on yet included.
    pub fn position(&self) -> u64 {
        self.buf.total
    }

    /// The blob is over; all its output was handed on by the last [`Self::feed`].
    ///
    /// # Errors
    /// [`CodecError::Truncated`] when it is not complete.
    pub fn finish(self) -> Result<Decoded, CodecError> {
        let stream_size = self.buf.total;
        let (blob_size, complete) = match &self.kind {
            Kind::Plain => (stream_size, true),
            Kind::Gzip(gzip) => (gzip.at, gzip.may_end()),
            Kind::Zstd(zstd) => (zstd.at, zstd.may_end()),
        };
        if !complete {
            return Err(CodecError::Truncated { codec: self.codec, at: blob_size });
        }
        let (spans, windows) = self.spans.finish(stream_size, blob_size)?;
        Ok(Decoded { spans, windows })
    }
}

/// A plain blob is its own output; any byte of it may start a span.
fn plain<E: From<CodecError>>(
    mut input: &[u8],
    buf: &mut Buffer,
    mut spans: Option<&mut Checkpoints>,
    out: &mut dyn FnMut(Output<'_>) -> Result<(), E>,
) -> Result<(), E> {
    while !input.is_empty() {
        buf.make_room(out)?;
        let room = buf.room();
        let (now, rest) = input.split_at(input.len().min(room.len()));
        room[..now.len()].copy_from_slice(now);
        buf.produced(now.len())?;
        input = rest;
        while let Some(spans) = spans.as_deref_mut()
            && let Some(next) = spans.next_plain()
            && next < buf.total
        {
            spans.start(next, next)?;
        }
    }
    Ok(())
}
