//! The numbers of `erofs_fs.h`, little-endian fields, and the superblock's checksum.

pub(crate) use crate::le::{le16, le32, le64};
use crate::tree::{Dev, Kind};

pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
pub(super) const SB_OFFSET: u64 = 1024;
pub(super) const SB_LEN: u64 = 128;
/// We write blocks of 4096 bytes.
pub(super) const BLOCK_BITS: u8 = 12;
pub(super) const BLOCK: u64 = 1 << BLOCK_BITS;

pub(super) const COMPAT_CHECKSUM: u32 = 0x1;
pub(super) const COMPAT_MTIME: u32 = 0x2;
/// Also the bit of compressed images with LZ4 configurations and zeros before the data (`LZ4_0PADDING`).
pub(super) const INCOMPAT_ZERO_PADDING: u32 = 0x1;
pub(super) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
pub(super) const INCOMPAT_DEVICE_TABLE: u32 = 0x8;
/// Everything below the 48-bit layout (0x80) and the metabox (0x100): the rest concerns only
/// compressed inodes and long xattr prefixes, which are refused where they occur.
pub(super) const INCOMPAT_READABLE: u32 = 0x7f;

pub(super) const DEVICE_SLOT: u64 = 128;
pub(super) const TAG_LEN: usize = 64;

/// Inodes are named by their offset in units of this many bytes.
pub(super) const SLOT: u64 = 32;
pub(super) const COMPACT_LEN: u64 = 32;
pub(super) const EXTENDED_LEN: u64 = 64;

pub(super) const FLAT_PLAIN: u16 = 0;
pub(super) const COMPRESSED_FULL: u16 = 1;
pub(super) const FLAT_INLINE: u16 = 2;
pub(super) const COMPRESSED_COMPACT: u16 = 3;
pub(super) const CHUNK_BASED: u16 = 4;

/// Largest logical cluster of a compressed file.
pub(super) const MOST_CLUSTER_BITS: u32 = 14;

pub(super) const CHUNK_BITS_MASK: u16 = 0x1f;
pub(super) const CHUNK_INDEXES: u16 = 0x20;
pub(super) const CHUNK_INDEX_LEN: u64 = 8;
/// Block address of a hole.
pub(super) const NULL_BLOCK: u32 = u32::MAX;

pub(super) const DIRENT_LEN: usize = 12;
pub(super) const NAME_MAX: usize = 255;
/// Longest symlink target the kernel follows.
pub(super) const TARGET_MAX: u64 = 4095;

pub(super) const XATTR_HEADER: u64 = 12;

pub(super) const S_IFMT: u16 = 0o170_000;
pub(super) const S_IFIFO: u16 = 0o010_000;
pub(super) const S_IFCHR: u16 = 0o020_000;
pub(super) const S_IFDIR: u16 = 0o040_000;
pub(super) const S_IFBLK: u16 = 0o060_000;
pub(super) const S_IFREG: u16 = 0o100_000;
pub(super) const S_IFLNK: u16 = 0o120_000;
pub(super) const S_IFSOCK: u16 = 0o140_000;

/// Marks a folder that hides the lower layers' entries, as overlayfs writes it.
pub(super) const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// (kernel `Documentation/filesystems/overlayfs.rst`) The file's contents, or the folder's, are those of another path.
pub(super) const REDIRECT: &[u8] = b"trusted.overlay.redirect";
pub(super) const METACOPY: &[u8] = b"trusted.overlay.metacopy";
/// The same where an ordinary user mounts it.
pub(super) const USER_OPAQUE: &[u8] = b"user.overlay.opaque";
pub(super) const USER_REDIRECT: &[u8] = b"user.overlay.redirect";
pub(super) const USER_METACOPY: &[u8] = b"user.overlay.metacopy";
/// Marks a folder that had no entry of its own.
pub(super) const IMPLIED: &[u8] = b"trusted.hoist.implied";
/// Attributes that only the encoder may write.
pub(super) const RESERVED: &[u8] = b"trusted.hoist.";
pub(super) const YES: &[u8] = b"y";

/// `S_IFMT` bits of a kind.
pub(super) fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Dir(_) => S_IFDIR,
        Kind::File { .. } => S_IFREG,
        Kind::Symlink(_) => S_IFLNK,
        Kind::Char(_) | Kind::Whiteout => S_IFCHR,
        Kind::Block(_) => S_IFBLK,
        Kind::Fifo => S_IFIFO,
        Kind::Socket => S_IFSOCK,
    }
}

/// The dirent's `EROFS_FT_*` for a mode; 0 for what is no file type.
pub(super) fn dirent_type(mode: u16) -> u8 {
    match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFSOCK => 6,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// The kernel's `new_encode_dev`; None when a part has too many bits.
pub(super) fn encode_dev(dev: Dev) -> Option<u32> {
    let fits = dev.major < 1 << 12 && dev.minor < 1 << 20;
    fits.then_some(dev.minor & 0xff | dev.major << 8 | (dev.minor & !0xff) << 12)
}

/// The kernel's `new_decode_dev`.
pub(crate) fn decode_dev(raw: u32) -> Dev {
    Dev { major: (raw & 0xfff00) >> 8, minor: raw & 0xff | raw >> 12 & 0xfff00 }
}

/// Whether a folder may hold this name (`.` and `..` are for the caller to tell apart).
pub(crate) fn name_ok(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.iter().any(|&c| c == b'/' || c == 0)
}

/// Writes a field.
pub(super) fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// CRC-32C from all ones, without the final inversion, as `erofs_superblock_csum_verify` has it.
pub(super) fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!crc, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_check_value() {
        // The check value of CRC-32C in the catalogue of parametrised CRC algorithms.
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
    }

    #[test]
    fn device_numbers() {
        for (major, minor) in [(0, 0), (1, 3), (259, 70000), (4095, (1 << 20) - 1)] {
            let dev = Dev { major, minor };
            assert_eq!(encode_dev(dev).map(decode_dev), Some(dev));
        }
        assert_eq!(encode_dev(Dev { major: 4096, minor: 0 }), None);
        assert_eq!(encode_dev(Dev { major: 0, minor: 1 << 20 }), None);
    }
}
