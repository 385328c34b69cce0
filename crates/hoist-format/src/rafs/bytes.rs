//! Pieces of the metadata, cut with care, and what may be decompressed of it.

use std::ops::Range;

use super::RafsError;
use super::blob::Compressor;

/// Most bytes that compressed metadata may become: contexts with the windows of a gzip layer of some 7 GB.
const MAX_METADATA: u64 = 256 << 20;

/// `bytes[start..start + len]`.
pub(super) fn cut<'a>(
    bytes: &'a [u8],
    what: &'static str,
    start: u64,
    len: u64,
) -> Result<&'a [u8], RafsError> {
    let size = bytes.len() as u64;
    match start.checked_add(len) {
        Some(end) if end <= size => Ok(&bytes[start as usize..end as usize]),
        _ => Err(RafsError::Cut { what, start, len, size }),
    }
}

/// A digest in the middle of a structure.
pub(super) fn digest(record: &[u8], at: usize) -> [u8; 32] {
    record[at..at + 32].try_into().expect("32 bytes")
}

/// Refuses tables that share bytes. Empty ones are nowhere.
pub(super) fn apart(tables: &[(&'static str, Range<u64>)]) -> Result<(), RafsError> {
    let mut tables: Vec<_> = tables.iter().map(|(_, r)| r).filter(|r| !r.is_empty()).collect();
    tables.sort_by_key(|r| r.start);
    match tables.windows(2).all(|t| t[0].end <= t[1].start) {
        true => Ok(()),
        false => Err(RafsError::Lie("its tables overlap")),
    }
}

/// Decompresses metadata that must have `len` bytes.
pub(super) fn expand(
    stored: &[u8],
    compressor: Compressor,
    len: u64,
    what: &'static str,
) -> Result<Vec<u8>, RafsError> {
    if len > MAX_METADATA {
        return Err(RafsError::Lie("metadata of more than 256 MiB"));
    }
    // The most that stored bytes become: 255 bytes for one in LZ4, 128 KiB for a block of 4 in zstd.
    let most = (stored.len() as u64).saturating_mul(32 << 10);
    if len > most {
        return Err(RafsError::Compression(what));
    }
    let len = len as usize;
    let raw = match compressor {
        Compressor::None => Some(stored.to_vec()),
        Compressor::Zstd => zstd::bulk::decompress(stored, len).ok(),
        Compressor::Lz4Block => {
            let mut raw = vec![0; len];
            lz4_flex::block::decompress_into(stored, &mut raw).ok().map(|n| {
                raw.truncate(n);
                raw
            })
        }
        Compressor::Gzip => None,
    };
    raw.filter(|raw| raw.len() == len).ok_or(RafsError::Compression(what))
}
