//! When a checkpoint is worth its place in the index, and the table they make up.

use hoist_sys::inflate::WINDOW;

use super::probe::Probe;
use super::window::Compressor;
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
    stored_windows: u64,
    /// The window of the last span, until it is known what of it is needed.
    pending: Option<Vec<u8>>,
    probe: Option<Probe>,
    compressor: Option<Compressor>,
}

impl Checkpoints {
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            spans: vec![Span::default()],
            windows: Vec::new(),
            stored_windows: 0,
            pending: None,
            probe: None,
            compressor: None,
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
    pub fn affordable(&self, blob: u64) -> bool {
        let mean = (self.windows.len() as u64).checked_div(self.stored_windows).unwrap_or(WINDOW as u64 / 8);
        FUZZING || self.windows.len() as u64 + mean <= blob / BLOB_PER_WINDOW
    }

    /// A place that needs no window: the start of a member, a frame, anything of a plain blob.
    pub fn start(&mut self, stream: u64, blob: u64) {
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
            let probe = match &mut self.probe {
                Some(probe) => probe,
                none => none.insert(Probe::new().map_err(CodecError::Setup)?),
            };
            probe.start(history.len(), bits, byte).map_err(CodecError::Setup)?;
            self.pending = Some(history.to_vec());
        }
        Ok(())
    }

    /// The member's next data.
    pub fn follow(&mut self, data: &[u8]) -> Result<(), CodecError> {
        if self.pending.is_some()
            && let Some(probe) = &mut self.probe
            && !probe.follow(data).map_err(CodecError::Setup)?
        {
            self.settle()?;
        }
        Ok(())
    }

    /// Nothing more can refer to the last span's window: stores what is needed of it.
    pub fn settle(&mut self) -> Result<(), CodecError> {
        let (Some(mut window), Some(probe)) = (self.pending.take(), &self.probe) else {
            return Ok(());
        };
        if !probe.clear_unused(&mut window) {
            return Ok(());
        }
        let zstd = |e: std::io::Error| CodecError::ZstdSetup(e.to_string());
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new().map_err(zstd)?),
        };
        let stored = compressor.compress(&window).map_err(zstd)?;
        if let Some(span) = self.spans.last_mut() {
            span.window_len = stored.len() as u32;
            span.window_digest = *blake3::hash(&stored).as_bytes();
            self.windows.extend_from_slice(&stored);
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
