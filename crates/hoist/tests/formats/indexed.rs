//! Images that are one file system, with an index of ours beside them.

use super::*;

/// After `index --push` nothing is asked of its own metadata: not to mount and list, nor to read everything. `metadata`:
/// which of its layers have nothing else.
fn is_indexed(image: Published, metadata: &[usize], exceptions: &Exceptions) {
    Node::new().says(&["index", "--push", &image.name]);
    let layers = image.layers();
    let node = Node::new();
    let told = inspect(&node, &image.name, &[]);
    assert!(told["index"].is_string() && told["lazy"] == true, "{told}");
    // Of all its layers alike.
    assert!(told["vouched"].as_str().unwrap().starts_with("the published index's digests"), "{told}");
    image.proxy.reset();
    let mount = node.mount(&image.name, &[]);
    assert!(hoist_testkit::reading::walk(mount.root()).unwrap().paths > 2000);
    let asked = |layer: &String| image.proxy.log().iter().any(|r| r.path.ends_with(layer.as_str()));
    assert!(!layers.iter().any(asked), "{:?}", image.proxy.log());
    assert_right(&mount, exceptions);
    assert!(!metadata.iter().any(|&layer| asked(&layers[layer])), "{:?}", image.proxy.log());
    let stats = mount.unmount();
    assert!(count(&stats, "demand_stalls") > 0, "{stats}");
    node.says(&["fsck"]);
    // The same once more is the same.
    let before = image.index();
    node.says(&["index", "--push", &image.name]);
    assert_eq!(image.index(), before);
    let told = inspect(&node, &image.name, &[]);
    assert!(told["layers"].as_array().unwrap().iter().all(|layer| layer["verified"] == true), "{told}");
    assert_eq!(fs::read_dir(node.store("distrusted")).unwrap().count(), 0);
    // What the index had brought is here in the other layout: nobody needs it twice.
    let mounted_by = node.layers().len();
    node.says(&["prune"]);
    assert!(node.layers().len() < mounted_by, "{:?}", node.layers());
    let Published { proxy, registry, name, .. } = image;
    drop((proxy, registry));
    assert_right(&node.mount(&name, &[]), exceptions);
}

#[test]
fn overlaybd_with_an_index() {
    is_indexed(published("overlaybd"), &[], &Exceptions::ext4());
}

#[test]
fn turbooci_with_an_index() {
    is_indexed(published("turbooci-ext4"), &[0, 1], &Exceptions::ext4());
    is_indexed(published("turbooci-erofs"), &[0, 1], &Exceptions::turbo_erofs());
}

#[test]
fn nydus_with_an_index() {
    for (fixture, metadata) in [("nydus-v5", &[2][..]), ("nydus-v6", &[2]), ("nydus-zran", &[0, 1, 2])] {
        is_indexed(published(fixture), metadata, &Exceptions::without_fifo());
    }
}
