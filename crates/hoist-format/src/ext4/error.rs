//! Why an ext4 file system can't be read.

use crate::volume::Lack;

/// Why an ext4 file system can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The superblock or a group descriptor.
    #[error("the ext4 superblock: {0}")]
    Superblock(&'static str),
    /// An inode, or what belongs to it.
    #[error("ext4 inode {inode}: {what}")]
    Inode {
        /// Its number.
        inode: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// A name.
    #[error("ext4 folder (inode {inode}), name {name:?}: {what}")]
    Name {
        /// The folder's number.
        inode: u32,
        /// The name.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// What it stands on.
    #[error("the device of an ext4 file system: {0}")]
    Device(String),
    /// More than hoist takes.
    #[error("an ext4 file system with {0}")]
    TooMuch(&'static str),
}

/// Why a structure was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its bytes are not here, or not to be had.
    Lack(Lack),
    /// It is wrong.
    Bad(&'static str),
}

impl From<Lack> for Fault {
    fn from(lack: Lack) -> Self {
        Self::Lack(lack)
    }
}

impl Fault {
    /// The error, if it is one: bytes that are yet to come are none.
    pub fn error(self, bad: impl FnOnce(&'static str) -> DecodeError) -> Option<DecodeError> {
        match self {
            Self::Lack(Lack::Absent) => None,
            Self::Lack(Lack::Damaged(why)) => Some(DecodeError::Device(why)),
            Self::Bad(what) => Some(bad(what)),
        }
    }
}
