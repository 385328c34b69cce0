//! Layers that someone made to do harm, from the registry to the mount: a clear error or the right tree, within bounds.

mod node;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use hoist_testkit::digest;
use hoist_testkit::layout::Builder;
use node::tar::{Entry, archive, record};
use node::{Node, Published};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Memory a command may take, whatever it is given: of addresses, so that a bomb shows before it goes off.
const ADDRESSES: &str = "--as=6442450944";

fn publish(layers: &[Vec<u8>]) -> (tempfile::TempDir, Published) {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Builder::new(dir.path()).unwrap();
    for tar in layers {
        layout = layout.raw_layer(TAR, tar, &digest::of_bytes(tar)).unwrap();
    }
    let image = Published::plain(&layout.write("v1").unwrap().directory);
    (dir, image)
}

/// A pull within bounds: what it says on failure.
fn pull(node: &Node, image: &str) -> Result<(), String> {
    let hoist = node.hoist(&["pull", image]);
    let mut bounded = Command::new("prlimit");
    bounded.arg(ADDRESSES).arg(hoist.get_program()).args(hoist.get_args());
    hoist.get_envs().for_each(|(name, value)| match value {
        Some(value) => drop(bounded.env(name, value)),
        None => drop(bounded.env_remove(name)),
    });
    let output = bounded.output().unwrap();
    let said = node::stderr(&output);
    assert!(!said.contains("panicked") && !said.contains("internal:"), "{said}");
    assert!(matches!(output.status.code(), Some(0..=2)), "{}: {said}", output.status);
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// A pull fails with this word, and so does a mount, and nothing is kept of the layer.
fn is_refused(what: &str, because: &str, tar: &[u8]) {
    let (_layout, image) = publish(&[tar.to_vec()]);
    let node = Node::new();
    let said = pull(&node, &image.name).expect_err(what);
    assert!(said.contains("error: ") && said.contains(because), "{what}: wanted {because:?}: {said}");
    if let Ok(mount) = node.try_mount(&image.name, &[]) {
        panic!("{what}: mounted at {}", mount.root().display());
    }
    let layers = fs::read_dir(node.store("layers")).into_iter().flatten().flatten();
    let kept: Vec<_> = layers.filter(|layer| layer.path().join("data").exists()).collect();
    assert!(kept.is_empty(), "{what}: {kept:?}");
}

/// What the layers make is mounted and looked at.
fn is_shown(layers: &[Vec<u8>], look: impl FnOnce(&Path)) {
    let (_layout, image) = publish(layers);
    let node = Node::new();
    pull(&node, &image.name).unwrap();
    look(node.mount(&image.name, &[]).root());
}

fn names(dir: &Path) -> BTreeSet<Vec<u8>> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect()
}

fn file(path: impl AsRef<[u8]>) -> Entry {
    Entry::file(path, "")
}

#[test]
fn headers_that_lie_are_refused() {
    let cases: [(&str, &str, Vec<Entry>); 8] = [
        ("a size beyond the archive", "decoded", vec![file("big").claiming(0o77_777_777_777)]),
        ("a size of 63 bits", "decoded", vec![file("big").record("size", i64::MAX.to_string())]),
        ("a size that is no number", "decoded", vec![file("big").record("size", "many")]),
        (
            "a record longer than its header",
            "decoded",
            vec![Entry::extended(b'x', "999 path=x\n"), file("file")],
        ),
        (
            "an extended header without end",
            "extended header",
            vec![Entry::extended(b'x', "").claiming(0o77_777_777_777)],
        ),
        (
            "a long name without end",
            "extended header",
            vec![Entry::extended(b'L', "").claiming(0o77_777_777_777)],
        ),
        (
            "a device beyond Linux's numbers",
            "devmajor",
            vec![Entry { device: (0o7_777_777, 0o7_777_777), ..Entry::new("dev", b'4') }],
        ),
        ("a kind that is none", "entry type", vec![Entry::new("odd", b'~')]),
    ];
    for (what, because, entries) in cases {
        is_refused(what, because, &archive(&entries));
    }
    let mut damaged = archive(&[file("file")]);
    damaged[0] = b'X';
    is_refused("a damaged header", "checksum", &damaged);
}

/// As Go's archive/tar: what they announce does not come.
#[test]
fn extended_headers_and_nothing_else_are_an_empty_layer() {
    let header = Entry::extended(b'x', record("comment", &[b'c'; 100_000]));
    is_shown(&[archive(&vec![header; 300])], |root| assert!(names(root).is_empty()));
}

#[test]
fn names_that_linux_has_not_are_refused() {
    let deep = "d/".repeat(100_000);
    is_refused("a path of 100,000 folders", "PATH_MAX", &archive(&[Entry::dir(&deep)]));
    is_refused("a name of 256 bytes", "NAME_MAX", &archive(&[file([b'n'; 256])]));
    is_refused("a NUL in a name", "NUL", &archive(&[file("f").record("path", b"a\0b")]));
    is_refused("a NUL in a target", "NUL", &archive(&[Entry::symlink("l", "t").record("linkpath", b"a\0b")]));
    let links = archive(&[Entry::symlink("l", "l"), file("l/f")]);
    is_refused("a link to itself in mid-path", "symbolic links", &links);
    // Each folder a little deeper than a path can say, by way of a link to the last one.
    let step = "d/".repeat(1500);
    let down =
        [Entry::dir(&step), Entry::symlink("l", step.trim_end_matches('/')), Entry::dir(format!("l/{step}"))];
    is_refused("folders deeper than any path", "2048", &archive(&down));
}

