//! From a zTOC to a tree and a table.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Range, RangeInclusive};

use super::SociError;
use super::spans::{FIRST, Spans};
use super::ztoc::{File, Ztoc};
use crate::build::{Builder, ChunkId, Described, Run};
use crate::chunk::Blob;
use crate::formats::rfc3339;
use crate::layer::Applier;
use crate::span::Codec;
use crate::tar::{self, Entry, EntryKind, MAX_ENTRIES};
use crate::tree::{Dev, FileData, InodeId, Kind, Meta};

/// A tar header, and what files are padded to.
const BLOCK: u64 = 512;
/// Most bytes of windows that are held.
const MOST_WINDOWS: u64 = 512 << 20;

/// What a zTOC tells of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The layer.
    pub described: Described,
    /// Does it hold only if the layer begins with a gzip header without optional fields? See [`is_plain_header`].
    pub start_is_guessed: bool,
}

/// How much of a layer's start tells what its header is, bytes.
pub const HEADER: u64 = FIRST;

/// Is this a gzip header, without optional fields?
pub fn is_plain_header(start: &[u8]) -> bool {
    // Magic number and method; no flag but that it may be text.
    start.len() as u64 >= HEADER && start.starts_with(&[0x1f, 0x8b, 8]) && start[3] & !1 == 0
}

/// What a layer with this zTOC is. `codec`: how its media type says that it is stored; `prefetch`: ranges of spans that
/// are fetched first.
///
/// # Errors
/// [`SociError`]: the zTOC is damaged, is of another layer, or contradicts itself.
pub fn describe(
    ztoc: &[u8],
    layer: Blob,
    codec: Codec,
    prefetch: &[RangeInclusive<u64>],
) -> Result<Told, SociError> {
    let mut ztoc = Ztoc::read(ztoc, layer.size, codec)?;
    if ztoc.files.len as u64 > MAX_ENTRIES {
        return Err(SociError::ztoc("it has more than 16777216 entries"));
    }
    let mut applier = Applier::new();
    // Where each file's bytes stand in the tar stream; `FileData::offset` is the index.
    let mut places = Vec::new();
    let mut end = 0;
    for i in 0..ztoc.files.len {
        let file = ztoc.file(i)?;
        let bad = |what: String| SociError::entry(file.name, what);
        let entry = entry(&file).map_err(bad)?;
        let size = if let EntryKind::File(size) = entry.kind { size } else { 0 };
        end = follows(&file, size, end, ztoc.stream_size).map_err(bad)?;
        let mut data = FileData::default();
        if size > 0 {
            data.offset = places.len() as u64;
            places.push((file.offset, size));
        }
        let entry = tar::checked(entry).map_err(|e| bad(e.to_string()))?;
        applier.apply(entry, data).map_err(|e| bad(e.to_string()))?;
    }
    let start_is_guessed = ztoc.spans.start_is_guessed;
    let described = build(ztoc, applier, &places, layer, prefetch)?;
    Ok(Told { described, start_is_guessed })
}

/// Entries follow each other, each behind its header. A file whose bytes are not all stored does not fit so.
fn follows(file: &File<'_>, size: u64, end: u64, stream_size: u64) -> Result<u64, String> {
    if file.offset < end.saturating_add(BLOCK) {
        return Err("it stands where another one does".into());
    }
    let end = file.offset.checked_add(size).filter(|end| *end <= stream_size);
    let end = end.ok_or("it reaches beyond the end of the layer")?;
    Ok(end.next_multiple_of(BLOCK))
}

fn build(
    ztoc: Ztoc<'_>,
    applier: Applier,
    places: &[(u64, u64)],
    layer: Blob,
    prefetch: &[RangeInclusive<u64>],
) -> Result<Described, SociError> {
    let tree = applier.tree;
    let mut builder = Builder::new();
    let blob = builder.blob(layer.digest, layer.size)?;
    let mut chunks: HashMap<usize, ChunkId> = HashMap::new();
    let mut windows = 0;
    let mut files: BTreeMap<u64, (u64, InodeId)> = BTreeMap::new();
    for (id, inode) in (0..).zip(&tree.inodes) {
        let Kind::File { size: 1.., data } = &inode.kind else { continue };
        let (offset, size) = places[data.offset as usize];
        let (mut at, end) = (offset, offset + size);
        let mut runs = Vec::new();
        while at < end {
            let span = ztoc.spans.containing(at);
            let span = span.ok_or_else(|| SociError::ztoc("a file reaches beyond the last span"))?;
            let output = ztoc.spans.output(span);
            let chunk = match chunks.get(&span) {
                Some(&chunk) => chunk,
                None => {
                    let stored = ztoc.spans.chunk(span, blob);
                    windows += stored.state.as_ref().map_or(0, |w| w.len() as u64);
                    if windows > MOST_WINDOWS {
                        return Err(SociError::ztoc("it has more than 16384 windows"));
                    }
                    let chunk = builder.chunk(stored)?;
                    chunks.insert(span, chunk);
                    chunk
                }
            };
            let len = output.end.min(end) - at;
            runs.push(Run::Data { len, chunk, offset: at - output.start });
            at += len;
        }
        builder.file(id, runs)?;
        files.insert(offset, (end, id));
    }
    for stretch in stretches(&ztoc.spans, prefetch) {
        let before = files.range(..stretch.start).next_back();
        for (&start, &(end, id)) in before.into_iter().chain(files.range(stretch.clone())) {
            let part = start.max(stretch.start)..end.min(stretch.end);
            if part.start < part.end {
                builder.prefetch_part(id, part.start - start..part.end - start);
            }
        }
    }
    Ok(builder.build(tree)?)
}

/// What ranges of spans decode to, each byte once, in order.
fn stretches(spans: &Spans<'_>, ranges: &[RangeInclusive<u64>]) -> Vec<Range<u64>> {
    let mut all: Vec<_> = ranges.iter().filter_map(|range| spans.outputs(range)).collect();
    all.sort_by_key(|stretch| stretch.start);
    all.dedup_by(|next, last| {
        let touch = next.start <= last.end;
        if touch {
            last.end = last.end.max(next.end);
        }
        touch
    });
    all
}

fn entry(file: &File<'_>) -> Result<Entry, String> {
    let dev = || {
        let part = |n: u64, bits: u32| u32::try_from(n).ok().filter(|n| n >> bits == 0);
        let dev = part(file.major, 12).zip(part(file.minor, 20));
        dev.map(|(major, minor)| Dev { major, minor }).ok_or("a device number that Linux has not")
    };
    let kind = match file.kind {
        b"dir" => EntryKind::Dir,
        b"reg" => EntryKind::File(file.size),
        b"hardlink" => EntryKind::Hardlink(file.link.to_vec()),
        b"symlink" => EntryKind::Symlink(file.link.to_vec()),
        b"char" => EntryKind::Char(dev()?),
        b"block" => EntryKind::Block(dev()?),
        b"fifo" => EntryKind::Fifo,
        _ => return Err("it is of an unknown type".into()),
    };
    let records = tar::records(&file.records).map_err(|e| e.to_string())?;
    if records.sparse {
        return Err("it is a sparse file, whose map no zTOC has".into());
    }
    let text = || std::str::from_utf8(file.mtime).ok().and_then(rfc3339::parse);
    let mtime = records.mtime.or_else(text).ok_or("its time is none")?;
    let perm = (file.mode & 0o7777) as u16;
    let meta = Meta { perm, uid: file.uid, gid: file.gid, mtime, xattrs: records.xattrs };
    Ok(Entry { path: file.name.to_vec(), kind, meta })
}
