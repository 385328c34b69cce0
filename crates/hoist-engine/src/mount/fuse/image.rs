//! A whole image as a FUSE file system: every answer but file contents is read out of the EROFS image.
//!
//! Inode numbers of the session are those of the image, moved by two, but for the root folder, which FUSE
//! wants to be 1. So nothing has to be remembered, and a successor process gives the same numbers.

use std::sync::Arc;

use hoist_format::erofs::{self, DecodeError, Node, NodeKind};
use hoist_sys::fuse::{
    self, Answer, Attributes, Entry, FileSystem, Handler, Listing, Operation, ROOT, Request,
};

use super::super::upkeep::Tree;
use super::data::Data;
use crate::config::Owners;

/// Behind the numbers that FUSE has a meaning for: none (0) and the root.
const FIRST: u64 = 2;

pub(super) struct ImageFs {
    tree: Arc<Tree>,
    head: erofs::Head,
    data: Arc<Data>,
    owners: Owners,
    /// Whether root may see `trusted.` attributes here.
    trusted: bool,
    shown: FileSystem,
}

/// Why a request gets an errno.
enum Refusal {
    Errno(i32),
    Damaged(DecodeError),
}

impl From<DecodeError> for Refusal {
    fn from(e: DecodeError) -> Self {
        Self::Damaged(e)
    }
}

type Reply = Result<Vec<u8>, Refusal>;

fn errno<T>(errno: i32) -> Result<T, Refusal> {
    Err(Refusal::Errno(errno))
}

impl Handler for ImageFs {
    fn handle(&self, request: &Request<'_>, answer: Answer) {
        match request.operation {
            Operation::Read { offset, size } => self.read(request, offset, size, answer),
            Operation::Interrupt { unique } => {
                answer.none();
                self.data.interrupt(unique);
            }
            _ => reply(self.answer(request), answer),
        }
    }
}

fn reply(with: Reply, answer: Answer) {
    match with {
        Ok(bytes) => answer.with(&bytes),
        Err(Refusal::Errno(errno)) => answer.fail(errno),
        Err(Refusal::Damaged(e)) => {
            answer.fail(libc::EIO);
            tracing::error!("the image's tree in the store cannot be read: {e}");
        }
    }
}

impl ImageFs {
    pub fn open(
        tree: Arc<Tree>,
        data: Arc<Data>,
        owners: Owners,
        trusted: bool,
    ) -> Result<Self, DecodeError> {
        let image = erofs::Image::new(&tree)?;
        let size = image.devices().iter().map(|d| d.size).sum::<u64>() + tree.len() as u64;
        let shown = FileSystem { blocks: size.div_ceil(4096), files: 0 };
        let head = image.head();
        Ok(Self { tree, head, data, owners, trusted, shown })
    }

