//! A request as the kernel wrote it into a read of `/dev/fuse`.

/// `struct fuse_in_header`.
const HEADER: usize = 40;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// What its reply is known by.
    pub unique: u64,
    /// The inode it is about; [`ROOT`](super::ROOT) or a number the server gave out.
    pub node: u64,
    /// Who asks (fsuid); meaningless for reads ahead.
    pub uid: u32,
    /// The same, fsgid.
    pub gid: u32,
    /// The process that asks, 0 where none does or it is of another namespace.
    pub pid: u32,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What is asked for, as far as a read-only file system has an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// The handshake.
    Init {
        /// Protocol version.
        major: u32,
        /// The same, of no more than the server's own counts.
        minor: u32,
        /// The most the kernel would read ahead.
        max_readahead: u32,
        /// What the kernel can do (`FUSE_*` of `INIT`).
        flags: u64,
    },
    /// A name in a folder.
    Lookup {
        /// The name.
        name: &'a [u8],
    },
    /// The attributes of an inode.
    Getattr,
    /// The target of a symbolic link.
    Readlink,
    /// Bytes of a file.
    Read {
        /// First byte.
        offset: u64,
        /// How many at most.
        size: u32,
    },
    /// A file is to be opened.
    Open,
    /// A folder is to be opened.
    Opendir,
    /// Entries of a folder from a position on, in so many bytes.
    Readdir {
        /// What the last entry's `next` said, 0 at first.
        offset: u64,
        /// Room for the reply.
        size: u32,
        /// With the attributes of each.
        plus: bool,
    },
    /// An extended attribute's value.
    Getxattr {
        /// Its full name.
        name: &'a [u8],
        /// Room for the reply; 0 asks for the size.
        size: u32,
    },
    /// The names of all extended attributes.
    Listxattr {
        /// Room for the reply; 0 asks for the size.
        size: u32,
    },
    /// What `statfs(2)` shows.
    Statfs,
    /// A request whose asker has lost its patience.
    Interrupt {
        /// That request's `unique`.
        unique: u64,
    },
    /// The kernel's memory of inodes; has no reply.
    Forget,
    /// The end of the session; its reply may come too late.
    Destroy,
    /// Anything else, by its number.
    Other(u32),
}

/// Not a request: damaged, or of another protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a FUSE request ({what}) of {len} bytes is cut or damaged")]
pub struct RequestError {
    /// Which part.
    what: &'static str,
    /// Bytes of the whole request.
    len: usize,
    /// The request's number, where it could be read: it wants an error for a reply.
    pub unique: Option<u64>,
}

/// The bytes not yet looked at.
struct Fields<'a> {
    left: &'a [u8],
    error: RequestError,
}

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], RequestError> {
        let (head, rest) = self.left.split_first_chunk().ok_or(self.error)?;
        self.left = rest;
        Ok(*head)
    }
    fn u32(&mut self) -> Result<u32, RequestError> {
        self.take().map(u32::from_ne_bytes)
    }
    fn u64(&mut self) -> Result<u64, RequestError> {
        self.take().map(u64::from_ne_bytes)
    }
    /// A string up to its NUL.
    fn name(&mut self) -> Result<&'a [u8], RequestError> {
        let end = self.left.iter().position(|&b| b == 0).ok_or(self.error)?;
        Ok(&self.left[..end])
    }
}

impl<'a> Request<'a> {
    /// Reads what one `read(2)` of the device gave.
    ///
    /// # Errors
    /// Where it is cut short or its length is another.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RequestError> {
        let error = |what, unique| RequestError { what, len: bytes.len(), unique };
        let mut fields = Fields { left: bytes, error: error("header", None) };
        let (len, opcode, unique) = (fields.u32()?, fields.u32()?, fields.u64()?);
        let (node, uid, gid, pid) = (fields.u64()?, fields.u32()?, fields.u32()?, fields.u32()?);
        // Length of extensions (which only creating requests have) and padding.
        fields.u32()?;
        debug_assert_eq!(bytes.len() - fields.left.len(), HEADER);
        if len as usize != bytes.len() {
            return Err(error("length", Some(unique)));
        }
        fields.error = error("arguments", Some(unique));
        let operation = Operation::parse(opcode, &mut fields)?;
        Ok(Self { unique, node, uid, gid, pid, operation })
    }
}

