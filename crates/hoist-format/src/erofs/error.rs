//! Why a tree can't be written, or an image not read.

/// Why a tree has no EROFS image. Each names the path and what stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Inode 0 is missing or no folder.
    #[error("cannot write EROFS: inode 0 of the tree is no folder, which is a bug in its decoder")]
    NoRoot,
    /// A folder's entry names an inode the tree has not.
    #[error("cannot write EROFS: {path:?} names inode {inode}, which the tree does not have")]
    NoInode {
        /// The entry.
        path: String,
        /// Its inode.
        inode: u32,
    },
    /// A folder is reached twice: a loop, or a hard link to a folder.
    #[error("cannot write EROFS: folder {path:?} stands in a second place; folders have no hard links")]
    DirTwice {
        /// Where it stands the second time.
        path: String,
    },
    /// A name that no folder can hold.
    #[error("cannot write EROFS: {path:?} has a name that is empty, too long, . or .., or holds / or NUL")]
    Name {
        /// The entry.
        path: String,
    },
    /// A device table entry that EROFS can't hold.
    #[error("cannot write EROFS: device {index}: {why}")]
    Device {
        /// Its index, the layer's.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// An inode with a value that EROFS or the kernel can't hold.
    #[error("cannot write EROFS: {path:?}: {why}; unpack this layer instead of mounting it")]
    Inode {
        /// The inode's first path.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// An extended attribute that EROFS can't hold.
    #[error("cannot write EROFS: {path:?}: attribute {name:?}: {why}; unpack this layer instead")]
    Xattr {
        /// The inode's first path.
        path: String,
        /// The attribute.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The image would have more than 2^32 blocks.
    #[error("cannot write EROFS: the metadata is larger than its 32-bit block addresses reach")]
    TooLarge,
}

/// Why an image can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The superblock or device table.
    #[error("EROFS superblock: {0}")]
    Superblock(Fault),
    /// The superblock's checksum is not that of its block.
    #[error("EROFS superblock: checksum {stored:#010x} but the block has {computed:#010x}: fetch it again")]
    Checksum {
        /// As stored.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
    /// An inode, its attributes or its entries.
    #[error("EROFS inode {nid} at byte {offset}: {fault}")]
    Inode {
        /// Its number in this image.
        nid: u64,
        /// Its byte offset in the image (saturated where it lies beyond all images).
        offset: u64,
        /// What is wrong.
        fault: Fault,
    },
}

/// What is wrong with a structure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It reaches beyond the image.
    #[error("{what} takes {len} bytes at {start}, beyond the image's {size}: fetch it again")]
    Cut {
        /// Which structure.
        what: &'static str,
        /// First byte.
        start: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the image.
        size: u64,
    },
    /// A value that no sound image has.
    #[error("{0}: the image is damaged, fetch it again")]
    Bad(&'static str),
    /// A name that no folder can hold, or that is out of order.
    #[error("{why} name {name:?}: the image is damaged, fetch it again")]
    Name {
        /// What is wrong with it.
        why: &'static str,
        /// The name.
        name: String,
    },
    /// Sound, but more than a tree can say.
    #[error("{0}: hoist cannot read this image, use it through the kernel's own mount")]
    Unsupported(&'static str),
}

impl Fault {
    pub(super) fn name(why: &'static str, name: &[u8]) -> Self {
        Self::Name { why, name: String::from_utf8_lossy(name).into_owned() }
    }
}
