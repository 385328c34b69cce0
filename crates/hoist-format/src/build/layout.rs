//! The data file: files in the order in which they are stored, each contiguous and on the block grid; and how it is
//! cut into extents.
//!
//! An extent ends where the chunk that it is cut from ends, or as near behind it as the block grid allows, since two
//! extents share no block; and every [`EXTENT_MAX`] of a file. Small files that stand in one chunk share extents.

use std::collections::HashMap;
use std::ops::Range;

use super::{BuildError, Builder, ChunkId, Described, Run, name_extents};
use crate::chunk::{Check, Chunk, ChunkTable, Part, State};
use crate::extent::{BLOCK, EXTENT_MAX, Extent, ExtentTable, Piece};
use crate::span::Spans;
use crate::table::{MAX_SIZE, Table, most_pieces};
use crate::tree::{InodeId, Kind, Tree};

/// From this size on a file has extents of its own; smaller ones share one until it holds as much.
const OWN: u64 = 128 << 10;
/// Holes as long as this are not bridged by one extent.
const GAP: u64 = 64 << 10;

pub(super) fn build(builder: Builder, mut tree: Tree) -> Result<Described, BuildError> {
    check_files(&builder, &tree)?;
    let order = order(&builder);
    let Builder { blobs, chunks, mut parts, files, prefetch, .. } = builder;
    parts.sort_unstable();
    parts.dedup();
    let mut states = States::default();
    let mut layout = Layout {
        table: ChunkTable { blobs, check: Check::Chunks, ..ChunkTable::default() },
        ..Layout::default()
    };
    let mut places: HashMap<InodeId, Range<u64>> = HashMap::new();
    for inode in order {
        let runs = &files[&inode];
        let size: u64 = runs.iter().map(Run::len).sum();
        let base = layout.begin(size)?;
        places.insert(inode, base..base + size);
        let mut at = 0;
        for run in runs {
            if let Run::Data { len, chunk, offset } = *run {
                if !layout.goes_on(chunk, offset) {
                    let stored = &chunks[chunk.0 as usize];
                    let state = stored.state.as_ref().map(|bytes| states.index(bytes)).transpose()?;
                    let from = parts.partition_point(|(id, _)| *id < chunk);
                    let own = parts[from..].iter().take_while(|(id, _)| *id == chunk).map(|(_, part)| *part);
                    layout.add_chunk(chunk, stored, state, own)?;
                }
                layout.data(at, offset, len)?;
            }
            at += run.len();
        }
    }
    layout.table.states = states.all;
    for (id, inode) in tree.inodes.iter_mut().enumerate() {
        if let Kind::File { data, .. } = &mut inode.kind {
            data.layer = 0;
            data.offset = places.get(&(id as InodeId)).map_or(0, |place| place.start);
        }
    }
    let prefetch = prefetch.iter().filter_map(|(inode, part)| {
        let place = places.get(inode)?;
        let at = |offset: u64| place.end.min(place.start.saturating_add(offset));
        Some(at(part.start)..at(part.end))
    });
    let prefetch = joined(prefetch.filter(|range| range.start < range.end));
    name_extents(&mut layout.extents, &layout.table);
    let table = Table { extents: layout.extents, spans: Spans::Chunks(layout.table) };
    Ok(Described { tree, table, windows: states.windows, prefetch })
}

/// Every file of the tree that has bytes has runs, and of that length.
fn check_files(builder: &Builder, tree: &Tree) -> Result<(), BuildError> {
    let bad = |inode, what| Err(BuildError::File { inode, what });
    for (id, inode) in tree.inodes.iter().enumerate() {
        let id = id as InodeId;
        let runs = builder.files.get(&id);
        let sum =
            runs.iter().flat_map(|runs| runs.iter()).try_fold(0u64, |sum, run| sum.checked_add(run.len()));
        match (&inode.kind, runs) {
            (Kind::File { size, .. }, _) if sum != Some(*size) => {
                return bad(id, "it has not the size that the tree says");
            }
            (Kind::File { .. }, _) | (_, None) => {}
            (_, Some(_)) => return bad(id, "it is no file"),
        }
    }
    match builder.files.keys().next_back() {
        Some(&last) if last as usize >= tree.inodes.len() => bad(last, "there is no such inode"),
        _ => Ok(()),
    }
}

