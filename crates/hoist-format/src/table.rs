//! The *table* of a layer: its extents and its spans, as one verified, zstd-compressed blob
//! (layout: `docs/FORMAT.md`, "Table").
//!
//! Columns of varints, each the difference to what its neighbour already says; digests raw.
//! Everything is checked while decoding, so code behind this module may trust the order and the
//! bounds that [`crate::extent`], [`crate::span`] and [`crate::chunk`] promise. There are two versions: 1 for one
//! blob with checkpoints, which is what is published of tar layers, and 2 for chunks that are decoded each alone.

mod chunks;

pub(crate) use chunks::most_pieces;

use crate::extent::{BLOCK, Extent, ExtentTable, Piece};
use crate::span::{Codec, Span, SpanTable, Spans};

const MAGIC: &[u8; 8] = b"hoisttb1";

/// Largest table accepted, uncompressed bytes: what 16 million small files take.
pub const MAX_RAW: usize = 128 << 20;
/// A stream has one piece in this many bytes at most, beyond [`FREE_PIECES`]: a tar's data comes in blocks. What a
/// table may cost in memory so depends on the size of what it describes.
pub(crate) const STREAM_PER_PIECE: u64 = 512;
/// Pieces that any stream may have.
pub(crate) const FREE_PIECES: u64 = 64 << 10;
/// Spans are this many bytes of stream apart on average, at least (the encoder's are 256 KiB and more).
const STREAM_PER_SPAN: u64 = 64 << 10;
/// Spans that any stream may have.
const FREE_SPANS: u64 = 1024;
/// Largest data file or stream accepted, bytes.
pub const MAX_SIZE: u64 = 8 << 40;
/// Largest extent accepted, bytes: it is held in memory while it is decoded.
pub const MAX_EXTENT: u64 = 8 << 20;

/// Everything needed to fill a layer's data file from its blob, or from several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Data file ranges, their digests and their places in the uncompressed stream.
    pub extents: ExtentTable,
    /// Checkpoints of the blob, or chunks.
    pub spans: Spans,
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Not zstd, or too large when decompressed.
    #[error("the table cannot be decompressed: {0}")]
    Compression(std::io::Error),
    /// The magic or version is another one.
    #[error("the table is of no version that this hoist reads (hoisttb1, hoisttb2); index the image again")]
    Version,
    /// It ends too early, or bytes are left over.
    #[error("the table is cut off or has bytes left over in {0}")]
    Length(&'static str),
    /// A number breaks the order or bounds promised.
    #[error("the table lies: {0}")]
    Lie(&'static str),
}

fn put(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], TableError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(TableError::Length(what))?;
        self.0 = rest;
        Ok(head)
    }
    fn varint(&mut self, what: &'static str) -> Result<u64, TableError> {
        let mut v = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.take(1, what)?[0];
            v |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(v);
            }
        }
        Err(TableError::Lie("a number of more than 63 bits"))
    }
    /// How many items follow, each of at least `each` bytes: no allocation for what can't be there.
    fn count(&mut self, each: usize, what: &'static str) -> Result<usize, TableError> {
        let n = usize::try_from(self.varint(what)?).map_err(|_| TableError::Length(what))?;
        if n > self.0.len() / each { Err(TableError::Length(what)) } else { Ok(n) }
    }
    fn digest(&mut self, what: &'static str) -> Result<[u8; 32], TableError> {
        Ok(self.take(32, what)?.try_into().expect("32 bytes"))
    }
}

/// Most bytes that a blob of this size can decode to: 258 bytes for 2 bits in deflate, 128 KiB for a block of 4 bytes
/// in zstd.
fn most_output(codec: Codec, blob: u64) -> u64 {
    match codec {
        Codec::Plain => blob,
        Codec::Gzip => blob.saturating_mul(1032),
        Codec::Zstd => blob.saturating_mul(32 << 10),
    }
}

fn add(a: u64, b: u64, max: u64, lie: &'static str) -> Result<u64, TableError> {
    a.checked_add(b).filter(|&s| s <= max).ok_or(TableError::Lie(lie))
}

