//! Tar entries become a tree as containerd's and docker's appliers make them on disk.

use std::collections::BTreeMap;

use super::walk::{WalkError, clean, join, resolve};
use super::{LINK_XATTR, LayerError, LayerFault};
use crate::tar::{Entry, EntryKind, MAX_ENTRIES};
use crate::tree::{Dev, FileData, Inode, InodeId, Kind, Meta, Name, ROOT, Tree};

/// Most bytes of attributes and link targets in one layer: bounds memory.
const MAX_META: u64 = 512 << 20;
/// Most steps that symbolic links in parents may cause in one layer.
const LINK_STEPS: u64 = 64 << 20;

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

pub(crate) struct Applier {
    pub tree: Tree,
    /// Parent of the last entry, by its cleaned path: neighbours mostly share it.
    last: Option<(Name, InodeId)>,
    meta_bytes: u64,
    budget: u64,
}

impl Applier {
    pub fn new() -> Self {
        Self { tree: Tree::default(), last: None, meta_bytes: 0, budget: LINK_STEPS }
    }

    /// Applies an entry; `data` is where its bytes stand if it is a file.
    pub fn apply(&mut self, entry: Entry, data: FileData) -> Result<(), LayerError> {
        let Entry { path, kind, meta } = entry;
        self.entry(&path, kind, meta, data).map_err(|what| LayerError::entry(&path, what))
    }

