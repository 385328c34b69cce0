//! The one shape every format decodes to: a tree of inodes whose file contents are ranges of
//! data files (an address space of hoist's own, one per layer; see [`crate::extent`]).

use std::collections::BTreeMap;

/// Index into [`Tree::inodes`].
pub type InodeId = u32;

/// The root folder of every tree.
pub const ROOT: InodeId = 0;

/// A file name or link target or xattr key: raw bytes, never UTF-8 by right.
pub type Name = Box<[u8]>;

/// Nanosecond time since 1970, negative seconds allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// 0 to 999,999,999 on top.
    pub nanos: u32,
}

/// What every inode has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission, set-id and sticky bits: `mode & 0o7777`.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Extended attributes by full name (`user.x`, `security.capability`).
    pub xattrs: BTreeMap<Name, Name>,
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dev {
    /// Up to 12 bits in the kernel.
    pub major: u32,
    /// Up to 20 bits in the kernel.
    pub minor: u32,
}

/// One contiguous, 4 KiB aligned range of a layer's data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileData {
    /// Which layer of the image, lowest first from 0; always 0 in a single layer's tree.
    pub layer: u16,
    /// Byte offset in the layer's data file, a multiple of 4096. Meaningless for an empty file.
    pub offset: u64,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder: its entries by name, without `.` and `..`.
    Dir(BTreeMap<Name, InodeId>),
    /// A regular file of `size` bytes.
    File {
        /// Bytes.
        size: u64,
        /// Where they are.
        data: FileData,
    },
    /// A symbolic link and its target.
    Symlink(Name),
    /// A character device.
    Char(Dev),
    /// A block device.
    Block(Dev),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Only in a single layer's tree: hides the lower layers' entry of that name
    /// (OCI image-spec `layer.md`, "Whiteouts").
    Whiteout,
}

/// One file of any kind. Hard links are several entries that name one inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Its attributes.
    pub meta: Meta,
    /// A folder that had no entry of its own: in a merge the lower layer's attributes stay.
    pub implied: bool,
    /// A folder that hides everything of the lower layers (`.wh..wh..opq`).
    pub opaque: bool,
}

/// All inodes of a layer or of an image. `inodes[0]` is the root folder. Inodes which no folder
/// reaches any more (overwritten paths) may stand in the list; encoders write only reachable ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Every inode; [`InodeId`] is the index.
    pub inodes: Vec<Inode>,
}

impl Inode {
    /// An implied folder: root-owned, 0755, time 0.
    pub fn implied_dir() -> Self {
        Self {
            kind: Kind::Dir(BTreeMap::new()),
            meta: Meta { perm: 0o755, ..Meta::default() },
            implied: true,
            opaque: false,
        }
    }

    /// Takes the attributes of a hard link to it, as appliers set them through the new name: chown (which takes file
    /// capabilities away), setxattr, chmod (which symbolic links have not), utimes.
    pub(crate) fn linked(&mut self, link: &Meta) {
        let meta = &mut self.meta;
        (meta.uid, meta.gid, meta.mtime) = (link.uid, link.gid, link.mtime);
        meta.xattrs.remove(&b"security.capability"[..]);
        meta.xattrs.extend(link.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())));
        if !matches!(self.kind, Kind::Symlink(_)) {
            meta.perm = link.perm;
        }
    }
}

/// Attributes that overlayfs and hoist keep for themselves: no image has a say in them.
pub(crate) fn is_reserved(xattr: &[u8]) -> bool {
    const RESERVED: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"trusted.hoist."];
    RESERVED.iter().any(|prefix| xattr.starts_with(prefix))
}

/// With these overlayfs has a file's contents, or a folder's, elsewhere (kernel
/// `Documentation/filesystems/overlayfs.rst`).
const ELSEWHERE: [&[u8]; 4] = [
    b"trusted.overlay.redirect",
    b"trusted.overlay.metacopy",
    b"user.overlay.redirect",
    b"user.overlay.metacopy",
];

impl Default for Tree {
    fn default() -> Self {
        Self { inodes: vec![Inode::implied_dir()] }
    }
}

