//! The layers of an image become the one tree a container sees.
//!
//! Lowest first, each layer is laid over what is there: whiteouts remove, opaque folders empty,
//! implied folders keep the lower attributes, hard links find their lower files. An implied folder
//! that meets a lower symbolic link is written through that link, as an applier on the mounted
//! lower layers would.

use std::collections::BTreeMap;

use crate::layer::LINK_XATTR;
use crate::layer::lossy;
use crate::layer::walk::{clean, resolve};
use crate::tar::MAX_ENTRIES;
use crate::tree::{Inode, InodeId, Kind, ROOT, Tree};

/// Most steps that symbolic links may cause in one merge.
const LINK_STEPS: u64 = 64 << 20;
/// Most files and folders of an image.
const MAX_INODES: usize = 4 * MAX_ENTRIES as usize;

/// Why layers do not make an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A hard link to a path that no lower layer has.
    #[error(
        "merging layer {layer}: the entry {path:?} is a hard link to {target:?}, which is missing or a folder"
    )]
    LinkTarget {
        /// Index of the layer, lowest first from 0.
        layer: usize,
        /// The name of the link, without its folders.
        path: String,
        /// The path it names.
        target: String,
    },
    /// More layers than [`crate::tree::FileData::layer`] can tell apart.
    #[error("merging {0} layers: at most 65536 are supported")]
    TooManyLayers(usize),
    /// More files and folders than hoist accepts.
    #[error("merging layer {layer}: the image has more than {MAX_INODES} files and folders")]
    TooManyFiles {
        /// Index of the layer, lowest first from 0.
        layer: usize,
    },
}

/// Merges the trees of an image's layers, lowest first. The result has no whiteouts and no opaque or
/// implied folders; [`crate::tree::FileData::layer`] is the index into `layers`.
///
/// # Errors
/// [`MergeError`], naming the layer at fault.
pub fn merge(layers: &[&Tree]) -> Result<Tree, MergeError> {
    let mut merged = Tree::default();
    let mut budget = LINK_STEPS;
    for (index, layer) in layers.iter().enumerate() {
        let number = u16::try_from(index).map_err(|_| MergeError::TooManyLayers(layers.len()))?;
        let links = lower_links(&merged, layer, index, &mut budget)?;
        Overlay { merged: &mut merged, layer, number, links, taken: BTreeMap::new(), through: Vec::new() }
            .run(&mut budget)?;
    }
    for inode in &mut merged.inodes {
        (inode.implied, inode.opaque) = (false, false);
    }
    Ok(merged)
}

/// Finds what a layer's links to lower files mean, before the layer changes anything.
fn lower_links(
    merged: &Tree,
    layer: &Tree,
    index: usize,
    budget: &mut u64,
) -> Result<BTreeMap<InodeId, Option<InodeId>>, MergeError> {
    let mut links = BTreeMap::new();
    for (id, inode) in layer.inodes.iter().enumerate() {
        let Some(target) = link_target(inode) else { continue };
        let parts = clean(target);
        let found = parts.split_last().and_then(|(&name, parents)| {
            let way = resolve(merged, parents, budget).ok()?;
            let dir = way.last().map_or(Some(ROOT), |last| last.0)?;
            let id = *merged.entries(dir)?.get(name)?;
            merged.entries(id).is_none().then_some(id)
        });
        let id = u32::try_from(id).map_err(|_| MergeError::TooManyFiles { layer: index })?;
        links.insert(id, found);
    }
    Ok(links)
}

fn link_target(inode: &Inode) -> Option<&[u8]> {
    match inode.kind {
        Kind::Whiteout => inode.meta.xattrs.get(LINK_XATTR).map(|v| &**v),
        _ => None,
    }
}

/// One layer on its way into the merged tree.
struct Overlay<'a> {
    merged: &'a mut Tree,
    layer: &'a Tree,
    number: u16,
    /// Layer inodes that are links to merged ones; None where there is no such file.
    links: BTreeMap<InodeId, Option<InodeId>>,
    /// Merged inodes of layer inodes, so that hard links stay links.
    taken: BTreeMap<InodeId, InodeId>,
    /// Implied folders that met a link: merged parent, name, layer folder.
    through: Vec<(InodeId, &'a [u8], InodeId)>,
}

