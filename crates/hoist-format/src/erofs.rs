//! A [`Tree`](crate::tree::Tree) as an EROFS image of metadata alone, and back.
//!
//! Regular files are chunk-based inodes that point into external devices, one device for each
//! layer's data file, so the kernel mounts the image as it is and the FUSE driver reads the very
//! same bytes through [`Image`]. What a layer's tree says beyond a file system is written as
//! overlayfs has it (a whiteout is a character device 0:0, an opaque folder carries
//! `trusted.overlay.opaque=y`) or, where overlayfs has no word, as a `trusted.hoist.` attribute.
//!
//! Facts of the format are from the kernel's `fs/erofs/erofs_fs.h` and `fs/erofs/*.c` (6.18).

mod bytes;
mod cluster;
mod contents;
mod decode;
mod dirent;
mod encode;
mod ends;
mod error;
mod image;
mod inode;
mod layout;
mod owner;
mod place;
pub(crate) mod rafs;
mod superblock;
mod walk;
mod xattr;

pub use bytes::{Bytes, Part};
pub use decode::{decode, decode_foreign};
pub use dirent::Entry;
pub use encode::encode;
pub use error::{DecodeError, EncodeError, Fault};
pub use image::{Entries, Head, Image};
pub use inode::{Node, NodeKind};
pub(crate) use layout::{decode_dev, le16, le32, le64, name_ok};

/// An external device: the data file of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What identifies it, at most 64 bytes without NUL, such as the hex digits of a sha256.
    pub tag: String,
    /// Bytes of the data file, a multiple of 4096.
    pub size: u64,
}
