//! A whole image as a tree.

use std::collections::{BTreeMap, HashMap};

use super::bytes::Bytes;
use super::ends::{Ends, Packed, Work};
use super::image::Image;
use super::inode::{Node, NodeKind};
use super::layout::*;
use super::{DecodeError, Fault};
use crate::tree::{Dev, Inode, InodeId, Kind, Meta, Name, Tree, is_reserved};
use crate::volume::Volume;

/// Reads a whole image. Inodes come out folder by folder, as [`encode`](super::encode) wrote them.
///
/// # Errors
/// Says which inode is damaged, or holds what a tree can't say (compression, holes, inline file
/// data). Memory is bounded by a multiple of the image's size.
pub fn decode(bytes: &[u8]) -> Result<Tree, DecodeError> {
    Ok(read(&Image::new(bytes)?)?.tree)
}

/// Reads a whole image that another program wrote, on no device but its own: its tree, and where on that device the
/// bytes of each file are, compressed or not.
///
/// # Errors
/// As [`decode`]; and what hoist does not read of EROFS.
pub fn decode_foreign(bytes: Bytes<'_>) -> Result<Volume, DecodeError> {
    read(&Image::foreign(bytes)?)
}

fn read(image: &Image<'_>) -> Result<Volume, DecodeError> {
    let size = image.bytes.here();
    let mut decoder = Decoder {
        ids: HashMap::new(),
        own_budget: size,
        copy_budget: size.saturating_mul(16).saturating_add(64 << 20),
        dirs: Vec::new(),
        volume: Volume { tree: Tree { inodes: Vec::new() }, contents: BTreeMap::new() },
        stretches: (FREE_STRETCHES + size / INDEX_MIN).min(MOST_STRETCHES),
        work: Work::of(size),
        ends: None,
        image,
    };
    decoder.ends = image.packed_ends(&mut decoder.work).map_err(|fault| image.at(image.sb.packed, fault))?;
    decoder.add_root()?;
    let mut next = 0;
    while let Some(dir) = decoder.dirs.get(next).cloned() {
        decoder.fill(&dir)?;
        next += 1;
    }
    Ok(decoder.volume)
}

/// Most runs that all files together are made of.
const MOST_STRETCHES: u64 = 16 << 20;
/// Each run but a few stands for at least so many bytes of an index or an inode.
const INDEX_MIN: u64 = 2;
const FREE_STRETCHES: u64 = 64 << 10;

/// A folder whose entries are still to be read.
#[derive(Clone)]
struct Dir<'a> {
    id: InodeId,
    node: Node<'a>,
    parent: u64,
}

struct Decoder<'i, 'a> {
    image: &'i Image<'a>,
    volume: Volume,
    /// What files may still cost.
    work: Work,
    ends: Option<Packed>,
    /// Runs that files may still be made of.
    stretches: u64,
    /// By inode number: where it stands in the tree.
    ids: HashMap<u64, InodeId>,
    dirs: Vec<Dir<'a>>,
    /// Bytes that inodes may still claim for themselves: those of sound ones don't overlap.
    own_budget: u64,
    /// Bytes of names, attributes and targets still to be copied: they may be shared, but not
    /// without end.
    copy_budget: u64,
}

