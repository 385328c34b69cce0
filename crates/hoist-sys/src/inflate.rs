//! Raw deflate (RFC 1951) that can stop at block boundaries and start in the middle of a byte.
//!
//! zlib-rs's safe API has neither `inflatePrime` nor `Z_BLOCK`, and checkpoints need both; hence
//! its C-shaped API behind a safe type. The stream holds no pointer between two calls.

use std::ffi::c_int;
use std::mem::size_of;
use std::ptr;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateInit2_, inflatePrime,
    inflateReset2, inflateSetDictionary, z_stream, zlibVersion,
};

/// Raw deflate with the largest window (zlib.h, `inflateInit2`).
const RAW: c_int = -15;
/// `z_stream.data_type` after a stop at a block boundary, and while in the last block (zlib.h, `inflate`).
const AT_BOUNDARY: c_int = 128;
const LAST_BLOCK: c_int = 64;
const BITS: c_int = 63;

/// How far back deflate data may refer, bytes.
pub const WINDOW: usize = 32 * 1024;

/// Why inflating cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// The bytes are no deflate data.
    #[error("the deflate data is damaged; fetch it again or report the image as corrupt")]
    Damaged,
    /// The decoder's 48 KiB could not be had.
    #[error("no memory for a deflate decoder; free some and retry")]
    Memory,
    /// An argument is out of range, or the call came in the wrong state.
    #[error("the deflate decoder was misused: {0}")]
    Misuse(&'static str),
}

/// What one [`Inflate::step`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Input bytes taken.
    pub consumed: usize,
    /// Output bytes written.
    pub produced: usize,
    /// The final block is done.
    pub end: bool,
    /// Stopped between two blocks: how many high bits of the last byte taken belong to the next
    /// block, 0 to 7. Only when asked to stop there.
    pub block_boundary: Option<u8>,
}

/// A raw deflate decoder.
pub struct Inflate {
    // Boxed: zlib's C API forbids moving a stream that it may hold a pointer to.
    stream: Box<z_stream>,
}

// SAFETY: the stream owns all memory it points to (its state), and is used through `&mut` only;
// input and output pointers are cleared before each call returns.
unsafe impl Send for Inflate {}

impl Inflate {
    /// A decoder at the start of raw deflate data.
    pub fn raw() -> Result<Self, InflateError> {
        let mut stream = Box::new(z_stream::default());
        // SAFETY: the stream is initialised with the default allocators, the version and size are
        // those of the library linked.
        let code = unsafe { inflateInit2_(&mut *stream, RAW, zlibVersion(), size_of::<z_stream>() as c_int) };
        if code == Z_OK { Ok(Self { stream }) } else { Err(InflateError::Memory) }
    }

    /// Back to the start of other raw deflate data, keeping the memory.
    pub fn reset_raw(&mut self) -> Result<(), InflateError> {
        // SAFETY: the stream was initialised by `raw`.
        let code = unsafe { inflateReset2(&mut *self.stream, RAW) };
        if code == Z_OK { Ok(()) } else { Err(InflateError::Misuse("reset")) }
    }

    /// Before the first step: the low `bits` (0 to 7) bits of `value` come before the input.
    pub fn prime(&mut self, bits: u8, value: u8) -> Result<(), InflateError> {
        if bits > 7 {
            return Err(InflateError::Misuse("more than 7 bits to prime"));
        }
        let value = c_int::from(value) & ((1 << bits) - 1);
        // SAFETY: the stream was initialised by `raw`; bits and value are in range.
        let code = unsafe { inflatePrime(&mut *self.stream, c_int::from(bits), value) };
        if code == Z_OK { Ok(()) } else { Err(InflateError::Misuse("prime")) }
    }

    /// Before the first step: the output that came before, oldest byte first; of more than
    /// [`WINDOW`] bytes the last ones count.
    pub fn set_dictionary(&mut self, window: &[u8]) -> Result<(), InflateError> {
        let window = &window[window.len().saturating_sub(WINDOW)..];
        // SAFETY: the stream was initialised by `raw`; pointer and length are of one live slice,
        // which the call copies.
        let code = unsafe {
            inflateSetDictionary(&mut *self.stream, window.as_ptr(), window.len() as libz_rs_sys::uInt)
        };
        if code == Z_OK { Ok(()) } else { Err(InflateError::Misuse("set dictionary")) }
    }

    /// Decodes until the input is used up, the output is full, the data ends or, if asked, a block
    /// ends. Neither consumed nor produced: more input or room is needed.
    pub fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        stop_at_block: bool,
    ) -> Result<Step, InflateError> {
        let (input, room) =
            (&input[..input.len().min(u32::MAX as usize)], output.len().min(u32::MAX as usize));
        if room == 0 {
            return Ok(Step { consumed: 0, produced: 0, end: false, block_boundary: None });
        }
        let s = &mut *self.stream;
        s.next_in = input.as_ptr();
        s.avail_in = input.len() as u32;
        s.next_out = output.as_mut_ptr();
        s.avail_out = room as u32;
        // SAFETY: the stream was initialised by `raw`; input and output are live slices of the
        // lengths given, not overlapping as one is borrowed mutably.
        let code = unsafe { inflate(s, if stop_at_block { Z_BLOCK } else { Z_NO_FLUSH }) };
        let (consumed, produced) = (input.len() - s.avail_in as usize, room - s.avail_out as usize);
        s.next_in = ptr::null();
        s.next_out = ptr::null_mut();
        s.avail_in = 0;
        s.avail_out = 0;
        match code {
            Z_OK | Z_BUF_ERROR | Z_STREAM_END => {}
            _ => return Err(InflateError::Damaged),
        }
        let bits = s.data_type & BITS;
        let between =
            stop_at_block && s.data_type & AT_BOUNDARY != 0 && s.data_type & LAST_BLOCK == 0 && bits < 8;
        Ok(Step {
            consumed,
            produced,
            end: code == Z_STREAM_END,
            block_boundary: (code == Z_OK && between).then_some(bits as u8),
        })
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised by `raw` and is not used again.
        unsafe { inflateEnd(&mut *self.stream) };
    }
}

/// Continues the CRC-32 (RFC 1952) of a stream, 0 at its start.
pub fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: pointer and length are of one live slice.
    unsafe { libz_rs_sys::crc32_z(crc.into(), bytes.as_ptr(), bytes.len()) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_block() {
        // "hello" in one fixed-Huffman block, by zlib's deflate.
        let data = [0xcb, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let mut out = [0; 16];
        let step = Inflate::raw().unwrap().step(&data, &mut out, false).unwrap();
        assert_eq!((&out[..step.produced], step.end, step.consumed), (&b"hello"[..], true, 7));
        assert_eq!(crc32(0, b"hello"), 0x3610_a686);
    }

    #[test]
    fn damage_and_misuse_are_errors() {
        let mut out = [0; 16];
        assert_eq!(Inflate::raw().unwrap().step(&[0xff; 8], &mut out, false), Err(InflateError::Damaged));
        assert!(Inflate::raw().unwrap().prime(8, 0).is_err());
    }
}
