//! RAFS version 6 (`rafs/src/metadata/layout/v6.rs`): EROFS whose regular files are made of chunks on devices, one
//! device for the uncompressed address space of each blob. Behind the superblock stands an extended one, which names a
//! blob table, a chunk table and a prefetch table.
//!
//! Chunks are found by where they are on their device, as the kernel would; the chunk's index, which an address has in
//! bits that the kernel masks off, is not needed.

mod places;

use std::collections::BTreeMap;
use std::ops::Range;

use super::blob::{Blob, Flags, RECORD};
use super::bootstrap::Beside;
use super::bytes::{apart, cut};
use super::pieces::{Budget, Pieces};
use super::{File, Rafs, RafsError, Run, Version};
use crate::erofs::rafs::{Folder, Node};
use crate::erofs::{le16, le32, le64};
use crate::tree::{InodeId, Kind, ROOT, Tree};
use places::{NONE, Place, Places};

const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_RAFS: u32 = 0x4000_0000;
/// Chunk-based files and a device table (`EROFS_FEATURE_INCOMPAT_*`).
const INCOMPAT: u32 = 0xc;
const SUPERBLOCK: u64 = 1024;
const EXTENDED: u64 = SUPERBLOCK + 128;
/// The superblocks' block; tables start behind it, but for the device table in it.
const BLOCK: u64 = 4096;
/// Bytes of a record of the chunk table (`RafsV5ChunkInfo`).
const CHUNK: u64 = 80;

/// Whether these bytes are a version 6 bootstrap, and not EROFS alone.
pub(super) fn is_v6(bytes: &[u8]) -> bool {
    let sb = SUPERBLOCK as usize;
    bytes.len() > EXTENDED as usize
        && le32(bytes, sb) == MAGIC
        && le32(bytes, sb + 8) & COMPAT_RAFS != 0
        && le32(bytes, sb + 80) == INCOMPAT
}

/// What the superblocks say.
pub(super) struct Super {
    /// Byte offset that inode numbers count from.
    meta: u64,
    root: u64,
    blobs: Range<u64>,
    chunks: Range<u64>,
    prefetch: Range<u64>,
}

impl Super {
    pub fn read(bytes: &[u8]) -> Result<(Self, Flags), RafsError> {
        let block = cut(bytes, "superblock", 0, BLOCK)?;
        let (sb, extended) = (&block[SUPERBLOCK as usize..], &block[EXTENDED as usize..]);
        let flags = Flags::read(le64(extended, 0))?;
        if sb[12] != 12 || sb[13] != 0 || le32(sb, 44) != 0 {
            return Err(RafsError::Unsupported("other blocks than of 4096 bytes, or shared attributes"));
        }
        let head = Self {
            meta: u64::from(le32(sb, 40)) * BLOCK,
            root: le16(sb, 14).into(),
            blobs: table(bytes, "blob table", le64(extended, 8), le32(extended, 16).into(), RECORD)?,
            chunks: table(bytes, "chunk table", le64(extended, 24), le64(extended, 32), CHUNK)?,
            prefetch: table(bytes, "prefetch table", le64(extended, 40), le32(extended, 48).into(), 4)?,
        };
        let superblock = 0..EXTENDED + 256;
        apart(&[
            ("superblock", superblock),
            ("blob table", head.blobs.clone()),
            ("chunk table", head.chunks.clone()),
            ("prefetch table", head.prefetch.clone()),
        ])?;
        Ok((head, flags))
    }

    pub fn blobs(&self, bytes: &[u8]) -> Result<Vec<Blob>, RafsError> {
        let table = &bytes[self.blobs.start as usize..self.blobs.end as usize];
        (0..).zip(table.chunks_exact(RECORD as usize)).map(|(i, record)| Blob::read(record, i)).collect()
    }

    pub fn has_chunks(&self) -> bool {
        !self.chunks.is_empty()
    }
}

