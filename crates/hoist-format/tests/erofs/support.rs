//! Trees to write, and data files with known bytes to stand behind them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hoist_format::erofs::Device;
use hoist_format::tree::{Dev, FileData, Inode, InodeId, Kind, Meta, ROOT, Time, Tree};

pub const BLOCK: u64 = 4096;
/// Bytes at the start of each data file that hold [`pattern`].
pub const FILLED: u64 = 4 << 20;
pub const TERA: u64 = 1 << 40;

/// The byte at `offset` of layer `layer`'s data file.
pub fn pattern(layer: u16, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 ^ layer as u8 | 1
}

pub fn devices() -> Vec<Device> {
    vec![Device { tag: "1f".repeat(32), size: 12 * TERA }, Device { tag: "a-layer".into(), size: FILLED }]
}

/// Sparse data files of the devices' sizes, filled at their start.
pub fn data_files(dir: &Path) -> Vec<PathBuf> {
    let files = devices().into_iter().enumerate().map(|(layer, device)| {
        let path = dir.join(format!("data{layer}"));
        let file = File::create(&path).unwrap();
        file.set_len(device.size).unwrap();
        let bytes: Vec<u8> = (0..FILLED).map(|o| pattern(layer as u16, o)).collect();
        file.write_all_at(&bytes, 0).unwrap();
        path
    });
    files.collect()
}

pub fn add(tree: &mut Tree, dir: InodeId, name: &[u8], inode: Inode) -> InodeId {
    let id = tree.push(inode);
    link(tree, dir, name, id);
    id
}

pub fn link(tree: &mut Tree, dir: InodeId, name: &[u8], id: InodeId) {
    match &mut tree.inodes[dir as usize].kind {
        Kind::Dir(entries) => entries.insert(name.into(), id),
        other => panic!("{other:?} is no folder"),
    };
}

pub fn inode(kind: Kind, perm: u16, secs: i64) -> Inode {
    let meta = Meta { perm, mtime: Time { secs, nanos: 0 }, ..Meta::default() };
    Inode { kind, meta, implied: false, opaque: false }
}

pub fn dir() -> Inode {
    inode(Kind::Dir(BTreeMap::new()), 0o755, 1_700_000_000)
}

pub fn file(size: u64, layer: u16, offset: u64) -> Inode {
    inode(Kind::File { size, data: FileData { layer, offset } }, 0o644, 1_700_000_000)
}

pub fn xattr(inode: &mut Inode, name: &[u8], value: &[u8]) {
    inode.meta.xattrs.insert(name.into(), value.into());
}

