//! All layers of an image as one block device.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::OverlaybdError;
use super::blob::Blob;
use super::lsmt::{self, SECTOR, Segment, Source};
use crate::partial::joined;
use crate::volume::{Device, Lack, beyond};

/// Decoded bytes of metadata that are held.
const CACHE: usize = 64 << 20;
/// Most metadata that is read as a whole.
const PARTS_MAX: u64 = 512 << 20;
/// Ranges of a blob as near as this to each other are fetched as one.
const GAP: u64 = 32 << 10;

/// Layers that are open, merged.
#[derive(Debug)]
pub struct Layers {
    blobs: Vec<Blob>,
    segments: Vec<Segment>,
    size: u64,
    /// Decoded runs by layer and first byte.
    cache: HashMap<(u16, u64), Arc<Vec<u8>>>,
    cached: usize,
    /// By layer: ranges that were wanted and are not here.
    wanted: BTreeMap<u16, Vec<Range<u64>>>,
}

/// Where a run of the device's bytes is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: they are zeros.
    Zero {
        /// Bytes.
        len: u64,
    },
    /// In a layer's blob.
    Own {
        /// Which layer.
        layer: u16,
        /// Byte offset in its LSMT file.
        at: u64,
        /// Byte range in its blob of the run of blocks that holds them.
        stored: Range<u64>,
        /// How the run is stored; None: as it is.
        run: Option<crate::codec::BlockRun>,
        /// Bytes that the run decodes to.
        raw_len: u64,
        /// Byte offset in these.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// In the tar stream of the original layer.
    Original {
        /// Which layer.
        layer: u16,
        /// Byte offset in its stream.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Place {
    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Zero { len } | Self::Own { len, .. } | Self::Original { len, .. } => *len,
        }
    }
}

impl Layers {
    /// Merges open layers, lowest first.
    ///
    /// # Errors
    /// When there are too many, or one is not open.
    pub fn merge(blobs: Vec<Blob>) -> Result<Self, OverlaybdError> {
        if blobs.is_empty() || blobs.len() > lsmt::MOST_LAYERS {
            return Err(OverlaybdError::TooMuch("no or more than 255 layers"));
        }
        let mut all = Vec::with_capacity(blobs.len());
        let mut size = 0;
        for blob in &blobs {
            let (segments, own) = blob.opened().ok_or(OverlaybdError::Lsmt("it is not open yet"))?;
            all.push(segments);
            if own > 0 {
                size = own;
            }
        }
        let mut segments = lsmt::merge(&all)?;
        // As gaps are.
        segments.retain(|s| s.source != Source::Zero);
        Ok(Self { blobs, segments, size, cache: HashMap::new(), cached: 0, wanted: BTreeMap::new() })
    }

    /// What reads have noted as lacking since this was asked last: by layer, ranges of its blob.
    pub fn wanted(&mut self) -> BTreeMap<u16, Vec<Range<u64>>> {
        let wanted = std::mem::take(&mut self.wanted);
        wanted.into_iter().map(|(layer, ranges)| (layer, joined(ranges, GAP))).collect()
    }

    /// Takes bytes of a layer's blob.
    pub fn put(&mut self, layer: u16, offset: u64, bytes: Vec<u8>) {
        if let Some(blob) = self.blobs.get_mut(usize::from(layer)) {
            blob.put(offset, bytes);
        }
    }

    /// The segments that touch `start..end` (bytes), cut to it, and the gaps between them.
    fn segments(&self, start: u64, end: u64) -> Vec<(Range<u64>, Option<Segment>)> {
        let mut out = Vec::new();
        let mut at = start;
        let first = self.segments.partition_point(|s| s.end() * SECTOR <= start);
        for segment in &self.segments[first..] {
            let own = (segment.start * SECTOR).max(start)..(segment.end() * SECTOR).min(end);
            if own.start >= end {
                break;
            }
            if at < own.start {
                out.push((at..own.start, None));
            }
            at = own.end;
            out.push((own, Some(*segment)));
        }
        if at < end {
            out.push((at..end, None));
        }
        out
    }

    /// Where bytes of the device are stored.
    ///
    /// # Errors
    /// When a layer's tables contradict each other.
    pub fn places(&self, offset: u64, len: u64) -> Result<Vec<Place>, OverlaybdError> {
        let mut out = Vec::new();
        for (range, segment) in self.segments(offset, offset + len) {
            let len = range.end - range.start;
            let Some(segment) = segment else {
                out.push(Place::Zero { len });
                continue;
            };
            let skip = range.start - segment.start * SECTOR;
            match segment.source {
                Source::Zero => out.push(Place::Zero { len }),
                Source::Original(at) => {
                    let layer = segment.layer;
                    out.push(Place::Original { layer, offset: at * SECTOR + skip, len });
                }
                Source::Own(at) => self.own(segment.layer, at * SECTOR + skip, len, &mut out)?,
            }
        }
        Ok(out)
    }

