//! When a checkpoint is worth its place in the index, and the table they make up.

use hoist_sys::inflate::WINDOW;

use super::window;
use crate::span::{Codec, Span, SpanTable};

/// Output between gzip checkpoints, bytes, at least: a reader decodes half of it for nothing.
const GZIP_SPAN: u64 = 1024 * 1024;
/// Output between zstd and plain ones, which cost no window.
const FREE_SPAN: u64 = 256 * 1024;
/// Windows may take one byte in this many of the blob (0.6%).
const BLOB_PER_WINDOW: u64 = 166;

/// The spans found so far.
pub(super) struct Checkpoints {
    codec: Codec,
    spans: Vec<Span>,
    windows: Vec<u8>,
    stored_windows: u64,
}

impl Checkpoints {
    pub fn new(codec: Codec) -> Self {
        Self { codec, spans: vec![Span::default()], windows: Vec::new(), stored_windows: 0 }
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
    pub fn affordable(&self, blob: u64) -> bool {
        let mean = (self.windows.len() as u64).checked_div(self.stored_windows).unwrap_or(WINDOW as u64 / 4);
        self.windows.len() as u64 + mean <= blob / BLOB_PER_WINDOW
    }

    /// A place that needs no window: the start of a member, a frame, anything of a plain blob.
    pub fn start(&mut self, stream: u64, blob: u64) {
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
    }

    /// The middle of a gzip member, between two deflate blocks.
    pub fn raw(&mut self, stream: u64, blob: u64, bits: u8, history: &[u8]) -> std::io::Result<()> {
        let stored = if history.is_empty() { Vec::new() } else { window::compress(history)? };
        let window_digest = if stored.is_empty() { [0; 32] } else { *blake3::hash(&stored).as_bytes() };
        self.spans.push(Span {
            stream_offset: stream,
            blob_offset: blob,
            bits,
            raw: true,
            window_offset: self.windows.len() as u64,
            window_len: stored.len() as u32,
            window_digest,
        });
        self.windows.extend_from_slice(&stored);
        self.stored_windows += 1;
        Ok(())
    }

    pub fn finish(mut self, stream_size: u64, blob_size: u64) -> (SpanTable, Vec<u8>) {
        // A span that gives nothing is none.
        while self.spans.len() > 1 && self.spans.last().is_some_and(|s| s.stream_offset >= stream_size) {
            if let Some(s) = self.spans.pop()
                && s.window_len > 0
            {
                self.windows.truncate(s.window_offset as usize);
            }
        }
        (SpanTable { codec: self.codec, blob_size, stream_size, spans: self.spans }, self.windows)
    }
}
