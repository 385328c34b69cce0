//! What programs read first of an image, as overlaybd has recorded it: the file `trace` in the archive that an acceleration
//! layer is (overlaybd `src/prefetch.cpp`). A hint: what cannot be read of it is none.

use std::ops::Range;

use super::zfile::crc;
use crate::codec::{CodecError, FUZZING, StreamDecoder};
use crate::le::{le32, le64};
use crate::span::Codec;
use crate::tar::{Decoder, Entry, EntryKind, Sink, TarError};

const NAME: &[u8] = b"trace";
const MAGIC: u32 = 0xC2EF_1820;
/// Header and record, bytes each.
const HEAD: usize = 24;
const RECORD: usize = 24;
const READ: u8 = b'R';

/// Most bytes of an archive that is read.
pub const MAX_TRACE: u64 = 16 << 20;

/// Bytes that were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Of which layer, lowest first from 0.
    pub layer: u32,
    /// Which, of its LSMT file.
    pub range: Range<u64>,
}

/// What an acceleration layer (all of it) tells, in order.
pub fn recorded(archive: &[u8]) -> Vec<Recorded> {
    let mut found = Found::default();
    let unpacked = found.unpack(archive);
    unpacked.ok().and_then(|()| decode(&found.trace)).unwrap_or_default()
}

fn decode(trace: &[u8]) -> Option<Vec<Recorded>> {
    let (head, records) = trace.split_at_checked(HEAD)?;
    let is_whole = le32(head, 0) == MAGIC && le64(head, 8) == records.len() as u64;
    if !is_whole || records.len() % RECORD != 0 || !(FUZZING || crc(records) == le32(head, 16)) {
        return None;
    }
    let read = |record: &[u8]| {
        let start = le64(record, 16);
        let end = start.checked_add(le64(record, 8)).filter(|end| *end > start)?;
        (record[0] == READ).then(|| Recorded { layer: le32(record, 4), range: start..end })
    };
    Some(records.chunks_exact(RECORD).filter_map(read).collect())
}

#[derive(Default)]
struct Found {
    trace: Vec<u8>,
    is_in_it: bool,
}

struct Unreadable;

impl From<TarError> for Unreadable {
    fn from(_: TarError) -> Self {
        Self
    }
}

impl From<CodecError> for Unreadable {
    fn from(_: CodecError) -> Self {
        Self
    }
}

impl Found {
    fn unpack(&mut self, archive: &[u8]) -> Result<(), Unreadable> {
        let codec = if archive.starts_with(&[0x1f, 0x8b]) { Codec::Gzip } else { Codec::Plain };
        let mut tar = Decoder::new();
        let mut stream = StreamDecoder::with_limit(codec, false, MAX_TRACE)?;
        stream.feed(archive, &mut |bytes: &[u8]| tar.feed(bytes, self))?;
        stream.finish()?;
        Ok(tar.finish()?)
    }
}

impl Sink for Found {
    type Error = Unreadable;

    fn entry(&mut self, entry: Entry) -> Result<(), Unreadable> {
        let name = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
        self.is_in_it = name == NAME && matches!(entry.kind, EntryKind::File(_));
        Ok(())
    }

    fn data(&mut self, offset: u64, _: u64, bytes: &[u8]) -> Result<(), Unreadable> {
        if self.is_in_it {
            if offset != self.trace.len() as u64 {
                return Err(Unreadable);
            }
            self.trace.extend_from_slice(bytes);
        }
        Ok(())
    }
}

/// Most parts of files that are taken: a trace may name the same bytes again and again.
const MOST_PARTS: usize = 1 << 20;

/// Where parts of files stand in the layers' LSMT files.
#[derive(Debug, Default)]
pub(super) struct Spots<File> {
    all: Vec<Spot<File>>,
}

#[derive(Debug)]
struct Spot<File> {
    layer: u32,
    range: Range<u64>,
    file: File,
    /// Byte offset in the file of its first byte.
    offset: u64,
}

impl<File: Copy> Spots<File> {
    /// A part of a file.
    pub fn add(&mut self, layer: u16, range: Range<u64>, file: File, offset: u64) {
        self.all.push(Spot { layer: layer.into(), range, file, offset });
    }

    /// The parts of files that were read, in order.
    pub fn read(mut self, recorded: &[Recorded], mut part: impl FnMut(File, Range<u64>)) {
        self.all.sort_by_key(|spot| (spot.layer, spot.range.start));
        let mut left = MOST_PARTS;
        for Recorded { layer, range } in recorded {
            // A layer's parts of files do not overlap.
            let first = self.all.partition_point(|s| (s.layer, s.range.end) <= (*layer, range.start));
            let touched = self.all[first..].iter();
            for spot in touched.take_while(|s| s.layer == *layer && s.range.start < range.end) {
                let (start, end) = (spot.range.start.max(range.start), spot.range.end.min(range.end));
                let at = |byte: u64| spot.offset + (byte - spot.range.start);
                part(spot.file, at(start)..at(end));
                left -= 1;
                if left == 0 {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(records: &[(u8, u32, u64, u64)]) -> Vec<u8> {
        let record = |&(op, layer, len, start): &(u8, u32, u64, u64)| {
            let mut bytes = vec![op, 0, 0, 0];
            bytes.extend_from_slice(&layer.to_le_bytes());
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&start.to_le_bytes());
            bytes
        };
        let records: Vec<u8> = records.iter().flat_map(record).collect();
        let mut all = u64::from(MAGIC).to_le_bytes().to_vec();
        all.extend_from_slice(&(records.len() as u64).to_le_bytes());
        all.extend_from_slice(&u64::from(crc(&records)).to_le_bytes());
        all.extend_from_slice(&records);
        all
    }

    #[test]
    fn a_trace_is_what_was_read_in_order() {
        let whole = trace(&[(b'R', 1, 10, 5), (b'W', 0, 9, 9), (b'R', 0, 4, 1), (b'R', 0, 9, u64::MAX)]);
        let wanted = [Recorded { layer: 1, range: 5..15 }, Recorded { layer: 0, range: 1..5 }];
        assert_eq!(decode(&whole).unwrap(), wanted);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            // What pads the header says nothing.
            let is_padding = (4..8).contains(&at) || (20..24).contains(&at);
            assert_eq!(decode(&damaged).is_some(), is_padding, "byte {at}");
        }
        (0..whole.len()).for_each(|len| assert_eq!(decode(&whole[..len]), None, "{len} bytes"));
    }

    #[test]
    fn reads_become_parts_of_files() {
        let mut spots = Spots::default();
        spots.add(1, 100..200, 'a', 0);
        spots.add(0, 0..50, 'b', 1000);
        spots.add(0, 50..60, 'a', 100);
        let read = |layer, range| Recorded { layer, range };
        let mut parts = Vec::new();
        spots.read(&[read(0, 40..70), read(2, 0..9), read(1, 0..101), read(1, 150..160)], |file, part| {
            parts.push((file, part));
        });
        assert_eq!(parts, [('b', 1040..1050), ('a', 100..110), ('a', 0..1), ('a', 50..60)]);
    }
}
