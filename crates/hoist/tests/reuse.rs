//! What one image has brought here is not fetched for another (`docs/SEMANTICS.md`, "Data once").

mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hoist_testkit::layout::{Built, Compression};
use hoist_testkit::{push_layout, reading};
use node::disk::SmallDisk;
use node::tree::{FILES, Source, noise};
use node::{Node, Published, REPO, count};

/// The file that differs between the two builds, and its second length.
const CHANGED: (&str, usize) = ("lib/b.so", 2_100_000);
/// Bytes of a stream that are decoded at once, at most, as they are stored: what a want is rounded up to.
const SPAN: u64 = 1 << 20;

/// Two builds of an image, both indexed, in one registry.
struct Rebuilt {
    first: Source,
    second: Source,
    image: Published,
    second_name: String,
    layers: [Built; 2],
}

impl Rebuilt {
    fn new(compression: Compression) -> Rebuilt {
        let (first, second) = (Source::new(), Source::new());
        second.write(CHANGED.0, &noise(77, CHANGED.1));
        let layers = [first.layout(compression), second.layout(compression)];
        let image = Published::indexed(&layers[0].directory);
        push_layout(&image.registry.host(), REPO, "v2", &layers[1].directory).unwrap();
        let second_name = format!("{}/{REPO}:v2", image.proxy.host());
        Node::new().says(&["index", "--push", &second_name]);
        image.proxy.reset();
        Rebuilt { first, second, image, second_name, layers }
    }

    /// Bytes of the second build's layer that were asked for, and in how many requests.
    fn asked_of_second(&self) -> (u64, usize) {
        let log = self.image.proxy.log();
        let of_layer: Vec<_> = log.iter().filter(|r| r.path.ends_with(&self.layers[1].layers[0])).collect();
        let bytes = of_layer.iter().map(|request| {
            let range = request.range.as_deref().unwrap_or_else(|| panic!("{request:?} asks for everything"));
            let (from, to) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')).unwrap();
            to.parse::<u64>().unwrap() + 1 - from.parse::<u64>().unwrap()
        });
        (bytes.sum(), of_layer.len())
    }

    /// Mounts the second build and reads all of it: it costs little more than what has changed.
    fn second_costs_its_difference(&self, node: &Node, case: &str) {
        self.image.proxy.reset();
        let mount = node.mount(&self.second_name, &[]);
        self.second.assert_shown(mount.root());
        let stats = mount.unmount();
        let (asked, requests) = self.asked_of_second();
        let all: usize = FILES.iter().map(|(_, length)| length).sum();
        assert!(
            asked <= CHANGED.1 as u64 + 2 * SPAN,
            "{case}: {asked} bytes in {requests} requests: {stats}"
        );
        assert!(count(&stats, "copied_bytes") >= all as u64 - 2_000_000 - 2 * SPAN, "{case}: {stats}");
    }
}

#[test]
fn a_rebuilt_image_costs_its_difference_after_a_pull() {
    for compression in [Compression::None, Compression::Gzip(6)] {
        let rebuilt = Rebuilt::new(compression);
        let node = Node::new();
        node.says(&["pull", &rebuilt.image.name]);
        rebuilt.second_costs_its_difference(&node, &format!("{compression:?}"));
        rebuilt.first.assert_shown(node.mount(&rebuilt.image.name, &[]).root());
    }
}

/// The first build is still mounted and being filled when the second one takes from it.
#[test]
fn a_rebuilt_image_costs_its_difference_beside_a_lazy_mount() {
    let rebuilt = Rebuilt::new(Compression::Gzip(6));
    let node = Node::new();
    let mount = node.mount(&rebuilt.image.name, &[]);
    rebuilt.first.assert_shown(mount.root());
    rebuilt.second_costs_its_difference(&node, "beside a lazy mount");
}

/// Bytes of a file that stand in blocks which another has too.
fn shared(file: &Path) -> u64 {
    let told = Command::new("filefrag").args(["-b1", "-v"]).arg(file).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    // "  0:   0..  262143: 1..  262144: 262144:  last,shared"
    let lines = told.lines().filter(|line| line.contains("shared"));
    lines.map(|line| line.split(':').nth(3).unwrap().trim().parse::<u64>().unwrap()).sum()
}