impl<'a> Operation<'a> {
    fn parse(opcode: u32, fields: &mut Fields<'a>) -> Result<Self, RequestError> {
        Ok(match opcode {
            1 => Self::Lookup { name: fields.name()? },
            2 | 42 => Self::Forget,
            3 => Self::Getattr,
            5 => Self::Readlink,
            14 => Self::Open,
            15 => {
                let (offset, size) = range(fields)?;
                Self::Read { offset, size }
            }
            17 => Self::Statfs,
            22 => {
                let size = fields.u32()?;
                fields.u32()?;
                Self::Getxattr { size, name: fields.name()? }
            }
            23 => Self::Listxattr { size: fields.u32()? },
            26 => {
                let (major, minor) = (fields.u32()?, fields.u32()?);
                // Before 7.6 there was nothing more; the second word of flags came with 7.36.
                let max_readahead = fields.u32().unwrap_or(0);
                let (low, high) = (fields.u32().unwrap_or(0), fields.u32().unwrap_or(0));
                Self::Init { major, minor, max_readahead, flags: u64::from(high) << 32 | u64::from(low) }
            }
            27 => Self::Opendir,
            28 | 44 => {
                let (offset, size) = range(fields)?;
                Self::Readdir { offset, size, plus: opcode == 44 }
            }
            36 => Self::Interrupt { unique: fields.u64()? },
            38 => Self::Destroy,
            other => Self::Other(other),
        })
    }
}

/// The beginning of `struct fuse_read_in`: handle, offset, size.
fn range(fields: &mut Fields<'_>) -> Result<(u64, u32), RequestError> {
    fields.u64()?;
    Ok((fields.u64()?, fields.u32()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, arguments: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((HEADER as u32 + arguments.len() as u32).to_ne_bytes());
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend(77u64.to_ne_bytes());
        bytes.extend(9u64.to_ne_bytes());
        for word in [1u32, 2, 3, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(arguments);
        bytes
    }

    #[test]
    fn a_read_is_understood() {
        let mut arguments = 5u64.to_ne_bytes().to_vec();
        arguments.extend(4096u64.to_ne_bytes());
        arguments.extend(8192u32.to_ne_bytes());
        arguments.extend([0; 20]);
        let bytes = request(15, &arguments);
        let operation = Operation::Read { offset: 4096, size: 8192 };
        let expected = Request { unique: 77, node: 9, uid: 1, gid: 2, pid: 3, operation };
        assert_eq!(Request::parse(&bytes), Ok(expected));
    }

    #[test]
    fn names_end_at_nul() {
        let parsed = |bytes: &[u8]| Request::parse(bytes).map(|r| format!("{:?}", r.operation));
        let name = |opcode, arguments: &[u8]| parsed(&request(opcode, arguments));
        assert_eq!(name(1, b"etc\0").unwrap(), format!("{:?}", Operation::Lookup { name: b"etc" }));
        assert!(name(1, b"etc").is_err() && name(1, b"").is_err());
        let attribute = Operation::Getxattr { size: 0, name: b"user.x" };
        assert_eq!(name(22, b"\0\0\0\0\0\0\0\0user.x\0").unwrap(), format!("{attribute:?}"));
    }

    #[test]
    fn damage_is_told_with_the_number_to_answer() {
        let whole = request(15, &[0; 40]);
        for len in 0..HEADER {
            assert_eq!(Request::parse(&whole[..len]).unwrap_err().unique, None);
        }
        for len in HEADER..whole.len() {
            assert_eq!(Request::parse(&whole[..len]).unwrap_err().unique, Some(77));
        }
        let mut short = request(15, &[0; 19]);
        assert_eq!(Request::parse(&short).unwrap_err().unique, Some(77));
        short.push(0);
        assert!(Request::parse(&short).is_err());
    }
}
