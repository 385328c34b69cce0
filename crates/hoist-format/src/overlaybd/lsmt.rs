//! LSMT: which sectors of a device a layer has, and layers laid over each other
//! (overlaybd `src/overlaybd/lsmt/file.cpp`, `index.cpp`).

use super::OverlaybdError;
use crate::le::{le32, le64};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Header and trailer, bytes each.
pub(super) const HEAD: u64 = 4096;

const MAGIC: [u8; 24] = [
    b'L', b'S', b'M', b'T', 0, 1, 2, 0, 0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c, 0xa2, 0xd2, 0xc8,
    0xec, 0x4f, 0xcf, 0xae, 0x8a,
];
const IS_HEADER: u32 = 1;
const IS_DATA: u32 = 2;
const IS_SEALED: u32 = 4;
const ENTRY: usize = 16;
/// The offset of entries that fill up the table.
const INVALID: u64 = (1 << 50) - 1;
/// Most segments of a device, and of all its layers together.
pub(super) const MOST: usize = 4 << 20;
/// Most layers (overlaybd `lsmt/file.h`, `MAX_STACK_LAYERS`).
pub(super) const MOST_LAYERS: usize = 255;

/// A sector number of the device.
pub type Sector = u64;

/// Where a segment's sectors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// They are zeros.
    Zero,
    /// In the layer's LSMT file, from this sector of it on.
    Own(u64),
    /// In the original layer's tar stream, from this sector of it on (TurboOCI).
    Original(u64),
}

impl Source {
    fn skip(self, sectors: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Own(at) => Self::Own(at + sectors),
            Self::Original(at) => Self::Original(at + sectors),
        }
    }
}

/// A run of sectors that a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First sector on the device.
    pub start: Sector,
    /// How many.
    pub len: u64,
    /// Which layer has them, lowest first from 0.
    pub layer: u16,
    /// Where they are.
    pub source: Source,
}

impl Segment {
    /// The sector behind the last.
    pub fn end(&self) -> Sector {
        self.start + self.len
    }
    /// What of it is in `start..end`; None when nothing is.
    pub(super) fn within(&self, start: Sector, end: Sector) -> Option<Self> {
        let (from, to) = (self.start.max(start), self.end().min(end));
        (from < to).then(|| Self {
            start: from,
            len: to - from,
            layer: self.layer,
            source: self.source.skip(from - self.start),
        })
    }
}

/// What the trailer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Byte range of the index in the LSMT file.
    pub index: std::ops::Range<u64>,
    /// Bytes of the device.
    pub virtual_size: u64,
    sectors: u64,
}

impl Trailer {
    /// Reads the trailer of an LSMT file of `size` bytes.
    pub fn read(bytes: &[u8], size: u64) -> Result<Self, OverlaybdError> {
        let bad = |what| Err(OverlaybdError::Lsmt(what));
        if !bytes.starts_with(&MAGIC) {
            return bad("it has no trailer");
        }
        if le32(bytes, 28) & (IS_HEADER | IS_DATA | IS_SEALED) != IS_DATA | IS_SEALED {
            return bad("it is not sealed: commit the layer with overlaybd first");
        }
        let (start, count, virtual_size) = (le64(bytes, 32), le64(bytes, 40), le64(bytes, 48));
        let end = count.checked_mul(ENTRY as u64).and_then(|len| len.checked_add(start));
        let Some(end) = end.filter(|&end| start >= HEAD && end <= size.saturating_sub(HEAD)) else {
            return bad("its index lies beyond it");
        };
        if count > MOST as u64 {
            return bad("its index has more than 4 million entries");
        }
        if virtual_size > crate::layer::MAX_DATA || !virtual_size.is_multiple_of(SECTOR) {
            return bad("its device has more than 8 TiB, or half a sector");
        }
        Ok(Self { index: start..end, virtual_size, sectors: start / SECTOR })
    }

    /// Reads the index.
    pub fn segments(&self, bytes: &[u8], layer: u16) -> Result<Vec<Segment>, OverlaybdError> {
        let bad = |what| Err(OverlaybdError::Lsmt(what));
        let mut all: Vec<Segment> = Vec::new();
        for entry in bytes.chunks_exact(ENTRY) {
            let (a, b) = (le64(entry, 0), le64(entry, 8));
            let (start, len) = (a & INVALID, a >> 50);
            let (at, zeroed, tag) = (b & ((1 << 55) - 1), b >> 55 & 1 == 1, b >> 56);
            if start == INVALID || len == 0 {
                continue;
            }
            if all.last().is_some_and(|last| start < last.end()) {
                return bad("its index overlaps or is out of order");
            }
            let source = match (zeroed, tag) {
                (true, _) => Source::Zero,
                (false, 0) if at + len <= self.sectors => Source::Own(at),
                (false, 0) => return bad("its index names sectors that it has not"),
                (false, 1) if at < INVALID => Source::Original(at),
                _ => return bad("its index has an entry of an unknown kind"),
            };
            all.push(Segment { start, len, layer, source });
        }
        Ok(all)
    }
}

/// Lays layers over each other, lowest first: newer ones win, older ones fill the gaps.
pub(super) fn merge(layers: &[&[Segment]]) -> Result<Vec<Segment>, OverlaybdError> {
    let mut top: Vec<Segment> = Vec::new();
    for below in layers.iter().rev() {
        let mut merged = Vec::with_capacity(top.len() + below.len());
        let mut below = below.iter().peekable();
        let mut from = 0;
        // Each gap of what is above, the last one endless.
        for above in top.iter().map(Some).chain([None]) {
            let end = above.map_or(Sector::MAX, |s| s.start);
            while let Some(segment) = below.peek() {
                if segment.start >= end {
                    break;
                }
                merged.extend(segment.within(from, end));
                if segment.end() > end {
                    break;
                }
                below.next();
            }
            merged.extend(above);
            from = above.map_or(end, Segment::end);
            if merged.len() > MOST {
                return Err(OverlaybdError::TooMuch("more than 4 million runs of sectors"));
            }
        }
        top = merged;
    }
    Ok(top)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(number: u16, runs: &[(u64, u64)]) -> Vec<Segment> {
        let segment = |&(start, len): &(u64, u64)| Segment {
            start,
            len,
            layer: number,
            source: Source::Own(100 + start),
        };
        runs.iter().map(segment).collect()
    }

    /// Against the slow and obvious: sector by sector.
    #[test]
    fn newer_layers_win_and_older_ones_fill_gaps() {
        let layers = [
            layer(0, &[(0, 10), (12, 3), (20, 20), (50, 5)]),
            layer(1, &[(5, 3), (14, 10), (30, 2), (33, 2)]),
            layer(2, &[(0, 1), (2, 1), (7, 6), (39, 20)]),
        ];
        let merged = merge(&layers.each_ref().map(|layer| &layer[..])).unwrap();
        assert!(merged.windows(2).all(|w| w[0].end() <= w[1].start));
        let find = |all: &[Segment], sector| all.iter().find_map(|s| s.within(sector, sector + 1));
        for sector in 0..70 {
            let want = layers.iter().rev().find_map(|layer| find(layer, sector));
            assert_eq!(find(&merged, sector), want, "sector {sector}");
        }
    }
}
