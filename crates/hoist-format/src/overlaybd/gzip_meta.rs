//! gzip.meta: where decoding of an original gzip layer may start, as TurboOCI keeps it
//! (overlaybd `src/overlaybd/gzindex/gzfile_index.h`, `gzip_index_create.cpp`).

use hoist_sys::inflate::{Inflate, WINDOW};

use super::OverlaybdError;
use super::zfile::crc;
use crate::chunk::ChunkCodec;
use crate::codec::FUZZING;
use crate::le::{le32, le64};

const MAGIC: &[u8; 8] = b"ddgzidx\0";
const HEAD: usize = 333;
const MAJOR: u8 = 1;
const ENTRY: usize = 29;
const UNCOMPRESSED: u8 = 0;
const ZLIB: u8 = 1;
/// Most entries: a stream of 8 TiB has as many, 1 MiB apart.
const MOST: u64 = 8 << 20;

/// A place where decoding may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GzipSpan {
    /// Byte offset in the tar stream.
    pub stream_offset: u64,
    /// Byte offset in the blob of the first whole byte of input.
    pub blob_offset: u64,
    /// How many high bits of the byte before belong to it, 0 to 7.
    pub bits: u8,
    /// Where its window stands in gzip.meta.
    window: std::ops::Range<usize>,
}

/// The index of a gzip layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GzipIndex {
    /// Bytes of the gzip blob that it belongs to.
    pub blob_size: u64,
    /// Bytes of the tar stream.
    pub stream_size: u64,
    /// Ascending by both offsets; the first starts the stream.
    pub spans: Vec<GzipSpan>,
    packed: bool,
    bytes: Vec<u8>,
}

impl GzipIndex {
    /// Reads gzip.meta.
    ///
    /// # Errors
    /// [`OverlaybdError::GzipMeta`].
    pub fn read(bytes: Vec<u8>) -> Result<Self, OverlaybdError> {
        let bad = |what| Err(OverlaybdError::GzipMeta(what));
        let Some(head) = bytes.get(..HEAD).filter(|head| head.starts_with(MAGIC)) else {
            return bad("it has no header");
        };
        if !FUZZING && crc(&head[..HEAD - 4]) != le32(head, HEAD - 4) {
            return bad("its header has another checksum");
        }
        let packed = match head[10] {
            UNCOMPRESSED => false,
            ZLIB => true,
            _ => return bad("its windows are compressed in an unknown way"),
        };
        if head[8] != MAJOR || le32(head, 21) as usize != ENTRY || le32(head, 17) as usize != WINDOW {
            return bad("it is of a version that hoist does not read");
        }
        let [count, blob_size, size, stream_size] = [25, 33, 41, 49].map(|at| le64(head, at));
        let (start, len) = (le64(head, 313), le64(head, 321));
        if size != bytes.len() as u64 || start.checked_add(len) != Some(size) || start < HEAD as u64 {
            return bad("it is cut off, or its list lies beyond it");
        }
        if count > MOST || count == 0 {
            return bad("it has no or too many entries");
        }
        let list = &bytes[start as usize..];
        let wanted = count as usize * ENTRY;
        if wanted as u64 > ChunkCodec::Inflate.most_output(len) {
            return bad("its list has fewer entries than it says");
        }
        let list = if packed { zlib(list, wanted) } else { Some(list.to_vec()) };
        let Some(list) = list.filter(|list| list.len() == wanted) else {
            return bad("its list is damaged");
        };
        let mut spans: Vec<GzipSpan> = Vec::with_capacity(count as usize);
        for entry in list.chunks_exact(ENTRY) {
            let (stream_offset, blob_offset, window) = (le64(entry, 0), le64(entry, 8), le64(entry, 16));
            let (bits, len) = (entry[24], u64::from(le32(entry, 25)));
            let ascends = match spans.last() {
                None => stream_offset == 0,
                Some(last) => stream_offset > last.stream_offset && blob_offset >= last.blob_offset,
            };
            let end = window.checked_add(len).filter(|&end| end <= start && window >= HEAD as u64);
            let sound = ascends
                && stream_offset < stream_size.max(1)
                && blob_offset < blob_size
                && bits < 8
                && (bits == 0 || blob_offset > 0);
            let (true, Some(end)) = (sound, end) else { return bad("an entry is out of order or bounds") };
            spans.push(GzipSpan { stream_offset, blob_offset, bits, window: window as usize..end as usize });
        }
        Ok(Self { blob_size, stream_size, spans, packed, bytes })
    }

    /// Bytes of memory that its list takes.
    pub(super) fn held(&self) -> u64 {
        size_of_val(&self.spans[..]) as u64
    }

    /// The 32 KiB of the stream before a span, oldest byte first; None for the first one, which needs none.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn window(&self, span: usize) -> Result<Option<Vec<u8>>, OverlaybdError> {
        let span = &self.spans[span];
        if span.stream_offset == 0 {
            return Ok(None);
        }
        let stored = &self.bytes[span.window.clone()];
        let window = if self.packed { zlib(stored, WINDOW) } else { Some(stored.to_vec()) };
        let window = window.filter(|w| w.len() == WINDOW);
        window.map(Some).ok_or(OverlaybdError::GzipMeta("a window is damaged"))
    }

    /// The span that holds byte `stream_offset`.
    pub fn containing(&self, stream_offset: u64) -> usize {
        self.spans.partition_point(|s| s.stream_offset <= stream_offset).saturating_sub(1)
    }

    /// The range of the stream that a span decodes to.
    pub fn stream_range(&self, span: usize) -> std::ops::Range<u64> {
        self.spans[span].stream_offset..self.spans.get(span + 1).map_or(self.stream_size, |s| s.stream_offset)
    }

    /// The range of the blob that a span needs, the byte with its first bits included.
    pub fn blob_range(&self, span: usize) -> std::ops::Range<u64> {
        let first = &self.spans[span];
        let end = self.spans.get(span + 1).map_or(self.blob_size, |s| s.blob_offset);
        first.blob_offset - u64::from(first.bits > 0)..end
    }
}

/// Decompresses a zlib stream (RFC 1950) of at most `most` bytes; None when it is none.
fn zlib(bytes: &[u8], most: usize) -> Option<Vec<u8>> {
    let (head, body) = bytes.split_at_checked(2)?;
    let method_and_check = u16::from_be_bytes([head[0], head[1]]);
    if head[0] & 15 != 8 || head[1] & 0x20 != 0 || !method_and_check.is_multiple_of(31) {
        return None;
    }
    let mut out = vec![0; most + 1];
    let mut inflate = Inflate::raw().ok()?;
    let step = inflate.step(body, &mut out, false).ok()?;
    if !step.end || step.produced > most {
        return None;
    }
    out.truncate(step.produced);
    let sum = body.get(step.consumed..step.consumed + 4)?;
    let right = FUZZING || adler(&out).to_be_bytes() == sum;
    right.then_some(out)
}

fn adler(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    // The sums stay below 2^32 for this many bytes (RFC 1950, section 9).
    for part in bytes.chunks(5552) {
        for &byte in part {
            a += u32::from(byte);
            b += a;
        }
        (a, b) = (a % 65521, b % 65521);
    }
    b << 16 | a
}
