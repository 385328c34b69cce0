//! Layers that are file systems' images: fetched once, whole, and verified; lazily by an index of ours.

use hoist_testkit::ProxyOptions;

use super::*;

/// Right with each driver, every byte fetched once, and none for anything that follows; and lazily by an index, where
/// one small file takes less than one of `one_of` parts of its layers.
fn is_fetched_once(image: Published, named: &str, one_of: u64) {
    let right = Exceptions::erofs();
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        let told = inspect(&node, &image.name, &[]);
        assert_eq!(told["lazy"], false, "{told}");
        for layer in told["layers"].as_array().unwrap() {
            let note = layer["note"].as_str().unwrap();
            assert!(layer["format"] == named && note.contains("no digests but the blob's"), "{told}");
        }
        image.proxy.reset();
        let mount = node.mount(&image.name, &["--trust-index", "none"]);
        let (fetched, whole) = (image.proxy.stats().body_bytes, sizes(&told).iter().sum::<u64>());
        assert!(fetched >= whole && fetched < whole + (16 << 10), "{fetched} of {whole} bytes");
        image.proxy.reset();
        assert_right(&mount, &right);
        mount.unmount();
        assert_eq!(image.proxy.stats().requests, 0);
        let repository = image.name.rsplit_once(':').unwrap().0;
        assert_right(&node.mount(&format!("{repository}@{}", image.digest), &[]), &right);
        assert_eq!(image.proxy.log(), []);
        node.says(&["fsck"]);
    }
    Node::new().says(&["index", "--push", &image.name]);
    let node = Node::new();
    let told = inspect(&node, &image.name, &[]);
    assert_eq!(told["lazy"], true);
    // How it would be without the index is not told beside that.
    assert!(told["layers"].as_array().unwrap().iter().all(|layer| layer["note"].is_null()), "{told}");
    assert!(told["vouched"].as_str().unwrap().starts_with("the published index's digests"), "{told}");
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        image.proxy.reset();
        // A line that carries next to nothing while a read waits: little is read ahead.
        image.proxy.set_options(ProxyOptions { rate: Some(2_000_000), ..ProxyOptions::default() });
        let mount = node.mount(&image.name, &["--background", "off"]);
        assert!(hoist_testkit::reading::walk(mount.root()).unwrap().paths > 2000);
        let metadata = image.proxy.stats().body_bytes;
        mount.read(SMALL).unwrap();
        let one = image.proxy.stats().body_bytes - metadata;
        let whole: u64 = sizes(&told).iter().sum();
        image.proxy.set_options(ProxyOptions::default());
        // And the table.
        let most = whole / one_of + (64 << 10);
        assert!(metadata < whole / 5 && one < most, "{named}: {metadata} + {one} of {whole}");
        assert_right(&mount, &right);
        let stats = mount.unmount();
        assert!(count(&stats, "demand_stalls") > 0, "{stats}");
        node.says(&["fsck"]);
    }
}

#[test]
fn erofs_layers() {
    is_fetched_once(published("erofs-raw"), "EROFS", 4);
}

#[test]
fn erofs_layers_within_zstd() {
    is_fetched_once(published("erofs-zstd"), "EROFS within zstd", 1);
}

#[test]
fn erofs_layers_of_compressed_clusters() {
    is_fetched_once(published("erofs-lz4hc"), "EROFS", 4);
}

/// A layer that no index of chunks could hold is read all the same; that it cannot be indexed is said.
#[test]
fn an_image_of_many_megabytes_within_zstd() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    fs::create_dir(&source).unwrap();
    let large: Vec<u8> = (0..9u32 << 20).flat_map(|i| (u64::from(i) * 31).to_le_bytes()).collect();
    fs::write(source.join("large"), &large).unwrap();
    let made = Command::new("mkfs.erofs").arg("-Enoinline_data").args([&image, &source]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let layout = Layout::of("erofs-zstd");
    let bytes = fs::read(&image).unwrap();
    let stored = filter("zstd", &["-q", "-1"], &bytes);
    let diff_id = digest(&bytes);
    layout.change(|manifest| {
        let layer = &mut manifest["layers"][1];
        layer["digest"] = layout.add(&stored).into();
        layer["size"] = stored.len().into();
        layout.configure(manifest, |config| config["rootfs"]["diff_ids"][1] = diff_id.into());
    });
    let image = Published::plain(layout.path());
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert!(mount.read("large").unwrap() == large);
    assert_eq!(mount.read(SMALL).unwrap().len() as u64, mount.root().join(SMALL).metadata().unwrap().len());
    mount.unmount();
    node.says(&["fsck"]);
    let said = node.fails(&["index", "--push", &image.name]);
    assert!(said.contains("compressed as a whole"), "{said}");
}

/// A layer with another digest, or another diffID, is never shown.
#[test]
fn wrong_digests_are_found_before_anything_is_shown() {
    let layout = Layout::of("erofs-zstd");
    layout.change(|manifest| {
        layout.configure(manifest, |config| {
            let other = config["rootfs"]["diff_ids"][0].clone();
            config["rootfs"]["diff_ids"][1] = other;
        });
    });
    let image = Published::plain(layout.path());
    let node = Node::new();
    let said = node.try_mount(&image.name, &[]).err().unwrap();
    assert!(said.contains("its diffID is"), "{said}");
    let raw = published("erofs-raw");
    raw.proxy.inject(Fault::new("/blobs/", When::Always, FaultKind::FlipBit(100_000)));
    let said = node.try_mount(&raw.name, &[]).err().unwrap();
    assert!(said.contains("the digest of its blob is"), "{said}");
    assert_eq!(fs::read_dir(node.store("aside")).unwrap().count(), 0);
}

/// A layer that is damaged where it was made: it is named, and what is wrong with it, and no other.
#[test]
fn a_damaged_layer_is_named() {
    let layout = Layout::of("erofs-raw");
    let (mut good, mut bad) = (String::new(), String::new());
    layout.change(|manifest| {
        good = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
        let layer = &mut manifest["layers"][1];
        let mut bytes = fs::read(layout.blob(&layer["digest"])).unwrap();
        // The superblock's first byte.
        bytes[1024] ^= 1;
        bad = layout.add(&bytes);
        layer["digest"] = bad.clone().into();
        layout.configure(manifest, |config| config["rootfs"]["diff_ids"][1] = bad.clone().into());
    });
    let image = Published::plain(layout.path());
    let node = Node::new();
    for said in [node.try_mount(&image.name, &[]).err().unwrap(), node.fails(&["pull", &image.name])] {
        assert!(said.contains(&bad) && said.contains("no EROFS magic number"), "{said}");
        assert!(!said.contains(&good) && !said.contains("media type"), "{said}");
    }
}