/// A table of whole records within the bootstrap. An empty one may be said to be anywhere.
fn table(bytes: &[u8], what: &'static str, at: u64, len: u64, each: u64) -> Result<Range<u64>, RafsError> {
    // Old images without files have a size here, but no place.
    if len == 0 || at == 0 {
        return Ok(0..0);
    }
    cut(bytes, what, at, len)?;
    if !len.is_multiple_of(each) {
        return Err(RafsError::Lie("a table that is no row of records"));
    }
    Ok(at..at + len)
}

/// Reads chunks, inodes and the prefetch table.
pub(super) fn decode(
    bytes: &[u8],
    head: &Super,
    flags: &Flags,
    blobs: Vec<Blob>,
    beside: &BTreeMap<u32, Beside>,
) -> Result<Rafs, RafsError> {
    let places = Places::new(bytes, head, &blobs, beside)?;
    let mut decoder = Decoder {
        bytes,
        meta: head.meta,
        owners: flags.owners,
        blobs: &blobs,
        beside,
        places,
        budget: Budget::new(bytes),
        ids: BTreeMap::new(),
        tree: Tree { inodes: Vec::new() },
        files: Vec::new(),
        pieces: Pieces::default(),
        windows: Vec::new(),
        window_starts: BTreeMap::new(),
    };
    let root = decoder.node(head.root)?;
    if !root.is_dir() {
        return Err(RafsError::Inode { at: root.at, why: "the root is no folder" });
    }
    decoder.add(&root, head.root)?;
    let mut folders = vec![(ROOT, head.root, head.root)];
    while let Some((id, nid, parent)) = folders.pop() {
        let node = decoder.node(nid)?;
        let fault = |fault| RafsError::Erofs { at: node.at, fault };
        let lie = |why| RafsError::Inode { at: node.at, why };
        let mut entries = BTreeMap::new();
        for entry in Folder::new(&node) {
            let entry = entry.map_err(fault)?;
            match entry.name {
                b"." if entry.nid != nid => return Err(lie("its . is another folder")),
                b".." if entry.nid != parent => return Err(lie("its .. is another folder")),
                b"." | b".." => continue,
                _ => {}
            }
            let (child, folder) = decoder.child(entry.nid)?;
            if folder {
                folders.push((child, entry.nid, nid));
            }
            if entries.insert(entry.name.into(), child).is_some() {
                return Err(lie("a name stands in it twice"));
            }
        }
        decoder.tree.inodes[id as usize].kind = Kind::Dir(entries);
    }
    let prefetch = &bytes[head.prefetch.start as usize..head.prefetch.end as usize];
    let wanted = prefetch.chunks_exact(4).filter_map(|n| decoder.ids.get(&le32(n, 0).into()).copied());
    let prefetch = super::prefetch(&decoder.tree, wanted);
    let Decoder { tree, files, pieces: Pieces { units, pieces, .. }, windows, .. } = decoder;
    let digester = flags.digester;
    Ok(Rafs { version: Version::V6, tree, files, units, pieces, windows, blobs, digester, prefetch })
}

struct Decoder<'a> {
    bytes: &'a [u8],
    meta: u64,
    owners: bool,
    blobs: &'a [Blob],
    beside: &'a BTreeMap<u32, Beside>,
    places: Places,
    budget: Budget,
    /// Inodes by their number.
    ids: BTreeMap<u64, InodeId>,
    tree: Tree,
    files: Vec<File>,
    pieces: Pieces,
    windows: Vec<u8>,
    /// Where in `windows` a blob's begin.
    window_starts: BTreeMap<u32, u32>,
}

