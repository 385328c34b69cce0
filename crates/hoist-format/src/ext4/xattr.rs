//! Extended attributes (`attributes.rst`): behind the inode and in a block of their own.

use std::collections::BTreeMap;

use super::acl;
use super::error::Fault;
use crate::le::{le16, le32};
use crate::tree::Name;

const MAGIC: u32 = 0xEA02_0000;
const ENTRY: usize = 16;
/// `system.data`: what does not fit the inode of an inline file.
const SYSTEM: u8 = 7;
const DATA: &[u8] = b"data";
const BLOCK_HEAD: usize = 32;
const MAGIC_LEN: usize = 4;

/// Attributes by full name, and where the inline data is.
#[derive(Debug, Default)]
pub(super) struct Xattrs {
    pub all: BTreeMap<Name, Name>,
    /// `system.data`: byte range from the start of the bytes given.
    pub data: Option<std::ops::Range<usize>>,
}

/// The attributes in the bytes behind an inode's fields.
pub(super) fn in_inode(bytes: &[u8], out: &mut Xattrs) -> Result<(), Fault> {
    match bytes.get(..MAGIC_LEN) {
        // Values count from the first entry.
        Some(magic) if le32(magic, 0) == MAGIC => read(bytes, MAGIC_LEN, MAGIC_LEN, out),
        _ => Ok(()),
    }
}

/// The attributes in a block of their own.
pub(super) fn in_block(bytes: &[u8], out: &mut Xattrs) -> Result<(), Fault> {
    if bytes.len() < BLOCK_HEAD || le32(bytes, 0) != MAGIC || le32(bytes, 8) != 1 {
        return Err(Fault::Bad("its block of attributes is damaged"));
    }
    read(bytes, BLOCK_HEAD, 0, out)
}

fn read(bytes: &[u8], mut at: usize, base: usize, out: &mut Xattrs) -> Result<(), Fault> {
    let cut = Fault::Bad("its attributes are cut off");
    // Four zeros end the list, where the area does not.
    while let Some(head) = bytes.get(at..at + ENTRY).filter(|head| head[..4] != [0; 4]) {
        let (name_len, index) = (usize::from(head[0]), head[1]);
        let (offset, inode, size) = (usize::from(le16(head, 2)), le32(head, 4), le32(head, 8) as usize);
        let name = bytes.get(at + ENTRY..at + ENTRY + name_len).ok_or_else(|| cut.clone())?;
        at += (ENTRY + name_len).next_multiple_of(4);
        if inode != 0 {
            return Err(Fault::Bad(
                "an attribute is stored in an inode of its own, which hoist does not read",
            ));
        }
        let start = if size == 0 { 0 } else { base + offset };
        let value =
            start.checked_add(size).and_then(|end| bytes.get(start..end)).ok_or_else(|| cut.clone())?;
        if index == SYSTEM && name == DATA {
            out.data = Some(start..start + size);
            continue;
        }
        let (prefix, value) = match index {
            0 => (&b""[..], value.into()),
            1 => (&b"user."[..], value.into()),
            2 | 3 if !name.is_empty() => return Err(Fault::Bad("an access control list has a name")),
            2 => (&b"system.posix_acl_access"[..], list(value)?),
            3 => (&b"system.posix_acl_default"[..], list(value)?),
            4 => (&b"trusted."[..], value.into()),
            6 => (&b"security."[..], value.into()),
            SYSTEM => (&b"system."[..], value.into()),
            _ => return Err(Fault::Bad("an attribute of an unknown kind")),
        };
        out.all.insert([prefix, name].concat().into(), value);
    }
    Ok(())
}

fn list(value: &[u8]) -> Result<Name, Fault> {
    acl::from_disk(value).ok_or(Fault::Bad("an access control list is damaged"))
}
