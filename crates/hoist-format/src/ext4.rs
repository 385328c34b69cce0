//! An ext4 file system, read without mounting it, as overlaybd's block devices hold one.
//!
//! Only what a tree needs is read: superblock, group descriptors, the used part of the inode tables, folders, extent
//! blocks and attribute blocks. There is no journal to replay: a file system that was not unmounted cleanly is
//! refused. Facts are from the kernel's `Documentation/filesystems/ext4/` and `fs/ext4/` (6.18).

mod acl;
mod dirent;
mod error;
mod extent;
mod groups;
mod inode;
mod superblock;
mod walk;
mod xattr;

pub use error::DecodeError;
pub use walk::decode;
