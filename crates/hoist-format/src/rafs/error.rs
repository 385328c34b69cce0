//! Why a nydus image can't be read.

use crate::erofs::Fault;

/// What is wrong with a bootstrap, a blob's contexts or its table of contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RafsError {
    /// Neither version's magic number is there.
    #[error("this is no nydus bootstrap: it has the magic number of neither RAFS v5 nor v6")]
    NotRafs,
    /// A structure reaches beyond what it is in.
    #[error("nydus {what} takes {len} bytes at {start}, beyond the {size} that there are: it is damaged")]
    Cut {
        /// Which structure.
        what: &'static str,
        /// First byte.
        start: u64,
        /// Bytes.
        len: u64,
        /// Bytes that there are.
        size: u64,
    },
    /// A value that no sound image has.
    #[error("nydus metadata lies: {0}")]
    Lie(&'static str),
    /// The same, of one inode.
    #[error("nydus inode at byte {at} of the bootstrap lies: {why}")]
    Inode {
        /// Byte offset of the inode.
        at: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A folder or the attributes of a version 6 inode, which are EROFS's.
    #[error("nydus inode at byte {at} of the bootstrap: {fault}")]
    Erofs {
        /// Byte offset of the inode.
        at: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// Its chunks are encrypted.
    #[error("this nydus image is encrypted, and hoist has no key for it: use an image that is not")]
    Encrypted,
    /// Sound, but beyond this reader.
    #[error("this nydus image has {0}, which hoist cannot read: convert the image without it")]
    Unsupported(&'static str),
    /// Compressed metadata.
    #[error("nydus {0} cannot be decompressed to the size it should have: it is damaged")]
    Compression(&'static str),
    /// A digest that other metadata names is not that of the bytes.
    #[error("nydus {0} does not have the digest that is given for it: it is damaged")]
    Digest(&'static str),
    /// Something that is needed was not found.
    #[error("this nydus image has no {0}")]
    Missing(&'static str),
}
