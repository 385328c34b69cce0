//! Any bytes as an EROFS image: errors are fine, panics are bugs, and a tree that was read and can
//! be written reads the same again. Random bytes hardly get past the superblock, so a real image is
//! damaged too: three bytes of the input are a place in it and what stands there.
#![no_main]

use std::collections::BTreeMap;

use hoist_format::erofs::{Bytes, Image, decode, decode_foreign, encode};
use hoist_format::tree::{FileData, Inode, Kind, Tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check(bytes.to_vec());
    let mut image = sample();
    for patch in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]]));
        // Only the second KiB and on hold anything.
        if let Some(byte) = image.get_mut(1024 + at) {
            *byte = patch[2];
        }
    }
    check(image);
});

/// A folder in the root folder with a symbolic link, a file without data and a pipe.
fn sample() -> Vec<u8> {
    let mut tree = Tree::default();
    let inode = |kind| Inode { kind, ..Inode::implied_dir() };
    let mut entries = BTreeMap::new();
    for (name, kind) in [
        (&b"link"[..], Kind::Symlink(b"../target"[..].into())),
        (b"file", Kind::File { size: 0, data: FileData::default() }),
        (b"pipe", Kind::Fifo),
    ] {
        entries.insert(name.into(), tree.push(inode(kind)));
    }
    let folder = tree.push(inode(Kind::Dir(entries)));
    tree.inodes[0].kind = Kind::Dir(BTreeMap::from([(b"folder"[..].into(), folder)]));
    encode(&tree, &[]).expect("it is a plain tree")
}

fn check(mut image: Vec<u8>) {
    // Most inputs would end at the checksum.
    if let Some(compat) = image.get_mut(1024 + 8) {
        *compat &= !1;
    }
    if let Ok(image) = Image::new(&image) {
        let _ = image.owner_of(0, 0);
    }
    let _ = decode_foreign(Bytes::Whole(&image));
    let Ok(tree) = decode(&image) else { return };
    let devices = Image::new(&image).expect("it was just decoded").devices().to_vec();
    if let Ok(again) = encode(&tree, &devices) {
        assert_eq!(decode(&again).as_ref(), Ok(&tree));
    }
}