impl Table {
    /// The table as it is stored and published. Deterministic.
    pub fn encode(&self) -> Vec<u8> {
        let raw = match &self.spans {
            Spans::Linear(spans) => encode_linear(&self.extents, spans),
            Spans::Chunks(table) => chunks::encode(&self.extents, table),
        };
        zstd::bulk::compress(&raw, 12).expect("compressing to memory does not fail")
    }

    /// Decodes and checks a stored table of at most [`MAX_RAW`] bytes.
    pub fn decode(stored: &[u8]) -> Result<Self, TableError> {
        let raw = decompress(stored, MAX_RAW).map_err(TableError::Compression)?;
        let mut r = Reader(&raw);
        let table = match r.take(8, "magic")? {
            magic if magic == MAGIC => decode_linear(&mut r)?,
            magic if magic == chunks::MAGIC => chunks::decode(&mut r)?,
            _ => return Err(TableError::Version),
        };
        if !r.0.is_empty() {
            return Err(TableError::Length("the end"));
        }
        Ok(table)
    }
}

fn encode_linear(e: &ExtentTable, s: &SpanTable) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(match s.codec {
        Codec::Plain => 0,
        Codec::Gzip => 1,
        Codec::Zstd => 2,
    });
    for v in [s.blob_size, s.stream_size, e.data_size] {
        put(&mut out, v);
    }
    for n in [e.extents.len(), e.pieces.len(), s.spans.len()] {
        put(&mut out, n as u64);
    }
    encode_extents(&mut out, e);
    let (mut stream, mut blob) = (0, 0);
    for sp in &s.spans {
        put(&mut out, sp.stream_offset - stream);
        put(&mut out, sp.blob_offset - blob);
        out.push(sp.bits | u8::from(sp.raw) << 3);
        put(&mut out, u64::from(sp.window_len));
        (stream, blob) = (sp.stream_offset, sp.blob_offset);
    }
    for sp in s.spans.iter().filter(|sp| sp.window_len > 0) {
        out.extend_from_slice(&sp.window_digest);
    }
    for x in &e.extents {
        out.extend_from_slice(&x.digest);
    }
    out
}

/// Extents and pieces, without digests.
fn encode_extents(out: &mut Vec<u8>, e: &ExtentTable) {
    for i in 0..e.extents.len() {
        put(out, e.pieces_of(i).len() as u64);
    }
    let (mut data, mut stream) = (0, 0);
    for p in &e.pieces {
        put(out, p.data_offset - data);
        put(out, p.stream_offset - stream);
        put(out, p.len);
        (data, stream) = (p.data_offset + p.len, p.stream_offset + p.len);
    }
}

fn decode_linear(r: &mut Reader<'_>) -> Result<Table, TableError> {
    let codec = match r.take(1, "codec")?[0] {
        0 => Codec::Plain,
        1 => Codec::Gzip,
        2 => Codec::Zstd,
        _ => return Err(TableError::Version),
    };
    let [blob_size, stream_size, data_size] = [r.varint("sizes")?, r.varint("sizes")?, r.varint("sizes")?];
    if blob_size > MAX_SIZE || stream_size > MAX_SIZE || data_size > MAX_SIZE || data_size % BLOCK != 0 {
        return Err(TableError::Lie("a size beyond 8 TiB or off the block grid"));
    }
    if stream_size > most_output(codec, blob_size) {
        return Err(TableError::Lie("a stream larger than its blob can hold"));
    }
    let [n_extents, n_pieces, n_spans] =
        [r.count(33, "extents")?, r.count(3, "pieces")?, r.count(4, "spans")?];
    if n_pieces as u64 > FREE_PIECES + stream_size / STREAM_PER_PIECE
        || n_spans as u64 > FREE_SPANS + stream_size / STREAM_PER_SPAN
    {
        return Err(TableError::Lie("more pieces or spans than a stream of its size has"));
    }
    let mut extents = decode_extents(r, (n_extents, n_pieces), stream_size, data_size)?;
    let spans = decode_spans(r, codec, blob_size, stream_size, n_spans)?;
    for x in &mut extents.extents {
        x.digest = r.digest("extent digests")?;
    }
    Ok(Table { extents, spans: Spans::Linear(spans) })
}

