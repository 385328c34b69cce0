//! When a checkpoint is worth its place in the index, and the table they make up.

use hoist_sys::inflate::WINDOW;

use super::aside::Aside;
use super::{CodecError, FUZZING};
use crate::span::{Codec, Span, SpanTable};

/// Output between gzip checkpoints, bytes, at least. Fuzzers' inputs are small.
const GZIP_SPAN: u64 = if FUZZING { 64 } else { 1024 * 1024 };
/// Output between zstd and plain ones, which cost no window.
const FREE_SPAN: u64 = 256 * 1024;
/// Windows may take one byte in this many of the blob (0.6%).
const BLOB_PER_WINDOW: u64 = 166;

/// How far the window of the last span is.
#[derive(PartialEq)]
enum Window {
    /// Stored, or there is none.
    Settled,
    /// The data that may refer to it is still coming.
    Followed,
    /// It is being compressed.
    Ended,
}

/// The spans found so far.
pub(super) struct Checkpoints {
    codec: Codec,
    spans: Vec<Span>,
    windows: Vec<u8>,
    stored_windows: u64,
    window: Window,
    aside: Option<Aside>,
}

impl Checkpoints {
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            spans: vec![Span::default()],
            windows: Vec::new(),
            stored_windows: 0,
            window: Window::Settled,
            aside: None,
        }
    }

    fn since_last(&self, stream: u64) -> u64 {
        stream - self.spans.last().map_or(0, |s| s.stream_offset)
    }

    /// Output bytes at which a checkpoint with a window may come at the earliest.
    pub fn next_raw(&self) -> u64 {
        self.spans.last().map_or(0, |s| s.stream_offset) + GZIP_SPAN
    }

    /// Where the next span of a plain blob starts, none if offsets overflow.
    pub fn next_plain(&self) -> Option<u64> {
        self.spans.last().map_or(0, |s| s.stream_offset).checked_add(FREE_SPAN)
    }

    /// Whether a window more stays within what the blob so far allows.
    pub fn affordable(&mut self, blob: u64) -> Result<bool, CodecError> {
        self.settle()?;
        let mean = (self.windows.len() as u64).checked_div(self.stored_windows).unwrap_or(WINDOW as u64 / 8);
        Ok(FUZZING || self.windows.len() as u64 + mean <= blob / BLOB_PER_WINDOW)
    }

    /// A place that needs no window: the start of a member, a frame, anything of a plain blob.
    pub fn start(&mut self, stream: u64, blob: u64) -> Result<(), CodecError> {
        self.settle()?;
        let min = if self.codec == Codec::Gzip { GZIP_SPAN } else { FREE_SPAN };
        let since = self.since_last(stream);
        match self.spans.last_mut() {
            // Nothing came out since the last one (skippable frames, empty members): start later.
            Some(last) if last.stream_offset == stream && !last.raw && stream > 0 => last.blob_offset = blob,
            _ if since >= min => {
                let window_offset = self.windows.len() as u64;
                self.spans.push(Span {
                    stream_offset: stream,
                    blob_offset: blob,
                    window_offset,
                    ..Span::default()
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// The middle of a gzip member, between two deflate blocks. `byte` is the one before `blob`,
    /// of which the next block has the high `bits`. [`Self::follow`] must have all data after it.
    pub fn raw(
        &mut self,
        stream: u64,
        blob: u64,
        (bits, byte): (u8, u8),
        history: &[u8],
    ) -> Result<(), CodecError> {
        self.settle()?;
        self.spans.push(Span {
            stream_offset: stream,
            blob_offset: blob,
            bits,
            raw: true,
            window_offset: self.windows.len() as u64,
            ..Span::default()
        });
        self.stored_windows += 1;
        if !history.is_empty() {
            let aside = match &mut self.aside {
                Some(aside) => aside,
                none => none.insert(Aside::new()?),
            };
            aside.start(history, bits, byte)?;
            self.window = Window::Followed;
        }
        Ok(())
    }

    /// How much more output the last span's window is followed for; 0 when it is not.
    pub fn followed(&self, stream: u64) -> u64 {
        match self.window {
            Window::Followed => (WINDOW as u64).saturating_sub(self.since_last(stream)),
            _ => 0,
        }
    }

    /// The member's next data, which has led to `stream` bytes of output.
    pub fn follow(&mut self, data: &[u8], stream: u64) -> Result<(), CodecError> {
        if self.window == Window::Followed
            && let Some(aside) = &self.aside
        {
            aside.follow(data)?;
            if self.since_last(stream) >= WINDOW as u64 {
                self.end()?;
            }
        }
        Ok(())
    }

    /// Nothing more can refer to the last span's window.
    pub fn end(&mut self) -> Result<(), CodecError> {
        if self.window == Window::Followed
            && let Some(aside) = &self.aside
        {
            aside.end()?;
            self.window = Window::Ended;
        }
        Ok(())
    }

    /// Stores what is needed of the last span's window.
    fn settle(&mut self) -> Result<(), CodecError> {
        self.end()?;
        if self.window == Window::Ended
            && let Some(aside) = &self.aside
        {
            self.window = Window::Settled;
            let stored = aside.stored()?;
            if let Some(span) = self.spans.last_mut()
                && !stored.is_empty()
            {
                span.window_len = stored.len() as u32;
                span.window_digest = *blake3::hash(&stored).as_bytes();
                self.windows.extend_from_slice(&stored);
            }
        }
        Ok(())
    }

    pub fn finish(mut self, stream_size: u64, blob_size: u64) -> Result<(SpanTable, Vec<u8>), CodecError> {
        self.settle()?;
        // A span that gives nothing is none.
        while self.spans.len() > 1 && self.spans.last().is_some_and(|s| s.stream_offset >= stream_size) {
            if let Some(s) = self.spans.pop()
                && s.window_len > 0
            {
                self.windows.truncate(s.window_offset as usize);
            }
        }
        Ok((SpanTable { codec: self.codec, blob_size, stream_size, spans: self.spans }, self.windows))
    }
}