impl<'a> Decoder<'_, 'a> {
    fn add_root(&mut self) -> Result<(), DecodeError> {
        let root = self.image.root();
        let node = self.image.inode(root)?;
        if node.kind != NodeKind::Dir {
            return Err(self.image.at(root, Fault::Bad("the root is no folder")));
        }
        self.add(&node, root)?;
        Ok(())
    }

    /// Appends an inode that was not met before.
    fn add(&mut self, node: &Node<'a>, parent: u64) -> Result<InodeId, DecodeError> {
        let id = self.volume.tree.inodes.len() as InodeId;
        let inode = self.inode(node)?;
        let left = self.own_budget.checked_sub(node.own);
        self.own_budget = left.ok_or_else(|| self.image.at(node.nid, Fault::Bad("inodes overlap")))?;
        if node.kind == NodeKind::Dir {
            self.dirs.push(Dir { id, node: node.clone(), parent });
        }
        if self.image.foreign && matches!(node.kind, NodeKind::File(_)) && node.size > 0 {
            let stretches = self.image.stretches(node, Ends(self.ends.as_ref()), &mut self.work);
            let stretches = stretches.map_err(|fault| self.image.at(node.nid, fault))?;
            let left = self.stretches.checked_sub(stretches.len() as u64);
            self.stretches = left.ok_or_else(|| {
                self.image
                    .at(node.nid, Fault::Unsupported("files of more runs of bytes than its size allows"))
            })?;
            self.volume.contents.insert(id, stretches);
        }
        self.ids.insert(node.nid, id);
        self.volume.tree.inodes.push(inode);
        Ok(id)
    }

    fn charge(&mut self, nid: u64, bytes: usize) -> Result<(), DecodeError> {
        let left = self.copy_budget.checked_sub(bytes as u64);
        self.copy_budget = left.ok_or_else(|| {
            self.image.at(nid, Fault::Unsupported("names and attributes beyond 16 times the image's size"))
        })?;
        Ok(())
    }

    fn fill(&mut self, dir: &Dir<'a>) -> Result<(), DecodeError> {
        let (image, nid) = (self.image, dir.node.nid);
        let mut entries: Vec<(Name, InodeId)> = Vec::new();
        let mut last: &[u8] = b"";
        for entry in image.entries(&dir.node) {
            let entry = entry?;
            if !last.is_empty() && entry.name <= last {
                return Err(image.at(nid, Fault::name("unsorted or repeated", entry.name)));
            }
            last = entry.name;
            let dots = match entry.name {
                b"." => Some(nid),
                b".." => Some(dir.parent),
                _ => None,
            };
            match dots {
                Some(right) if entry.nid != right => {
                    return Err(image.at(nid, Fault::name("wrong inode behind the", entry.name)));
                }
                Some(_) => {}
                None => {
                    self.charge(nid, entry.name.len())?;
                    let id = self.child(nid, entry.name, entry.nid, entry.file_type)?;
                    entries.push((entry.name.into(), id));
                }
            }
        }
        // From sorted input: one pass, and densely filled.
        self.volume.tree.inodes[dir.id as usize].kind =
            Kind::Dir(entries.into_iter().collect::<BTreeMap<_, _>>());
        Ok(())
    }

    fn child(&mut self, dir: u64, name: &[u8], nid: u64, file_type: u8) -> Result<InodeId, DecodeError> {
        let (id, mode) = match self.ids.get(&nid) {
            Some(&id) => {
                let kind = &self.volume.tree.get(id).kind;
                if matches!(kind, Kind::Dir(_)) {
                    return Err(self
                        .image
                        .at(dir, Fault::name("a folder that stands in a second place has the", name)));
                }
                (id, type_bits(kind))
            }
            None => {
                let node = self.image.inode(nid)?;
                (self.add(&node, dir)?, node.mode)
            }
        };
        if file_type != 0 && file_type != dirent_type(mode) {
            return Err(self.image.at(dir, Fault::name("wrong file type behind the", name)));
        }
        Ok(id)
    }

    fn inode(&mut self, node: &Node<'a>) -> Result<Inode, DecodeError> {
        let mut xattrs = BTreeMap::new();
        for (name, value) in self.image.xattrs(node)? {
            self.charge(node.nid, name.len() + value.len())?;
            xattrs.insert(name, Name::from(value));
        }
        let kind = match node.kind {
            NodeKind::Dir => Kind::Dir(BTreeMap::new()),
            NodeKind::File(data) => Kind::File { size: node.size, data },
            NodeKind::Symlink(target) => {
                self.charge(node.nid, target.len())?;
                Kind::Symlink(target.into())
            }
            NodeKind::Char(Dev { major: 0, minor: 0 }) => Kind::Whiteout,
            NodeKind::Char(dev) => Kind::Char(dev),
            NodeKind::Block(dev) => Kind::Block(dev),
            NodeKind::Fifo => Kind::Fifo,
            NodeKind::Socket => Kind::Socket,
        };
        let mut flag = |name: &[u8]| {
            let set = node.kind == NodeKind::Dir && xattrs.get(name).is_some_and(|v| **v == *YES);
            if set {
                xattrs.remove(name);
            }
            set
        };
        let opaque = flag(OPAQUE);
        let implied = !self.image.foreign && flag(IMPLIED);
        if self.image.foreign {
            hide(&mut xattrs).map_err(|fault| self.image.at(node.nid, fault))?;
        }
        let Node { uid, gid, mtime, .. } = *node;
        let meta = Meta { perm: node.mode & 0o7777, uid, gid, mtime, xattrs };
        Ok(Inode { kind, meta, implied, opaque })
    }
}

/// Takes away what overlayfs and hoist keep for themselves in a layer's attributes.
fn hide(xattrs: &mut BTreeMap<Name, Name>) -> Result<(), Fault> {
    for name in [REDIRECT, METACOPY, OPAQUE, USER_REDIRECT, USER_METACOPY, USER_OPAQUE] {
        if xattrs.contains_key(name) {
            return Err(Fault::Unsupported(
                "a layer that renames or shares files by attributes of overlayfs",
            ));
        }
    }
    xattrs.retain(|name, _| !is_reserved(name));
    Ok(())
}