impl Overlay<'_> {
    fn run(mut self, budget: &mut u64) -> Result<(), MergeError> {
        self.tree(ROOT, ROOT)?;
        // Last, so that a link's target is what this layer leaves there.
        while let Some((dir, name, id)) = self.through.pop() {
            let target = self.follow(dir, name, budget);
            let target = match target {
                Some(target) => target,
                None => self.put_dir(dir, name, id)?,
            };
            self.tree(target, id)?;
        }
        Ok(())
    }

    /// The folder behind the symbolic link `name` in `dir`.
    fn follow(&self, dir: InodeId, name: &[u8], budget: &mut u64) -> Option<InodeId> {
        let Kind::Symlink(target) = &self.merged.get(*self.merged.entries(dir)?.get(name)?).kind else {
            return None;
        };
        let mut parts = Vec::new();
        if !target.starts_with(b"/") {
            parts = self.path_to(dir, budget)?;
        }
        parts.extend(target.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b"."));
        let way = resolve(self.merged, &parts, budget).ok()?;
        let id = way.last().map_or(Some(ROOT), |last| last.0)?;
        self.merged.entries(id).map(|_| id)
    }

    /// The names that lead to a folder of the merged tree.
    fn path_to(&self, dir: InodeId, budget: &mut u64) -> Option<Vec<&[u8]>> {
        let mut parents: BTreeMap<InodeId, (InodeId, &[u8])> = BTreeMap::new();
        let mut todo = vec![ROOT];
        while let Some(at) = todo.pop() {
            if at == dir {
                break;
            }
            for (name, &id) in self.merged.entries(at)? {
                *budget = budget.checked_sub(1)?;
                if self.merged.entries(id).is_some() {
                    parents.insert(id, (at, name));
                    todo.push(id);
                }
            }
        }
        let (mut path, mut at) = (Vec::new(), dir);
        while at != ROOT {
            let &(parent, name) = parents.get(&at)?;
            path.push(name);
            at = parent;
        }
        path.reverse();
        Some(path)
    }

    /// Lays a folder of the layer, and all below it, over one of the merged tree. A list, not
    /// recursion: hostile layers are deep.
    fn tree(&mut self, onto: InodeId, from: InodeId) -> Result<(), MergeError> {
        let mut todo = vec![(onto, from)];
        while let Some((onto, from)) = todo.pop() {
            let layer = self.layer;
            let inode = layer.get(from);
            let Kind::Dir(entries) = &inode.kind else { continue };
            let below = &mut self.merged.inodes[onto as usize];
            if !inode.implied {
                below.meta = inode.meta.clone();
            }
            if inode.opaque {
                below.kind = Kind::Dir(BTreeMap::new());
            }
            for (name, &id) in entries {
                let there = self.merged.entries(onto).and_then(|e| e.get(name)).copied();
                let there = there.map(|id| (id, &self.merged.get(id).kind));
                match (&layer.get(id).kind, there) {
                    (Kind::Dir(_), Some((below, Kind::Dir(_)))) => todo.push((below, id)),
                    (Kind::Dir(_), Some((_, Kind::Symlink(_)))) if layer.get(id).implied => {
                        self.through.push((onto, name, id));
                    }
                    (Kind::Dir(_), _) => {
                        let new = self.put_dir(onto, name, id)?;
                        todo.push((new, id));
                    }
                    (Kind::Whiteout, _) => self.whiteout(onto, name, id)?,
                    _ => {
                        let new = self.take(id)?;
                        self.link(onto, name, new);
                    }
                }
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, dir: InodeId, name: &[u8], id: InodeId) -> Result<(), MergeError> {
        let inode = self.layer.get(id);
        let Some(target) = link_target(inode) else {
            if let Kind::Dir(entries) = &mut self.merged.inodes[dir as usize].kind {
                entries.remove(name);
            }
            return Ok(());
        };
        let found = self.links.get(&id).copied().flatten().ok_or_else(|| MergeError::LinkTarget {
            layer: usize::from(self.number),
            path: lossy(name),
            target: lossy(target),
        })?;
        let meta = &mut self.merged.inodes[found as usize].meta;
        (meta.uid, meta.gid, meta.mtime) = (inode.meta.uid, inode.meta.gid, inode.meta.mtime);
        self.link(dir, name, found);
        Ok(())
    }

    /// A new, empty folder with the attributes of the layer's.
    fn put_dir(&mut self, dir: InodeId, name: &[u8], id: InodeId) -> Result<InodeId, MergeError> {
        let meta = self.layer.get(id).meta.clone();
        let new =
            self.push(Inode { kind: Kind::Dir(BTreeMap::new()), meta, implied: false, opaque: false })?;
        self.link(dir, name, new);
        Ok(new)
    }

    fn take(&mut self, id: InodeId) -> Result<InodeId, MergeError> {
        if let Some(&new) = self.taken.get(&id) {
            return Ok(new);
        }
        let mut inode = self.layer.get(id).clone();
        if let Kind::File { data, .. } = &mut inode.kind {
            data.layer = self.number;
        }
        let new = self.push(inode)?;
        self.taken.insert(id, new);
        Ok(new)
    }

    fn push(&mut self, inode: Inode) -> Result<InodeId, MergeError> {
        if self.merged.inodes.len() >= MAX_INODES {
            return Err(MergeError::TooManyFiles { layer: usize::from(self.number) });
        }
        Ok(self.merged.push(inode))
    }

    fn link(&mut self, dir: InodeId, name: &[u8], id: InodeId) {
        if let Kind::Dir(entries) = &mut self.merged.inodes[dir as usize].kind {
            entries.insert(name.into(), id);
        }
    }
}
