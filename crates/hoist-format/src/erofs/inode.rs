//! One inode, read: compact (32 bytes) or extended (64).

use super::Fault;
use super::image::Image;
use super::layout::*;
use crate::tree::{Dev, FileData, Time};

/// An inode of an [`Image`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<'a> {
    /// Its number in this image.
    pub nid: u64,
    /// File type and permission bits, as `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Link count, as stored.
    pub nlink: u32,
    /// `st_size`, bytes.
    pub size: u64,
    /// What it is.
    pub kind: NodeKind<'a>,
    pub(super) xattrs: &'a [u8],
    /// Byte offset of its own full blocks.
    pub(super) start: u64,
    /// Byte offset of inline data, if it has any.
    pub(super) tail: Option<u64>,
    /// How its bytes are stored, and what that needs: the chunk format, and what stands behind the inode.
    pub(super) stored: Stored,
    /// Bytes of the image that belong to this inode alone, beyond its header.
    pub(super) own: u64,
}

/// How an inode stores its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stored {
    pub layout: u16,
    pub chunk_format: u16,
    /// Byte offset of what stands behind inode and attributes.
    pub behind: u64,
}

/// What an inode is. The entries of a folder are read with [`Image::entries`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind<'a> {
    /// A folder.
    Dir,
    /// A regular file and where its bytes are; without devices layer 0 is the image itself.
    File(FileData),
    /// A symbolic link and its target.
    Symlink(&'a [u8]),
    /// A character device; 0:0 is an overlayfs whiteout.
    Char(Dev),
    /// A block device.
    Block(Dev),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl<'a> Image<'a> {
    pub(super) fn read_inode(&self, nid: u64) -> Result<Node<'a>, Fault> {
        let at = nid.checked_mul(SLOT).and_then(|o| o.checked_add(self.sb.meta));
        let at = at.ok_or(Fault::Bad("its number is beyond all images"))?;
        let head = self.bytes.cut("an inode", at, COMPACT_LEN)?;
        let format = le16(head, 0);
        let extended = format & 1 == 1;
        let len = if extended { EXTENDED_LEN } else { COMPACT_LEN };
        let head = self.bytes.cut("an inode", at, len)?;
        let icount = u64::from(le16(head, 2));
        let xattr_len = if icount == 0 { 0 } else { XATTR_HEADER + (icount - 1) * 4 };
        let mut node = Node {
            nid,
            mode: le16(head, 4),
            uid: if extended { le32(head, 24) } else { le16(head, 24).into() },
            gid: if extended { le32(head, 28) } else { le16(head, 26).into() },
            mtime: self.mtime(head, extended)?,
            nlink: if extended { le32(head, 44) } else { le16(head, 6).into() },
            size: if extended { le64(head, 8) } else { le32(head, 8).into() },
            kind: NodeKind::Dir,
            xattrs: self.bytes.cut("extended attributes", at + len, xattr_len)?,
            start: u64::from(le32(head, 16)) << self.sb.block_bits,
            tail: None,
            stored: Stored::default(),
            own: xattr_len,
        };
        let tail = at + len + xattr_len;
        let layout = format >> 1 & 7;
        if format >> 4 != 0 {
            return Err(Fault::Unsupported("an inode format newer than this reader"));
        }
        node.stored = Stored { layout, chunk_format: le16(head, 16), behind: tail };
        node.kind = match node.mode & S_IFMT {
            S_IFREG if self.foreign => {
                node.own = node.own.saturating_add(self.index_len(&node));
                NodeKind::File(FileData::default())
            }
            S_IFREG => NodeKind::File(self.file_data(&mut node, layout, le16(head, 16), tail)?),
            S_IFDIR => {
                self.flat(&mut node, layout, tail)?;
                NodeKind::Dir
            }
            S_IFLNK => {
                self.flat(&mut node, layout, tail)?;
                NodeKind::Symlink(self.target(&node)?)
            }
            S_IFCHR => NodeKind::Char(decode_dev(le32(head, 16))),
            S_IFBLK => NodeKind::Block(decode_dev(le32(head, 16))),
            S_IFIFO => NodeKind::Fifo,
            S_IFSOCK => NodeKind::Socket,
            _ => return Err(Fault::Bad("its mode has no file type")),
        };
        Ok(node)
    }

    /// Bytes that the list of a file's chunks or clusters takes at least.
    fn index_len(&self, node: &Node<'_>) -> u64 {
        let Stored { layout, chunk_format, .. } = node.stored;
        match layout {
            CHUNK_BASED => {
                let unit = if chunk_format & CHUNK_INDEXES != 0 { CHUNK_INDEX_LEN } else { 4 };
                // At most 16 bits and 31.
                let bits = self.sb.block_bits + (chunk_format & CHUNK_BITS_MASK) as u8;
                node.size.div_ceil(1 << bits).saturating_mul(unit)
            }
            COMPRESSED_FULL | COMPRESSED_COMPACT => node.size >> MOST_CLUSTER_BITS << 1,
            _ => 0,
        }
    }

    fn mtime(&self, head: &[u8], extended: bool) -> Result<Time, Fault> {
        let (secs, nanos) = if extended {
            (le64(head, 32) as i64, le32(head, 40))
        } else {
            // Since 6.15 the field counts seconds from the build time; older writers leave it 0.
            (self.sb.build_time.saturating_add(le32(head, 12).into()), self.sb.build_nanos)
        };
        if nanos > 999_999_999 {
            return Err(Fault::Bad("its time has more than a second of nanoseconds"));
        }
        Ok(Time { secs, nanos })
    }

    /// Settles where a folder's or symlink's bytes are.
    fn flat(&self, node: &mut Node<'a>, layout: u16, tail: u64) -> Result<(), Fault> {
        match layout {
            FLAT_PLAIN => {}
            FLAT_INLINE => node.tail = Some(tail),
            _ => return Err(Fault::Unsupported("a folder or symlink that is compressed or in chunks")),
        }
        node.own = node.own.saturating_add(node.size);
        let blocks = node.size.div_ceil(self.sb.block());
        if blocks > u32::MAX.into() { Err(Fault::Bad("it is larger than any image")) } else { Ok(()) }
    }

    fn target(&self, node: &Node<'a>) -> Result<&'a [u8], Fault> {
        if !(1..=TARGET_MAX.min(self.sb.block())).contains(&node.size) {
            return Err(Fault::Bad("its link target is empty or longer than 4095 bytes or a block"));
        }
        let target = self.body(node, 0, node.size)?;
        if target.contains(&0) { Err(Fault::Bad("its link target holds NUL")) } else { Ok(target) }
    }

    /// Where a regular file's bytes are, if that is one aligned run.
    fn file_data(
        &self,
        node: &mut Node<'a>,
        layout: u16,
        chunk_format: u16,
        tail: u64,
    ) -> Result<FileData, Fault> {
        if node.size == 0 {
            return Ok(FileData::default());
        }
        match layout {
            FLAT_PLAIN => self.in_device(0, node.start >> self.sb.block_bits, node.size),
            CHUNK_BASED => self.chunked(node, chunk_format, tail),
            FLAT_INLINE => {
                Err(Fault::Unsupported("a file whose end is stored inline (mkfs -E noinline_data)"))
            }
            _ => Err(Fault::Unsupported("a compressed file")),
        }
    }

    fn chunked(&self, node: &mut Node<'a>, format: u16, tail: u64) -> Result<FileData, Fault> {
        if format & !(CHUNK_BITS_MASK | CHUNK_INDEXES) != 0 {
            return Err(Fault::Unsupported("a chunk format newer than this reader"));
        }
        let bits = format & CHUNK_BITS_MASK;
        let indexes = format & CHUNK_INDEXES != 0;
        let unit = if indexes { CHUNK_INDEX_LEN } else { 4 };
        let count = node.size.div_ceil(self.sb.block()).div_ceil(1 << bits);
        // count is below 2^55, and 8 times that below 2^58.
        let table = self.bytes.cut("chunk indexes", tail.next_multiple_of(unit), count * unit)?;
        node.own += count * unit;
        let mask = self.sb.devices.saturating_add(1).checked_next_power_of_two().map_or(u16::MAX, |p| p - 1);
        let mut run = None;
        for (i, entry) in table.chunks_exact(unit as usize).enumerate() {
            let (device, block) =
                if indexes { (le16(entry, 2) & mask, le32(entry, 4)) } else { (0, le32(entry, 0)) };
            if block == NULL_BLOCK {
                return Err(Fault::Unsupported("a file with holes between its chunks"));
            }
            let (first_device, first) = *run.get_or_insert((device, u64::from(block)));
            let expected = first.checked_add((i as u64) << bits);
            if device != first_device || expected != Some(block.into()) {
                return Err(Fault::Unsupported("a file whose chunks are not in one run"));
            }
        }
        let (device, first) = run.ok_or(Fault::Bad("a file without chunks"))?;
        self.in_device(device, first, node.size)
    }

    /// Checks a run of `size` bytes from `block` on; device 0 is the image.
    fn in_device(&self, device: u16, block: u64, size: u64) -> Result<FileData, Fault> {
        let (layer, room) = match device.checked_sub(1) {
            None if self.devices.is_empty() => (0, self.sb.blocks << self.sb.block_bits),
            None => return Err(Fault::Unsupported("a file inside of an image that has devices")),
            Some(i) => {
                let device = self.devices.get(usize::from(i));
                (i, device.ok_or(Fault::Bad("a file on a device that is not in the table"))?.size)
            }
        };
        let offset = block << self.sb.block_bits;
        if offset.checked_add(size).is_none_or(|end| end > room) {
            return Err(Fault::Bad("a file's data is beyond its device"));
        }
        if !offset.is_multiple_of(BLOCK) {
            return Err(Fault::Unsupported("a file that does not start at a multiple of 4096"));
        }
        Ok(FileData { layer, offset })
    }
}
