//! Puts decoded stream bytes together to extents; each is handed on whole, once.

use hoist_format::extent::{Extent, ExtentTable};

/// Takes an extent by its index, with its bytes.
pub type Publish<'p, E> = dyn FnMut(usize, &Extent, &[u8]) -> Result<(), E> + 'p;

/// Gathers the extents of one job's stream.
pub struct Assembler<'a> {
    table: &'a ExtentTable,
    /// Stream offset of the next byte that comes.
    at: u64,
    /// The piece which the next byte may belong to.
    piece: usize,
    /// Its extent.
    extent: usize,
    /// False when the extent began before our first byte: it cannot be completed here.
    whole: bool,
    buffer: Vec<u8>,
}

impl<'a> Assembler<'a> {
    /// For a stream that starts at `at`.
    pub fn new(table: &'a ExtentTable, at: u64) -> Self {
        let piece = table.pieces.partition_point(|p| p.stream_offset + p.len <= at);
        let extent = table.extents.partition_point(|e| e.first_piece as usize <= piece).saturating_sub(1);
        let whole = table
            .extents
            .get(extent)
            .is_some_and(|e| table.pieces.get(e.first_piece as usize).is_some_and(|p| p.stream_offset >= at));
        Self { table, at, piece, extent, whole, buffer: Vec::new() }
    }

    /// Takes the next bytes; `publish(i, extent, bytes)` gets each extent that they complete,
    /// unless `skip(i)` says that it is not wanted.
    pub fn feed<E>(
        &mut self,
        bytes: &[u8],
        skip: &dyn Fn(usize) -> bool,
        publish: &mut Publish<'_, E>,
    ) -> Result<(), E> {
        let end = self.at + bytes.len() as u64;
        while let Some(p) = self.table.pieces.get(self.piece) {
            if p.stream_offset >= end {
                break;
            }
            let x = &self.table.extents[self.extent];
            if self.whole && !skip(self.extent) {
                let from = self.at.max(p.stream_offset);
                let to = end.min(p.stream_offset + p.len);
                let place = p.data_offset + (from - p.stream_offset) - x.data_offset;
                self.buffer.resize(place as usize, 0);
                let base = (from - self.at) as usize;
                self.buffer.extend_from_slice(&bytes[base..base + (to - from) as usize]);
            }
            if p.stream_offset + p.len > end {
                break;
            }
            self.piece += 1;
            let next = self.table.extents.get(self.extent + 1);
            if next.map_or(self.table.pieces.len(), |n| n.first_piece as usize) == self.piece {
                if self.whole && self.buffer.len() as u64 == x.len {
                    publish(self.extent, x, &self.buffer)?;
                }
                self.buffer.clear();
                self.extent += 1;
                self.whole = true;
            }
        }
        self.at = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoist_format::extent::Piece;

    #[test]
    fn any_cut_of_the_stream_gives_the_same_extents_and_late_starts_none_by_halves() {
        let piece = |d: u64, s: u64, len| Piece { data_offset: d, stream_offset: s, len };
        let pieces = vec![piece(0, 3, 5), piece(4096, 10, 4), piece(8192, 14, 4), piece(8196, 18, 2)];
        let x = |data_offset, len, first_piece| Extent { data_offset, len, digest: [0; 32], first_piece };
        let table = ExtentTable { extents: vec![x(0, 4100, 0), x(8192, 6, 2)], pieces, data_size: 12288 };
        let stream: Vec<u8> = (0..24).collect();
        for start in 0..24u64 {
            for step in 1..24 {
                let mut got = Vec::new();
                let mut a = Assembler::new(&table, start);
                for bytes in stream[start as usize..].chunks(step) {
                    a.feed(bytes, &|_| false, &mut |i, _, b| {
                        got.push((i, b.to_vec()));
                        Ok::<_, ()>(())
                    })
                    .unwrap();
                }
                let mut first = vec![0; 4100];
                first[..5].copy_from_slice(&stream[3..8]);
                first[4096..].copy_from_slice(&stream[10..14]);
                let mut want = vec![(0, first), (1, stream[14..20].to_vec())];
                want.retain(|w| start <= if w.0 == 0 { 3 } else { 14 });
                assert_eq!(got, want, "start {start} step {step}");
            }
        }
    }
}
