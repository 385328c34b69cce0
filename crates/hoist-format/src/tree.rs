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