/// The files that have bytes, in the order in which their first ones are stored.
fn order(builder: &Builder) -> Vec<InodeId> {
    let place = |runs: &[Run]| {
        let first = runs.iter().find_map(|run| match run {
            Run::Data { chunk, offset, .. } => Some((*chunk, *offset)),
            Run::Hole { .. } => None,
        });
        first.map(|(chunk, offset)| {
            let stored = &builder.chunks[chunk.0 as usize];
            (stored.blob, stored.stored.start, chunk, offset)
        })
    };
    let mut order: Vec<_> = builder.files.iter().filter(|(_, runs)| !runs.is_empty()).collect();
    order.sort_by_cached_key(|(inode, runs)| (place(runs), **inode));
    order.into_iter().map(|(inode, _)| *inode).collect()
}

/// Neighbouring ranges as one, however they are aligned.
fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end.next_multiple_of(BLOCK) == range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

/// States, each different one stored once.
#[derive(Default)]
struct States {
    all: Vec<State>,
    known: HashMap<[u8; 32], u32>,
    windows: Vec<u8>,
}

impl States {
    fn index(&mut self, stored: &[u8]) -> Result<u32, BuildError> {
        let digest = *blake3::hash(stored).as_bytes();
        if let Some(&index) = self.known.get(&digest) {
            return Ok(index);
        }
        if stored.len() > crate::chunk::MAX_STATE {
            return Err(BuildError::TooMuch("a state has more than 64 KiB"));
        }
        let (offset, len) = (self.windows.len() as u64, stored.len() as u32);
        self.windows.extend_from_slice(stored);
        let index = self.all.len() as u32;
        self.all.push(State { offset, len, digest });
        self.known.insert(digest, index);
        Ok(index)
    }
}

#[derive(Default)]
struct Layout {
    table: ChunkTable,
    extents: ExtentTable,
    digests: HashMap<[u8; 32], u32>,
    /// The last chunk, and how far into its output pieces have come.
    chunk: Option<(ChunkId, u64)>,
    /// Where the current file starts in the data file, and whether it has extents of its own.
    base: u64,
    own: bool,
    /// Of the open extent: which slice of a large file it is, and which chunk its last piece is from.
    open: Option<(Option<u64>, usize)>,
}

impl Layout {
    fn begin(&mut self, size: u64) -> Result<u64, BuildError> {
        let base = self.extents.data_size;
        let end = base.checked_add(size).filter(|end| *end <= MAX_SIZE - BLOCK);
        let end = end.ok_or(BuildError::TooMuch("its files take more than 8 TiB"))?;
        self.extents.data_size = end.next_multiple_of(BLOCK);
        self.base = base;
        let own = size >= OWN;
        if own || self.own || self.held() >= OWN {
            self.open = None;
        }
        self.own = own;
        Ok(base)
    }

    fn held(&self) -> u64 {
        self.extents.extents.last().map_or(0, |x| x.len)
    }

    /// May a piece from `offset` of this chunk's output follow what is there?
    fn goes_on(&self, chunk: ChunkId, offset: u64) -> bool {
        self.chunk.is_some_and(|(last, at)| last == chunk && at <= offset)
    }

