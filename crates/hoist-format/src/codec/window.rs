//! The 32 KiB before a checkpoint, as the index stores them: what is not referred to zeroed,
//! zstd-compressed and under a digest.

use hoist_sys::inflate::WINDOW;

use super::CodecError;

/// Why a stored window cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// It was not given.
    #[error("the window is needed but was not given")]
    Missing,
    /// Its bytes are not those the table names.
    #[error("its digest or length is not the index's; fetch it again")]
    Digest,
    /// It is no zstd frame of at most 32 KiB.
    #[error("it does not decompress to at most 32 KiB; make or fetch the index anew")]
    Damaged,
}

const LEVEL: i32 = 3;

/// Compresses one window after the other.
pub(super) struct Compressor(zstd::bulk::Compressor<'static>);

impl Compressor {
    pub fn new() -> Result<Self, CodecError> {
        zstd::bulk::Compressor::new(LEVEL).map(Self).map_err(|e| CodecError::ZstdSetup(e.to_string()))
    }

    pub fn compress(&mut self, window: &[u8]) -> Result<Vec<u8>, CodecError> {
        self.0.compress(window).map_err(|e| CodecError::ZstdSetup(e.to_string()))
    }
}

/// Verifies and decompresses a stored window.
pub(super) fn open(stored: &[u8], len: u32, digest: &[u8; 32]) -> Result<Vec<u8>, WindowError> {
    if stored.len() as u64 != u64::from(len) || blake3::hash(stored).as_bytes() != digest {
        return Err(WindowError::Digest);
    }
    zstd::bulk::decompress(stored, WINDOW).map_err(|_| WindowError::Damaged)
}
