//! The kernel mounts the image file over the data files and shows what the tree says.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use hoist_format::erofs::encode;
use hoist_format::tree::{Inode, Kind, Tree};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::support::*;

struct Mount(PathBuf);

impl Mount {
    /// `mount(2)` with the files themselves, without loop devices.
    fn new(image: &Path, data: &[PathBuf], at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let options: Vec<_> = data.iter().map(|d| format!("device={}", d.display())).collect();
        let options = CString::new(options.join(",")).unwrap();
        mount(image, &at, "erofs", MountFlags::RDONLY, Some(options.as_c_str()))
            .expect("mounting needs root and a kernel with file-backed EROFS (6.12)");
        Self(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A busy mount would leave the temporary folder behind; nothing more can be done here.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn the_kernel_shows_a_rich_tree() {
    let tmp = tempfile::tempdir().unwrap();
    let tree = rich();
    let image = tmp.path().join("image");
    fs::write(&image, encode(&tree, &devices()).unwrap()).unwrap();
    let mount = Mount::new(&image, &data_files(tmp.path()), tmp.path().join("mnt"));
    let all = paths(&tree);
    for (path, (inode, leader)) in &all {
        let at = mount.0.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)));
        let links = if matches!(inode.kind, Kind::Dir(_)) {
            2 + subdirs(&tree, path)
        } else {
            all.values().filter(|(_, l)| l == leader).count() as u64
        };
        compare(&at, inode, links);
        if matches!(inode.kind, Kind::Dir(_)) {
            compare_names(&tree, path, &at);
        }
    }
}

#[test]
fn the_kernel_walks_a_folder_of_70_000() {
    let tmp = tempfile::tempdir().unwrap();
    let mut tree = Tree { inodes: vec![dir()] };
    for i in 0..70_000u32 {
        add(&mut tree, 0, format!("{:x}", i.wrapping_mul(2_654_435_761)).as_bytes(), file(0, 0, 0));
    }
    let image = tmp.path().join("image");
    fs::write(&image, encode(&tree, &[]).unwrap()).unwrap();
    let mount = Mount::new(&image, &[], tmp.path().join("mnt"));
    compare_names(&tree, b"", &mount.0);
    for name in tree.entries(0).unwrap().keys().step_by(97) {
        assert!(fs::symlink_metadata(mount.0.join(OsStr::from_bytes(name))).unwrap().is_file());
    }
    assert!(fs::symlink_metadata(mount.0.join("absent")).is_err());
}

fn subdirs(tree: &Tree, path: &[u8]) -> u64 {
    let entries = tree.entries(tree.lookup(path).unwrap()).unwrap();
    entries.values().filter(|&&id| tree.entries(id).is_some()).count() as u64
}

fn compare_names(tree: &Tree, path: &[u8], at: &Path) {
    let entries = tree.entries(tree.lookup(path).unwrap()).unwrap();
    let names: Vec<Vec<u8>> = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name().into_vec()).collect();
    assert!(names.iter().map(|n| &n[..]).eq(entries.keys().map(|n| &**n)), "{at:?}");
}

fn compare(at: &Path, inode: &Inode, links: u64) {
    let meta = fs::symlink_metadata(at).unwrap_or_else(|e| panic!("{at:?}: {e}"));
    let (time, want) = (inode.meta.mtime, &inode.meta);
    assert_eq!(meta.mode() & 0o7777, u32::from(want.perm), "{at:?}");
    assert_eq!((meta.uid(), meta.gid()), (want.uid, want.gid), "{at:?}");
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (time.secs, time.nanos.into()), "{at:?}");
    assert_eq!(meta.nlink(), links, "{at:?}");
    let rdev = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let kind = meta.file_type();
    match &inode.kind {
        Kind::Dir(_) => assert!(kind.is_dir()),
        Kind::File { size, data } => {
            assert!(kind.is_file());
            assert_eq!(meta.len(), *size);
            compare_content(at, *size, data.layer, data.offset);
        }
        Kind::Symlink(target) => {
            let read = fs::read_link(at).unwrap_or_else(|e| panic!("{at:?}: {e}"));
            assert_eq!(read.as_os_str().as_bytes(), &**target);
        }
        Kind::Char(dev) => assert!(kind.is_char_device() && rdev == (dev.major, dev.minor)),
        Kind::Block(dev) => assert!(kind.is_block_device() && rdev == (dev.major, dev.minor)),
        Kind::Whiteout => assert!(kind.is_char_device() && rdev == (0, 0)),
        Kind::Fifo => assert!(kind.is_fifo()),
        Kind::Socket => assert!(kind.is_socket()),
    }
    compare_xattrs(at, inode);
}

/// Start and end; the data files are zeros behind what was filled.
fn compare_content(at: &Path, size: u64, layer: u16, offset: u64) {
    let file = fs::File::open(at).unwrap();
    let mut got = vec![0; size.min(1 << 20) as usize];
    for start in [0, size - got.len() as u64] {
        file.read_exact_at(&mut got, start).unwrap();
        let want = (offset + start..).take(got.len());
        let mut want = want.map(|o| if o < FILLED { pattern(layer, o) } else { 0 });
        assert!(got.iter().all(|b| Some(*b) == want.next()), "{at:?} from {start}");
    }
    assert_eq!(file.read_at(&mut [0], size).unwrap(), 0);
}

fn compare_xattrs(at: &Path, inode: &Inode) {
    let mut want: BTreeMap<Vec<u8>, Vec<u8>> =
        inode.meta.xattrs.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
    want.remove(&b"btrfs.compression"[..]);
    if inode.opaque {
        want.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
    }
    if inode.implied {
        want.insert(b"trusted.hoist.implied".to_vec(), b"y".to_vec());
    }
    let mut list = vec![0; 65_536];
    let len = rustix::fs::llistxattr(at, &mut list[..]).unwrap();
    let names = list[..len].split_inclusive(|&c| c == 0).map(|n| &n[..n.len() - 1]);
    let got: BTreeMap<Vec<u8>, Vec<u8>> = names
        .map(|name| {
            let mut value = vec![0; 65_536];
            let key = CString::new(name).unwrap();
            let len = rustix::fs::lgetxattr(at, key.as_c_str(), &mut value[..]).unwrap();
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect();
    assert!(got == want, "{at:?}: {:?} != {:?}", got.keys(), want.keys());
}
