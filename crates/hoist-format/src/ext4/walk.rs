//! From the root folder to a tree.
//!
//! First all inodes that may be in use are read in the order of the inode tables, whatever is wrong with them: so the
//! device learns of all folders, extent blocks and attribute blocks at once, and a file system takes a handful of
//! round trips however deep it is. Then the folders are followed, and now everything must be right.

use std::collections::BTreeMap;

use super::dirent;
use super::error::{DecodeError, Fault};
use super::groups::{self, Group};
use super::inode::{self, Budget, Inode, NodeKind};
use super::superblock::Superblock;
use crate::tree::{InodeId, Kind, Name, ROOT, Tree};
use crate::volume::{Device, Lack, Volume};

/// The root folder's number.
const ROOT_INODE: u32 = 2;
/// Most bytes of inodes, and of folders, extent blocks and attribute blocks, that are read.
const METADATA_MAX: Budget = 512 << 20;
/// Most inodes and names.
const MOST: usize = 16 << 20;

/// Reads a whole file system; None when the device lacks bytes, which it has noted.
///
/// # Errors
/// [`DecodeError`].
pub fn decode(device: &mut dyn Device) -> Result<Option<Volume>, DecodeError> {
    match read(device) {
        Ok(volume) => Ok(Some(volume)),
        Err(Stop::Absent) => Ok(None),
        Err(Stop::Error(e)) => Err(e),
    }
}

enum Stop {
    Absent,
    Error(DecodeError),
}

fn stop(fault: Fault, bad: impl FnOnce(&'static str) -> DecodeError) -> Stop {
    fault.error(bad).map_or(Stop::Absent, Stop::Error)
}

fn read(device: &mut dyn Device) -> Result<Volume, Stop> {
    let sb = Superblock::read(device).map_err(|f| stop(f, DecodeError::Superblock))?;
    let groups = groups::read(device, &sb).map_err(|f| stop(f, DecodeError::Superblock))?;
    if foresee(device, &sb, &groups) {
        return Err(Stop::Absent);
    }
    let walk = Walk {
        device,
        sb,
        groups,
        budget: METADATA_MAX,
        names: 0,
        ids: BTreeMap::new(),
        folders: Vec::new(),
        volume: Volume { tree: Tree { inodes: Vec::new() }, contents: BTreeMap::new() },
    };
    walk.run()
}

/// Reads what inodes name, for the device to note what it lacks. True when it lacks something.
fn foresee(device: &mut dyn Device, sb: &Superblock, groups: &[Group]) -> bool {
    let mut budget = METADATA_MAX;
    let mut tables = Vec::new();
    let mut absent = false;
    for group in groups {
        let end = group.table + u64::from(group.used) * sb.inode_size;
        let mut at = group.table;
        loop {
            // Inodes that were never written cost nothing, however many there are said to be.
            let data = device.next_data(at, end);
            at = data - (data - group.table) % sb.block;
            let len = sb.block.min(end - at);
            if data >= end || budget < len {
                break;
            }
            budget -= len;
            match device.read(at, len) {
                Ok(bytes) => tables.push((at, bytes)),
                Err(lack) => absent |= lack == Lack::Absent,
            }
            at += len;
        }
    }
    for (table, bytes) in tables {
        for (i, one) in bytes.chunks_exact(sb.inode_size as usize).enumerate() {
            let at = table + i as u64 * sb.inode_size;
            let found = inode::read(device, sb, one, at, &mut budget);
            absent |= matches!(found, Err(Fault::Lack(Lack::Absent)));
        }
    }
    absent
}

struct Walk<'a> {
    device: &'a mut dyn Device,
    sb: Superblock,
    groups: Vec<Group>,
    budget: Budget,
    names: usize,
    /// By inode number: where it stands in the tree.
    ids: BTreeMap<u32, InodeId>,
    /// Folders whose names are still to be followed.
    folders: Vec<(u32, InodeId, Vec<Vec<u8>>)>,
    volume: Volume,
}

