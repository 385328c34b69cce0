//! Inodes and folders of a RAFS v6 bootstrap. It is EROFS of a narrower kind (extended inodes, no shared attributes)
//! and of a wider one: files are any row of chunks, where [`Image`](super::Image) reads those of one run.

use std::collections::BTreeMap;

use super::bytes::Bytes;
use super::dirent::{Block, Entry};
use super::layout::*;
use super::{Fault, xattr};
use crate::tree::{FileData, Inode, Kind, Meta, Name, Time};

/// An inode.
pub(crate) struct Node<'a> {
    /// Byte offset.
    pub at: u64,
    head: &'a [u8],
    xattrs: &'a [u8],
    bytes: &'a [u8],
}

impl<'a> Node<'a> {
    /// Reads the inode at byte `at`.
    pub fn read(bytes: &'a [u8], at: u64) -> Result<Self, Fault> {
        let head = Bytes::from(bytes).cut("an inode", at, EXTENDED_LEN)?;
        if le16(head, 0) & 1 == 0 || le16(head, 0) >> 4 != 0 {
            return Err(Fault::Unsupported("a compact inode, or one newer than this reader"));
        }
        let icount = u64::from(le16(head, 2));
        let len = if icount == 0 { 0 } else { XATTR_HEADER + (icount - 1) * 4 };
        let xattrs = Bytes::from(bytes).cut("extended attributes", at + EXTENDED_LEN, len)?;
        Ok(Self { at, head, xattrs, bytes })
    }

    fn mode(&self) -> u16 {
        le16(self.head, 4)
    }
    fn size(&self) -> u64 {
        le64(self.head, 8)
    }
    fn layout(&self) -> u16 {
        le16(self.head, 0) >> 1 & 7
    }
    fn tail(&self) -> u64 {
        self.at + EXTENDED_LEN + self.xattrs.len() as u64
    }

    /// Whether it is a folder.
    pub fn is_dir(&self) -> bool {
        self.mode() & S_IFMT == S_IFDIR
    }

    /// Bytes of the bootstrap that are its own. Folders' blocks and link targets are, chunk addresses too.
    pub fn own(&self) -> u64 {
        let body = match self.mode() & S_IFMT {
            S_IFREG if self.size() == 0 => 0,
            S_IFREG => self.size().div_ceil(self.chunk_size()).saturating_mul(CHUNK_INDEX_LEN),
            S_IFDIR | S_IFLNK => self.size(),
            _ => 0,
        };
        EXTENDED_LEN.saturating_add(self.xattrs.len() as u64).saturating_add(body)
    }

    /// Its attributes, and what it is; a folder's entries and a file's place are left out.
    pub fn inode(&self) -> Result<Inode, Fault> {
        let head = self.head;
        let dev = decode_dev(le32(head, 16));
        let kind = match self.mode() & S_IFMT {
            S_IFREG => Kind::File { size: self.size(), data: FileData::default() },
            S_IFDIR => Kind::Dir(BTreeMap::new()),
            S_IFLNK => Kind::Symlink(self.target()?.into()),
            S_IFCHR => Kind::Char(dev),
            S_IFBLK => Kind::Block(dev),
            S_IFIFO => Kind::Fifo,
            S_IFSOCK => Kind::Socket,
            _ => return Err(Fault::Bad("its mode has no file type")),
        };
        let nanos = le32(head, 40);
        if nanos > 999_999_999 {
            return Err(Fault::Bad("its time has more than a second of nanoseconds"));
        }
        let no_shared = |_| Err(Fault::Unsupported("shared extended attributes"));
        let xattrs = xattr::read_body(self.xattrs, no_shared)?;
        let meta = Meta {
            perm: self.mode() & 0o7777,
            uid: le32(head, 24),
            gid: le32(head, 28),
            mtime: Time { secs: le64(head, 32) as i64, nanos },
            xattrs: xattrs.into_iter().map(|(name, value)| (name, Name::from(value))).collect(),
        };
        Ok(Inode { kind, meta, implied: false, opaque: false })
    }

    fn target(&self) -> Result<&'a [u8], Fault> {
        if !(1..=TARGET_MAX).contains(&self.size()) {
            return Err(Fault::Bad("its link target is empty or longer than 4095 bytes"));
        }
        let target = self.block(0, self.size())?;
        if target.contains(&0) { Err(Fault::Bad("its link target holds NUL")) } else { Ok(target) }
    }

    /// `len` bytes of block `index` of a folder or link.
    fn block(&self, index: u64, len: u64) -> Result<&'a [u8], Fault> {
        let start = match self.layout() {
            FLAT_INLINE if index + 1 == self.size().div_ceil(BLOCK) => self.tail(),
            FLAT_INLINE | FLAT_PLAIN => (u64::from(le32(self.head, 16)) + index) * BLOCK,
            _ => return Err(Fault::Unsupported("a folder or link that is compressed or in chunks")),
        };
        Bytes::from(self.bytes).cut("a folder's block or link target", start, len)
    }

    fn chunk_size(&self) -> u64 {
        1 << (u32::from(le16(self.head, 16) & CHUNK_BITS_MASK) + u32::from(BLOCK_BITS))
    }

    /// Of a file that is not empty: the bytes that one address stands for, and the addresses (8 bytes each).
    pub fn chunks(&self) -> Result<(u64, impl Iterator<Item = &'a [u8]>), Fault> {
        let format = le16(self.head, 16);
        if self.layout() != CHUNK_BASED || format & !CHUNK_BITS_MASK != CHUNK_INDEXES {
            return Err(Fault::Unsupported("a file that is not made of chunks"));
        }
        let count = self.size().div_ceil(self.chunk_size());
        let start = self.tail().next_multiple_of(CHUNK_INDEX_LEN);
        let len = count.checked_mul(CHUNK_INDEX_LEN).ok_or(Fault::Bad("a file larger than any"))?;
        let table = Bytes::from(self.bytes).cut("chunk addresses", start, len)?;
        Ok((self.chunk_size(), table.chunks_exact(CHUNK_INDEX_LEN as usize)))
    }
}

/// The entries of a folder, `.` and `..` among them. Ends after its first error.
pub(crate) struct Folder<'n, 'a> {
    node: &'n Node<'a>,
    next_block: u64,
    block: Option<Block<'a>>,
    next: usize,
}

impl<'n, 'a> Folder<'n, 'a> {
    /// All of them.
    pub fn new(node: &'n Node<'a>) -> Self {
        Self { node, next_block: 0, block: None, next: 0 }
    }

    fn step(&mut self) -> Result<Option<Entry<'a>>, Fault> {
        loop {
            if let Some(block) = self.block.filter(|b| self.next < b.count) {
                self.next += 1;
                return block.entry(self.next - 1).map(Some);
            }
            let size = self.node.size();
            let start = self.next_block.saturating_mul(BLOCK);
            if start >= size {
                return Ok(None);
            }
            self.block = Some(Block::new(self.node.block(self.next_block, (size - start).min(BLOCK))?)?);
            (self.next_block, self.next) = (self.next_block + 1, 0);
        }
    }
}

impl<'a> Iterator for Folder<'_, 'a> {
    type Item = Result<Entry<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            (self.block, self.next_block) = (None, u64::MAX);
        }
        step.transpose()
    }
}
