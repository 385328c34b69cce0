//! Folders (`directory.rst`): blocks of entries. The inner nodes of hashed folders look like blocks of no entry, so
//! that all are read alike.

use super::error::Fault;
use crate::le::{le16, le32};

const HEAD: usize = 8;

/// An entry of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub name: &'a [u8],
    pub inode: u32,
}

/// Calls `each` with every entry of a block, or of a folder's inline part; `.` and `..` are left out.
pub(super) fn entries<'a>(
    block: &'a [u8],
    filetype: bool,
    mut each: impl FnMut(Entry<'a>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut rest = block;
    while !rest.is_empty() {
        if rest.len() < HEAD {
            return Err(Fault::Bad("an entry of the folder is cut off"));
        }
        let (inode, len) = (le32(rest, 0), usize::from(le16(rest, 4)));
        // A block of 64 KiB does not fit the field.
        let len = if block.len() == 1 << 16 && (len == 0xffff || len == 0) { rest.len() } else { len };
        let name_len = if filetype { usize::from(rest[6]) } else { usize::from(le16(rest, 6)) };
        if len < HEAD || !len.is_multiple_of(4) || len > rest.len() {
            return Err(Fault::Bad("an entry of the folder has an impossible length"));
        }
        let (entry, next) = rest.split_at(len);
        rest = next;
        if inode == 0 {
            continue;
        }
        let name = entry.get(HEAD..HEAD + name_len).ok_or(Fault::Bad("a name is longer than its entry"))?;
        if name != b"." && name != b".." {
            each(Entry { name, inode })?;
        }
    }
    Ok(())
}
