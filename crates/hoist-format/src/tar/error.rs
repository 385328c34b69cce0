//! What can be wrong with a tar stream.

/// Why a tar stream cannot be decoded. Every message starts at a byte of the uncompressed stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("decoding the layer's tar stream at byte {offset}: {what}")]
pub struct TarError {
    /// Byte offset in the uncompressed stream of the header or record concerned.
    pub offset: u64,
    /// What is wrong there.
    pub what: TarFault,
}

/// The fault itself. The image is damaged or hostile unless said: rebuild or re-push it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarFault {
    /// The sum of the header's bytes is not what it says.
    #[error("the header checksum does not match: the stream is damaged or not a tar archive")]
    Checksum,
    /// A numeric header field holds no number or one out of range.
    #[error("header field {0} is not a number in its range")]
    Number(&'static str),
    /// A PAX record has no `length key=value\n` form, or a value its key does not allow.
    #[error("malformed PAX record ({0})")]
    Pax(&'static str),
    /// An extended header (PAX records, GNU long name) is longer than hoist accepts.
    #[error("an extended header of {size} bytes: at most {max} are accepted")]
    ExtendedHeader {
        /// Bytes it claims.
        size: u64,
        /// Bytes accepted.
        max: u64,
    },
    /// A path or link target beyond the kernel's PATH_MAX.
    #[error("a {what} of {len} bytes: Linux allows 4095 (PATH_MAX)")]
    PathTooLong {
        /// `path` or `link target`.
        what: &'static str,
        /// Its bytes.
        len: usize,
    },
    /// A path component beyond the kernel's NAME_MAX.
    #[error("a file name of {0} bytes: Linux allows 255 (NAME_MAX)")]
    NameTooLong(usize),
    /// A path or target with a NUL byte.
    #[error("a NUL byte in a path or link target")]
    NulInName,
    /// A symbolic or hard link to nothing.
    #[error("a link without a target")]
    EmptyLink,
    /// A type flag that is not a file.
    #[error("entry type {:?} is not supported", char::from(*.0))]
    Type(u8),
    /// A sparse map which is out of order, overlaps, or contradicts the sizes.
    #[error("malformed sparse map ({0})")]
    Sparse(&'static str),
    /// An xattr name beyond 255 or a value beyond 65536 bytes.
    #[error("an extended attribute beyond Linux's limits (name 255, value 65536 bytes)")]
    Xattr,
    /// More headers than hoist accepts.
    #[error("more than {0} headers")]
    TooManyEntries(u64),
    /// A zero block that neither ends the archive nor is followed by another.
    #[error("a lone zero block in mid-archive")]
    LoneZeroBlock,
    /// The stream ends inside an entry.
    #[error("the stream ends in mid-entry: the layer is truncated")]
    Truncated,
}
