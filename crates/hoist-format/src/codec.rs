//! Stored bytes to the layer's uncompressed stream: the whole blob once, taking checkpoints on the
//! way ([`StreamDecoder`]), or from any checkpoint on ([`SpanDecoder`]); and single chunks ([`decode_chunk`]).
//!
//! The first two are pushed: they take input in pieces of any size and hand output to a closure in large
//! slices. Memory is bounded (output buffer, 32 KiB of history, zstd's window of at most 128 MiB)
//! whatever the input says.

mod aside;
mod block_run;
mod buffer;
mod checkpoint;
mod chunk;
mod gzip;
mod header;
mod probe;
mod span_decoder;
mod stream_decoder;
mod window;
mod zstd;

pub use block_run::{BlockAlgorithm, BlockRun, checksum};
pub use buffer::{Output, Piece};
pub(crate) use chunk::decode_bytes;
pub use chunk::{ChunkError, decode_chunk};
pub use span_decoder::SpanDecoder;
pub use stream_decoder::{Decoded, StreamDecoder};
pub use window::WindowError;

use crate::span::Codec;
use hoist_sys::inflate::InflateError;

/// Output a stream may have unless told otherwise: 1 TiB.
pub const OUTPUT_LIMIT: u64 = 1 << 40;

/// Under a fuzzer (`--cfg=fuzzing`, as cargo-fuzz has it): checksums are not compared, as hardly
/// any input would pass, and checkpoints are dense.
#[allow(unexpected_cfgs, reason = "set by fuzzers only")]
pub(crate) const FUZZING: bool = cfg!(fuzzing);

/// Why stored bytes could not be decoded. Offsets are bytes from the blob's start.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Not what the media type says, or damaged.
    #[error(
        "decoding the {codec:?} blob at byte {at}: {what}; the blob is damaged, or not what its media type says"
    )]
    Damaged {
        /// How the blob is stored.
        codec: Codec,
        /// Where decoding stopped.
        at: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The input ended too early.
    #[error(
        "the {codec:?} blob ends at byte {at}, in the middle of its data; it is truncated, fetch it again"
    )]
    Truncated {
        /// How the blob is stored.
        codec: Codec,
        /// Bytes that came.
        at: u64,
    },
    /// More output than allowed.
    #[error(
        "decoding the blob gives more than {limit} bytes; refused as a decompression bomb (or the index lies)"
    )]
    TooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// A chunk that does not decode to what it should.
    #[error("{what}; the blob is damaged, or its metadata is another's")]
    Chunk {
        /// What is wrong.
        what: &'static str,
    },
    /// The decoder could not be set up.
    #[error("setting up a decoder: {0}")]
    Setup(InflateError),
    /// zstd could not be set up.
    #[error("setting up a zstd decoder: {0}; free some memory and retry")]
    ZstdSetup(String),
    /// The thread that compresses windows.
    #[error("the thread that compresses gzip windows: {0}; see what limits the number of threads")]
    Thread(std::io::Error),
    /// A window is not what the table says.
    #[error("the window of span {span}: {source}")]
    Window {
        /// Which span.
        span: usize,
        /// What is wrong.
        source: WindowError,
    },
    /// The table contradicts itself or was asked for a span it has not.
    #[error("span {span} of the index: {what}; the index is damaged, make or fetch it anew")]
    Table {
        /// Which span.
        span: usize,
        /// What is wrong.
        what: &'static str,
    },
}
