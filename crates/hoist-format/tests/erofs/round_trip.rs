//! What was written is what is read, by the whole decoder and by the reader in place.

use hoist_format::erofs::{Image, Node, NodeKind, decode, encode};
use hoist_format::tree::{Kind, ROOT, Tree};

use crate::support::*;

#[test]
fn a_rich_tree_survives() {
    let tree = rich();
    let image = encode(&tree, &devices()).unwrap();
    let read = decode(&image).unwrap();
    assert_eq!(paths(&read), paths(&tree));
    assert_eq!(decode(&encode(&read, &devices()).unwrap()).unwrap(), read);
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let first = encode(&rich(), &devices()).unwrap();
    assert!(first == encode(&rich(), &devices()).unwrap());
    assert!(first == encode(&decode(&first).unwrap(), &devices()).unwrap());
}

#[test]
fn unreachable_inodes_are_left_out() {
    let mut tree = Tree::default();
    let small = encode(&tree, &[]).unwrap();
    tree.push(file(1, 9, 9));
    assert!(small == encode(&tree, &[]).unwrap());
    assert_eq!(decode(&small).unwrap(), Tree::default());
}

#[test]
fn every_path_is_found_in_place() {
    let tree = rich();
    let bytes = encode(&tree, &devices()).unwrap();
    let image = Image::new(&bytes).unwrap();
    assert_eq!(image.devices(), devices());
    for (path, (inode, leader)) in paths(&tree) {
        let nid = image.lookup(&path).unwrap().unwrap();
        assert_eq!(Some(nid), image.lookup(&leader).unwrap());
        let node = image.inode(nid).unwrap();
        assert_eq!(
            (node.mode & 0o7777, node.uid, node.mtime),
            (inode.meta.perm, inode.meta.uid, inode.meta.mtime)
        );
        match (node.kind, &inode.kind) {
            (NodeKind::File(_), Kind::File { size: 0, .. }) => assert_eq!(node.size, 0),
            (NodeKind::File(at), Kind::File { size, data }) => {
                assert_eq!((at, node.size), (*data, *size));
                for byte in [0, size / 2, size - 1] {
                    // Some files of this tree share their bytes.
                    let owner = image.owner_of(at.layer, at.offset + byte).unwrap().unwrap();
                    let owner = image.inode(image.lookup(&owner).unwrap().unwrap()).unwrap();
                    let NodeKind::File(has) = owner.kind else { panic!("{owner:?}") };
                    let range = has.offset..has.offset + owner.size;
                    assert!(has.layer == at.layer && range.contains(&(at.offset + byte)));
                }
            }
            (NodeKind::Symlink(target), Kind::Symlink(t)) => assert_eq!(target, &**t),
            (NodeKind::Dir, Kind::Dir(_)) => {
                let id = tree.lookup(&path).unwrap();
                let names: Vec<_> = tree.entries(id).unwrap().keys().map(|n| n.to_vec()).collect();
                let all: Vec<_> = image.entries(&node).map(|e| e.unwrap().name.to_vec()).collect();
                let read: Vec<_> = all.iter().filter(|n| n != &b"." && n != &b"..").cloned().collect();
                assert_eq!(read, names);
                assert_eq!(read_in_steps(&image, &node), all);
                for absent in [&b"absent"[..], b"", b"\0", b"~", b"0", b"zzzz", &[0xff; 255]] {
                    assert_eq!(image.find(&node, absent).unwrap(), None);
                }
            }
            _ => {}
        }
    }
    assert_eq!(image.lookup(b"/sizes/1/x").unwrap(), None);
    assert_eq!(tree.lookup(b""), Some(ROOT));
}

/// A folder's names, an iteration for each, as a file system reads them.
fn read_in_steps(image: &Image<'_>, node: &Node<'_>) -> Vec<Vec<u8>> {
    let (mut position, mut names) = (0, Vec::new());
    loop {
        let mut entries = image.entries_from(node, position);
        assert_eq!(entries.position(), position);
        let Some(entry) = entries.next() else { return names };
        names.push(entry.unwrap().name.to_vec());
        assert!(entries.position() > position);
        position = entries.position();
    }
}

#[test]
fn a_head_reads_its_image_anew() {
    let bytes = encode(&rich(), &devices()).unwrap();
    let head = Image::new(&bytes).unwrap().head();
    let image = head.over(&bytes);
    assert_eq!(image.devices(), devices());
    assert!(image.entries_from(&image.inode(image.root()).unwrap(), 1 << 40).next().is_none());
    let empty = head.over(&[]);
    assert!(empty.inode(empty.root()).is_err());
}
