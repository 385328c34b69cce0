//! RAFS version 5 (`rafs/src/metadata/layout/v5.rs`): a superblock of 8 KiB, a table of where each inode is, and
//! inodes of 128 bytes, each followed by its name, link target, attributes and chunks.
//!
//! A folder's entries are neighbours in the inode table. Each name has an inode of its own; those of hard links have
//! one number.

mod node;

use std::collections::{BTreeMap, HashMap};

use super::blob::{Blob, Flags, Layout, blob_digest};
use super::bytes::{apart, cut, digest};
use super::pieces::{Budget, Chunk, Pieces};
use super::{File, Rafs, RafsError, Run, Version};
use crate::erofs::{le32, le64, name_ok};
use crate::tree::{InodeId, Kind, ROOT, Tree};
use node::Node;

const MAGIC: u32 = 0x5241_4653;
const VERSION: u32 = 0x500;
const SUPERBLOCK: u64 = 8192;
/// Bytes of an entry of the extended blob table, and of a chunk.
const EXTENDED: u64 = 64;
const CHUNK: u64 = 80;
/// Chunk flags (`BlobChunkFlags`).
const COMPRESSED: u32 = 0x1;
const HOLE: u32 = 0x2;
const ENCRYPTED: u32 = 0x4;
/// Largest blob, bytes, where its size is not told.
const MAX_BLOB: u64 = 1 << 40;

/// Whether these bytes begin as a version 5 bootstrap does.
pub(super) fn is_v5(bytes: &[u8]) -> bool {
    bytes.len() >= 8 && le32(bytes, 0) == MAGIC && le32(bytes, 4) == VERSION
}

/// What the superblock says.
pub(super) struct Super {
    /// Byte offset and count of the entries.
    inodes: (u64, u32),
    prefetch: (u64, u32),
    extended: (u64, u32),
    /// Byte offset and bytes.
    blobs: (u64, u32),
}

impl Super {
    pub fn read(bytes: &[u8]) -> Result<(Self, Flags), RafsError> {
        let sb = cut(bytes, "superblock", 0, SUPERBLOCK)?;
        let flags = Flags::read(le64(sb, 16))?;
        let head = Self {
            inodes: (le64(sb, 32), le32(sb, 56)),
            prefetch: (le64(sb, 40), le32(sb, 60)),
            blobs: (le64(sb, 48), le32(sb, 64)),
            extended: (le64(sb, 72), le32(sb, 68)),
        };
        let tables = [
            ("inode table", head.inodes, 4),
            ("prefetch table", head.prefetch, 4),
            ("blob table", head.blobs, 1),
            ("extended blob table", head.extended, EXTENDED),
        ];
        let mut ranges = vec![("superblock", 0..SUPERBLOCK)];
        for (name, (start, count), each) in tables {
            let len = u64::from(count) * each;
            if len > 0 {
                cut(bytes, name, start, len)?;
                ranges.push((name, start..start + len));
            }
        }
        apart(&ranges)?;
        Ok((head, flags))
    }

    /// The blobs: two numbers that say what to read ahead, a name, and a NUL between two.
    pub fn blobs(&self, bytes: &[u8], flags: &Flags) -> Result<Vec<Blob>, RafsError> {
        let mut table = cut(bytes, "blob table", self.blobs.0, self.blobs.1.into())?;
        let mut blobs = Vec::new();
        // The table is padded to 8 bytes.
        while table.len() > 8 {
            let end = table[8..].iter().position(|&b| b == 0).map_or(table.len(), |n| 8 + n);
            let digest = blob_digest(&table[8..end])?;
            table = table.get(end + 1..).unwrap_or(&[]);
            let (mut chunks, mut data_size) = (0, MAX_BLOB);
            if self.extended.1 > 0 {
                let at = self.extended.0 + blobs.len() as u64 * EXTENDED;
                if blobs.len() as u64 >= self.extended.1.into() {
                    return Err(RafsError::Lie("its extended blob table is shorter than its blob table"));
                }
                let entry = cut(bytes, "extended blob table", at, EXTENDED)?;
                (chunks, data_size) = (le32(entry, 0), le64(entry, 16).min(MAX_BLOB));
            }
            let Flags { compressor, .. } = *flags;
            blobs.push(Blob {
                digest,
                compressor,
                data_size,
                chunks,
                layout: Layout::V1,
                contexts: None,
                inlined_digests: false,
            });
        }
        Ok(blobs)
    }

    /// Byte offset of the inode of entry `index`, which counts from 1.
    fn inode_at(&self, bytes: &[u8], index: u64) -> Result<u64, RafsError> {
        let entry = index.checked_sub(1).filter(|i| *i < self.inodes.1.into());
        let entry = entry.ok_or(RafsError::Lie("a folder's entries are not in the inode table"))?;
        Ok(u64::from(le32(cut(bytes, "inode table", self.inodes.0 + 4 * entry, 4)?, 0)) << 3)
    }
}

