//! When a checkpoint is worth its place in the index, and the table they make up.

use std::collections::VecDeque;

use hoist_sys::inflate::WINDOW;

use super::aside::{Aside, LAG};
use super::{CodecError, FUZZING};
use crate::span::{Codec, Span, SpanTable};

/// Output between gzip checkpoints, bytes, at least. Fuzzers' inputs are small.
const GZIP_SPAN: u64 = if FUZZING { 64 } else { 1024 * 1024 };
/// Output between zstd and plain ones, which cost no window.
const FREE_SPAN: u64 = 256 * 1024;
/// Windows may take one byte in this many of the blob (0.6%).
const BLOB_PER_WINDOW: u64 = 166;

/// The spans found so far.
pub(super) struct Checkpoints {
    codec: Codec,
    spans: Vec<Span>,
    windows: Vec<u8>,
    /// Spans that have asked for a window.
    asked: u64,
    /// The data that may refer to the last span's window is still coming.
    followed: bool,
    /// Spans whose windows are being compressed.
    waiting: VecDeque<usize>,
    aside: Option<Aside>,
}

impl Checkpoints {
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            spans: vec![Span::default()],
            windows: Vec::new(),
            asked: 0,
            followed: false,
            waiting: VecDeque::new(),
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

    /// Whether a window more stays within what the blob so far allows. Windows that are being compressed count as
    /// much as the others on average.
    pub fn affordable(&mut self, blob: u64) -> Result<bool, CodecError> {
        self.settle(LAG)?;
        let (stored, waiting) = (self.windows.len() as u64, self.waiting.len() as u64);
        let mean = stored.checked_div(self.asked - waiting).unwrap_or(WINDOW as u64 / 8);
        Ok(FUZZING || stored + mean * (waiting + 1) <= blob / BLOB_PER_WINDOW)
    }

    /// A place that needs no window: the start of a member, a frame, anything of a plain blob.
    pub fn start(&mut self, stream: u64, blob: u64) -> Result<(), CodecError> {
        self.end()?;
        let min = if self.codec == Codec::Gzip { GZIP_SPAN } else { FREE_SPAN };
        let since = self.since_last(stream);
        match self.spans.last_mut() {
            // Nothing came out since the last one (skippable frames, empty members): start later.
            Some(last) if last.stream_offset == stream && !last.raw && stream > 0 => last.blob_offset = blob,
            _ if since >= min => {
                self.spans.push(Span { stream_offset: stream, blob_offset: blob, ..Span::default() });
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
        self.settle(LAG)?;
        let span = Span { stream_offset: stream, blob_offset: blob, bits, raw: true, ..Span::default() };
        self.spans.push(span);
        self.asked += 1;
        if !history.is_empty() {
            let aside = match &mut self.aside {
                Some(aside) => aside,
                none => none.insert(Aside::new()?),
            };
            aside.start(history, bits, byte)?;
            self.followed = true;
        }
        Ok(())
    }

    /// How much more output the last span's window is followed for; 0 when it is not.
    pub fn followed(&self, stream: u64) -> u64 {
        if self.followed { (WINDOW as u64).saturating_sub(self.since_last(stream)) } else { 0 }
    }

    /// The member's next data, which has led to `stream` bytes of output.
    pub fn follow(&mut self, data: &[u8], stream: u64) -> Result<(), CodecError> {
        if self.followed
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
        if self.followed
            && let Some(aside) = &self.aside
        {
            aside.end()?;
            self.followed = false;
            self.waiting.push_back(self.spans.len() - 1);
        }
        Ok(())
    }

    /// Stores what is needed of the windows that were ended, but for the last `leave` of them: never more or fewer,
    /// so that the outcome is the same at each run.
    fn settle(&mut self, leave: usize) -> Result<(), CodecError> {
        self.end()?;
        while self.waiting.len() > leave
            && let (Some(aside), Some(i)) = (&self.aside, self.waiting.pop_front())
        {
            let stored = aside.stored()?;
            if let Some(span) = self.spans.get_mut(i)
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
        self.settle(0)?;
        let mut at = 0;
        for span in &mut self.spans {
            span.window_offset = at;
            at += u64::from(span.window_len);
        }
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