/// A little-endian POSIX ACL: owner rwx, user 1000 rw, group r-x, mask rwx, others none.
pub fn acl() -> Vec<u8> {
    let entries =
        [(1u16, 7u16, u32::MAX), (2, 6, 1000), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// Everything a tree can say, and every boundary of the format.
pub fn rich() -> Tree {
    let mut tree = Tree { inodes: vec![dir()] };
    let t = &mut tree;
    sizes(t);
    kinds(t);
    metas(t);
    names(t);
    attributes(t);
    tree
}

fn sizes(t: &mut Tree) {
    let d = add(t, ROOT, b"sizes", dir());
    let mut offset = 0;
    for size in [1, 4095, 4096, 4097, 8192, 65_537, 1 << 20] {
        add(t, d, format!("{size}").as_bytes(), file(size, 0, offset));
        add(t, d, format!("{size}-layer1").as_bytes(), file(size, 1, offset));
        offset += size.next_multiple_of(BLOCK);
    }
    add(t, d, b"empty", file(0, 0, 0));
    add(t, d, b"sparse-3T", file(3 * TERA, 0, 0));
    // More than one chunk of the largest kind.
    add(t, d, b"two-chunks-9T", file(9 * TERA, 0, 1 << 20));
    // Beyond 4 GiB, where compact inodes end, and not a power of two.
    add(t, d, b"5G+1", file((5 << 30) + 1, 0, 4096));
    let hard = add(t, d, b"hard", file(100, 1, 8192));
    link(t, d, b"hard2", hard);
    link(t, ROOT, b"hard3", hard);
}

fn kinds(t: &mut Tree) {
    let d = add(t, ROOT, b"kinds", dir());
    add(t, d, b"char", inode(Kind::Char(Dev { major: 1, minor: 3 }), 0o666, 1));
    add(t, d, b"block", inode(Kind::Block(Dev { major: 259, minor: 70_000 }), 0o660, 1));
    add(t, d, b"biggest", inode(Kind::Block(Dev { major: 4095, minor: (1 << 20) - 1 }), 0o660, 1));
    add(t, d, b"fifo", inode(Kind::Fifo, 0o622, 1));
    add(t, d, b"socket", inode(Kind::Socket, 0o777, 1));
    add(t, d, b"whiteout", inode(Kind::Whiteout, 0, 1));
    for len in [1, 60, 3000, 4000, 4064, 4065, 4095] {
        let target = vec![b'x'; len];
        add(t, d, format!("link{len}").as_bytes(), inode(Kind::Symlink(target.into()), 0o777, 1));
    }
    let opaque = add(t, d, b"opaque", dir());
    t.inodes[opaque as usize].opaque = true;
    add(t, d, b"implied", Inode::implied_dir());
    let both = add(t, d, b"both", Inode::implied_dir());
    t.inodes[both as usize].opaque = true;
}

fn metas(t: &mut Tree) {
    let d = add(t, ROOT, b"metas", dir());
    let times = [(-1, 0), (-5_000_000_000, 999_999_999), (0, 1), (1 << 31, 0), (8_000_000_000, 123_456_789)];
    for (secs, nanos) in times {
        let mut inode = file(5, 1, 0);
        inode.meta.mtime = Time { secs, nanos };
        add(t, d, format!("time{secs}.{nanos}").as_bytes(), inode);
    }
    for (uid, gid) in [(65_535, 0), (65_536, 7), (3, 65_536), (3_000_000_000, 4_000_000_000)] {
        let mut inode = file(5, 1, 0);
        (inode.meta.uid, inode.meta.gid) = (uid, gid);
        add(t, d, format!("owner{uid}.{gid}").as_bytes(), inode);
    }
    for perm in [0o7777, 0o4755, 0o2755, 0o1777, 0] {
        let mut inode = dir();
        inode.meta.perm = perm;
        add(t, d, format!("perm{perm:o}").as_bytes(), inode);
    }
}

fn names(t: &mut Tree) {
    // Names that sort before ".", between "." and "..", and behind; and those that are no UTF-8.
    let d = add(t, ROOT, b"names", dir());
    for name in [&b"!"[..], b"-", b".-", b".!", b"...", b"..a", b".a", b"\xff\xfe", b"a b\nc", b"\x01"] {
        add(t, d, name, file(3, 1, 0));
    }
    add(t, d, &[b'n'; 255], file(3, 1, 0));
    // Folders of every length around a block's end.
    for count in [14, 15, 16, 30, 31, 200] {
        let sub = add(t, d, format!("dir{count}").as_bytes(), dir());
        for i in 0..count {
            let name = format!("{i:0>255}");
            add(t, sub, name.as_bytes(), file(3, 1, 0));
        }
    }
    let mut deep = d;
    for _ in 0..300 {
        deep = add(t, deep, b"d", dir());
    }
}

fn attributes(t: &mut Tree) {
    let d = add(t, ROOT, b"attributes", dir());
    let mut plain = file(9, 1, 4096);
    xattr(&mut plain, b"user.empty", b"");
    xattr(&mut plain, b"user.once", b"only here");
    xattr(&mut plain, b"user.shared", b"in both");
    xattr(&mut plain, b"security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    xattr(&mut plain, b"trusted.secret", b"\0\xff");
    add(t, d, b"first", plain.clone());
    xattr(&mut plain, b"user.once", b"but another value");
    add(t, d, b"second", plain);
    let mut folder = dir();
    xattr(&mut folder, b"system.posix_acl_access", &acl());
    xattr(&mut folder, b"system.posix_acl_default", &acl());
    folder.meta.perm = 0o770;
    add(t, d, b"acl", folder);
    let mut linked = inode(Kind::Symlink([b't'; 3900].into()), 0o777, 1);
    xattr(&mut linked, b"trusted.on-a-link", &[b'v'; 150]);
    add(t, d, b"link", linked);
    let mut large = file(9, 1, 4096);
    for i in 0..20 {
        xattr(&mut large, format!("user.large{i}").as_bytes(), &vec![i; 60_000]);
    }
    xattr(&mut large, b"user.largest", &vec![7; 65_535]);
    add(t, d, b"large", large);
    let mut many = file(9, 1, 4096);
    for i in 0..200 {
        xattr(&mut many, format!("user.{i:0>200}").as_bytes(), &[b'm'; 900]);
    }
    add(t, d, b"many", many);
    // The kernel does not show what it has no prefix number for; a decoder must.
    let mut odd = file(9, 1, 4096);
    xattr(&mut odd, b"btrfs.compression", b"zstd");
    add(t, d, b"odd", odd);
}

/// What a tree says, whatever the order of its inodes: all paths, each with its inode and the
/// first path of the same inode.
pub fn paths(tree: &Tree) -> BTreeMap<Vec<u8>, (Inode, Vec<u8>)> {
    let mut first = BTreeMap::new();
    let mut all = BTreeMap::new();
    let mut todo = vec![(Vec::new(), ROOT)];
    while let Some((path, id)) = todo.pop() {
        let mut inode = tree.get(id).clone();
        if let Kind::Dir(entries) = std::mem::replace(&mut inode.kind, Kind::Fifo) {
            inode.kind = Kind::Dir(BTreeMap::new());
            todo.extend(entries.into_iter().map(|(name, id)| ([&path[..], b"/", &name].concat(), id)));
        } else {
            inode.kind = tree.get(id).kind.clone();
        }
        let leader: &mut Vec<u8> = first.entry(id).or_insert_with(|| path.clone());
        let leader = leader.clone();
        all.insert(path, (inode, leader));
    }
    all
}
