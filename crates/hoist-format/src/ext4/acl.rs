//! POSIX ACLs, which ext4 stores in a form of its own (`fs/ext4/acl.h`), as programs see them
//! (`include/uapi/linux/posix_acl_xattr.h`).

use crate::le::{le16, le32};
use crate::tree::Name;

const EXT4_VERSION: u32 = 1;
const XATTR_VERSION: u32 = 2;
const USER: u16 = 2;
const GROUP: u16 = 8;
const NO_ID: u32 = u32::MAX;

/// The value as programs see it; None when it is damaged.
pub(super) fn from_disk(value: &[u8]) -> Option<Name> {
    let (head, mut rest) = value.split_at_checked(4)?;
    if le32(head, 0) != EXT4_VERSION {
        return None;
    }
    let mut out = XATTR_VERSION.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let (entry, next) = rest.split_at_checked(4)?;
        out.extend_from_slice(entry);
        let named = matches!(le16(entry, 0), USER | GROUP);
        let (id, next) = if named { next.split_at_checked(4)? } else { (&NO_ID.to_le_bytes()[..], next) };
        out.extend_from_slice(id);
        rest = next;
    }
    Some(out.into())
}