/// Reads inodes, chunks and the prefetch table.
pub(super) fn decode(bytes: &[u8], head: &Super, flags: &Flags, blobs: Vec<Blob>) -> Result<Rafs, RafsError> {
    let mut decoder = Decoder {
        owners: flags.owners,
        blobs: &blobs,
        budget: Budget::new(bytes),
        tree: Tree { inodes: Vec::new() },
        numbers: HashMap::new(),
        files: Vec::new(),
        pieces: Pieces::default(),
        known: HashMap::new(),
    };
    let root = Node::read(bytes, head.inode_at(bytes, 1)?)?;
    if !root.is_dir() {
        return Err(root.lie("the root is no folder"));
    }
    decoder.add(&root)?;
    let mut folders = vec![(ROOT, root.first_child(), root.children())];
    while let Some((folder, first, count)) = folders.pop() {
        let mut entries = BTreeMap::new();
        for index in first..first + u64::from(count) {
            let node = Node::read(bytes, head.inode_at(bytes, index)?)?;
            if !name_ok(node.name) || matches!(node.name, b"." | b"..") {
                return Err(node.lie("a name that no file can have"));
            }
            let id = decoder.add(&node)?;
            if node.is_dir() {
                folders.push((id, node.first_child(), node.children()));
            }
            if entries.insert(node.name.into(), id).is_some() {
                return Err(node.lie("a name that its folder has twice"));
            }
        }
        decoder.tree.inodes[folder as usize].kind = Kind::Dir(entries);
    }
    let prefetch = cut(bytes, "prefetch table", head.prefetch.0, u64::from(head.prefetch.1) * 4)?;
    let wanted = prefetch.chunks_exact(4).filter_map(|n| decoder.numbers.get(&le32(n, 0).into()).copied());
    let prefetch = super::prefetch(&decoder.tree, wanted);
    let Decoder { tree, files, pieces: Pieces { units, pieces, .. }, .. } = decoder;
    let digester = flags.digester;
    Ok(Rafs {
        version: Version::V5,
        tree,
        files,
        units,
        pieces,
        windows: Vec::new(),
        blobs,
        digester,
        prefetch,
    })
}

struct Decoder<'a> {
    owners: bool,
    blobs: &'a [Blob],
    budget: Budget,
    tree: Tree,
    /// Inodes by their number.
    numbers: HashMap<u64, InodeId>,
    files: Vec<File>,
    pieces: Pieces,
    /// Chunks that are pieces already.
    known: HashMap<Chunk, u32>,
}

impl Decoder<'_> {
    /// Adds an inode, or finds the one that this is another name of.
    fn add(&mut self, node: &Node<'_>) -> Result<InodeId, RafsError> {
        // It also ends folders that are in each other.
        self.budget
            .own(node.own())
            .ok_or_else(|| node.lie("inodes that overlap, or a folder that stands twice"))?;
        let inode = node.inode(self.owners)?;
        let is_dir = matches!(inode.kind, Kind::Dir(_));
        if let Some(&first) = self.numbers.get(&node.number()) {
            if is_dir || node.links() < 2 {
                return Err(node.lie("its number is another's, though it is no hard link"));
            }
            if *self.tree.get(first) != inode {
                return Err(node.lie("a hard link to a file that is another"));
            }
            return Ok(first);
        }
        let id = self.tree.push(inode);
        self.numbers.insert(node.number(), id);
        if node.is_file() {
            self.content(node, id)?;
        }
        Ok(id)
    }

    fn content(&mut self, node: &Node<'_>, inode: InodeId) -> Result<(), RafsError> {
        let mut file = File { inode, runs: Vec::new() };
        let mut at = 0;
        let hole = |at, to| Run { piece: None, len: to - at };
        for record in node.chunks.chunks_exact(CHUNK as usize) {
            let (flags, file_offset) = (le32(record, 36), le64(record, 64));
            if flags & ENCRYPTED != 0 {
                return Err(RafsError::Encrypted);
            }
            let raw_len = le32(record, 44);
            if file_offset < at || file_offset > node.size() || raw_len == 0 {
                return Err(node.lie("its chunks overlap, or are out of order or empty"));
            }
            let len = u64::from(raw_len).min(node.size() - file_offset);
            if len == 0 {
                return Err(node.lie("it has chunks behind its end"));
            }
            if file_offset > at {
                Self::gap(node)?;
                self.budget.run(&mut file, hole(at, file_offset))?;
            }
            let piece = match flags & HOLE {
                0 => Some(self.piece(record)?),
                _ => None,
            };
            self.budget.run(&mut file, Run { piece, len })?;
            at = file_offset + len;
        }
        if at < node.size() {
            Self::gap(node)?;
            self.budget.run(&mut file, hole(at, node.size()))?;
        }
        if !file.runs.is_empty() {
            self.files.push(file);
        }
        Ok(())
    }

    /// Bytes that no chunk has are zeros only where the inode says so.
    fn gap(node: &Node<'_>) -> Result<(), RafsError> {
        if node.has_holes() { Ok(()) } else { Err(node.lie("its chunks do not make up its size")) }
    }

    fn piece(&mut self, record: &[u8]) -> Result<u32, RafsError> {
        let start = le64(record, 48);
        let end = start.checked_add(le32(record, 40).into());
        let chunk = Chunk {
            blob: le32(record, 32),
            stored: start..end.ok_or(RafsError::Lie("a chunk beyond all blobs"))?,
            compressed: le32(record, 36) & COMPRESSED != 0,
            raw_len: le32(record, 44),
            digest: digest(record, 0),
        };
        if let Some(&piece) = self.known.get(&chunk) {
            return Ok(piece);
        }
        let piece = self.pieces.whole(self.blobs, &chunk)?;
        self.known.insert(chunk, piece);
        Ok(piece)
    }
}
