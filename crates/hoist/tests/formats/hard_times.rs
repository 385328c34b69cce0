//! What was converted outlives what may happen to it: fillers that are killed, parts that the disk has lost, room that is made.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use hoist_testkit::ProxyOptions;
use node::pids::kill_filler;

use super::*;

/// A fixture, and what is not as in the full tree.
type Kind = (&'static str, fn() -> Exceptions);

/// One image of each way of converting: by layers with digests, with checksums only, as a whole, and with windows.
const KINDS: [Kind; 4] = [
    ("estargz", Exceptions::full),
    ("overlaybd", Exceptions::ext4),
    ("nydus-v6", Exceptions::without_fifo),
    ("soci-v2", Exceptions::full),
];
const KILLS: usize = 5;

/// The next read of any file is the store's to answer, not the page cache's.
fn forget_pages(mount: &Mounted) {
    let paths = hoist_testkit::walk(mount.root()).unwrap().into_keys();
    let paths = paths.map(|path| mount.root().join(String::from_utf8(path).unwrap()));
    for file in paths.filter(|path| path.is_file()) {
        let file = File::open(file).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

/// Fillers die while all is read, again and again: nothing is wrong and nothing fails.
#[test]
fn fillers_killed_again_and_again() {
    for (fixture, exceptions) in KINDS {
        let image = published(fixture);
        let node = Node::new();
        let mount = node.mount(&image.name, &[]);
        image.proxy.set_options(ProxyOptions { rate: Some(3_000_000), ..ProxyOptions::default() });
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut whole = false;
                while !whole || !stop.load(Ordering::Acquire) {
                    assert_right(&mount, &exceptions());
                    forget_pages(&mount);
                    whole = true;
                }
            });
            for _ in 0..KILLS {
                kill_filler(&node);
            }
            stop.store(true, Ordering::Release);
            reader.join().unwrap_or_else(|_| panic!("{fixture}: {}", node.logs()));
        });
        // What came before the last kill stands in the store.
        assert_right(&mount, &exceptions());
    }
}

/// What no registry has as it is here is made anew by a successor that does not find it: tree, tables, windows, and the document
/// that names them.
#[test]
fn what_the_disk_has_lost_is_converted_again() {
    for (fixture, exceptions) in KINDS {
        let image = published(fixture);
        let node = Node::new();
        let mount = node.mount(&image.name, &[]);
        mount.read(SMALL).unwrap();
        let images = fs::read_dir(node.store("images")).unwrap();
        let of_image = images.flat_map(|image| fs::read_dir(image.unwrap().path()).unwrap());
        let of_image = of_image.map(|entry| entry.unwrap().path());
        let of_layers = node.layers().into_iter().flat_map(|l| ["table", "windows"].map(|name| l.join(name)));
        let lost = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.ends_with(".erofs") || ["converted.json", "table", "windows"].contains(&name)
        };
        let lost: Vec<_> = of_image.chain(of_layers).filter(|path| lost(path) && path.exists()).collect();
        assert!(lost.len() > 2, "{lost:?}");
        lost.iter().for_each(|path| fs::remove_file(path).unwrap());
        kill_filler(&node);
        assert_right(&mount, &exceptions());
        assert!(lost.iter().all(|path| path.exists()), "{fixture}: {lost:?}");
        drop(mount);
        node.says(&["fsck"]);
    }
}

/// Where what the store has lost cannot be made anew, reads fail, and not each of them fetches all metadata.
#[test]
fn what_cannot_be_made_anew_is_not_asked_for_by_every_read() {
    let image = published("turbooci-ext4");
    let node = Node::new();
    let mount = node.mount(&image.name, &["--background", "off"]);
    for layer in node.layers() {
        if let Ok(windows) = fs::metadata(layer.join("windows")) {
            fs::write(layer.join("windows"), vec![0; windows.len() as usize]).unwrap();
        }
    }
    let metadata = image.layers();
    for layer in &metadata {
        image.proxy.inject(Fault::new(
            format!("/blobs/{layer}"),
            When::Always,
            FaultKind::Status(404, Vec::new()),
        ));
    }
    image.proxy.reset();
    let names: Vec<_> = fs::read_dir(mount.root().join("many/d02")).unwrap().take(40).collect();
    let since = std::time::Instant::now();
    let failed = names.into_iter().filter(|name| fs::read(name.as_ref().unwrap().path()).is_err()).count();
    let asked = image.proxy.log().iter().filter(|r| r.path.ends_with(&metadata[0])).count();
    // A file may be in the first span, which needs no window. An attempt asks for it twice at most, as what is pinned and
    // as what is not; pauses between attempts grow from 1 s on.
    let attempts = 2 + (since.elapsed().as_secs_f64() + 1.0).log2() as usize;
    assert!(failed > 10 && (1..=2 * attempts).contains(&asked), "{failed} reads, {asked} requests");
}

fn on_disk(layer: &Path) -> u64 {
    let files = fs::read_dir(layer).unwrap().map(|file| file.unwrap().metadata().unwrap());
    files.map(|meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512).sum()
}

/// Layers that were evicted come again when they are read, those that stayed are not fetched twice, and what is mounted stays.
#[test]
fn layers_that_make_room_come_again() {
    let other = published("zstd");
    for (fixture, exceptions) in KINDS {
        let image = published(fixture);
        let node = Node::new();
        let make_room = |limit: u64| {
            node.says(&["--store-limit", &limit.to_string(), "pull", &other.name]);
            node.says(&["rm", &other.name]);
            node.says(&["prune"]);
        };
        let mount = node.mount(&image.name, &[]);
        mount.read(SMALL).unwrap();
        let mounted = node.layers();
        make_room(1 << 20);
        assert_eq!(node.layers(), mounted, "{fixture}");
        assert_right(&mount, &exceptions());
        mount.unmount();
        node.says(&["fsck"]);

        // All of them.
        make_room(1);
        assert!(node.layers().is_empty(), "{fixture}: {:?}", node.layers());
        assert_right(&node.mount(&image.name, &[]), &exceptions());
        node.says(&["fsck"]);
        assert_eq!(node.layers(), mounted, "{fixture}");

        // The small one of two.
        let size = |layer: &PathBuf| on_disk(layer);
        let (Some(large), true) = (mounted.iter().max_by_key(|l| size(l)), mounted.len() > 1) else {
            continue;
        };
        mounted.iter().filter(|layer| *layer != large).for_each(|layer| fs::remove_dir_all(layer).unwrap());
        image.proxy.reset();
        assert_right(&node.mount(&image.name, &[]), &exceptions());
        let fetched = image.proxy.stats().body_bytes;
        assert!(fetched < size(large) / 4, "{fixture}: {fetched}");
        node.says(&["fsck"]);
    }
}