impl<'a> Decoder<'a> {
    fn node(&self, nid: u64) -> Result<Node<'a>, RafsError> {
        let at = nid.checked_mul(32).and_then(|at| at.checked_add(self.meta));
        let at = at.ok_or(RafsError::Lie("an inode beyond all bootstraps"))?;
        Node::read(self.bytes, at).map_err(|fault| RafsError::Erofs { at, fault })
    }

    /// The inode of a folder's entry, and whether it is a folder. Only files are met again.
    fn child(&mut self, nid: u64) -> Result<(InodeId, bool), RafsError> {
        if let Some(&id) = self.ids.get(&nid) {
            return match self.tree.get(id).kind {
                Kind::Dir(_) => Err(RafsError::Lie("a folder stands in two places, or in itself")),
                _ => Ok((id, false)),
            };
        }
        let node = self.node(nid)?;
        Ok((self.add(&node, nid)?, node.is_dir()))
    }

    fn add(&mut self, node: &Node<'a>, nid: u64) -> Result<InodeId, RafsError> {
        let at = node.at;
        let own = self.budget.own(node.own());
        own.ok_or(RafsError::Inode { at, why: "inodes overlap" })?;
        let mut inode = node.inode().map_err(|fault| RafsError::Erofs { at, fault })?;
        if !self.owners {
            (inode.meta.uid, inode.meta.gid) = (0, 0);
        }
        let size = if let Kind::File { size, .. } = inode.kind { size } else { 0 };
        let id = self.tree.push(inode);
        self.ids.insert(nid, id);
        if size > 0 {
            let mut file = File { inode: id, runs: Vec::new() };
            self.content(node, size, &mut file)?;
            self.files.push(file);
        }
        Ok(id)
    }

    /// Follows a file's addresses. One of them stands for as many chunks as lie behind each other on its device.
    fn content(&mut self, node: &Node<'a>, size: u64, file: &mut File) -> Result<(), RafsError> {
        let lie = |why| RafsError::Inode { at: node.at, why };
        let (each, addresses) = node.chunks().map_err(|fault| RafsError::Erofs { at: node.at, fault })?;
        let mut left = size;
        for address in addresses {
            let device = u32::from(address[2]);
            let blob = device.checked_sub(1).ok_or_else(|| lie("data inside of the bootstrap"))?;
            let mut at = u64::from(le32(address, 4)) * BLOCK;
            let mut here = left.min(each);
            left -= here;
            while here > 0 {
                let place = self.places.find(blob, at).ok_or_else(|| lie("data where no chunk is"))?;
                let raw_len = self.places.all[place].chunk.raw_len;
                let len = here.min(raw_len.into());
                here -= len;
                if here > 0 && !len.is_multiple_of(BLOCK) {
                    return Err(lie("a chunk in its middle that is no row of blocks"));
                }
                at += len;
                let piece = Some(self.piece(place)?);
                self.budget.run(file, Run { piece, len })?;
            }
        }
        if left == 0 { Ok(()) } else { Err(lie("its chunks do not make up its size")) }
    }

    fn piece(&mut self, place: usize) -> Result<u32, RafsError> {
        let Place { chunk, index, piece, .. } = &self.places.all[place];
        if *piece != NONE {
            return Ok(*piece);
        }
        let number = chunk.blob;
        let blob = &self.blobs[number as usize];
        let contexts = self.beside.get(&number).and_then(|b| b.contexts.as_ref());
        let record = contexts.and_then(|c| c.chunks.get(*index as usize));
        let piece = match (record.and_then(|r| r.part), record, contexts) {
            (Some(part), Some(record), Some(contexts)) => {
                if record.raw_len != chunk.raw_len || record.raw_offset != self.places.all[place].at {
                    return Err(RafsError::Lie("a chunk that its blob's contexts say otherwise of"));
                }
                let start = match self.window_starts.get(&number) {
                    Some(start) => *start,
                    None => {
                        let start = self.windows.len() as u64;
                        if start + contexts.windows.len() as u64 > u32::MAX.into() {
                            return Err(RafsError::Lie("gzip windows of more than 4 GiB"));
                        }
                        self.windows.extend_from_slice(&contexts.windows);
                        self.window_starts.insert(number, start as u32);
                        start as u32
                    }
                };
                let unit = &contexts.units[part.0 as usize];
                self.pieces.part(blob, chunk, part, unit, start)?
            }
            _ if blob.needs_contexts() && (contexts.is_none() || record.is_none()) => {
                return Err(RafsError::Missing("contexts of its zran or batch chunks"));
            }
            _ => self.pieces.whole(self.blobs, chunk)?,
        };
        self.places.all[place].piece = piece;
        Ok(piece)
    }
}
