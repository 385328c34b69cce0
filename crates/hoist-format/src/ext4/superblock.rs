//! The superblock at byte 1024 (`super.rst`).

use super::error::Fault;
use crate::le::{le16, le32};
use crate::volume::Device;

const OFFSET: u64 = 1024;
const LEN: u64 = 1024;
const MAGIC: u16 = 0xEF53;

/// 128 TiB of 4 KiB blocks.
const MOST_GROUPS: u32 = 1 << 20;
/// Bytes of their descriptors.
const MOST_DESCS: u64 = 64 << 20;

const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_INLINE_DATA: u32 = 0x8000;
const INCOMPAT_ENCRYPT: u32 = 0x1_0000;
/// filetype, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, casefold: what is not
/// read of these is refused in the inode that has it.
const INCOMPAT_READABLE: u32 = INCOMPAT_FILETYPE
    | 0x40
    | INCOMPAT_64BIT
    | 0x100
    | 0x200
    | 0x400
    | 0x2000
    | 0x4000
    | INCOMPAT_INLINE_DATA
    | INCOMPAT_ENCRYPT
    | 0x2_0000;
/// Group descriptors have checksums, and so say which inodes were never used.
const RO_COMPAT_GROUP_CHECKSUMS: u32 = 0x10 | 0x400;

/// What of the superblock reading needs.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub block: u64,
    pub blocks: u64,
    pub inodes: u32,
    pub inodes_per_group: u32,
    pub inode_size: u64,
    pub desc_size: u64,
    pub wide_descs: bool,
    /// Byte offset of the group descriptors.
    pub descs: u64,
    pub groups: u32,
    pub filetype: bool,
    pub unused_known: bool,
}

impl Superblock {
    pub fn read(device: &mut dyn Device) -> Result<Self, Fault> {
        let sb = device.read(OFFSET, LEN)?;
        if le16(&sb, 0x38) != MAGIC {
            return Err(Fault::Bad("there is none: no ext4 magic number"));
        }
        let (incompat, ro_compat) = (le32(&sb, 0x60), le32(&sb, 0x64));
        if incompat & INCOMPAT_RECOVER != 0 {
            return Err(Fault::Bad(
                "its journal is to be replayed, which hoist does not: run e2fsck on the original",
            ));
        }
        if incompat & INCOMPAT_META_BG != 0 || incompat & !INCOMPAT_READABLE != 0 {
            return Err(Fault::Bad("it has a feature that hoist does not read"));
        }
        let log_block = le32(&sb, 0x18);
        if log_block > 6 {
            return Err(Fault::Bad("its block size is none of 1 to 64 KiB"));
        }
        let block = 1024u64 << log_block;
        let old = le32(&sb, 0x4C) == 0;
        let inode_size = if old { 128 } else { u64::from(le16(&sb, 0x58)) };
        let wide = incompat & INCOMPAT_64BIT != 0;
        let desc_size = if wide { u64::from(le16(&sb, 0xFE)) } else { 32 };
        let (inodes, inodes_per_group) = (le32(&sb, 0), le32(&sb, 0x28));
        let blocks_per_group = le32(&sb, 0x20);
        let high = if wide { u64::from(le32(&sb, 0x150)) << 32 } else { 0 };
        let blocks = u64::from(le32(&sb, 4)) | high;
        let first = u64::from(le32(&sb, 0x14));
        let sound = inode_size.is_power_of_two()
            && (128..=block).contains(&inode_size)
            && desc_size.is_multiple_of(8)
            && (if wide { 64 } else { 32 }..=block.min(1024)).contains(&desc_size)
            && inodes_per_group > 0
            && blocks_per_group > 0
            && first < blocks
            && blocks.checked_mul(block).is_some_and(|size| size <= device.size());
        if !sound {
            return Err(Fault::Bad("its sizes and counts contradict each other, or the device is cut off"));
        }
        // Inodes decide: a group without them has nothing to read.
        let groups = inodes.div_ceil(inodes_per_group);
        if groups > MOST_GROUPS || u64::from(groups) * desc_size > MOST_DESCS {
            return Err(Fault::Bad("it has more than a million groups"));
        }
        if u64::from(groups) > (blocks - first).div_ceil(u64::from(blocks_per_group)) {
            return Err(Fault::Bad("it has more inodes than its groups hold"));
        }
        Ok(Self {
            block,
            blocks,
            inodes,
            inodes_per_group,
            inode_size,
            desc_size,
            wide_descs: wide,
            descs: (first + 1) * block,
            groups,
            filetype: incompat & INCOMPAT_FILETYPE != 0,
            unused_known: ro_compat & RO_COMPAT_GROUP_CHECKSUMS != 0,
        })
    }

    /// Byte offset of a block, if the device has it.
    pub fn at(&self, block: u64) -> Result<u64, Fault> {
        if block == 0 || block >= self.blocks {
            return Err(Fault::Bad("it names a block that the file system has not"));
        }
        Ok(block * self.block)
    }
}
