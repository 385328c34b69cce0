//! One inode of version 5: 128 bytes, then its name, link target, attributes and chunks.

use std::collections::BTreeMap;

use super::super::RafsError;
use super::super::bytes::cut;
use super::CHUNK;
use crate::erofs::{decode_dev, le16, le32, le64};
use crate::tree::{FileData, Inode, Kind, Meta, Name, Time};

const INODE: u64 = 128;
/// Inode flags (`RafsV5InodeFlags`).
const XATTR: u64 = 0x4;
const HAS_HOLE: u64 = 0x8;

const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFSOCK: u32 = 0o140_000;

/// An inode as it is stored.
pub(super) struct Node<'a> {
    at: u64,
    head: &'a [u8],
    pub name: &'a [u8],
    target: &'a [u8],
    xattrs: &'a [u8],
    /// Of a regular file.
    pub chunks: &'a [u8],
}

impl<'a> Node<'a> {
    pub fn read(bytes: &'a [u8], at: u64) -> Result<Self, RafsError> {
        let head = cut(bytes, "inode", at, INODE)?;
        let name = cut(bytes, "file name", at + INODE, le16(head, 100).into())?;
        let after = at + INODE + (name.len() as u64).next_multiple_of(8);
        let target = cut(bytes, "link target", after, le16(head, 102).into())?;
        let mut after = after + (target.len() as u64).next_multiple_of(8);
        let mut xattrs: &[u8] = &[];
        if le64(head, 80) & XATTR != 0 {
            let len = le64(cut(bytes, "extended attributes", after, 8)?, 0);
            xattrs = cut(bytes, "extended attributes", after + 8, len)?;
            after += 8 + len.next_multiple_of(8);
        }
        let mut node = Self { at, head, name, target, xattrs, chunks: &[] };
        if node.format() == S_IFREG {
            node.chunks = cut(bytes, "chunks of a file", after, u64::from(node.children()) * CHUNK)?;
        }
        Ok(node)
    }

    pub fn lie(&self, why: &'static str) -> RafsError {
        RafsError::Inode { at: self.at, why }
    }
    pub fn number(&self) -> u64 {
        le64(self.head, 40)
    }
    fn format(&self) -> u32 {
        le32(self.head, 60) & 0o170_000
    }
    pub fn is_dir(&self) -> bool {
        self.format() == S_IFDIR
    }
    pub fn is_file(&self) -> bool {
        self.format() == S_IFREG
    }
    /// Bytes that no chunk has are zeros.
    pub fn has_holes(&self) -> bool {
        le64(self.head, 80) & HAS_HOLE != 0
    }
    /// Bytes of the bootstrap that are its own.
    pub fn own(&self) -> u64 {
        INODE + (self.name.len() + self.target.len() + self.xattrs.len() + self.chunks.len()) as u64
    }
    pub fn size(&self) -> u64 {
        le64(self.head, 64)
    }
    pub fn links(&self) -> u32 {
        le32(self.head, 88)
    }
    pub fn first_child(&self) -> u64 {
        le32(self.head, 92).into()
    }
    pub fn children(&self) -> u32 {
        le32(self.head, 96)
    }

    pub fn inode(&self, owners: bool) -> Result<Inode, RafsError> {
        let (head, dev) = (self.head, decode_dev(le32(self.head, 104)));
        let kind = match self.format() {
            S_IFDIR => Kind::Dir(BTreeMap::new()),
            S_IFREG => Kind::File { size: self.size(), data: FileData::default() },
            S_IFLNK if self.target.is_empty() || self.target.contains(&0) => {
                return Err(self.lie("a link to nowhere"));
            }
            S_IFLNK => Kind::Symlink(self.target.into()),
            S_IFCHR => Kind::Char(dev),
            S_IFBLK => Kind::Block(dev),
            S_IFIFO => Kind::Fifo,
            S_IFSOCK => Kind::Socket,
            _ => return Err(self.lie("its mode has no file type")),
        };
        let nanos = le32(head, 108);
        if nanos > 999_999_999 {
            return Err(self.lie("its time has more than a second of nanoseconds"));
        }
        let (uid, gid) = if owners { (le32(head, 48), le32(head, 52)) } else { (0, 0) };
        let perm = (le32(head, 60) & 0o7777) as u16;
        let mtime = Time { secs: le64(head, 112) as i64, nanos };
        let meta = Meta { perm, uid, gid, mtime, xattrs: self.xattrs()? };
        Ok(Inode { kind, meta, implied: false, opaque: false })
    }

    /// Each attribute: a length, and of that many bytes the name, a NUL and the value.
    fn xattrs(&self) -> Result<BTreeMap<Name, Name>, RafsError> {
        let mut all = BTreeMap::new();
        let mut rest = self.xattrs;
        while let Some((len, pair)) = rest.split_first_chunk::<4>() {
            let (pair, next) = pair
                .split_at_checked(u32::from_le_bytes(*len) as usize)
                .ok_or_else(|| self.lie("an extended attribute beyond its table"))?;
            let end = pair.iter().position(|&b| b == 0).filter(|end| *end > 0);
            let end = end.ok_or_else(|| self.lie("an extended attribute without a name"))?;
            if all.insert(pair[..end].into(), pair[end + 1..].into()).is_some() {
                return Err(self.lie("an extended attribute that stands twice"));
            }
            rest = next;
        }
        Ok(all)
    }
}