#[test]
fn names_that_linux_has_are_shown() {
    let long = [b'n'; 255];
    let odd = [&b"new\nline"[..], b"\xff\xfe", b"\x01", b"...", b" ", &long];
    let deep = ["d"; 2000].join("/");
    let mut entries: Vec<_> = odd.iter().map(file).collect();
    entries.push(Entry::dir(&deep));
    is_shown(&[archive(&entries)], |root| {
        let mut wanted: BTreeSet<_> = odd.iter().map(|n| n.to_vec()).collect();
        wanted.insert(b"d".to_vec());
        assert_eq!(names(root), wanted);
        // The kernel takes no path as long as root and all this: half of it will do.
        assert!(root.join(["d"; 1000].join("/")).is_dir());
    });
}

#[test]
fn links_that_lead_nowhere_are_refused() {
    let missing = archive(&[Entry::hardlink("link", "nowhere")]);
    is_refused("a hard link to nothing", "missing", &missing);
    let cycle = archive(&[Entry::hardlink("a", "b"), Entry::hardlink("b", "a")]);
    is_refused("hard links in a ring", "missing", &cycle);
    is_refused("a hard link to itself", "itself", &archive(&[file("a"), Entry::hardlink("a", "a")]));
    is_refused("a hard link to a folder", "folder", &archive(&[Entry::dir("d"), Entry::hardlink("l", "d")]));
    is_refused("a hard link to the root", "folder", &archive(&[Entry::hardlink("l", "/")]));
    is_refused("a file as a folder", "not a folder", &archive(&[file("f"), file("f/g")]));
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |size: &str, map: &str| {
        let entry = Entry::file("s", [b's'; 1024]).record("GNU.sparse.size", size);
        archive(&[entry.record("GNU.sparse.numblocks", "2").record("GNU.sparse.map", map)])
    };
    let cases = [
        ("runs that overlap", sparse("4096", "0,512,256,512")),
        ("a run beyond the file", sparse("4096", "0,512,4000,512")),
        ("a run beyond all numbers", sparse("4096", "0,512,18446744073709551615,512")),
        ("more data than is stored", sparse("1048576", "0,512,4096,524288")),
        ("a file beyond all numbers", sparse("99999999999999999999", "0,512,4096,512")),
    ];
    for (what, tar) in cases {
        is_refused(what, "decoded", &tar);
    }
    // 8 TiB of holes cost nothing, one byte more is refused.
    is_refused("a file of more than 8 TiB", "8 TiB", &sparse("8796093022209", "0,512,4096,512"));
}

#[test]
fn whiteouts_name_a_file() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh."] {
        is_refused(name, "whiteout", &archive(&[file(name)]));
    }
    // The root's own: what is below it is gone, the root is not.
    let upper = archive(&[file("new"), file(".wh..wh..opq")]);
    is_shown(&[archive(&[file("old"), file("older")]), upper], |root| {
        assert_eq!(names(root), BTreeSet::from([b"new".to_vec()]));
    });
}

#[test]
fn a_name_that_is_file_and_folder_by_turns() {
    let turn = |i: u32| match i % 2 {
        0 => vec![Entry::dir("x"), Entry::file(format!("x/{i}"), "in a folder")],
        _ => vec![Entry::file("x", format!("{i}"))],
    };
    let entries: Vec<_> = (0..20_001).flat_map(turn).collect();
    is_shown(&[archive(&entries)], |root| {
        assert_eq!(names(&root.join("x")), BTreeSet::from([b"20000".to_vec()]));
        assert_eq!(fs::read(root.join("x/20000")).unwrap(), b"in a folder");
    });
}

#[test]
fn a_million_entries_are_shown() {
    let mut tar = Vec::new();
    for i in 0..1_000_000 {
        Entry::file(format!("d{}/{i}", i % 1000), if i % 50_000 == 0 { "content" } else { "" })
            .write(&mut tar);
    }
    tar.resize(tar.len() + 1024, 0);
    is_shown(&[tar], |root| {
        assert_eq!(names(root).len(), 1000);
        assert_eq!(names(&root.join("d7")).len(), 1000);
        assert_eq!(fs::read(root.join("d0/950000")).unwrap(), b"content");
    });
}

/// Names that lead out of the tree name nothing outside, in any tar that is taken.
#[test]
fn names_that_lead_out_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let absolute = victim.to_str().unwrap();
    let climbing = format!("../../../../../../../..{absolute}");
    let through =
        [Entry::symlink("way", outside.path().to_str().unwrap()), Entry::file("way/victim", "evil")];
    for entries in [&[Entry::file(absolute, "evil")][..], &[Entry::file(climbing, "evil")], &through] {
        is_shown(&[archive(entries)], |root| {
            assert_eq!(fs::read(root.join(absolute.trim_start_matches('/'))).unwrap(), b"evil");
        });
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    }
}
