//! From a checkpoint on.

use super::buffer::Buffer;
use super::gzip::Gzip;
use super::window;
use super::zstd::Zstd;
use super::{CodecError, WindowError};
use crate::span::{Codec, Span, SpanTable};
use crate::table::MAX_SIZE;

/// Decodes from the start of a span for as long as input comes, following spans included (they
/// need no windows then). It checks no gzip checksums, which a span does not hold: digests of the
/// extents do that.
pub struct SpanDecoder {
    kind: Kind,
    buf: Buffer,
}

enum Kind {
    Plain,
    Gzip(Box<Gzip>),
    Zstd(Zstd),
}

impl SpanDecoder {
    /// A decoder of span `span`. Its first input is the byte at `table.blob_range(span).start`.
    /// `window` is the span's window as it is stored, if it has one.
    ///
    /// # Errors
    /// [`CodecError::Table`] for a table that contradicts itself, [`CodecError::Window`] for a
    /// window that is missing or not the table's.
    pub fn new(table: &SpanTable, span: usize, stored_window: Option<&[u8]>) -> Result<Self, CodecError> {
        let bad = |what| CodecError::Table { span, what };
        let s = table.spans.get(span).ok_or(bad("there is no such span"))?;
        let shared = u64::from(s.bits > 0);
        let start = s.blob_offset.checked_sub(shared).ok_or(bad("bits before the blob's start"))?;
        // Also keeps sums of offsets and lengths from overflowing.
        if table.blob_size > MAX_SIZE || table.stream_size > MAX_SIZE {
            return Err(bad("the blob or its stream is of more than 8 TiB"));
        }
        if start > table.blob_size || s.stream_offset > table.stream_size {
            return Err(bad("it starts after the end"));
        }
        if s.bits > 7 || (s.bits > 0 || s.raw || s.window_len > 0) && table.codec != Codec::Gzip {
            return Err(bad("it has bits or a window that its codec has not"));
        }
        if !s.raw && (s.bits > 0 || s.window_len > 0) {
            return Err(bad("the start of a member has bits or a window"));
        }
        let window = match (s.window_len, stored_window) {
            (0, _) => Vec::new(),
            (len, stored) => stored
                .ok_or(WindowError::Missing)
                .and_then(|stored| window::open(stored, len, &s.window_digest))
                .map_err(|source| CodecError::Window { span, source })?,
        };
        Self::at(table, s, start, window)
    }

    /// The same of a table that is known to be right, with the window itself.
    pub(super) fn with_window(table: &SpanTable, span: usize, window: Vec<u8>) -> Result<Self, CodecError> {
        let s = &table.spans[span];
        Self::at(table, s, s.blob_offset - u64::from(s.bits > 0), window)
    }

    fn at(table: &SpanTable, s: &Span, start: u64, window: Vec<u8>) -> Result<Self, CodecError> {
        let kind = match table.codec {
            Codec::Plain => Kind::Plain,
            Codec::Zstd => Kind::Zstd(Zstd::at_frame(start)?),
            Codec::Gzip if s.raw => Kind::Gzip(Box::new(Gzip::at_block(start, s.bits, window)?)),
            Codec::Gzip => Kind::Gzip(Box::new(Gzip::at_member(start, s.stream_offset, false)?)),
        };
        Ok(Self { kind, buf: Buffer::new(s.stream_offset, table.stream_size) })
    }

    /// Takes the next bytes of the blob and gives all output they yield to `out`.
    ///
    /// # Errors
    /// [`CodecError`] for damaged data or more of it than the table says, or what `out` returns.
    pub fn feed<E: From<CodecError>>(
        &mut self,
        input: &[u8],
        out: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match &mut self.kind {
            Kind::Plain => {
                self.buf.passed(input.len())?;
                return if input.is_empty() { Ok(()) } else { out(input) };
            }
            Kind::Gzip(gzip) => gzip.feed(input, &mut self.buf, None, &mut |o| out(&o))?,
            Kind::Zstd(zstd) => zstd.feed(input, &mut self.buf, None, &mut |o| out(&o))?,
        }
        self.buf.flush(&mut |o| out(&o))
    }

    /// The stream offset, in bytes, up to which output was given.
    pub fn position(&self) -> u64 {
        self.buf.total
    }

    /// Whether all output before stream offset `end` was given.
    pub fn is_done(&self, end: u64) -> bool {
        self.position() >= end
    }
}
