//! The tests of what a mount shows and of what it costs once more, on nodes where a daemon does the work
//! (`Node::hoist`), and the drivers of FUSE through it.

#![expect(clippy::duplicate_mod, reason = "each of these programs has its own node")]

#[path = "fixtures.rs"]
mod fixtures;
mod node;
#[path = "reuse.rs"]
mod reuse;
#[path = "trust.rs"]
mod trust;

use hoist_testkit::{Exceptions, compare_tree, fixtures_dir};
use node::{Node, Published, count};

/// The awkward image, lazily, by each driver that is not the fastest.
#[test]
fn other_drivers() {
    let image = Published::indexed(&fixtures_dir().unwrap().join("gzip"));
    for driver in ["erofs-fuse", "fuse"] {
        let node = Node::new().with_driver(driver);
        let mount = node.mount(&image.name, &[]);
        assert_eq!(compare_tree(mount.root(), &Exceptions::full()).unwrap(), [""; 0], "{driver}");
        let told: serde_json::Value = serde_json::from_str(&node.says(&["status", "--json"])).unwrap();
        let [server] = node.servers()[..] else { panic!("{told}") };
        assert_eq!(
            (&told["daemon"]["filler_pid"], &told["mounts"][0]["driver"]),
            (&server.into(), &driver.into())
        );
        assert!(count(&mount.unmount(), "demand_stalls") > 0);
    }
}

/// What the daemon shows is filled by its pull too: no byte of the image comes twice.
#[test]
fn what_is_shown_is_pulled_once() {
    let layout = fixtures_dir().unwrap().join("overlaybd");
    let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let most: u64 = blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum();
    let image = Published::plain(&layout);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    image.proxy.reset();
    node.says(&["pull", &image.name]);
    let fetched = image.proxy.stats().body_bytes;
    assert!(fetched <= most, "{fetched} of {most} bytes");
    assert_eq!(compare_tree(mount.root(), &Exceptions::ext4()).unwrap(), [""; 0]);
}
