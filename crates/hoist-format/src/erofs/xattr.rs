//! Extended attributes: the prefixes that are written as a number, and the area that holds those
//! which several inodes share.

use std::collections::{BTreeMap, HashMap};

use super::layout::*;
use super::walk::Walk;
use super::{EncodeError, Fault};
use crate::tree::{Inode, InodeId, Name, Tree};

/// `EROFS_XATTR_INDEX_*` (kernel `fs/erofs/xattr.h`). The ACL names stand alone, without a suffix.
const PREFIXES: [&[u8]; 7] = [
    b"",
    b"user.",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"trusted.",
    b"lustre.",
    b"security.",
];
/// Larger entries always go to the shared area, so that the inodes stay close together.
const INLINE_MAX: u64 = 1024;
/// `i_xattr_icount` is 16 bits wide and counts from 1.
const BODY_MAX: u64 = XATTR_HEADER + (u16::MAX as u64 - 1) * 4;
const SHARED_MAX: usize = 255;

type Pair<'a> = (&'a [u8], &'a [u8]);

/// Prefix index and the rest of the name. What no index stands for is written whole with index 0,
/// which the kernel leaves out of sight.
fn split(name: &[u8]) -> (u8, &[u8]) {
    for (index, prefix) in PREFIXES.iter().enumerate().skip(1) {
        if let Some(rest) = name.strip_prefix(*prefix)
            && (prefix.ends_with(b".") || rest.is_empty())
        {
            return (index as u8, rest);
        }
    }
    (0, name)
}

fn entry_len((name, value): Pair<'_>) -> u64 {
    (4 + split(name).1.len() as u64 + value.len() as u64).next_multiple_of(4)
}

/// What is written for an inode: its own attributes and those that tell of a layer.
pub(super) fn of(inode: &Inode) -> impl Iterator<Item = Pair<'_>> {
    let opaque = inode.opaque.then_some((OPAQUE, YES));
    let implied = inode.implied.then_some((IMPLIED, YES));
    let own = inode.meta.xattrs.iter().map(|(n, v)| (&**n, &**v));
    own.filter(|(n, _)| !(inode.opaque && *n == OPAQUE)).chain(opaque).chain(implied)
}

/// The shared attributes of a tree.
pub(super) struct Shared<'a> {
    ids: HashMap<Pair<'a>, u32>,
    area: Vec<Pair<'a>>,
    /// Bytes of the area.
    pub len: u64,
}

impl<'a> Shared<'a> {
    /// Finds what to share: all that occurs more than once, and all that is large.
    pub fn new(tree: &'a Tree, walk: &Walk) -> Result<Self, EncodeError> {
        let mut seen: HashMap<Pair<'a>, bool> = HashMap::new();
        let mut shared = Self { ids: HashMap::new(), area: Vec::new(), len: 0 };
        for &id in &walk.order {
            for pair in of(tree.get(id)) {
                check(tree, walk, id, pair)?;
                let again = seen.entry(pair).and_modify(|a| *a = true).or_insert(false);
                if (*again || entry_len(pair) > INLINE_MAX) && !shared.ids.contains_key(&pair) {
                    let at = u32::try_from(shared.len / 4).map_err(|_| EncodeError::TooLarge)?;
                    shared.ids.insert(pair, at);
                    shared.area.push(pair);
                    shared.len += entry_len(pair);
                }
            }
        }
        Ok(shared)
    }

    /// Writes the area at byte `at`.
    pub fn write(&self, image: &mut [u8], mut at: u64) {
        for &pair in &self.area {
            at = write_entry(image, at, pair);
        }
    }

    /// Bytes an inode's attributes take behind it.
    pub fn body_len(&self, inode: &Inode) -> Option<u64> {
        let mut len = 0;
        let mut by_id = 0;
        for pair in of(inode) {
            let id = by_id < SHARED_MAX && self.ids.contains_key(&pair);
            by_id += usize::from(id);
            len += if id { 4 } else { entry_len(pair) };
        }
        let len = if len == 0 { 0 } else { len + XATTR_HEADER };
        (len <= BODY_MAX).then_some(len)
    }