    fn own(&self, layer: u16, from: u64, len: u64, out: &mut Vec<Place>) -> Result<(), OverlaybdError> {
        let (mut at, end) = (from, from + len);
        while at < end {
            let stored = self.blobs[usize::from(layer)].stored(at, end)?;
            let to = (stored.start + stored.raw_len).min(end);
            if to <= at {
                return Err(OverlaybdError::Zfile("a run of blocks is empty"));
            }
            out.push(Place::Own {
                layer,
                at,
                stored: stored.range,
                run: stored.run,
                raw_len: stored.raw_len,
                offset: at - stored.start,
                len: to - at,
            });
            at = to;
        }
        Ok(())
    }

    /// All bytes of the device that the layers have themselves, which must be here; for file systems that are read
    /// as a whole.
    ///
    /// # Errors
    /// When they are not here, or have more than 512 MiB.
    pub fn parts(&mut self) -> Result<Vec<crate::erofs::Part>, OverlaybdError> {
        let mut all: Vec<crate::erofs::Part> = Vec::new();
        let mut left = PARTS_MAX;
        for segment in std::mem::take(&mut self.segments) {
            if let Source::Own(at) = segment.source {
                let (start, len) = (segment.start * SECTOR, segment.len * SECTOR);
                left =
                    left.checked_sub(len).ok_or(OverlaybdError::TooMuch("more than 512 MiB of metadata"))?;
                let mut bytes = Vec::new();
                if !self.read_own(segment.layer, at * SECTOR, len, &mut bytes)? {
                    return Err(OverlaybdError::Lsmt("its blocks are cut off"));
                }
                match all.last_mut() {
                    Some(last) if last.start + last.bytes.len() as u64 == start => last.bytes.extend(bytes),
                    _ => all.push(crate::erofs::Part { start, bytes }),
                }
            }
            self.segments.push(segment);
        }
        Ok(all)
    }

    /// Bytes of a layer's LSMT file, or None when some are not here.
    fn read_own(
        &mut self,
        layer: u16,
        from: u64,
        len: u64,
        out: &mut Vec<u8>,
    ) -> Result<bool, OverlaybdError> {
        let (mut at, end, mut here) = (from, from + len, true);
        while at < end {
            let blob = &self.blobs[usize::from(layer)];
            let stored = blob.stored(at, end)?;
            let to = (stored.start + stored.raw_len).min(end);
            let key = (layer, stored.start);
            let raw = match self.cache.get(&key).filter(|raw| raw.len() as u64 >= to - stored.start) {
                Some(raw) => Some(Arc::clone(raw)),
                None => blob.decoded(&stored)?.map(Arc::new),
            };
            match raw {
                Some(raw) => {
                    let slice = raw.get((at - stored.start) as usize..(to - stored.start) as usize);
                    out.extend_from_slice(slice.ok_or(OverlaybdError::Zfile("a run of blocks is cut off"))?);
                    if stored.run.is_some() {
                        self.keep(key, raw);
                    }
                }
                None => {
                    self.wanted.entry(layer).or_default().push(stored.range);
                    here = false;
                }
            }
            at = to;
        }
        Ok(here)
    }

    fn keep(&mut self, key: (u16, u64), raw: Arc<Vec<u8>>) {
        if self.cached > CACHE {
            self.cache.clear();
            self.cached = 0;
        }
        let len = raw.len();
        if self.cache.insert(key, raw).is_none() {
            self.cached += len;
        }
    }
}

impl Device for Layers {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, Lack> {
        let end = offset.checked_add(len).filter(|&end| end <= self.size);
        let end = end.ok_or_else(|| Lack::Damaged(beyond(offset, len, self.size)))?;
        let mut out = Vec::with_capacity(len as usize);
        let mut here = true;
        for (range, segment) in self.segments(offset, end) {
            let len = range.end - range.start;
            match segment.map(|s| (s.layer, s.source, range.start - s.start * SECTOR)) {
                None | Some((_, Source::Zero, _)) => out.resize(out.len() + len as usize, 0),
                Some((layer, Source::Own(at), skip)) => {
                    let read = self.read_own(layer, at * SECTOR + skip, len, &mut out);
                    here &= read.map_err(|e| Lack::Damaged(e.to_string()))?;
                }
                Some((_, Source::Original(_), _)) => {
                    let why = "metadata of the file system is said to be in the original layer".to_owned();
                    return Err(Lack::Damaged(why));
                }
            }
        }
        if here { Ok(out) } else { Err(Lack::Absent) }
    }

    fn next_data(&self, start: u64, end: u64) -> u64 {
        // Segments of zeros were left out.
        let next = self.segments.get(self.segments.partition_point(|s| s.end() * SECTOR <= start));
        next.map_or(end, |s| (s.start * SECTOR).clamp(start, end))
    }
}