    fn entry(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        mut meta: Meta,
        data: FileData,
    ) -> Result<(), LayerFault> {
        let parts = clean(path);
        let Some((&base, parents)) = parts.split_last() else {
            // Only a folder can say anything of the root (containerd ignores the rest too).
            if kind == EntryKind::Dir {
                self.charge(&mut meta)?;
                self.set_dir(ROOT, meta);
            }
            return Ok(());
        };
        if base != OPAQUE && parts.iter().any(|p| p.starts_with(AUFS)) {
            return Ok(());
        }
        let parent = self.parent(parents)?;
        if base == OPAQUE {
            self.tree.inodes[parent as usize].opaque = true;
            return Ok(());
        }
        if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            return self.whiteout(parent, hidden);
        }
        self.charge(&mut meta)?;
        let file = |kind| Inode { kind, meta: meta.clone(), implied: false, opaque: false };
        let inode = match kind {
            EntryKind::Dir => return self.dir(parent, base, meta),
            EntryKind::Hardlink(target) => return self.hardlink(parent, base, &target, meta),
            EntryKind::File(size) => file(Kind::File { size, data }),
            EntryKind::Symlink(target) => {
                self.meta_bytes += target.len() as u64;
                // Linux knows no other mode of a symbolic link.
                let meta = Meta { perm: 0o777, ..meta };
                Inode { kind: Kind::Symlink(target.into()), meta, implied: false, opaque: false }
            }
            // overlayfs's form of a whiteout: as such it would act on a containerd node.
            EntryKind::Char(Dev { major: 0, minor: 0 }) => return self.whiteout(parent, base),
            EntryKind::Char(dev) => file(Kind::Char(dev)),
            EntryKind::Block(dev) => file(Kind::Block(dev)),
            EntryKind::Fifo => file(Kind::Fifo),
        };
        self.put(parent, base, inode)
    }

    /// Counts what attributes cost, and drops those an image has no say in.
    fn charge(&mut self, meta: &mut Meta) -> Result<(), LayerFault> {
        meta.xattrs.retain(|name, _| settable(name));
        self.meta_bytes += meta.xattrs.iter().map(|(n, v)| (n.len() + v.len() + 64) as u64).sum::<u64>();
        if self.meta_bytes > MAX_META { Err(LayerFault::TooMuchMetadata) } else { Ok(()) }
    }

    fn dir(&mut self, parent: InodeId, base: &[u8], meta: Meta) -> Result<(), LayerFault> {
        let existing = self.child(parent, base);
        let opaque = match existing.map(|id| (id, &self.tree.get(id).kind)) {
            Some((id, Kind::Dir(_))) => {
                self.set_dir(id, meta);
                return Ok(());
            }
            // The whiteout hides what is below, this folder replaces it.
            Some((_, Kind::Whiteout)) => true,
            _ => false,
        };
        self.put(parent, base, Inode { kind: Kind::Dir(BTreeMap::new()), meta, implied: false, opaque })
    }

    /// Said once more: what the later entry says counts, and attributes that it does not name stay.
    fn set_dir(&mut self, id: InodeId, mut meta: Meta) {
        let inode = &mut self.tree.inodes[id as usize];
        for (name, value) in std::mem::take(&mut inode.meta.xattrs) {
            meta.xattrs.entry(name).or_insert(value);
        }
        (inode.meta, inode.implied) = (meta, false);
    }

    /// A whiteout speaks of lower layers only: what this layer has stays (OCI image-spec
    /// `layer.md`, "Whiteouts"), in whichever order they come.
    fn whiteout(&mut self, parent: InodeId, hidden: &[u8]) -> Result<(), LayerFault> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerFault::Whiteout);
        }
        let Some(id) = self.child(parent, hidden) else {
            let inode = Inode { kind: Kind::Whiteout, meta: Meta::default(), implied: false, opaque: false };
            return self.put(parent, hidden, inode);
        };
        let inode = &mut self.tree.inodes[id as usize];
        if matches!(inode.kind, Kind::Dir(_)) {
            (inode.opaque, inode.implied) = (true, false);
        }
        Ok(())
    }

    fn hardlink(
        &mut self,
        parent: InodeId,
        base: &[u8],
        target: &[u8],
        meta: Meta,
    ) -> Result<(), LayerFault> {
        let missing = || LayerFault::LinkTarget(lossy(target));
        let parts = clean(target);
        let Some((&name, parents)) = parts.split_last() else { return Err(LayerFault::LinkToDir) };
        let mut way = resolve(&self.tree, parents, &mut self.budget).map_err(|_| missing())?;
        let dir = way.last().map_or(Some(ROOT), |last| last.0);
        if dir == Some(parent) && name == base {
            return Err(LayerFault::LinkToSelf);
        }
        let found = dir.and_then(|dir| self.child(dir, name));
        match found.map(|id| (id, self.tree.get(id))) {
            Some((_, Inode { kind: Kind::Dir(_), .. })) => Err(LayerFault::LinkToDir),
            Some((_, Inode { kind: Kind::Whiteout, meta, .. })) if !meta.xattrs.contains_key(LINK_XATTR) => {
                Err(missing())
            }
            Some((id, _)) => {
                self.tree.inodes[id as usize].linked(&meta);
                self.link(parent, base, id);
                Ok(())
            }
            None => {
                way.push((None, name));
                let target = join(way.iter().map(|part| part.1));
                self.meta_bytes += target.len() as u64;
                let mut meta = meta;
                meta.xattrs.insert(LINK_XATTR.into(), target);
                self.put(parent, base, Inode { kind: Kind::Whiteout, meta, implied: false, opaque: false })
            }
        }
    }

    fn child(&self, dir: InodeId, name: &[u8]) -> Option<InodeId> {
        self.tree.entries(dir)?.get(name).copied()
    }

    fn put(&mut self, dir: InodeId, name: &[u8], inode: Inode) -> Result<(), LayerFault> {
        let id = self.push(inode)?;
        self.link(dir, name, id);
        Ok(())
    }

    fn push(&mut self, inode: Inode) -> Result<InodeId, LayerFault> {
        if self.tree.inodes.len() as u64 >= MAX_ENTRIES {
            return Err(LayerFault::TooManyFiles);
        }
        Ok(self.tree.push(inode))
    }

    fn link(&mut self, dir: InodeId, name: &[u8], id: InodeId) {
        if let Kind::Dir(entries) = &mut self.tree.inodes[dir as usize].kind
            && entries.insert(name.into(), id).is_some()
        {
            // A folder on the way to the remembered one may be gone.
            self.last = None;
        }
    }

    /// The folder these components lead to, made as far as it is missing.
    fn parent(&mut self, parts: &[&[u8]]) -> Result<InodeId, LayerFault> {
        let path = join(parts.iter().copied());
        if let Some((last, id)) = &self.last
            && *last == path
        {
            return Ok(*id);
        }
        let way = resolve(&self.tree, parts, &mut self.budget)?;
        let way: Vec<(Option<InodeId>, Name)> = way.into_iter().map(|(id, name)| (id, name.into())).collect();
        let mut dir = ROOT;
        for (id, name) in way {
            dir = match id.map(|id| (id, &self.tree.get(id).kind)) {
                Some((id, Kind::Dir(_))) => id,
                // Hidden below, needed here: an empty folder of this layer.
                Some((_, Kind::Whiteout)) => self.implied(dir, &name, true)?,
                Some(_) => return Err(WalkError::NotDir.into()),
                None => self.implied(dir, &name, false)?,
            };
        }
        self.last = Some((path, dir));
        Ok(dir)
    }

    fn implied(&mut self, dir: InodeId, name: &[u8], opaque: bool) -> Result<InodeId, LayerFault> {
        let id = self.push(Inode { opaque, implied: !opaque, ..Inode::implied_dir() })?;
        self.link(dir, name, id);
        Ok(id)
    }
}

/// Attributes that Linux file systems know and an image may set. overlayfs's own would let a layer
/// redirect paths; hoist's own tell of the tree.
fn settable(name: &[u8]) -> bool {
    const KNOWN: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let acl = matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default");
    let known = KNOWN.iter().any(|p| name.len() > p.len() && name.starts_with(p));
    acl || known && !crate::tree::is_reserved(name)
}

pub(crate) fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(300).collect()
}