/// Extents and pieces, without digests.
fn decode_extents(
    r: &mut Reader<'_>,
    (n_extents, n_pieces): (usize, usize),
    stream_size: u64,
    data_size: u64,
) -> Result<ExtentTable, TableError> {
    let mut extents = Vec::with_capacity(n_extents);
    let mut first_piece = 0u32;
    for _ in 0..n_extents {
        extents.push(Extent { data_offset: 0, len: 0, digest: [0; 32], first_piece });
        let n = r.varint("piece counts")?;
        if n == 0 || n > n_pieces as u64 - u64::from(first_piece) {
            return Err(TableError::Lie("an extent without pieces, or more pieces than there are"));
        }
        first_piece += n as u32;
    }
    if first_piece as usize != n_pieces {
        return Err(TableError::Lie("pieces that belong to no extent"));
    }
    let mut pieces = Vec::with_capacity(n_pieces);
    let (mut data, mut stream) = (0, 0);
    for _ in 0..n_pieces {
        let data_offset = add(data, r.varint("pieces")?, data_size, "a piece beyond the data file")?;
        let stream_offset = add(stream, r.varint("pieces")?, stream_size, "a piece beyond the stream")?;
        let len = r.varint("pieces")?;
        if len == 0 {
            return Err(TableError::Lie("an empty piece"));
        }
        data = add(data_offset, len, data_size, "a piece beyond the data file")?;
        stream = add(stream_offset, len, stream_size, "a piece beyond the stream")?;
        pieces.push(Piece { stream_offset, data_offset, len });
    }
    let mut table = ExtentTable { extents, pieces, data_size };
    let mut end = 0;
    for i in 0..n_extents {
        let own = table.pieces_of(i);
        let start = own[0].data_offset / BLOCK * BLOCK;
        let last = own[own.len() - 1];
        let len = last.data_offset + last.len - start;
        if start < end || len > MAX_EXTENT {
            return Err(TableError::Lie("extents that share a block, or one of more than 8 MiB"));
        }
        end = (start + len).next_multiple_of(BLOCK);
        (table.extents[i].data_offset, table.extents[i].len) = (start, len);
    }
    Ok(table)
}

fn decode_spans(
    r: &mut Reader<'_>,
    codec: Codec,
    blob_size: u64,
    stream_size: u64,
    n_spans: usize,
) -> Result<SpanTable, TableError> {
    let mut spans = Vec::with_capacity(n_spans);
    let (mut stream, mut blob, mut window) = (0, 0, 0);
    for i in 0..n_spans {
        stream = add(stream, r.varint("spans")?, stream_size, "a span beyond the stream")?;
        blob = add(blob, r.varint("spans")?, blob_size, "a span beyond the blob")?;
        let flags = r.take(1, "spans")?[0];
        let (bits, raw) = (flags & 7, flags & 8 != 0);
        let window_len = r.varint("spans")?;
        if window_len > 64 << 10 || (i == 0 && (stream != 0 || raw)) || (bits > 0 && (blob == 0 || !raw)) {
            return Err(TableError::Lie("a span that cannot be decoded from where it says"));
        }
        spans.push(Span {
            stream_offset: stream,
            blob_offset: blob,
            bits,
            raw,
            window_offset: window,
            window_len: window_len as u32,
            window_digest: [0; 32],
        });
        window += window_len;
    }
    if spans.is_empty() {
        return Err(TableError::Lie("no span at all"));
    }
    for sp in spans.iter_mut().filter(|sp| sp.window_len > 0) {
        sp.window_digest = r.digest("window digests")?;
    }
    Ok(SpanTable { codec, blob_size, stream_size, spans })
}

