//! Where the stored bytes of a sparse file belong (GNU tar manual, "Storing Sparse Files").

use super::error::TarFault;
use super::header::BLOCK;

/// Most segments of one file: bounds memory.
const MAX_SEGMENTS: usize = 1 << 20;

/// A run of stored bytes: file offset, length.
pub(super) type Segment = (u64, u64);

/// Checks order and sizes; drops empty segments. `stored` is the data that follows in the stream.
pub(super) fn check(mut map: Vec<Segment>, size: u64, stored: u64) -> Result<Vec<Segment>, TarFault> {
    let (mut end, mut total) = (0u64, 0u64);
    for &(offset, len) in &map {
        if offset < end {
            return Err(TarFault::Sparse("segments overlap or are out of order"));
        }
        end = offset.checked_add(len).ok_or(TarFault::Sparse("a segment overflows"))?;
        // Cannot overflow: segments do not overlap.
        total += len;
    }
    if end > size {
        return Err(TarFault::Sparse("a segment ends behind the file"));
    }
    if total != stored {
        return Err(TarFault::Sparse("segments do not add up to the stored data"));
    }
    map.retain(|s| s.1 > 0);
    Ok(map)
}

/// Refuses maps that would take unbounded memory.
pub(super) fn bounded(map: &[Segment]) -> Result<(), TarFault> {
    if map.len() > MAX_SEGMENTS { Err(TarFault::Sparse("more than 1048576 segments")) } else { Ok(()) }
}

/// The map of version 1.0: decimal lines at the start of the data, padded to a block.
#[derive(Debug, Default)]
pub(super) struct TextMap {
    digits: Option<u64>,
    count: Option<u64>,
    offset: Option<u64>,
    map: Vec<Segment>,
}

impl TextMap {
    /// Takes the next block; the map once it is whole.
    pub fn feed(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Segment>>, TarFault> {
        for &b in block {
            if b != b'\n' {
                let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'));
                let so_far = self.digits.unwrap_or(0).checked_mul(10);
                self.digits = so_far.zip(digit).and_then(|(v, d)| v.checked_add(d));
                if self.digits.is_none() {
                    return Err(TarFault::Sparse("not a number in its text"));
                }
                continue;
            }
            let value = self.digits.take().ok_or(TarFault::Sparse("an empty line in its text"))?;
            match (self.count, self.offset.take()) {
                (None, _) => {
                    if value > MAX_SEGMENTS as u64 {
                        return Err(TarFault::Sparse("more than 1048576 segments"));
                    }
                    self.count = Some(value);
                }
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => self.map.push((offset, value)),
            }
            if self.count == Some(self.map.len() as u64) {
                return Ok(Some(std::mem::take(&mut self.map)));
            }
        }
        Ok(None)
    }
}
