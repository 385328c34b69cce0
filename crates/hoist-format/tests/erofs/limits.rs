//! What EROFS or the kernel can't hold is refused by name.

use hoist_format::erofs::{Device, EncodeError, decode, encode};
use hoist_format::tree::{Dev, Kind, ROOT, Time, Tree};

use crate::support::*;

/// Writes a tree with one entry, which must be refused; the message must name its path.
#[track_caller]
fn refused(name: &[u8], inode: hoist_format::tree::Inode) {
    let mut tree = Tree::default();
    let d = add(&mut tree, ROOT, b"dir", dir());
    add(&mut tree, d, name, inode);
    let message = encode(&tree, &devices()).unwrap_err().to_string();
    assert!(message.contains("/dir/"), "{message}");
}

#[test]
fn impossible_values() {
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        refused(name, dir());
    }
    refused(b"f", file(1, 2, 0));
    refused(b"f", file(1, u16::MAX, 0));
    refused(b"f", file(1, 1, 1));
    refused(b"f", file(FILLED + 1, 1, 0));
    refused(b"f", file(u64::MAX, 1, 4096));
    refused(b"l", inode(Kind::Symlink(b""[..].into()), 0, 0));
    refused(b"l", inode(Kind::Symlink([b'x'; 4096].into()), 0, 0));
    refused(b"l", inode(Kind::Symlink(b"a\0b"[..].into()), 0, 0));
    refused(b"c", inode(Kind::Char(Dev { major: 4096, minor: 0 }), 0, 0));
    refused(b"c", inode(Kind::Block(Dev { major: 0, minor: 1 << 20 }), 0, 0));
    let mut late = dir();
    late.meta.mtime = Time { secs: 0, nanos: 1_000_000_000 };
    refused(b"t", late);
}

#[test]
fn impossible_attributes() {
    let long = [b"user.", &[b'x'; 256][..]].concat();
    let cases: [(&[u8], &[u8]); 5] = [
        (b"", b""),
        (b"user.\0", b""),
        (&long, b""),
        (b"user.v", &[0; 65_536]),
        (b"trusted.hoist.implied", b"y"),
    ];
    for (name, value) in cases {
        let mut inode = dir();
        xattr(&mut inode, name, value);
        refused(b"x", inode);
    }
    let mut many = dir();
    for i in 0..400 {
        xattr(&mut many, format!("user.{i}").as_bytes(), &[0; 1000]);
    }
    refused(b"x", many);
}

#[test]
fn impossible_trees() {
    let mut tree = Tree::default();
    let d = add(&mut tree, ROOT, b"dir", dir());
    link(&mut tree, d, b"loop", ROOT);
    assert_eq!(encode(&tree, &[]), Err(EncodeError::DirTwice { path: "/dir/loop".into() }));
    link(&mut tree, d, b"loop", 99);
    assert_eq!(encode(&tree, &[]), Err(EncodeError::NoInode { path: "/dir/loop".into(), inode: 99 }));
    assert_eq!(encode(&Tree { inodes: vec![] }, &[]), Err(EncodeError::NoRoot));
    assert_eq!(encode(&Tree { inodes: vec![file(0, 0, 0)] }, &[]), Err(EncodeError::NoRoot));
}

#[test]
fn impossible_devices() {
    let cases = [("t".repeat(65), 4096), ("a\0".into(), 4096), ("t".into(), 1), ("t".into(), 16 << 40)];
    for (tag, size) in cases {
        let refusal = encode(&Tree::default(), &[Device { tag, size }]);
        assert!(matches!(refusal, Err(EncodeError::Device { index: 0, .. })));
    }
}

#[test]
fn many_devices() {
    // Enough that the root's inode number would not fit 16 bits if it counted from the start.
    let mut tree = Tree::default();
    add(&mut tree, ROOT, b"last", file(4096, 64_999, 4096));
    let devices: Vec<_> = (0..65_000).map(|i| Device { tag: i.to_string(), size: 8192 }).collect();
    let image = encode(&tree, &devices).unwrap();
    assert_eq!(paths(&decode(&image).unwrap()), paths(&tree));
}
