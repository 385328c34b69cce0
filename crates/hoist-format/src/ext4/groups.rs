//! Group descriptors (`group_descr.rst`): where the inodes stand, and how many of them were ever used.

use super::error::Fault;
use super::superblock::Superblock;
use crate::le::{le16, le32};
use crate::volume::Device;

/// A group's inodes were never written.
const INODE_UNINIT: u16 = 1;

/// The inodes of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// Byte offset of the inode table.
    pub table: u64,
    /// Inodes that may be in use.
    pub used: u32,
}

/// Reads all descriptors.
pub(super) fn read(device: &mut dyn Device, sb: &Superblock) -> Result<Vec<Group>, Fault> {
    let all = device.read(sb.descs, u64::from(sb.groups) * sb.desc_size)?;
    let mut groups = Vec::with_capacity(sb.groups as usize);
    for (i, desc) in all.chunks_exact(sb.desc_size as usize).enumerate() {
        let high = |at| if sb.wide_descs { u64::from(le32(desc, at)) << 32 } else { 0 };
        let mut used = sb.inodes_per_group.min(sb.inodes - i as u32 * sb.inodes_per_group);
        if sb.unused_known {
            let high = if sb.wide_descs { u32::from(le16(desc, 0x32)) << 16 } else { 0 };
            let unused = u32::from(le16(desc, 0x1C)) | high;
            used = if le16(desc, 0x12) & INODE_UNINIT != 0 { 0 } else { used.saturating_sub(unused) };
        }
        let table = u64::from(le32(desc, 8)) | high(0x28);
        let last = u64::from(sb.inodes_per_group) * sb.inode_size / sb.block;
        sb.at(table.saturating_add(last.saturating_sub(1)))?;
        groups.push(Group { table: sb.at(table)?, used });
    }
    Ok(groups)
}