impl Walk<'_> {
    fn run(mut self) -> Result<Volume, Stop> {
        let root = self.inode(ROOT_INODE)?;
        if !matches!(root.kind, NodeKind::Dir(_)) {
            return Err(self.bad(ROOT_INODE, "the root is no folder"));
        }
        self.add(ROOT_INODE, root)?;
        let mut next = 0;
        while next < self.folders.len() {
            let (number, id, blocks) = std::mem::take(&mut self.folders[next]);
            self.follow(number, id, &blocks)?;
            next += 1;
        }
        debug_assert_eq!(self.ids.get(&ROOT_INODE), Some(&ROOT));
        Ok(self.volume)
    }

    fn bad(&self, inode: u32, what: &'static str) -> Stop {
        Stop::Error(DecodeError::Inode { inode, what })
    }

    fn inode(&mut self, number: u32) -> Result<Inode, Stop> {
        let index = number.wrapping_sub(1);
        if index >= self.sb.inodes {
            return Err(self.bad(number, "it is beyond the last one"));
        }
        let group = self.groups[(index / self.sb.inodes_per_group) as usize];
        let at = group.table + u64::from(index % self.sb.inodes_per_group) * self.sb.inode_size;
        let read = self.device.read(at, self.sb.inode_size).map_err(Fault::from);
        let read = read.and_then(|bytes| inode::read(self.device, &self.sb, &bytes, at, &mut self.budget));
        let inode = read.map_err(|f| stop(f, |what| DecodeError::Inode { inode: number, what }))?;
        inode.ok_or_else(|| self.bad(number, "a name leads to it, but it is not in use"))
    }

    /// Appends an inode that was not met before.
    fn add(&mut self, number: u32, inode: Inode) -> Result<InodeId, Stop> {
        let tree = &mut self.volume.tree;
        if tree.inodes.len() >= MOST {
            return Err(Stop::Error(DecodeError::TooMuch("more than 16 million inodes")));
        }
        let id = tree.inodes.len() as InodeId;
        let kind = match inode.kind {
            NodeKind::Dir(blocks) => {
                self.folders.push((number, id, blocks));
                Kind::Dir(BTreeMap::new())
            }
            NodeKind::File(size, stretches) => {
                if size > 0 {
                    self.volume.contents.insert(id, stretches);
                }
                Kind::File { size, data: Default::default() }
            }
            NodeKind::Other(kind) => kind,
        };
        tree.push(crate::tree::Inode { kind, meta: inode.meta, implied: false, opaque: false });
        self.ids.insert(number, id);
        Ok(id)
    }

    fn follow(&mut self, folder: u32, id: InodeId, blocks: &[Vec<u8>]) -> Result<(), Stop> {
        let bad = |name: &[u8], what| {
            let name = String::from_utf8_lossy(name).into_owned();
            Stop::Error(DecodeError::Name { inode: folder, name, what })
        };
        let mut all = Vec::new();
        for block in blocks {
            let found = dirent::entries(block, self.sb.filetype, |entry| {
                all.push(entry);
                Ok(())
            });
            found.map_err(|f| stop(f, |what| DecodeError::Inode { inode: folder, what }))?;
        }
        self.names += all.len();
        if self.names > MOST {
            return Err(Stop::Error(DecodeError::TooMuch("more than 16 million names")));
        }
        let mut entries: BTreeMap<Name, InodeId> = BTreeMap::new();
        for entry in all {
            if entry.name.is_empty() || entry.name.iter().any(|&c| c == b'/' || c == 0) {
                return Err(bad(entry.name, "no file may have it"));
            }
            let child = match self.ids.get(&entry.inode) {
                Some(&child) if self.volume.tree.entries(child).is_some() => {
                    return Err(bad(entry.name, "a folder stands in a second place"));
                }
                Some(&child) => child,
                None => {
                    let inode = self.inode(entry.inode)?;
                    self.add(entry.inode, inode)?
                }
            };
            if entries.insert(entry.name.into(), child).is_some() {
                return Err(bad(entry.name, "it stands twice in the folder"));
            }
        }
        self.volume.tree.inodes[id as usize].kind = Kind::Dir(entries);
        Ok(())
    }
}
