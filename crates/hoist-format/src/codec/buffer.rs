//! Output that waits to be handed on, and the history before it.

use hoist_sys::inflate::WINDOW;

use super::CodecError;

/// Output is handed on in slices of up to this many bytes: large enough to spread the cost of a
/// call, small enough for the second-level cache.
const SLICE: usize = 256 * 1024;

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
    pub fn make_room<E>(&mut self, out: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
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
    pub fn flush<E>(&mut self, out: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if self.handed < self.end {
            let from = std::mem::replace(&mut self.handed, self.end);
            out(&self.bytes[from..self.end])?;
        }
        Ok(())
    }
}
