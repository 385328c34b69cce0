//! Which inodes a tree reaches, in the order they are written: folder by folder, so that a
//! folder's inodes lie together.

use std::collections::BTreeMap;

use super::EncodeError;
use super::layout::name_ok;
use crate::tree::{InodeId, Kind, Name, ROOT, Tree};

/// The reachable inodes.
pub(super) struct Walk {
    /// In breadth-first order, the root first.
    pub order: Vec<InodeId>,
    /// By inode: the folder it was first found in; `u32::MAX` where it is not reachable.
    pub parent: Vec<InodeId>,
    /// By inode: its link count.
    pub nlink: Vec<u32>,
}

const UNSEEN: InodeId = InodeId::MAX;

impl Walk {
    /// Walks `tree`, refusing loops and bad names.
    pub fn new(tree: &Tree) -> Result<Self, EncodeError> {
        if !matches!(tree.inodes.first(), Some(root) if matches!(root.kind, Kind::Dir(_))) {
            return Err(EncodeError::NoRoot);
        }
        let count = tree.inodes.len();
        let mut walk = Self { order: vec![ROOT], parent: vec![UNSEEN; count], nlink: vec![0; count] };
        walk.parent[ROOT as usize] = ROOT;
        let mut next = 0;
        while let Some(&dir) = walk.order.get(next) {
            next += 1;
            if let Kind::Dir(entries) = &tree.get(dir).kind {
                walk.enter(tree, dir, entries)?;
            }
        }
        Ok(walk)
    }

    fn enter(
        &mut self,
        tree: &Tree,
        dir: InodeId,
        entries: &BTreeMap<Name, InodeId>,
    ) -> Result<(), EncodeError> {
        let mut subdirs = 0;
        for (name, &id) in entries {
            let here = |walk: &Self| join(&walk.path(tree, dir), name);
            if !name_ok(name) || **name == *b"." || **name == *b".." {
                return Err(EncodeError::Name { path: here(self) });
            }
            let Some(inode) = tree.inodes.get(id as usize) else {
                return Err(EncodeError::NoInode { path: here(self), inode: id });
            };
            let seen = self.parent[id as usize] != UNSEEN;
            if matches!(inode.kind, Kind::Dir(_)) {
                if seen {
                    return Err(EncodeError::DirTwice { path: here(self) });
                }
                subdirs += 1;
            } else {
                // Fewer than 2^32 names: more would not fit the image.
                self.nlink[id as usize] = self.nlink[id as usize].saturating_add(1);
            }
            if !seen {
                self.parent[id as usize] = dir;
                self.order.push(id);
            }
        }
        self.nlink[dir as usize] = 2 + subdirs;
        Ok(())
    }

    /// The first path of a reached inode, for messages.
    pub fn path(&self, tree: &Tree, mut id: InodeId) -> String {
        let mut path = String::new();
        while id != ROOT {
            let dir = self.parent[id as usize];
            let name = tree.entries(dir).and_then(|e| e.iter().find(|(_, i)| **i == id));
            path = join("", name.map_or(b"?", |(n, _)| &**n)) + &path;
            id = dir;
        }
        path
    }
}

fn join(dir: &str, name: &[u8]) -> String {
    format!("{dir}/{}", String::from_utf8_lossy(name))
}
