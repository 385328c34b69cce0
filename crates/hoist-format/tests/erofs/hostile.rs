//! Damaged images: an error or a tree, never a panic or an endless loop.

use hoist_format::erofs::{DecodeError, Image, decode, encode};
use hoist_format::tree::{Kind, ROOT, Tree};

use crate::support::*;

/// One of each kind, in few bytes, and without the checksum that would catch all damage at once.
fn small() -> Vec<u8> {
    let mut tree = Tree { inodes: vec![dir()] };
    let t = &mut tree;
    let d = add(t, ROOT, b"dir", dir());
    add(t, d, b"link", inode(Kind::Symlink(b"target"[..].into()), 0o777, 1));
    let mut f = file(5, 1, 4096);
    xattr(&mut f, b"user.one", b"shared");
    xattr(&mut f, b"user.two", b"inline");
    let f = add(t, d, b"file", f);
    link(t, ROOT, b"hard", f);
    let mut g = file(9000, 0, 4096);
    xattr(&mut g, b"user.one", b"shared");
    add(t, d, b"other", g);
    let mut image = encode(&tree, &devices()).unwrap();
    image[1024 + 8] &= !1;
    image
}

#[test]
fn every_bit_flipped() {
    let sound = small();
    decode(&sound).unwrap();
    let mut image = sound.clone();
    for at in 1024..image.len() {
        for bit in 0..8 {
            image[at] ^= 1 << bit;
            let _ = decode(&image);
            image[at] = sound[at];
        }
    }
}

#[test]
fn every_byte_set_to_extremes() {
    let sound = small();
    let mut image = sound.clone();
    for at in 1024..image.len() - 8 {
        for bytes in [[0; 8], [0xff; 8]] {
            image[at..at + 8].copy_from_slice(&bytes);
            let _ = decode(&image);
            image[at..at + 8].copy_from_slice(&sound[at..at + 8]);
        }
    }
}

#[test]
fn every_truncation() {
    let sound = small();
    for len in 0..sound.len() {
        let _ = decode(&sound[..len]);
    }
    assert!(matches!(decode(&sound[..1100]), Err(DecodeError::Superblock(_))));
    assert!(matches!(decode(&sound[..sound.len() - 4096]), Err(DecodeError::Inode { .. })));
}

#[test]
fn the_checksum_guards_the_first_block() {
    let sound = encode(&Tree::default(), &devices()).unwrap();
    for at in (1024..4096).filter(|at| !(1024 + 8..1024 + 13).contains(at)) {
        let mut image = sound.clone();
        image[at] ^= 0x10;
        assert!(decode(&image).is_err(), "byte {at}");
    }
}

/// Several damages at once, the same at every run; what still decodes must survive being written.
#[test]
fn random_damage() {
    let sound = small();
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut survivors = 0;
    for _ in 0..100_000 {
        let mut image = sound.clone();
        for _ in 0..1 + random() % 6 {
            // Most of the image is zeros: stay where the inodes are, mostly.
            let area =
                if random() % 4 == 0 { 1024..image.len() } else { image.len() - 4096..image.len() - 3000 };
            let at = area.start + random() as usize % area.len();
            image[at] = match random() % 3 {
                0 => random() as u8,
                1 => image[at].wrapping_add(1),
                _ => sound[area.start + random() as usize % area.len()],
            };
        }
        let Ok(tree) = decode(&image) else { continue };
        let devices = Image::new(&image).unwrap().devices().to_vec();
        let Ok(again) = encode(&tree, &devices) else { continue };
        assert_eq!(decode(&again).as_ref(), Ok(&tree));
        survivors += 1;
    }
    assert!(survivors > 1000, "{survivors}");
}

/// A folder that contains itself, and one that stands twice.
#[test]
fn loops() {
    let mut tree = Tree { inodes: vec![dir()] };
    add(&mut tree, ROOT, b"aaaa", dir());
    add(&mut tree, ROOT, b"bbbb", dir());
    let sound = encode(&tree, &[]).unwrap();
    let root = 8192 - 4096;
    let find = |name: &[u8]| {
        let entries = (0..4).map(|i| root + tail(&sound[root..]) + i * 12);
        let mut at = entries.filter(|&e| {
            let name_at = root + tail(&sound[root..]) + usize::from(sound[e + 8]);
            sound[name_at..].starts_with(name)
        });
        at.next().unwrap()
    };
    for nid in [sound[find(b".")], sound[find(b"aaaa")]] {
        let mut image = sound.clone();
        image[find(b"bbbb")] = nid;
        let message = decode(&image).unwrap_err().to_string();
        assert!(message.contains("bbbb"), "{message}");
    }
}

fn tail(inode: &[u8]) -> usize {
    if inode[0] & 1 == 1 { 64 } else { 32 }
}