    /// Writes an inode's attributes at byte `at`.
    pub fn write_body(&self, image: &mut [u8], at: u64, inode: &Inode) {
        let mut ids = Vec::new();
        let mut inline = Vec::new();
        for pair in of(inode) {
            match self.ids.get(&pair) {
                Some(&id) if ids.len() < SHARED_MAX => ids.push(id),
                _ => inline.push(pair),
            }
        }
        put(image, at as usize + 4, &[ids.len() as u8]);
        let mut at = at + XATTR_HEADER;
        for id in ids {
            put(image, at as usize, &id.to_le_bytes());
            at += 4;
        }
        for pair in inline {
            at = write_entry(image, at, pair);
        }
    }
}

fn check(tree: &Tree, walk: &Walk, id: InodeId, (name, value): Pair<'_>) -> Result<(), EncodeError> {
    let why = if name.is_empty() || name.contains(&0) {
        "its name is empty or holds NUL"
    } else if split(name).1.len() > NAME_MAX {
        "its name is longer than 255 bytes"
    } else if value.len() > usize::from(u16::MAX) {
        "its value is longer than EROFS's 65535 bytes"
    } else if name.starts_with(RESERVED) && tree.get(id).meta.xattrs.contains_key(name) {
        "its name is reserved for hoist"
    } else {
        return Ok(());
    };
    let name = String::from_utf8_lossy(name).into_owned();
    Err(EncodeError::Xattr { path: walk.path(tree, id), name, why })
}

fn write_entry(image: &mut [u8], at: u64, pair: Pair<'_>) -> u64 {
    let (index, rest) = split(pair.0);
    let start = at as usize;
    put(image, start, &[rest.len() as u8, index]);
    put(image, start + 2, &(pair.1.len() as u16).to_le_bytes());
    put(image, start + 4, rest);
    put(image, start + 4 + rest.len(), pair.1);
    at + entry_len(pair)
}

/// Reads the entry at the start of `bytes`: full name, value and bytes taken.
pub(super) fn read_entry(bytes: &[u8]) -> Result<(Name, &[u8], usize), Fault> {
    let cut = || Fault::Bad("an extended attribute reaches beyond its area");
    let head = bytes.get(..4).ok_or_else(cut)?;
    let (name_len, value_len) = (usize::from(head[0]), usize::from(le16(head, 2)));
    if head[1] & 0x80 != 0 {
        return Err(Fault::Unsupported("an extended attribute with a long name prefix"));
    }
    let prefix =
        PREFIXES.get(usize::from(head[1])).ok_or(Fault::Bad("unknown prefix of an extended attribute"))?;
    let name = bytes.get(4..4 + name_len).ok_or_else(cut)?;
    let value = bytes.get(4 + name_len..4 + name_len + value_len).ok_or_else(cut)?;
    let full = [prefix, name].concat();
    if full.is_empty() || full.contains(&0) {
        return Err(Fault::name("bad extended attribute", &full));
    }
    Ok((full.into(), value, (4 + name_len + value_len).next_multiple_of(4)))
}

/// Reads the attributes of one inode. `shared` finds the bytes from a shared id on.
pub(super) fn read_body<'a>(
    body: &'a [u8],
    shared: impl Fn(u32) -> Result<&'a [u8], Fault>,
) -> Result<BTreeMap<Name, &'a [u8]>, Fault> {
    let mut all = BTreeMap::new();
    let mut add = |name: Name, value| match all.insert(name.clone(), value) {
        None => Ok(()),
        Some(_) => Err(Fault::name("an extended attribute stands twice:", &name)),
    };
    let Some(&count) = body.get(4) else { return Ok(all) };
    let start = XATTR_HEADER as usize;
    let ids = body
        .get(start..start + usize::from(count) * 4)
        .ok_or(Fault::Bad("shared attribute ids reach beyond their area"))?;
    for id in ids.chunks_exact(4) {
        let (name, value, _) = read_entry(shared(le32(id, 0))?)?;
        add(name, value)?;
    }
    let mut rest = &body[start + ids.len()..];
    // mkfs.erofs leaves no zero padding behind the last entry; a zero header ends the list all the same.
    while rest.len() >= 4 && rest[..4] != [0; 4] {
        let (name, value, taken) = read_entry(rest)?;
        add(name, value)?;
        rest = rest.get(taken..).unwrap_or(&[]);
    }
    Ok(all)
}
