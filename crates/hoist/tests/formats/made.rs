//! What the bench makes of an image, for want of the tools that do: the same image in another format.

use hoist_testkit::overlaybd::{Kind, convert};
use hoist_testkit::tree::{Entry, Tree};

use super::*;

/// Files as they are; folders without their times, which the unpacking of what is in them changes.
fn seen(mount: &Mounted) -> Tree {
    let mut tree = hoist_testkit::walk(mount.root()).unwrap();
    // ext4 has its own folder, and no time behind 2446.
    for path in [&b"lost+found"[..], b".", b"times/future"] {
        tree.remove(path);
    }
    let without_time = |(path, entry): (Vec<u8>, Entry)| match entry.kind.as_str() {
        "dir" => (path, Entry { mtime_ns: 0, ..entry }),
        _ => (path, entry),
    };
    tree.into_iter().map(without_time).collect()
}

#[test]
fn the_same_image_made_for_the_bench() {
    // Without the upper layer, whose whiteouts are not made.
    let plain = Layout::of("gzip");
    plain.change(|manifest| {
        manifest["layers"].as_array_mut().unwrap().truncate(1);
        plain.configure(manifest, |config| {
            config["rootfs"]["diff_ids"].as_array_mut().unwrap().truncate(1);
            config.as_object_mut().unwrap().remove("history");
        });
    });
    let original = Published::plain(plain.path());
    let node = Node::new();
    let wanted = seen(&node.mount(&original.name, &[]));
    assert!(wanted.len() > 2000);
    for (kind, format) in [(Kind::Blocks, "overlaybd 0.1.0"), (Kind::Turbo, "TurboOCI 0.1.0-turbo.ociv1")] {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        convert(kind, plain.path(), &made).unwrap();
        let image = Published::plain(&made);
        let node = Node::new();
        let mount = node.mount(&image.name, &[]);
        let found = seen(&mount);
        let differ: Vec<_> = wanted.iter().filter(|(path, entry)| found.get(*path) != Some(entry)).collect();
        assert!(differ.is_empty() && found.len() == wanted.len(), "{format}: {differ:?}");
        let told = inspect(&node, &image.name, &[]);
        assert!(told["layers"][0]["format"].as_str().unwrap().starts_with(format), "{told}");
        let stats = mount.unmount();
        assert!(count(&stats, "demand_stalls") > 0, "{stats}");
    }
}
