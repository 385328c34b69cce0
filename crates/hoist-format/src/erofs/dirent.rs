//! Folders: blocks of 12-byte entries with the names behind them, sorted by name throughout.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use super::Fault;
use super::layout::*;
use crate::tree::{InodeId, Name};

/// A folder's entry, `.` and `..` among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Raw bytes.
    pub name: &'a [u8],
    /// The inode's number in this image.
    pub nid: u64,
    /// `EROFS_FT_*`, 0 where unknown; equal to `DT_*` in order only, not in value.
    pub file_type: u8,
}

/// All names of a folder with their inodes, `.` and `..` at their sorted places.
pub(super) fn listing(
    entries: &BTreeMap<Name, InodeId>,
    this: InodeId,
    parent: InodeId,
) -> impl Iterator<Item = (&[u8], InodeId)> {
    const DOT: &[u8] = b".";
    const DOTS: &[u8] = b"..";
    let part = |from, to| entries.range::<[u8], _>((from, to)).map(|(n, &id)| (&**n, id));
    part(Unbounded, Excluded(DOT))
        .chain([(DOT, this)])
        .chain(part(Excluded(DOT), Excluded(DOTS)))
        .chain([(DOTS, parent)])
        .chain(part(Excluded(DOTS), Unbounded))
}

/// Bytes of a folder with these names: full blocks, then what the last one uses.
pub(super) fn size<'a>(names: impl Iterator<Item = (&'a [u8], InodeId)>) -> u64 {
    let (mut full, mut used) = (0, 0);
    for (name, _) in names {
        let len = (DIRENT_LEN + name.len()) as u64;
        if used + len > BLOCK {
            full += 1;
            used = 0;
        }
        used += len;
    }
    full * BLOCK + used
}

/// Collects a folder's entries and hands out its blocks, packed as [`size`] counted them.
pub(super) struct Packer<'a> {
    block: Vec<Entry<'a>>,
    used: usize,
}

impl<'a> Packer<'a> {
    pub fn new() -> Self {
        Self { block: Vec::new(), used: 0 }
    }

    /// Takes the next entry; writes the block that is thereby full with `write`.
    pub fn add(&mut self, entry: Entry<'a>, write: impl FnOnce(&[Entry<'a>])) {
        let len = DIRENT_LEN + entry.name.len();
        if self.used + len > BLOCK as usize {
            write(&self.block);
            self.block.clear();
            self.used = 0;
        }
        self.used += len;
        self.block.push(entry);
    }

    /// The entries of the last block.
    pub fn rest(&self) -> &[Entry<'a>] {
        &self.block
    }
}

/// Writes one block's entries at byte `at`.
pub(super) fn write_block(image: &mut [u8], at: usize, entries: &[Entry<'_>]) {
    let mut name_at = entries.len() * DIRENT_LEN;
    for (i, entry) in entries.iter().enumerate() {
        let slot = at + i * DIRENT_LEN;
        put(image, slot, &entry.nid.to_le_bytes());
        put(image, slot + 8, &(name_at as u16).to_le_bytes());
        put(image, slot + 10, &[entry.file_type]);
        put(image, at + name_at, entry.name);
        name_at += entry.name.len();
    }
}

/// One block of a folder, read.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    bytes: &'a [u8],
    /// How many entries it has.
    pub count: usize,
}

impl<'a> Block<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self, Fault> {
        let bad = Fault::Bad("a folder's block has no entries or its names lie beyond it");
        if bytes.len() < DIRENT_LEN {
            return Err(bad);
        }
        let names = usize::from(le16(bytes, 8));
        if names == 0 || names % DIRENT_LEN != 0 || names > bytes.len() {
            return Err(bad);
        }
        Ok(Self { bytes, count: names / DIRENT_LEN })
    }

    /// Entry `i` of `count`.
    pub fn entry(&self, i: usize) -> Result<Entry<'a>, Fault> {
        let slot = &self.bytes[i * DIRENT_LEN..][..DIRENT_LEN];
        let start = usize::from(le16(slot, 8));
        let end = if i + 1 < self.count {
            usize::from(le16(self.bytes, (i + 1) * DIRENT_LEN + 8))
        } else {
            // The last name ends with the block or at the first NUL.
            let tail = self.bytes.get(start..).unwrap_or(&[]);
            start + tail.iter().position(|&c| c == 0).unwrap_or(tail.len())
        };
        let name = self.bytes.get(start..end).filter(|_| start >= self.count * DIRENT_LEN);
        let name = name.ok_or(Fault::Bad("a folder's name lies outside of its block"))?;
        if !name_ok(name) {
            return Err(Fault::name("impossible file", name));
        }
        Ok(Entry { name, nid: le64(slot, 0), file_type: slot[10] })
    }
}
