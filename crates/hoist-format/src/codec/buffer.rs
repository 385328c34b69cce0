//! Output that waits to be handed on, and the history before it.

use std::ops::{Deref, Range};

use hoist_sys::inflate::WINDOW;

use super::CodecError;

/// Output is handed on in slices of up to this many bytes: large enough to spread the cost of a
/// call, small enough for the second-level cache.
const SLICE: usize = 256 * 1024;

/// Output as it is handed on: to be looked at, or taken along with the memory that it stands in.
pub struct Output<'b> {
    bytes: &'b mut Box<[u8]>,
    pending: Range<usize>,
}

impl Deref for Output<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.pending.clone()]
    }
}

impl Output<'_> {
    /// Takes it; the decoder goes on in the memory of an earlier piece, or in new memory.
    #[must_use]
    pub fn take(self, memory: Option<Piece>) -> Piece {
        let fits = memory.map(|piece| piece.bytes).filter(|bytes| bytes.len() == self.bytes.len());
        let mut fresh = fits.unwrap_or_else(|| vec![0; self.bytes.len()].into_boxed_slice());
        let history = self.pending.end.saturating_sub(WINDOW)..self.pending.end;
        fresh[history.clone()].copy_from_slice(&self.bytes[history]);
        Piece { bytes: std::mem::replace(self.bytes, fresh), range: self.pending }
    }
}

/// Output that was taken.
#[derive(Debug)]
pub struct Piece {
    bytes: Box<[u8]>,
    range: Range<usize>,
}

impl Deref for Piece {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

/// `[history | pending | room]`; history is what was handed on already, at most [`WINDOW`] bytes
/// of it are of use.
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    handed: usize,
    end: usize,
    /// Bytes ever produced.
    pub total: u64,
    limit: u64,
}

impl Buffer {
    /// For output from byte `start` of the stream up to byte `limit`.
    pub fn new(start: u64, limit: u64) -> Self {
        Self { bytes: vec![0; WINDOW + SLICE].into_boxed_slice(), handed: 0, end: 0, total: start, limit }
    }

    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// The first `n` bytes of the room were written.
    pub fn produced(&mut self, n: usize) -> Result<(), CodecError> {
        self.end += n;
        self.passed(n)
    }

    /// `n` bytes of output, which need not wait here: a plain blob's.
    pub fn passed(&mut self, n: usize) -> Result<(), CodecError> {
        let total = self.total.checked_add(n as u64).filter(|total| *total <= self.limit);
        self.total = total.ok_or(CodecError::TooLarge { limit: self.limit })?;
        Ok(())
    }

    /// The last `n` bytes produced, or as many as there are, up to [`WINDOW`].
    pub fn last(&self, n: usize) -> &[u8] {
        &self.bytes[self.end - n.min(self.end).min(WINDOW)..self.end]
    }

    /// Hands pending output on if the buffer is full.
    pub fn make_room<E>(&mut self, out: &mut dyn FnMut(Output<'_>) -> Result<(), E>) -> Result<(), E> {
        if self.end < self.bytes.len() {
            return Ok(());
        }
        self.flush(out)?;
        let keep = self.end - WINDOW;
        self.bytes.copy_within(keep.., 0);
        (self.handed, self.end) = (WINDOW, WINDOW);
        Ok(())
    }

    /// Hands all pending output on.
    pub fn flush<E>(&mut self, out: &mut dyn FnMut(Output<'_>) -> Result<(), E>) -> Result<(), E> {
        if self.handed < self.end {
            let from = std::mem::replace(&mut self.handed, self.end);
            out(Output { bytes: &mut self.bytes, pending: from..self.end })?;
        }
        Ok(())
    }
}