impl Tree {
    /// The inode `id`. Panics only on an id that is not of this tree, which is a bug.
    pub fn get(&self, id: InodeId) -> &Inode {
        &self.inodes[id as usize]
    }
    /// The entries of folder `id`, or None when it is no folder.
    pub fn entries(&self, id: InodeId) -> Option<&BTreeMap<Name, InodeId>> {
        match &self.get(id).kind {
            Kind::Dir(entries) => Some(entries),
            _ => None,
        }
    }
    /// Takes these names out of the root folder.
    pub fn hide(&mut self, names: &[&[u8]]) {
        if let Kind::Dir(entries) = &mut self.inodes[ROOT as usize].kind {
            entries.retain(|name, _| !names.contains(&&**name));
        }
    }
    /// Makes the tree of a file system that is a whole image what a container shall see of it: that stands below an
    /// overlayfs, which would take some devices for whiteouts and some attributes for its own. There is nothing below
    /// for them to mean anything.
    ///
    /// # Errors
    /// A file that has its contents elsewhere.
    pub(crate) fn settle(&mut self) -> Result<(), &'static str> {
        let whiteout = Kind::Char(Dev { major: 0, minor: 0 });
        let is_hidden = |inode: &Inode| inode.kind == Kind::Whiteout || inode.kind == whiteout;
        let hidden: Vec<bool> = self.inodes.iter().map(is_hidden).collect();
        for inode in &mut self.inodes {
            if ELSEWHERE.iter().any(|name| inode.meta.xattrs.contains_key(*name)) {
                return Err("it renames or shares files by attributes of overlayfs");
            }
            inode.meta.xattrs.retain(|name, _| !is_reserved(name));
            (inode.implied, inode.opaque) = (false, false);
            if let Kind::Dir(entries) = &mut inode.kind {
                entries.retain(|_, id| !hidden.get(*id as usize).is_some_and(|hidden| *hidden));
            }
        }
        Ok(())
    }
    /// Appends an inode that no folder names yet.
    pub fn push(&mut self, inode: Inode) -> InodeId {
        self.inodes.push(inode);
        (self.inodes.len() - 1) as InodeId
    }
    /// Finds a path (`/`-separated, leading `/` and `.` components ignored) without following links.
    pub fn lookup(&self, path: &[u8]) -> Option<InodeId> {
        let mut parts = path.split(|&c| c == b'/').filter(|p| !p.is_empty() && *p != b".");
        parts.try_fold(ROOT, |at, name| self.entries(at)?.get(name).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_image_has_nothing_for_overlayfs() {
        let mut tree = Tree::default();
        let mut entries = BTreeMap::new();
        for (name, kind) in [
            (&b"null"[..], Kind::Char(Dev { major: 1, minor: 3 })),
            (b"zero", Kind::Char(Dev { major: 0, minor: 0 })),
            (b"white", Kind::Whiteout),
            (b"block", Kind::Block(Dev { major: 0, minor: 0 })),
            (b"pipe", Kind::Fifo),
        ] {
            entries.insert(name.into(), tree.push(Inode { kind, ..Inode::implied_dir() }));
        }
        tree.inodes[0].kind = Kind::Dir(entries);
        tree.inodes[0].opaque = true;
        for name in ["trusted.overlay.opaque", "user.overlay.origin", "trusted.hoist.implied", "trusted.md5"]
        {
            tree.inodes[0].meta.xattrs.insert(name.as_bytes().into(), b"y"[..].into());
        }
        let mut other = tree.clone();
        tree.settle().unwrap();
        let names: Vec<_> = tree.entries(ROOT).unwrap().keys().map(|name| &**name).collect();
        assert_eq!(names, [&b"block"[..], b"null", b"pipe"]);
        let xattrs: Vec<_> = tree.get(ROOT).meta.xattrs.keys().map(|name| &**name).collect();
        assert_eq!(xattrs, [b"trusted.md5"]);
        assert!(!tree.get(ROOT).opaque && !tree.get(ROOT).implied);
        other.inodes[1].meta.xattrs.insert(b"user.overlay.metacopy"[..].into(), b""[..].into());
        assert!(other.settle().is_err());
    }
}