/// zstd-decompresses at most `max` bytes, so that a bomb costs no more than that.
pub fn decompress(stored: &[u8], max: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored)?;
    decoder.window_log_max(27)?;
    let mut out = Vec::new();
    decoder.take(max as u64 + 1).read_to_end(&mut out)?;
    if out.len() > max {
        return Err(std::io::Error::other(format!("more than {max} bytes when decompressed")));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let piece = |d: u64, s: u64, len| Piece { data_offset: d, stream_offset: s, len };
        let pieces = vec![piece(0, 512, 10), piece(4096, 1536, 4096), piece(12288, 6656, 1)];
        let x = |data_offset, len, first_piece| Extent { data_offset, len, digest: [7; 32], first_piece };
        Table {
            extents: ExtentTable { extents: vec![x(0, 8192, 0), x(12288, 1, 2)], pieces, data_size: 16384 },
            spans: Spans::Linear(SpanTable {
                codec: Codec::Gzip,
                blob_size: 900,
                stream_size: 8192,
                spans: vec![
                    Span::default(),
                    Span {
                        stream_offset: 4000,
                        blob_offset: 300,
                        bits: 3,
                        raw: true,
                        window_len: 9,
                        window_digest: [1; 32],
                        ..Span::default()
                    },
                ],
            }),
        }
    }

    fn linear(table: &mut Table) -> &mut SpanTable {
        match &mut table.spans {
            Spans::Linear(spans) => spans,
            Spans::Chunks(_) => panic!("not linear"),
        }
    }

    #[test]
    fn round_trip() {
        let t = sample();
        assert_eq!(Table::decode(&t.encode()).unwrap(), t);
    }

    #[test]
    fn every_flip_and_cut_of_the_raw_table_is_refused_or_consistent() {
        let raw = decompress(&sample().encode(), MAX_RAW).unwrap();
        for i in 0..raw.len() {
            let _ = Table::decode(&zstd::bulk::compress(&raw[..i], 1).unwrap()).unwrap_err();
            for bit in 0..8 {
                let mut bad = raw.clone();
                bad[i] ^= 1 << bit;
                if let Ok(t) = Table::decode(&zstd::bulk::compress(&bad, 1).unwrap()) {
                    assert_eq!(Table::decode(&t.encode()).unwrap(), t);
                }
            }
        }
    }

    /// A table of these counts, sizes as large as they may be, and then nothing but zeros or ones.
    fn bomb(counts: [u64; 3], fill: u8) -> Vec<u8> {
        let mut raw = MAGIC.to_vec();
        raw.push(2);
        [MAX_SIZE; 3].into_iter().chain(counts).for_each(|n| put(&mut raw, n));
        raw.resize(MAX_RAW, fill);
        zstd::bulk::compress(&raw, 1).unwrap()
    }

    #[test]
    fn counts_beyond_what_is_there_allocate_nothing() {
        let all = MAX_RAW as u64;
        for counts in [[all, 0, 0], [0, all, 0], [0, 0, all], [1, 1, u64::MAX >> 1], [all / 2, all / 2, 1]] {
            assert!(matches!(Table::decode(&bomb(counts, 1)), Err(TableError::Length(_))), "{counts:?}");
        }
        let mut small = sample();
        linear(&mut small).stream_size = 900 << 20;
        assert!(matches!(Table::decode(&small.encode()), Err(TableError::Lie(_))), "900 MiB of 900 bytes");
    }

    /// As many pieces as a small stream could never have.
    #[test]
    fn pieces_are_bounded_by_the_stream() {
        let mut table = sample();
        (linear(&mut table).blob_size, linear(&mut table).stream_size) = (1 << 20, 1 << 20);
        let n = FREE_PIECES + (1 << 20) / STREAM_PER_PIECE;
        table.extents.data_size = 1 << 20;
        table.extents.extents.truncate(1);
        let piece = |i| Piece { stream_offset: 2 * i, data_offset: 2 * i, len: 1 };
        table.extents.pieces = (0..n).map(piece).collect();
        table.extents.extents[0].len = 2 * n - 1;
        assert_eq!(Table::decode(&table.encode()).unwrap(), table);
        table.extents.pieces.push(piece(n));
        assert!(matches!(Table::decode(&table.encode()), Err(TableError::Lie(_))));
    }

    #[test]
    fn a_bomb_is_refused_at_its_limit() {
        let bomb = zstd::bulk::compress(&vec![0; 10 << 20], 19).unwrap();
        assert!(decompress(&bomb, 1 << 20).is_err());
    }
}