    fn image(&self) -> erofs::Image<'_> {
        self.head.over(&self.tree)
    }

    fn nid(&self, image: &erofs::Image<'_>, node: u64) -> Result<u64, Refusal> {
        match node {
            ROOT => Ok(image.root()),
            _ => node.checked_sub(FIRST).ok_or(Refusal::Errno(libc::ESTALE)),
        }
    }

    fn entry(&self, image: &erofs::Image<'_>, node: &Node<'_>) -> Result<Entry, Refusal> {
        let number = if node.nid == image.root() { Some(ROOT) } else { node.nid.checked_add(FIRST) };
        let node_number = number.ok_or(Refusal::Errno(libc::EIO))?;
        Ok(Entry { node: node_number, attributes: self.attributes(node) })
    }

    fn attributes(&self, node: &Node<'_>) -> Attributes {
        let device = match node.kind {
            NodeKind::Char(dev) | NodeKind::Block(dev) => (dev.major, dev.minor),
            _ => (0, 0),
        };
        let (uid, gid) = match self.owners {
            Owners::Image => (node.uid, node.gid),
            Owners::Root => (0, 0),
        };
        Attributes {
            ino: node.nid,
            size: node.size,
            seconds: node.mtime.secs,
            nanoseconds: node.mtime.nanos,
            mode: node.mode.into(),
            nlink: node.nlink,
            uid,
            gid,
            device,
        }
    }

    /// Everything but file contents.
    fn answer(&self, request: &Request<'_>) -> Reply {
        let image = self.image();
        if request.operation == Operation::Statfs {
            return Ok(fuse::statfs(&self.shown));
        }
        let node = image.inode(self.nid(&image, request.node)?)?;
        match request.operation {
            Operation::Lookup { name } => self.lookup(&image, &node, name),
            Operation::Getattr => Ok(fuse::attributes(&self.attributes(&node))),
            Operation::Readlink => match node.kind {
                NodeKind::Symlink(target) => Ok(target.to_vec()),
                _ => errno(libc::EINVAL),
            },
            Operation::Readdir { offset, size, plus } => self.list(&image, &node, offset, size, plus),
            Operation::Getxattr { name, size } => self.attribute(&image, &node, request, name, size),
            Operation::Listxattr { size } => self.attribute_names(&image, &node, request, size),
            // ENOSYS to an open: files and folders need none, and the kernel never asks again.
            _ => errno(libc::ENOSYS),
        }
    }

    fn lookup(&self, image: &erofs::Image<'_>, folder: &Node<'_>, name: &[u8]) -> Reply {
        if name == b"." {
            // How the kernel asks for an inode that it has forgotten, be it a folder or not.
            return Ok(fuse::entry(&self.entry(image, folder)?));
        }
        if folder.kind != NodeKind::Dir {
            return errno(libc::ENOTDIR);
        }
        match image.find(folder, name)? {
            Some(found) => Ok(fuse::entry(&self.entry(image, &image.inode(found.nid)?)?)),
            None => Ok(fuse::negative_entry()),
        }
    }

    fn list(&self, image: &erofs::Image<'_>, folder: &Node<'_>, from: u64, size: u32, plus: bool) -> Reply {
        if folder.kind != NodeKind::Dir {
            return errno(libc::ENOTDIR);
        }
        let mut listing = Listing::new(size);
        let mut entries = image.entries_from(folder, from);
        while let Some(entry) = entries.next().transpose()? {
            let (kind, next) = (directory_type(entry.file_type), entries.position());
            let added = match plus {
                false => listing.add(entry.name, entry.nid, kind, next),
                true => {
                    let known = matches!(entry.name, b"." | b"..");
                    let shown = match known {
                        true => None,
                        false => Some(self.entry(image, &image.inode(entry.nid)?)?),
                    };
                    listing.add_plus(entry.name, shown.as_ref(), entry.nid, kind, next)
                }
            };
            if !added {
                break;
            }
        }
        Ok(listing.finish())
    }

    fn attribute(
        &self,
        image: &erofs::Image<'_>,
        node: &Node<'_>,
        request: &Request<'_>,
        name: &[u8],
        size: u32,
    ) -> Reply {
        if !self.shows(request, name) {
            return errno(libc::ENODATA);
        }
        match image.xattrs(node)?.get(name) {
            Some(value) => sized(value, size),
            None => errno(libc::ENODATA),
        }
    }

    fn attribute_names(
        &self,
        image: &erofs::Image<'_>,
        node: &Node<'_>,
        request: &Request<'_>,
        size: u32,
    ) -> Reply {
        let mut names = Vec::new();
        for name in image.xattrs(node)?.keys().filter(|name| self.shows(request, name)) {
            names.extend_from_slice(name);
            names.push(0);
        }
        sized(&names, size)
    }

    /// Whether the kernel's EROFS would show an attribute of this name to who asks.
    fn shows(&self, request: &Request<'_>, name: &[u8]) -> bool {
        const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
        let known = name.starts_with(b"user.") || name.starts_with(b"security.") || ACLS.contains(&name);
        known || name.starts_with(b"trusted.") && self.trusted && request.uid == 0
    }

    fn read(&self, request: &Request<'_>, offset: u64, size: u32, answer: Answer) {
        let image = self.image();
        let place = || -> Result<_, Refusal> {
            let node = image.inode(self.nid(&image, request.node)?)?;
            match node.kind {
                NodeKind::File(at) => Ok((at, node.size)),
                NodeKind::Dir => errno(libc::EISDIR),
                _ => errno(libc::EINVAL),
            }
        };
        match place() {
            Ok((at, file_size)) => {
                let len = file_size.saturating_sub(offset).min(u64::from(size)) as usize;
                if len == 0 {
                    return answer.with(&[]);
                }
                self.data.read(usize::from(at.layer), at.offset + offset, len, request.pid, answer);
            }
            Err(refusal) => reply(Err(refusal), answer),
        }
    }
}

/// An attribute's value or, for who has no room yet, its size.
fn sized(value: &[u8], room: u32) -> Reply {
    match room {
        0 => Ok(fuse::xattr_size(value.len() as u32)),
        _ if value.len() > room as usize => errno(libc::ERANGE),
        _ => Ok(value.to_vec()),
    }
}

/// `DT_*` for `EROFS_FT_*`.
fn directory_type(erofs: u8) -> u32 {
    match erofs {
        1 => libc::DT_REG,
        2 => libc::DT_DIR,
        3 => libc::DT_CHR,
        4 => libc::DT_BLK,
        5 => libc::DT_FIFO,
        6 => libc::DT_SOCK,
        7 => libc::DT_LNK,
        _ => libc::DT_UNKNOWN,
    }
    .into()
}
