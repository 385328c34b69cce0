//! Walking a mounted tree as a program would see it, and telling two trees apart.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::digest;

/// A tree: path relative to its root (the root is `.`), as bytes.
pub type Tree = BTreeMap<Vec<u8>, Entry>;

/// What can be seen of one path. Fields that a kind of file has no use for are left at their defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// `dir`, `reg`, `lnk`, `chr`, `blk`, `fifo` or `sock`.
    pub kind: String,
    /// Permission bits with setuid, setgid and sticky; 0o777 for links.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Length of a regular file in bytes.
    pub size: u64,
    /// SHA-256 of a regular file's content, in hexadecimal.
    pub sha256: String,
    /// What a symbolic link says.
    pub target: Vec<u8>,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path (in byte order) of the same inode, if this is another.
    pub same_inode_as: Option<Vec<u8>>,
}

/// Reads everything under `root`, contents included, without crossing into other mounts' names: links are
/// never followed.
pub fn walk(root: &Path) -> Result<Tree> {
    walk_all(root, false)
}

/// The same for an overlayfs, which lists whiteouts in folders that no lower layer has, and then denies that there is
/// anything: such names are no part of the tree.
pub fn walk_overlay(root: &Path) -> Result<Tree> {
    walk_all(root, true)
}

fn walk_all(root: &Path, ghosts: bool) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::new();
    let mut pending = vec![b".".to_vec()];
    while let Some(path) = pending.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let looked = look(&full).with_context(|| format!("looking at {}", full.display()));
        let (entry, inode) = match looked {
            Err(e) if ghosts && is_missing(&e) => continue,
            looked => looked?,
        };
        if entry.kind == "dir" {
            for child in std::fs::read_dir(&full).with_context(|| format!("listing {}", full.display()))? {
                let name =
                    child.with_context(|| format!("listing {}", full.display()))?.file_name().into_vec();
                pending.push(if path == b"." { name } else { [&path[..], b"/", &name].concat() });
            }
        } else {
            inodes.entry(inode).or_insert_with(Vec::new).push(path.clone());
        }
        tree.insert(path, entry);
    }
    link_up(&mut tree, inodes.into_values());
    Ok(tree)
}

/// Marks all but the first path of each group as further names of one inode.
pub(crate) fn link_up(tree: &mut Tree, groups: impl Iterator<Item = Vec<Vec<u8>>>) {
    for mut group in groups {
        group.sort();
        group.dedup();
        for path in &group[1..] {
            if let Some(entry) = tree.get_mut(path) {
                entry.same_inode_as = Some(group[0].clone());
            }
        }
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

fn look(path: &Path) -> Result<(Entry, (u64, u64))> {
    let meta = std::fs::symlink_metadata(path)?;
    let kind = match meta.mode() & 0o170000 {
        0o040000 => "dir",
        0o100000 => "reg",
        0o120000 => "lnk",
        0o020000 => "chr",
        0o060000 => "blk",
        0o010000 => "fifo",
        _ => "sock",
    };
    let mut entry = Entry {
        kind: kind.into(),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        xattrs: xattrs(path)?,
        ..Entry::default()
    };
    match kind {
        "reg" => {
            let (sha256, read) = digest::of_file(path)?;
            anyhow::ensure!(read == meta.len(), "{read} bytes could be read of {}", meta.len());
            entry.size = read;
            entry.sha256 = sha256.trim_start_matches("sha256:").to_owned();
        }
        "lnk" => entry.target = std::fs::read_link(path)?.into_os_string().into_vec(),
        "chr" | "blk" => entry.rdev = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())),
        _ => {}
    }
    Ok((entry, (meta.dev(), meta.ino())))
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // 64 KiB is the kernel's limit for a list and for a value.
    let mut names = vec![0; 64 << 10];
    let n = rustix::fs::llistxattr(path, &mut names).context("listing extended attributes")?;
    names.truncate(n);
    let mut found = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)
            .with_context(|| format!("reading extended attribute {}", String::from_utf8_lossy(name)))?;
        value.truncate(n);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// How `found` differs from `wanted`: one line per difference, none when they are equal.
pub fn diff(found: &Tree, wanted: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, wanted) in wanted {
        match found.get(path) {
            None => lines.push(format!("{}: missing", show(path))),
            Some(found) => diff_entry(&show(path), found, wanted, &mut lines),
        }
    }
    let extra = found.keys().filter(|path| !wanted.contains_key(*path));
    lines.extend(extra.map(|path| format!("{}: should not be there", show(path))));
    lines
}

fn diff_entry(path: &str, found: &Entry, wanted: &Entry, lines: &mut Vec<String>) {
    let mut check = |what: &str, differs: bool, found: String, wanted: String| {
        if differs {
            lines.push(format!("{path}: {what} is {found}, should be {wanted}"));
        }
    };
    let octal = |mode| format!("{mode:#o}");
    let link = |to: &Option<Vec<u8>>| to.as_deref().map_or("none".into(), show);
    check("kind", found.kind != wanted.kind, found.kind.clone(), wanted.kind.clone());
    check("mode", found.mode != wanted.mode, octal(found.mode), octal(wanted.mode));
    check("uid", found.uid != wanted.uid, found.uid.to_string(), wanted.uid.to_string());
    check("gid", found.gid != wanted.gid, found.gid.to_string(), wanted.gid.to_string());
    let mtimes = (found.mtime_ns, wanted.mtime_ns);
    check("mtime_ns", mtimes.0 != mtimes.1, mtimes.0.to_string(), mtimes.1.to_string());
    check("size", found.size != wanted.size, found.size.to_string(), wanted.size.to_string());
    check("sha256", found.sha256 != wanted.sha256, found.sha256.clone(), wanted.sha256.clone());
    check("target", found.target != wanted.target, show(&found.target), show(&wanted.target));
    check("rdev", found.rdev != wanted.rdev, format!("{:?}", found.rdev), format!("{:?}", wanted.rdev));
    let links = (&found.same_inode_as, &wanted.same_inode_as);
    check("first name of its inode", links.0 != links.1, link(links.0), link(links.1));
    for name in found.xattrs.keys().chain(wanted.xattrs.keys().filter(|n| !found.xattrs.contains_key(*n))) {
        let values = (found.xattrs.get(name), wanted.xattrs.get(name));
        let text = |value: Option<&Vec<u8>>| value.map_or("none".into(), |v| digest::hex(v));
        check(&format!("xattr {}", show(name)), values.0 != values.1, text(values.0), text(values.1));
    }
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
