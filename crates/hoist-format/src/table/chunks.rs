//! Version 2 of the stored table: chunks in any number of blobs, each decoded alone.

use super::{
    BLOCK, FREE_PIECES, MAX_SIZE, Reader, Table, TableError, add, decode_extents, encode_extents, put,
};
use crate::chunk::{
    Blob, Check, Chunk, ChunkCodec, ChunkTable, ContentDigest, MAX_CHUNK, MAX_STATE, MAX_STORED, Part, State,
};
use crate::digest::Digest;
use crate::extent::ExtentTable;
use crate::span::Spans;

pub(super) const MAGIC: &[u8; 8] = b"hoisttb2";

/// A stream of chunks has one piece in this many bytes at most, beyond [`MORE_PIECES`]: files need no tar's blocks.
const STREAM_PER_PIECE: u64 = 64;
/// Pieces that any stream of chunks may have.
const MORE_PIECES: u64 = 16 * FREE_PIECES;

/// Flags of a chunk: its codec in bits 0 to 3, `bits` in 4 to 6.
const BITS: u8 = 4;
/// What follows of a chunk: a state; a digest of its stored bytes.
const HAS_STATE: u64 = 1;
const HAS_STORED_DIGEST: u64 = 2;

/// Bounds memory by what a stream can have.
pub(crate) fn most_pieces(stream_size: u64) -> u64 {
    MORE_PIECES + stream_size / STREAM_PER_PIECE
}

fn zigzag(from: u64, to: u64) -> u64 {
    // Both are below 2^62.
    let step = to as i64 - from as i64;
    (step << 1 ^ step >> 63) as u64
}

fn unzigzag(from: u64, step: u64) -> Option<u64> {
    from.checked_add_signed((step >> 1) as i64 ^ -((step & 1) as i64))
}

pub(super) fn encode(e: &ExtentTable, t: &ChunkTable) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(match t.check {
        Check::Extents => 0,
        Check::Chunks => 1,
    });
    put(&mut out, t.stream_size);
    put(&mut out, e.data_size);
    for n in [t.blobs.len(), e.extents.len(), e.pieces.len(), t.chunks.len(), t.parts.len(), t.states.len()] {
        put(&mut out, n as u64);
    }
    put(&mut out, t.stored_digests.len() as u64);
    for blob in &t.blobs {
        put(&mut out, blob.size);
        out.extend_from_slice(blob.digest.as_bytes());
    }
    encode_extents(&mut out, e);
    let (mut stream, mut ends) = (0, vec![0; t.blobs.len()]);
    for (i, c) in t.chunks.iter().enumerate() {
        put(&mut out, c.stream_offset - stream);
        stream = c.stream_offset;
        put(&mut out, u64::from(c.blob));
        let end = &mut ends[usize::from(c.blob)];
        put(&mut out, zigzag(*end, c.start));
        put(&mut out, c.len);
        *end = c.start + c.len;
        out.push(c.codec.number() | c.bits << BITS);
        put(&mut out, t.parts_of(i).len() as u64);
        let state = if c.state.is_some() { HAS_STATE } else { 0 };
        let digest = if c.stored_digest.is_some() { HAS_STORED_DIGEST } else { 0 };
        put(&mut out, state | digest);
        c.state.iter().chain(&c.stored_digest).for_each(|&index| put(&mut out, u64::from(index)));
    }
    for p in &t.parts {
        put(&mut out, p.offset);
        put(&mut out, p.len);
        let kind = match p.digest {
            ContentDigest::Sha256(_) => 0,
            ContentDigest::Blake3(_) => 1,
        };
        out.push(kind);
    }
    let mut end = 0;
    for s in &t.states {
        put(&mut out, s.offset - end);
        put(&mut out, u64::from(s.len));
        end = s.offset + u64::from(s.len);
    }
    t.states.iter().for_each(|s| out.extend_from_slice(&s.digest));
    t.parts.iter().for_each(|p| out.extend_from_slice(p.digest.bytes()));
    t.stored_digests.iter().for_each(|d| out.extend_from_slice(d));
    if t.check == Check::Extents {
        e.extents.iter().for_each(|x| out.extend_from_slice(&x.digest));
    }
    out
}

