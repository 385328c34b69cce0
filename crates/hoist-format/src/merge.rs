//! The layers of an image become the one tree a container sees.
//!
//! Lowest first, each layer is laid over what is there, as overlayfs shows what containerd and docker unpack, each
//! layer by itself: whiteouts remove, opaque folders empty, and a folder replaces what is no folder, be it only implied
//! and a symbolic link to a folder. Implied folders have the attributes of the nearest lower layer that has the path.
//! Hard links find their files in lower layers too.

use std::collections::BTreeMap;

use crate::layer::LINK_XATTR;
use crate::layer::lossy;
use crate::layer::walk::{clean, resolve};
use crate::tar::MAX_ENTRIES;
use crate::tree::{Inode, InodeId, Kind, Meta, ROOT, Tree};

/// Most steps that symbolic links and looking for the attributes of implied folders may cause in one merge.
const STEPS: u64 = 64 << 20;
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
    /// Its folders without entries of their own would cost hours.
    #[error(
        "merging layer {layer}: finding the attributes of its implied folders takes more than {STEPS} steps"
    )]
    TooManySteps {
        /// Index of the layer, lowest first from 0.
        layer: usize,
    },
}

impl MergeError {
    /// Index of the layer at fault, lowest first from 0, if it is one.
    pub fn layer(&self) -> Option<usize> {
        match self {
            Self::LinkTarget { layer, .. } | Self::TooManyFiles { layer } | Self::TooManySteps { layer } => {
                Some(*layer)
            }
            Self::TooManyLayers(_) => None,
        }
    }
}

/// Merges the trees of an image's layers, lowest first. The result has no whiteouts and no opaque or
/// implied folders; [`crate::tree::FileData::layer`] is the index into `layers`.
///
/// # Errors
/// [`MergeError`], naming the layer at fault.
pub fn merge(layers: &[&Tree]) -> Result<Tree, MergeError> {
    let mut merged = Tree::default();
    let mut budget = STEPS;
    let mut implied = Vec::with_capacity(layers.len());
    for (index, layer) in layers.iter().enumerate() {
        let number = u16::try_from(index).map_err(|_| MergeError::TooManyLayers(layers.len()))?;
        let links = lower_links(&merged, layer, index, &mut budget)?;
        let lower = Lower { trees: &layers[..index], implied: &implied };
        let taken = BTreeMap::new();
        let found = Overlay { merged: &mut merged, layer, number, links, taken, lower }.run(&mut budget)?;
        implied.push(found);
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

/// The layers below, each by itself, and the attributes that their implied folders got.
struct Lower<'a> {
    trees: &'a [&'a Tree],
    implied: &'a [BTreeMap<InodeId, Meta>],
}

impl Lower<'_> {
    /// The attributes for an implied folder: of the nearest layer that has the path, in which the layer's own links
    /// are followed; none if that has no folder there, or no layer has the path (containerd's `mkparent`). Attributes
    /// in `trusted.` stay behind. Err when the budget is spent.
    fn meta(&self, path: &[&[u8]], budget: &mut u64) -> Result<Option<Meta>, ()> {
        for (tree, implied) in self.trees.iter().zip(self.implied).rev() {
            *budget = budget.checked_sub(path.len() as u64).ok_or(())?;
            let Ok(way) = resolve(tree, path, budget) else { return Ok(None) };
            let id = match way.last() {
                Some((Some(id), _)) => *id,
                Some((None, _)) => continue,
                None => ROOT,
            };
            let inode = tree.get(id);
            if !matches!(inode.kind, Kind::Dir(_)) {
                return Ok(None);
            }
            let mut meta = implied.get(&id).unwrap_or(&inode.meta).clone();
            meta.xattrs.retain(|name, _| !name.starts_with(b"trusted."));
            return Ok(Some(meta));
        }
        Ok(None)
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
    lower: Lower<'a>,
}

/// A folder of the layer that is to be laid over one of the merged tree.
struct Folder<'a> {
    onto: InodeId,
    from: InodeId,
    /// Its name, and the place of the folder that it stands in among all folders met.
    name: &'a [u8],
    parent: usize,
}

impl<'a> Overlay<'a> {
    /// Lays the layer over the merged tree, and gives the attributes its implied folders got. A list, not recursion:
    /// hostile layers are deep.
    fn run(mut self, budget: &mut u64) -> Result<BTreeMap<InodeId, Meta>, MergeError> {
        let mut implied = BTreeMap::new();
        let mut folders = vec![Folder { onto: ROOT, from: ROOT, name: b"", parent: 0 }];
        let mut next = 0;
        while let Some(&Folder { onto, from, .. }) = folders.get(next) {
            let inode = self.layer.get(from);
            let meta = if !inode.implied {
                Some(inode.meta.clone())
            } else if from != ROOT && self.number > 0 {
                let found = self.lower.meta(&path(&folders, next), budget);
                let layer = usize::from(self.number);
                let meta = found.map_err(|()| MergeError::TooManySteps { layer })?;
                let meta = meta.unwrap_or_else(|| inode.meta.clone());
                implied.insert(from, meta.clone());
                Some(meta)
            } else {
                None
            };
            let below = &mut self.merged.inodes[onto as usize];
            if let Some(meta) = meta {
                below.meta = meta;
            }
            if inode.opaque {
                below.kind = Kind::Dir(BTreeMap::new());
            }
            for (name, &id) in self.layer.entries(from).into_iter().flatten() {
                let there = self.merged.entries(onto).and_then(|e| e.get(name)).copied();
                let folder = there.filter(|&id| self.merged.entries(id).is_some());
                match (&self.layer.get(id).kind, folder) {
                    (Kind::Dir(_), Some(onto)) => folders.push(Folder { onto, from: id, name, parent: next }),
                    (Kind::Dir(_), None) => {
                        let onto = self.put_dir(onto, name, id)?;
                        folders.push(Folder { onto, from: id, name, parent: next });
                    }
                    (Kind::Whiteout, _) => self.whiteout(onto, name, id)?,
                    _ => {
                        let new = self.take(id)?;
                        self.link(onto, name, new);
                    }
                }
            }
            next += 1;
        }
        Ok(implied)
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
        let mut meta = inode.meta.clone();
        meta.xattrs.remove(LINK_XATTR);
        self.merged.inodes[found as usize].linked(&meta);
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

/// The names that lead to folder `at`.
fn path<'a>(folders: &[Folder<'a>], mut at: usize) -> Vec<&'a [u8]> {
    let mut names = Vec::new();
    while at != 0 {
        names.push(folders[at].name);
        at = folders[at].parent;
    }
    names.reverse();
    names
}
