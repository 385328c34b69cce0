//! Reading an image in place: every answer borrows from its bytes, nothing is decoded ahead.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bytes::Bytes;
use super::dirent::{Block, Entry};
use super::inode::{Node, NodeKind};
use super::layout::*;
use super::superblock::{Superblock, read_device};
use super::{DecodeError, Device, Fault, xattr};
use crate::tree::Name;

/// An EROFS image without compression, as [`encode`](super::encode) and `mkfs.erofs` make it.
/// Reads are checked as they happen: a damaged inode is an error only when it is asked for.
#[derive(Debug, Clone)]
pub struct Image<'a> {
    pub(super) bytes: Bytes<'a>,
    pub(super) sb: Superblock,
    pub(super) devices: Arc<[Device]>,
    /// Not one of ours: where its files' bytes are is for [`decode_foreign`](super::decode_foreign) to say.
    pub(super) foreign: bool,
}

/// What reading the inodes of an image takes besides its bytes: for who owns the bytes elsewhere, and
/// will not check the superblock anew at each look.
#[derive(Debug, Clone)]
pub struct Head {
    sb: Superblock,
    devices: Arc<[Device]>,
}

impl Head {
    /// The image over the bytes that this is the head of. Over others every read is checked too, and
    /// finds something else or an error.
    pub fn over<'a>(&self, bytes: &'a [u8]) -> Image<'a> {
        Image { bytes: bytes.into(), sb: self.sb.clone(), devices: Arc::clone(&self.devices), foreign: false }
    }
}