    fn add_chunk(
        &mut self,
        id: ChunkId,
        stored: &super::StoredChunk,
        state: Option<u32>,
        parts: impl Iterator<Item = Part>,
    ) -> Result<(), BuildError> {
        let stored_digest = stored.stored_digest.map(|digest| {
            let next = self.table.stored_digests.len() as u32;
            *self.digests.entry(digest).or_insert_with(|| {
                self.table.stored_digests.push(digest);
                next
            })
        });
        let stream_offset = self.table.stream_size;
        let end = stream_offset + stored.raw_len;
        if end > MAX_SIZE || self.table.chunks.len() >= 2 * super::MOST {
            return Err(BuildError::TooMuch("its files are made of more than 8 TiB or 32 million chunks"));
        }
        self.table.stream_size = end;
        self.table.chunks.push(Chunk {
            stream_offset,
            start: stored.stored.start,
            len: stored.stored.end - stored.stored.start,
            blob: stored.blob,
            codec: stored.codec,
            bits: stored.bits,
            state,
            stored_digest,
            first_part: self.table.parts.len() as u32,
        });
        self.table.parts.extend(parts);
        if self.table.parts.len() > 2 * super::MOST {
            return Err(BuildError::TooMuch("more than 32 million digests"));
        }
        self.chunk = Some((id, 0));
        Ok(())
    }

    /// `len` bytes at `file_offset` of the current file are those from `offset` of the last chunk's output.
    fn data(&mut self, file_offset: u64, offset: u64, len: u64) -> Result<(), BuildError> {
        let Some((id, _)) = self.chunk else { return Ok(()) };
        let chunk = self.table.chunks.len() - 1;
        let stream = self.table.chunks[chunk].stream_offset + offset;
        self.chunk = Some((id, offset + len));
        let mut at = 0;
        while at < len {
            let from = file_offset + at;
            let n = if self.own { (len - at).min(EXTENT_MAX - from % EXTENT_MAX) } else { len - at };
            self.piece(self.base + from, stream + at, n, chunk)?;
            at += n;
        }
        Ok(())
    }

    fn piece(
        &mut self,
        data_offset: u64,
        stream_offset: u64,
        len: u64,
        chunk: usize,
    ) -> Result<(), BuildError> {
        let slice = self.own.then(|| (data_offset - self.base) / EXTENT_MAX);
        let mut len_here = len;
        let goes_on = match (self.open, self.extents.extents.last()) {
            (Some((open_slice, open_chunk)), Some(x)) => {
                let end = x.data_offset + x.len;
                let alike = open_slice == slice && open_chunk == chunk;
                let block_end = end.next_multiple_of(BLOCK);
                if data_offset < block_end {
                    // Two extents never share a block, so the middle of a block always goes on; but no farther than
                    // it must.
                    if !alike {
                        len_here = len.min(block_end - data_offset);
                    }
                    true
                } else {
                    alike && data_offset - end < GAP && data_offset - x.data_offset < EXTENT_MAX
                }
            }
            _ => false,
        };
        let pieces = &mut self.extents.pieces;
        if !goes_on {
            let first_piece = pieces.len() as u32;
            let start = data_offset / BLOCK * BLOCK;
            self.extents.extents.push(Extent { data_offset: start, len: 0, digest: [0; 32], first_piece });
            self.open = Some((slice, chunk));
        }
        let Some(x) = self.extents.extents.last_mut() else { return Ok(()) };
        let fresh = pieces.len() == x.first_piece as usize;
        match pieces.last_mut() {
            Some(p)
                if !fresh
                    && p.data_offset + p.len == data_offset
                    && p.stream_offset + p.len == stream_offset =>
            {
                p.len += len_here;
            }
            _ => pieces.push(Piece { stream_offset, data_offset, len: len_here }),
        }
        x.len = data_offset + len_here - x.data_offset;
        if pieces.len() as u64 > most_pieces(self.table.stream_size) {
            return Err(BuildError::TooMuch("its files are cut into too many pieces"));
        }
        if len_here == len {
            return Ok(());
        }
        self.open = None;
        self.piece(data_offset + len_here, stream_offset + len_here, len - len_here, chunk)
    }
}
