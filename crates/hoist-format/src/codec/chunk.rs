//! One chunk that is decoded alone.

use std::borrow::Cow;

use super::{BlockRun, CodecError, SpanDecoder, WindowError};
use crate::chunk::{ChunkCodec, ChunkTable, MAX_STATE};
use crate::span::{Codec, Span, SpanTable};
use crate::table::MAX_SIZE;

/// Why a chunk's bytes are of no use.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// They are not what they were when the metadata was made.
    #[error("the stored bytes of chunk {0} have another digest")]
    Stored(usize),
    /// They decode to something else.
    #[error("what chunk {chunk} decodes to has another digest at {offset} + {len}")]
    Output {
        /// Which chunk.
        chunk: usize,
        /// Where in its output.
        offset: u64,
        /// How much of it.
        len: u64,
    },
    /// They do not decode to as much as the table says.
    #[error("chunk {chunk} decodes to {got} of {wanted} bytes only")]
    Short {
        /// Which chunk.
        chunk: usize,
        /// Bytes that came.
        got: u64,
        /// Bytes that the table says.
        wanted: u64,
    },
    /// They do not decode.
    #[error("chunk {chunk}: {source}")]
    Codec {
        /// Which chunk.
        chunk: usize,
        /// What is wrong.
        source: CodecError,
    },
}

/// Decodes chunk `i` of `table` from its stored bytes, all of them, and gives as much output as the table says, all of
/// it checked. `state`: as it is stored, if the chunk needs one.
///
/// # Errors
/// [`ChunkError`]: nothing of it may be used.
pub fn decode_chunk<'a>(
    table: &ChunkTable,
    i: usize,
    stored: &'a [u8],
    state: Option<&[u8]>,
) -> Result<Cow<'a, [u8]>, ChunkError> {
    let chunk = &table.chunks[i];
    let output = table.stream_range(i);
    let wanted = output.end - output.start;
    if let Some(digest) = table.stored_digest(i)
        && crate::digest::Digest::of(stored).as_bytes() != digest
    {
        return Err(ChunkError::Stored(i));
    }
    let codec = |source| ChunkError::Codec { chunk: i, source };
    let state = match table.state(i) {
        None => Vec::new(),
        Some(known) => {
            open_state(state, known).map_err(|source| codec(CodecError::Window { span: i, source }))?
        }
    };
    let bytes = decode_bytes(chunk.codec, chunk.bits, &state, stored, wanted).map_err(codec)?;
    if bytes.len() as u64 != wanted {
        return Err(ChunkError::Short { chunk: i, got: bytes.len() as u64, wanted });
    }
    for part in table.parts_of(i) {
        let own = &bytes[part.offset as usize..(part.offset + part.len) as usize];
        if !part.digest.is_of(own) {
            return Err(ChunkError::Output { chunk: i, offset: part.offset, len: part.len });
        }
    }
    Ok(bytes)
}

/// Up to `wanted` bytes that a stored chunk decodes to, which nothing is checked of; `state`: decompressed, if it needs
/// one.
pub(crate) fn decode_bytes<'a>(
    codec: ChunkCodec,
    bits: u8,
    state: &[u8],
    stored: &'a [u8],
    wanted: u64,
) -> Result<Cow<'a, [u8]>, CodecError> {
    let damaged = |what| CodecError::Chunk { what };
    Ok(match codec {
        ChunkCodec::Plain => Cow::Borrowed(&stored[..stored.len().min(wanted as usize)]),
        ChunkCodec::Gzip => stream(Codec::Gzip, None, stored, wanted)?.into(),
        ChunkCodec::Zstd => stream(Codec::Zstd, None, stored, wanted)?.into(),
        ChunkCodec::Inflate => stream(Codec::Gzip, Some((bits, state)), stored, wanted)?.into(),
        ChunkCodec::Lz4 => lz4_block(stored, wanted as usize).map_err(damaged)?.into(),
        ChunkCodec::BlockRun => {
            let run = BlockRun::decode(state).map_err(damaged)?;
            run.decompress(stored, wanted as usize).map_err(damaged)?.into()
        }
    })
}

fn open_state(stored: Option<&[u8]>, known: &crate::chunk::State) -> Result<Vec<u8>, WindowError> {
    let stored = stored.ok_or(WindowError::Missing)?;
    if stored.len() as u64 != u64::from(known.len) || *blake3::hash(stored).as_bytes() != known.digest {
        return Err(WindowError::Digest);
    }
    zstd::bulk::decompress(stored, MAX_STATE).map_err(|_| WindowError::Damaged)
}

/// One block of LZ4 of exactly `wanted` bytes.
pub(super) fn lz4_block(stored: &[u8], wanted: usize) -> Result<Vec<u8>, &'static str> {
    let mut out = vec![0; wanted];
    match lz4_flex::block::decompress_into(stored, &mut out) {
        Ok(n) => {
            out.truncate(n);
            Ok(out)
        }
        Err(_) => Err("it is no LZ4 block of that size"),
    }
}

enum Stop {
    Enough,
    Failed(CodecError),
}

impl From<CodecError> for Stop {
    fn from(e: CodecError) -> Self {
        Self::Failed(e)
    }
}

/// The first `wanted` bytes that `stored` decodes to; `raw`: bits and window of deflate data.
fn stream(codec: Codec, raw: Option<(u8, &[u8])>, stored: &[u8], wanted: u64) -> Result<Vec<u8>, CodecError> {
    let (bits, window) = raw.unwrap_or_default();
    let blob_offset = u64::from(bits > 0);
    let span = Span { stream_offset: 0, blob_offset, bits, raw: raw.is_some(), ..Span::default() };
    // Members may be padded or hold more than is wanted: the output ends when there is enough.
    let table = SpanTable { codec, blob_size: stored.len() as u64, stream_size: MAX_SIZE, spans: vec![span] };
    let mut decoder = SpanDecoder::with_window(&table, 0, window.to_vec())?;
    let mut out = Vec::with_capacity(wanted as usize);
    let fed = decoder.feed(stored, &mut |bytes: &[u8]| {
        let n = bytes.len().min(wanted as usize - out.len());
        out.extend_from_slice(&bytes[..n]);
        if out.len() as u64 == wanted { Err(Stop::Enough) } else { Ok(()) }
    });
    match fed {
        Err(Stop::Failed(e)) => Err(e),
        Ok(()) | Err(Stop::Enough) => Ok(out),
    }
}