/// Where the file system can, what two layers have takes its room once.
#[test]
fn what_is_copied_shares_its_blocks_where_the_file_system_can() {
    let rebuilt = Rebuilt::new(Compression::Gzip(6));
    let wanted: usize = FILES.iter().filter(|(path, _)| *path != CHANGED.0).map(|(_, length)| length).sum();
    for mkfs in [&["mkfs.xfs", "-q"][..], &["mkfs.btrfs", "-q"]] {
        let disk = SmallDisk::of(mkfs, 320);
        let node = Node::with_store(&disk.root().join("store"));
        node.says(&["pull", &rebuilt.image.name]);
        rebuilt.second_costs_its_difference(&node, mkfs[0]);
        let blob = &rebuilt.layers[1].layers[0][7..];
        let is_of = |folder: &PathBuf| folder.file_name().unwrap().to_str().unwrap().starts_with(blob);
        let second = node.layers().into_iter().find(is_of).unwrap();
        let shared = shared(&second.join("data"));
        assert!(shared >= wanted as u64 - 2 * SPAN, "{mkfs:?}: {shared} of {wanted} bytes");
        // Each stands for itself: one goes, and the other has all of its bytes.
        node.says(&["rm", &rebuilt.image.name]);
        node.says(&["prune"]);
        rebuilt.second.assert_shown(node.mount(&rebuilt.second_name, &[]).root());
        node.says(&["fsck"]);
    }
}

/// What is damaged where it is taken from is fetched, and shown as it should be.
#[test]
fn damaged_copies_are_not_taken() {
    let rebuilt = Rebuilt::new(Compression::Gzip(6));
    let node = Node::new();
    node.says(&["pull", &rebuilt.image.name]);
    let data = node.store("layers").join(&rebuilt.layers[0].layers[0][7..]).join("data");
    let mut bytes = fs::read(&data).unwrap();
    bytes.iter_mut().step_by(1000).for_each(|b| *b ^= 0x40);
    fs::write(&data, bytes).unwrap();
    let mount = node.mount(&rebuilt.second_name, &[]);
    rebuilt.second.assert_shown(mount.root());
    assert_eq!(count(&mount.unmount(), "copied_bytes"), 0);
}

/// A file that stands twice in a layer is fetched once.
#[test]
fn equal_files_of_a_layer_are_fetched_once() {
    let source = Source::new();
    let twin = noise(5, 3_000_000);
    source.write("lib/one", &twin);
    source.write("var/two", &twin);
    let layout = source.layout(Compression::None);
    let image = Published::indexed(&layout.directory);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert!(mount.read("lib/one").unwrap() == twin);
    assert!(mount.read("var/two").unwrap() == twin);
    reading::sequential(mount.root()).unwrap();
    source.assert_shown(mount.root());
    assert!(count(&mount.unmount(), "copied_bytes") > 0);
}

/// A pull after a lazy start fetches what is missing of the blobs, and nothing at all of a layer that was
/// read whole and checked.
#[test]
fn a_pull_uses_what_a_lazy_mount_has_fetched() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert!(mount.read("lib/c.so").unwrap() == source.read("lib/c.so"));
    let lazily = count(&mount.unmount(), "wire_bytes");
    let pull = |node: &Node| -> serde_json::Value {
        serde_json::from_str(&node.says(&["pull", "--json", &image.name])).unwrap()
    };
    let whole = count(&pull(&Node::new())["stats"], "wire_bytes");
    let pulled = pull(&node);
    let (rest, copied) = (count(&pulled["stats"], "wire_bytes"), count(&pulled["stats"], "copied_bytes"));
    assert!(rest + copied <= whole + 20_000 && copied > 1_000_000, "{whole} {lazily} {pulled}");
    source.assert_shown(node.mount(&image.name, &[]).root());

    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    source.assert_shown(mount.root());
    node.wait_verified();
    let pulled = pull(&node);
    assert_eq!(
        (&pulled["fetched_layers"], count(&pulled["stats"], "requests") < 4),
        (&0.into(), true),
        "{pulled}"
    );
    drop(mount);
    let mount = node.mount(&image.name, &[]);
    source.assert_shown(mount.root());
    assert_eq!(count(&mount.unmount(), "demand_stalls"), 0);
    // Its windows are the index's own: they are found anew before they are published.
    let indexed: serde_json::Value =
        serde_json::from_str(&node.says(&["index", "--json", &image.name])).unwrap();
    assert!(count(&indexed, "window_bytes") > 0, "{indexed}");
}

/// Damaged bytes of a lazy mount cost a pull the saving and nothing else.
#[test]
fn a_pull_does_not_believe_what_was_kept() {
    let source = Source::new();
    let layout = source.layout(Compression::Gzip(6));
    let image = Published::indexed(&layout.directory);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert!(mount.read("lib/c.so").unwrap() == source.read("lib/c.so"));
    mount.unmount();
    let lazy = fs::read_dir(node.store("layers")).unwrap().next().unwrap().unwrap().path();
    let mut blob = fs::read(lazy.join("blob")).unwrap();
    blob.iter_mut().for_each(|b| *b ^= 1);
    fs::write(lazy.join("blob"), blob).unwrap();
    let told: serde_json::Value = serde_json::from_str(&node.says(&["pull", "--json", &image.name])).unwrap();
    assert_eq!(count(&told["stats"], "copied_bytes"), 0, "{told}");
    source.assert_shown(node.mount(&image.name, &[]).root());
}