pub(super) fn decode(r: &mut Reader<'_>) -> Result<Table, TableError> {
    let check = match r.take(1, "flags")?[0] {
        0 => Check::Extents,
        1 => Check::Chunks,
        _ => return Err(TableError::Version),
    };
    let [stream_size, data_size] = [r.varint("sizes")?, r.varint("sizes")?];
    if stream_size > MAX_SIZE || data_size > MAX_SIZE || data_size % BLOCK != 0 {
        return Err(TableError::Lie("a size beyond 8 TiB or off the block grid"));
    }
    let n_blobs = r.count(33, "blobs")?;
    let counts = (r.count(1, "extents")?, r.count(3, "pieces")?);
    let [n_chunks, n_parts, n_states, n_stored] =
        [r.count(7, "chunks")?, r.count(35, "parts")?, r.count(34, "states")?, r.count(32, "digests")?];
    if counts.1 as u64 > most_pieces(stream_size) || n_blobs > usize::from(u16::MAX) {
        return Err(TableError::Lie("more pieces than a stream of its size has, or more than 65535 blobs"));
    }
    let mut blobs = Vec::with_capacity(n_blobs);
    for _ in 0..n_blobs {
        let size = add(0, r.varint("blobs")?, MAX_SIZE, "a blob of more than 8 TiB")?;
        blobs.push(Blob { size, digest: Digest::from_bytes(r.digest("blobs")?) });
    }
    let mut extents = decode_extents(r, counts, stream_size, data_size)?;
    let mut table = ChunkTable {
        blobs,
        stream_size,
        chunks: Vec::with_capacity(n_chunks),
        parts: Vec::with_capacity(n_parts),
        states: Vec::with_capacity(n_states),
        stored_digests: Vec::with_capacity(n_stored),
        check,
    };
    decode_chunks(r, &mut table, n_chunks, (n_parts, n_states, n_stored))?;
    decode_parts(r, &mut table, n_parts)?;
    let mut end = 0;
    for _ in 0..n_states {
        let offset = add(end, r.varint("states")?, MAX_SIZE, "a state beyond 8 TiB")?;
        let len = r.varint("states")?;
        if len == 0 || len > MAX_STATE as u64 {
            return Err(TableError::Lie("a state of no or more than 64 KiB"));
        }
        end = offset + len;
        table.states.push(State { offset, len: len as u32, digest: [0; 32] });
    }
    for state in &mut table.states {
        state.digest = r.digest("state digests")?;
    }
    for part in &mut table.parts {
        let digest = r.digest("part digests")?;
        match &mut part.digest {
            ContentDigest::Sha256(d) | ContentDigest::Blake3(d) => *d = digest,
        }
    }
    for _ in 0..n_stored {
        table.stored_digests.push(r.digest("digests of stored bytes")?);
    }
    match check {
        Check::Extents => {
            for x in &mut extents.extents {
                x.digest = r.digest("extent digests")?;
            }
        }
        Check::Chunks => crate::build::name_extents(&mut extents, &table),
    }
    Ok(Table { extents, spans: Spans::Chunks(table) })
}

fn decode_chunks(
    r: &mut Reader<'_>,
    table: &mut ChunkTable,
    n_chunks: usize,
    (n_parts, n_states, n_stored): (usize, usize, usize),
) -> Result<(), TableError> {
    let (mut stream, mut first_part, mut ends) = (0, 0, vec![0; table.blobs.len()]);
    for i in 0..n_chunks {
        let step = r.varint("chunks")?;
        stream = add(stream, step, table.stream_size, "a chunk beyond the stream")?;
        if i == 0 && step != 0 {
            return Err(TableError::Lie("a stream that does not begin with a chunk"));
        }
        let blob = r.varint("chunks")? as usize;
        let Some(size) = table.blobs.get(blob).map(|b| b.size) else {
            return Err(TableError::Lie("a chunk of a blob that is not listed"));
        };
        let start = unzigzag(ends[blob], r.varint("chunks")?).filter(|&start| start <= size);
        let start = start.ok_or(TableError::Lie("a chunk beyond its blob"))?;
        let len = r.varint("chunks")?;
        ends[blob] = add(start, len, size, "a chunk beyond its blob")?;
        let flags = r.take(1, "chunks")?[0];
        let (codec, bits) = (ChunkCodec::of_number(flags & 15), flags >> BITS);
        let codec = codec.ok_or(TableError::Lie("a chunk of an unknown codec"))?;
        if bits > 7 || bits > 0 && codec != ChunkCodec::Inflate || len == 0 || len > MAX_STORED {
            return Err(TableError::Lie("a chunk that cannot be decoded from where it says"));
        }
        let parts = r.varint("chunks")?;
        let own_first = first_part;
        first_part = add(first_part, parts, n_parts as u64, "more parts than there are")?;
        let has = r.varint("chunks")?;
        let mut index = |is: u64, n: usize| match has & is {
            0 => Ok(None),
            _ => r
                .varint("chunks")?
                .try_into()
                .ok()
                .filter(|&i: &u32| (i as usize) < n)
                .map(Some)
                .ok_or(TableError::Lie("a chunk that names a state or a digest that is not there")),
        };
        let state = index(HAS_STATE, n_states)?;
        let stored_digest = index(HAS_STORED_DIGEST, n_stored)?;
        table.chunks.push(Chunk {
            stream_offset: stream,
            start,
            len,
            blob: blob as u16,
            codec,
            bits,
            state,
            stored_digest,
            first_part: own_first as u32,
        });
    }
    if first_part != n_parts as u64 || n_chunks == 0 && table.stream_size > 0 {
        return Err(TableError::Lie("parts or a stream of no chunk"));
    }
    for i in 0..n_chunks {
        let (output, chunk) = (table.stream_range(i), &table.chunks[i]);
        let len = output.end - output.start;
        if len == 0 || len > MAX_CHUNK.min(chunk.codec.most_output(chunk.len)) {
            return Err(TableError::Lie(
                "a chunk of no output, of more than 64 MiB, or of more than it can hold",
            ));
        }
    }
    Ok(())
}

fn decode_parts(r: &mut Reader<'_>, table: &mut ChunkTable, n_parts: usize) -> Result<(), TableError> {
    for i in 0..table.chunks.len() {
        let output = table.stream_range(i);
        let first = table.chunks[i].first_part as usize;
        let end = table.chunks.get(i + 1).map_or(n_parts, |c| c.first_part as usize);
        for _ in first..end {
            let (offset, len) = (r.varint("parts")?, r.varint("parts")?);
            add(offset, len, output.end - output.start, "a part beyond its chunk")?;
            let digest = match r.take(1, "parts")?[0] {
                _ if len == 0 => return Err(TableError::Lie("an empty part")),
                0 => ContentDigest::Sha256([0; 32]),
                1 => ContentDigest::Blake3([0; 32]),
                _ => return Err(TableError::Version),
            };
            table.parts.push(Part { offset, len, digest });
        }
    }
    Ok(())
}
