//! The superblock at byte 1024, and the device table.

use super::bytes::Bytes;
use super::layout::*;
use super::{DecodeError, Device, Fault};

/// What of the superblock reading needs.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub block_bits: u8,
    pub root: u64,
    pub build_time: i64,
    pub build_nanos: u32,
    pub blocks: u64,
    /// Byte offset that inode numbers count from.
    pub meta: u64,
    /// Byte offset that shared attribute ids count from.
    pub shared: u64,
    pub devices: u16,
    /// The inode that holds the ends of compressed files, if there is one.
    pub packed: u64,
    /// Compressed data ends with its block, with zeros before it.
    pub zero_padding: bool,
    /// Byte offset of the device table.
    pub device_table: u64,
}

impl Superblock {
    pub fn block(&self) -> u64 {
        1 << self.block_bits
    }

    pub fn read(bytes: Bytes<'_>) -> Result<Self, DecodeError> {
        let sb = bytes.cut("the superblock", SB_OFFSET, SB_LEN).map_err(DecodeError::Superblock)?;
        let refuse = |fault| Err(DecodeError::Superblock(fault));
        if le32(sb, 0) != MAGIC {
            return refuse(Fault::Bad("no EROFS magic number"));
        }
        let (compat, incompat, block_bits) = (le32(sb, 8), le32(sb, 80), sb[12]);
        if !(9..=16).contains(&block_bits) {
            return refuse(Fault::Bad("the block size is none of 512 to 65536 bytes"));
        }
        if compat & COMPAT_CHECKSUM != 0 {
            verify(bytes, sb, block_bits)?;
        }
        if incompat & !INCOMPAT_READABLE != 0 {
            return refuse(Fault::Unsupported("a feature newer than this reader"));
        }
        if sb[13] != 0 || sb[90] != 0 {
            return refuse(Fault::Unsupported("an extended superblock or large folder blocks"));
        }
        let build_nanos = le32(sb, 32);
        if build_nanos > 999_999_999 {
            return refuse(Fault::Bad("the build time has more than a second of nanoseconds"));
        }
        let table = incompat & INCOMPAT_DEVICE_TABLE != 0;
        Ok(Self {
            block_bits,
            root: le16(sb, 14).into(),
            build_time: le64(sb, 24) as i64,
            build_nanos,
            blocks: le32(sb, 36).into(),
            meta: u64::from(le32(sb, 40)) << block_bits,
            shared: u64::from(le32(sb, 44)) << block_bits,
            devices: if table { le16(sb, 86) } else { 0 },
            packed: le64(sb, 96),
            zero_padding: incompat & INCOMPAT_ZERO_PADDING != 0,
            device_table: u64::from(le16(sb, 88)) * DEVICE_SLOT,
        })
    }
}

/// Compares the checksum: over the superblock's block, with zeros in its own place.
fn verify(bytes: Bytes<'_>, sb: &[u8], block_bits: u8) -> Result<(), DecodeError> {
    let block = 1u64 << block_bits;
    // A block that ends before the superblock starts is counted whole (erofs_superblock_csum_verify).
    let len = if block > SB_OFFSET { block - SB_OFFSET } else { block };
    let area = bytes.cut("the superblock's block", SB_OFFSET, len).map_err(DecodeError::Superblock)?;
    let computed = crc32c(crc32c(crc32c(!0, &area[..4]), &[0; 4]), &area[8..]);
    let stored = le32(sb, 4);
    if stored == computed { Ok(()) } else { Err(DecodeError::Checksum { stored, computed }) }
}

/// Reads slot `index` of the device table.
pub(super) fn read_device(bytes: Bytes<'_>, sb: &Superblock, index: u16) -> Result<Device, DecodeError> {
    let at = sb.device_table + u64::from(index) * DEVICE_SLOT;
    let slot = bytes.cut("a device slot", at, DEVICE_SLOT).map_err(DecodeError::Superblock)?;
    let tag = &slot[..TAG_LEN];
    let tag = &tag[..tag.iter().position(|&c| c == 0).unwrap_or(TAG_LEN)];
    let size = u64::from(le32(slot, TAG_LEN)) << sb.block_bits;
    Ok(Device { tag: String::from_utf8_lossy(tag).into_owned(), size })
}

/// The fields that differ from image to image, for writing.
pub(super) struct NewSuperblock {
    pub root: u16,
    pub inodes: u64,
    pub build_time: i64,
    pub build_nanos: u32,
    pub blocks: u32,
    pub meta_block: u32,
    pub shared_block: u32,
    pub devices: u16,
}

/// Where our images have the device table: right behind the superblock.
pub(super) const DEVICE_TABLE: u64 = SB_OFFSET + SB_LEN;

impl NewSuperblock {
    /// Writes the superblock over finished contents: its uuid and checksum are taken from them.
    pub fn write(&self, image: &mut [u8]) {
        let devices = if self.devices > 0 { INCOMPAT_DEVICE_TABLE } else { 0 };
        let mut field = |at: usize, bytes: &[u8]| put(image, SB_OFFSET as usize + at, bytes);
        field(0, &MAGIC.to_le_bytes());
        field(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        field(12, &[BLOCK_BITS]);
        field(14, &self.root.to_le_bytes());
        field(16, &self.inodes.to_le_bytes());
        field(24, &self.build_time.to_le_bytes());
        field(32, &self.build_nanos.to_le_bytes());
        field(36, &self.blocks.to_le_bytes());
        field(40, &self.meta_block.to_le_bytes());
        field(44, &self.shared_block.to_le_bytes());
        field(80, &(INCOMPAT_CHUNKED_FILE | devices).to_le_bytes());
        field(86, &self.devices.to_le_bytes());
        field(88, &((DEVICE_TABLE / DEVICE_SLOT) as u16).to_le_bytes());
        // overlayfs gives up stable inode numbers on lower layers without distinct uuids.
        let uuid = *blake3::hash(image).as_bytes();
        put(image, SB_OFFSET as usize + 48, &uuid[..16]);
        let crc = crc32c(!0, &image[SB_OFFSET as usize..BLOCK as usize]);
        put(image, SB_OFFSET as usize + 4, &crc.to_le_bytes());
    }
}
