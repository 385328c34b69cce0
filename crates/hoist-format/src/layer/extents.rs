//! Where a layer's file bytes stand in its data file, and how they are cut into extents.
//!
//! A file of 128 KiB or more starts an extent and is cut each [`EXTENT_MAX`]. Smaller files share
//! one with their neighbours until it holds 128 KiB; from 32 KiB on, a file whose name hashes
//! right starts a new one, so that two builds of a layer fall back into step after a change.

use crate::extent::{BLOCK, EXTENT_MAX, Extent, ExtentTable, Piece};
use crate::table::{FREE_PIECES, STREAM_PER_PIECE};

/// From this size on a file has extents of its own.
const OWN: u64 = 128 << 10;
/// A name may cut only behind this much.
const EARLY: u64 = 32 << 10;
/// One name in eight cuts.
const CUT_MASK: u64 = 7;
/// Holes and stretches of foreign stream as long as this are not bridged by one extent.
const GAP: u64 = 64 << 10;
/// Largest data file.
pub const MAX_DATA: u64 = 8 << 40;

static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

#[derive(Default)]
pub(super) struct Cutter {
    table: ExtentTable,
    open: Option<Open>,
    /// Where the current file starts in the data file, and whether it has extents of its own.
    base: u64,
    own: bool,
    cut: bool,
}

struct Open {
    start: u64,
    end: u64,
    first_piece: u32,
    /// Which [`EXTENT_MAX`] slice of a large file this is.
    slice: Option<u64>,
    hasher: blake3::Hasher,
}

impl Cutter {
    /// Places a file of `size` bytes; None when the data file grows beyond [`MAX_DATA`].
    pub fn begin(&mut self, path: &[u8], size: u64) -> Option<u64> {
        let base = self.table.data_size;
        let end = base.checked_add(size).filter(|&end| end <= MAX_DATA)?;
        self.table.data_size = end.next_multiple_of(BLOCK);
        (self.base, self.own) = (base, size >= OWN);
        let held = self.open.as_ref().map_or(0, |o| o.end - o.start);
        self.cut = self.own || held >= OWN || (held >= EARLY && fnv(path) & CUT_MASK == 0);
        Some(base)
    }

    /// Takes a run of the current file's bytes, calling `out` with each part and its data offset.
    /// None when there are more pieces than a table may have.
    pub fn data(&mut self, file_offset: u64, stream_offset: u64, bytes: &[u8]) -> Option<()> {
        let mut at = 0;
        while at < bytes.len() {
            let offset = file_offset.checked_add(at as u64)?;
            let left = (bytes.len() - at) as u64;
            let n = if self.own { left.min(EXTENT_MAX - offset % EXTENT_MAX) } else { left };
            let part = &bytes[at..at + n as usize];
            self.part(offset, stream_offset + at as u64, part)?;
            at += n as usize;
        }
        Some(())
    }

    fn part(&mut self, file_offset: u64, stream_offset: u64, bytes: &[u8]) -> Option<()> {
        let data_offset = self.base + file_offset;
        let slice = self.own.then_some(file_offset / EXTENT_MAX);
        let stream_end = self.table.pieces.last().map_or(0, |p| p.stream_offset + p.len);
        let fits = self.open.as_ref().is_some_and(|open| {
            let block_end = open.end.next_multiple_of(BLOCK);
            // Two extents never share a block, so the middle of a block always goes on.
            data_offset < block_end && open.slice == slice
                || !self.cut
                    && open.slice == slice
                    && data_offset - open.end < GAP
                    && stream_offset - stream_end < GAP
                    && data_offset - open.start < EXTENT_MAX
        });
        self.cut = false;
        if !fits {
            self.close();
            self.open = Some(Open {
                start: data_offset / BLOCK * BLOCK,
                end: data_offset / BLOCK * BLOCK,
                first_piece: u32::try_from(self.table.pieces.len()).ok()?,
                slice,
                hasher: blake3::Hasher::new(),
            });
        }
        let open = self.open.as_mut()?;
        let mut gap = data_offset - open.end;
        while gap > 0 {
            let n = gap.min(BLOCK);
            open.hasher.update(&ZEROS[..n as usize]);
            gap -= n;
        }
        open.hasher.update(bytes);
        let len = bytes.len() as u64;
        open.end = data_offset + len;
        let fresh = self.table.pieces.len() == open.first_piece as usize;
        let full = self.table.pieces.len() as u64 >= FREE_PIECES + stream_offset / STREAM_PER_PIECE;
        match self.table.pieces.last_mut() {
            Some(p)
                if !fresh
                    && p.data_offset + p.len == data_offset
                    && p.stream_offset + p.len == stream_offset =>
            {
                p.len += len;
            }
            _ if full => return None,
            _ => self.table.pieces.push(Piece { stream_offset, data_offset, len }),
        }
        Some(())
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.table.extents.push(Extent {
                data_offset: open.start,
                len: open.end - open.start,
                digest: open.hasher.finalize().into(),
                first_piece: open.first_piece,
            });
        }
    }

    /// Data offset of the current file's first byte.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Closes the last extent.
    pub fn finish(mut self) -> ExtentTable {
        self.close();
        self.table
    }
}

/// FNV-1a: stable over releases, since the cuts must be.
fn fnv(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    hash ^ hash >> 32
}