impl<'a> Image<'a> {
    /// Checks superblock and device table.
    ///
    /// # Errors
    /// [`DecodeError::Superblock`] or [`DecodeError::Checksum`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Self::open(bytes.into(), false)
    }

    /// An image that another program wrote: where the bytes of its files are is for
    /// [`decode_foreign`](super::decode_foreign) to say.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn foreign(bytes: Bytes<'a>) -> Result<Self, DecodeError> {
        Self::open(bytes, true)
    }

    fn open(bytes: Bytes<'a>, foreign: bool) -> Result<Self, DecodeError> {
        let sb = Superblock::read(bytes)?;
        let devices = (0..sb.devices).map(|i| read_device(bytes, &sb, i)).collect::<Result<_, _>>()?;
        Ok(Self { bytes, sb, devices, foreign })
    }

    /// The image without its bytes.
    pub fn head(&self) -> Head {
        Head { sb: self.sb.clone(), devices: Arc::clone(&self.devices) }
    }

    /// The devices the files' data lies on, by layer.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The inode number of the root folder.
    pub fn root(&self) -> u64 {
        self.sb.root
    }

    /// The inode `nid`.
    ///
    /// # Errors
    /// [`DecodeError::Inode`] as everywhere below: what is wrong with which inode.
    pub fn inode(&self, nid: u64) -> Result<Node<'a>, DecodeError> {
        self.read_inode(nid).map_err(|fault| self.at(nid, fault))
    }

    /// Follows a path (`/`-separated, leading `/` and `.` components ignored) without following
    /// links; None where there is no such entry.
    ///
    /// # Errors
    /// [`DecodeError::Inode`].
    pub fn lookup(&self, path: &[u8]) -> Result<Option<u64>, DecodeError> {
        let mut nid = self.root();
        for name in path.split(|&c| c == b'/').filter(|p| !p.is_empty() && *p != b".") {
            let dir = self.inode(nid)?;
            let NodeKind::Dir = dir.kind else { return Ok(None) };
            let Some(entry) = self.find(&dir, name)? else { return Ok(None) };
            nid = entry.nid;
        }
        Ok(Some(nid))
    }

    /// Finds a name in a folder, by halving.
    ///
    /// # Errors
    /// [`DecodeError::Inode`].
    pub fn find(&self, dir: &Node<'a>, name: &[u8]) -> Result<Option<Entry<'a>>, DecodeError> {
        self.search(dir, name).map_err(|fault| self.at(dir.nid, fault))
    }

    /// All entries of a folder in the image's order, `.` and `..` among them; of anything else none.
    pub fn entries(&self, dir: &Node<'a>) -> Entries<'_, 'a> {
        let blocks = if dir.kind == NodeKind::Dir { dir.size.div_ceil(self.sb.block()) } else { 0 };
        Entries { image: self, dir: dir.clone(), blocks, next_block: 0, block: None, next: 0, skip: 0 }
    }

    /// The entries of a folder from where an earlier iteration stood ([`Entries::position`]); none
    /// behind a position that is of another folder.
    pub fn entries_from(&self, dir: &Node<'a>, position: u64) -> Entries<'_, 'a> {
        let mut entries = self.entries(dir);
        let (block, next) = (position >> POSITION_BITS, position & ((1 << POSITION_BITS) - 1));
        if block >= entries.blocks {
            entries.next_block = entries.blocks;
        } else if position > 0 {
            (entries.next_block, entries.skip) = (block, next as usize);
        }
        entries
    }

    /// The extended attributes of an inode by full name.
    ///
    /// # Errors
    /// [`DecodeError::Inode`].
    pub fn xattrs(&self, node: &Node<'a>) -> Result<BTreeMap<Name, &'a [u8]>, DecodeError> {
        let shared = |id: u32| {
            let at = self.sb.shared + u64::from(id) * 4;
            // An entry is at most this long; what the image has of it will do.
            let most = 4 + 255 + u64::from(u16::MAX);
            let found = self.bytes.starting_at(at, most);
            if found.len() < 4 { self.bytes.cut("a shared extended attribute", at, 4) } else { Ok(found) }
        };
        xattr::read_body(node.xattrs, shared).map_err(|fault| self.at(node.nid, fault))
    }

    pub(super) fn at(&self, nid: u64, fault: Fault) -> DecodeError {
        let offset = nid.saturating_mul(SLOT).saturating_add(self.sb.meta);
        DecodeError::Inode { nid, offset, fault }
    }

    fn block(&self, dir: &Node<'a>, index: u64) -> Result<Block<'a>, Fault> {
        let block = self.sb.block();
        let len = (dir.size - index * block).min(block);
        Block::new(self.body(dir, index, len)?)
    }

    /// `len` bytes of block `index` of what a folder or symlink holds.
    pub(super) fn body(&self, node: &Node<'a>, index: u64, len: u64) -> Result<&'a [u8], Fault> {
        let block = self.sb.block();
        let start = match node.tail {
            Some(tail) if index + 1 == node.size.div_ceil(block) => {
                if tail % block + len > block {
                    return Err(Fault::Bad("inline data crosses a block"));
                }
                tail
            }
            // Neither overflows: 32 bits of address and of block count.
            _ => node.start + index * block,
        };
        self.bytes.cut("a folder's block or link target", start, len)
    }

    fn search(&self, dir: &Node<'a>, name: &[u8]) -> Result<Option<Entry<'a>>, Fault> {
        if dir.kind != NodeKind::Dir {
            return Ok(None);
        }
        // The last block whose first name is not greater holds the name if any does.
        let (mut low, mut high) = (0, dir.size.div_ceil(self.sb.block()));
        while low < high {
            let mid = low + (high - low) / 2;
            if self.block(dir, mid)?.entry(0)?.name <= name { low = mid + 1 } else { high = mid }
        }
        let Some(index) = low.checked_sub(1) else { return Ok(None) };
        let block = self.block(dir, index)?;
        let (mut low, mut high) = (0, block.count);
        while low < high {
            let mid = low + (high - low) / 2;
            let entry = block.entry(mid)?;
            match entry.name.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(entry)),
                std::cmp::Ordering::Less => low = mid + 1,
                std::cmp::Ordering::Greater => high = mid,
            }
        }
        Ok(None)
    }
}

/// Iterator over a folder's entries. Ends after its first error.
pub struct Entries<'i, 'a> {
    image: &'i Image<'a>,
    dir: Node<'a>,
    blocks: u64,
    next_block: u64,
    block: Option<Block<'a>>,
    next: usize,
    /// Entries of the next block that are passed over.
    skip: usize,
}

/// A block of a folder has fewer entries than this has numbers: they take 13 bytes each, of 64 KiB.
const POSITION_BITS: u32 = 16;

impl<'a> Entries<'_, 'a> {
    /// Where the iteration stands: 0 at the start, more after each entry.
    pub fn position(&self) -> u64 {
        match self.block {
            Some(_) => (self.next_block - 1) << POSITION_BITS | self.next as u64,
            None => self.next_block << POSITION_BITS | self.skip as u64,
        }
    }

    fn step(&mut self) -> Result<Option<Entry<'a>>, Fault> {
        loop {
            if let Some(block) = self.block.filter(|b| self.next < b.count) {
                self.next += 1;
                return block.entry(self.next - 1).map(Some);
            }
            if self.next_block == self.blocks {
                return Ok(None);
            }
            self.block = Some(self.image.block(&self.dir, self.next_block)?);
            self.next_block += 1;
            self.next = std::mem::take(&mut self.skip);
        }
    }
}

impl<'a> Iterator for Entries<'_, 'a> {
    type Item = Result<Entry<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.step() {
            Ok(entry) => entry.map(Ok),
            Err(fault) => {
                (self.block, self.next_block) = (None, self.blocks);
                Some(Err(self.image.at(self.dir.nid, fault)))
            }
        }
    }
}
