//! Images that nothing less than whole blobs vouches for, and what a pull makes of them.

use super::*;

/// Contents in which a flipped bit is still a file.
const NOISE: &str = "big/noise-1m5";

/// Its bytes, as an image of plain layers has them.
fn noise() -> Vec<u8> {
    let node = Node::new();
    let image = published("gzip");
    node.mount(&image.name, &[]).read(NOISE).unwrap()
}

fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|part| part == needle).expect("it is not there as it is")
}

/// The checksum of a ZFile's block.
fn crc(bytes: &[u8]) -> u32 {
    crc32c(100_007, bytes)
}

/// The image of `overlaybd`, the digest of its lower layer, and that of another blob beside it: the same, but for a bit of
/// the last byte of `needle`, with the right checksum.
fn with_forgery(needle: &[u8]) -> (Layout, String, String) {
    let layout = Layout::of("overlaybd");
    let mut honest = String::new();
    layout.change(|manifest| honest = manifest["layers"][0]["digest"].as_str().unwrap().to_owned());
    let mut blob = fs::read(layout.blob(&honest.clone().into())).unwrap();
    let number = |blob: &[u8], at: usize| u64::from_le_bytes(blob[at..at + 8].try_into().unwrap()) as usize;
    let base = find(&blob, b"ZFile\0\x01\0");
    let (table, blocks) = (base + number(&blob, base + 40), number(&blob, base + 48));
    let flipped = find(&blob, needle) + needle.len() - 1;
    let mut start = base + 512;
    let block = (0..blocks).find_map(|i| {
        let entry = table + 4 * i;
        let len = u32::from_le_bytes(blob[entry..entry + 4].try_into().unwrap()) as usize;
        let block = start..start + len;
        start = block.end;
        block.contains(&flipped).then_some(block)
    });
    let block = block.unwrap();
    let data = block.start..block.end - 4;
    assert_eq!(crc(&blob[data.clone()]).to_le_bytes(), blob[data.end..block.end], "not its checksum");
    blob[flipped] ^= 1;
    let sum = crc(&blob[data.clone()]).to_le_bytes();
    blob[data.end..block.end].copy_from_slice(&sum);
    let forged = layout.add(&blob);
    (layout, honest, forged)
}

/// From now on whoever asks for one blob is given the other.
fn serve_instead(image: &Published, asked: &str, given: &str) {
    let to = ("location".to_owned(), format!("/v2/{REPO}/blobs/{given}"));
    image.proxy.inject(Fault::new(format!("/blobs/{asked}"), When::Always, FaultKind::Status(307, vec![to])));
}

/// A pull that succeeds; gives what it said.
fn pulls(node: &Node, image: &Published) -> String {
    let pulled = node.hoist(&["pull", &image.name]).output().unwrap();
    let said = String::from_utf8_lossy(&pulled.stderr).into_owned();
    assert!(pulled.status.success(), "{said}");
    said
}

fn assert_verified(node: &Node, image: &Published) {
    let told = inspect(node, &image.name, &[]);
    assert!(told["layers"].as_array().unwrap().iter().all(|layer| layer["verified"] == true), "{told}");
}

/// What a registry made up for who reads by parts, with right checksums, is found out by a pull, and put right.
#[test]
fn a_pull_finds_contents_that_were_made_up() {
    let right = noise();
    let (layout, honest, forged) = with_forgery(&right[100_000..100_040]);
    let image = Published::plain(layout.path());
    serve_instead(&image, &honest, &forged);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    let shown = mount.read(NOISE).unwrap();
    let differs: Vec<_> = (0..right.len()).filter(|&i| shown[i] != right[i]).collect();
    assert_eq!((shown.len(), &differs[..]), (right.len(), &[100_039][..]));
    mount.unmount();
    let said = node.fails(&["pull", &image.name]);
    assert!(said.contains("the digest of its blob is"), "{said}");
    image.proxy.clear_faults();
    assert!(inspect(&node, &image.name, &[])["layers"][1]["verified"] == false);
    let said = pulls(&node, &image);
    assert!(said.contains("was not what its digests say"), "{said}");
    assert_verified(&node, &image);
    image.proxy.reset();
    assert_right(&node.mount(&image.name, &[]), &Exceptions::ext4());
    assert!(image.proxy.log().iter().all(|r| !r.path.contains("/blobs/")), "{:?}", image.proxy.log());
    node.says(&["fsck"]);
}

/// The same of TurboOCI, whose contents have no checksum at all; while somebody has it mounted.
#[test]
fn a_pull_holds_contents_to_the_original_layers() {
    let right = noise();
    let image = published("turbooci-ext4");
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    image.proxy.inject(Fault::new("/blobs/", When::Always, FaultKind::FlipBit(700_000)));
    let shown = mount.read(NOISE).unwrap();
    image.proxy.clear_faults();
    assert!(shown != right, "the bit was not in it");
    let said = pulls(&node, &image);
    assert!(said.contains("was not what its digests say"), "{said}");
    mount.unmount();
    assert_verified(&node, &image);
    let mount = node.mount(&image.name, &[]);
    assert_right(&mount, &Exceptions::ext4());
    assert!(mount.read(NOISE).unwrap() == right);
    node.says(&["fsck"]);
}

/// What a pull writes is not asked of other processes that have the image mounted: their registry may be gone.
#[test]
fn a_pull_asks_nothing_of_who_has_it_mounted() {
    for format in ["turbooci-ext4", "overlaybd"] {
        let (theirs, ours) = (published(format), published(format));
        let node = Node::new();
        let mount = node.mount(&theirs.name, &[]);
        theirs.proxy.inject(Fault::new("", When::Always, FaultKind::Status(503, Vec::new())));
        pulls(&node, &ours);
        assert_verified(&node, &ours);
        // It is here for who can't fetch it, too.
        assert_right(&mount, &Exceptions::ext4());
        mount.unmount();
        node.says(&["fsck"]);
    }
}

/// Metadata that was made up is found out too: what was read by it is thrown away, and never used again.
#[test]
fn a_pull_finds_metadata_that_was_made_up() {
    let (layout, honest, forged) = with_forgery(b"noise-1m5");
    let image = Published::plain(layout.path());
    serve_instead(&image, &honest, &forged);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert!(mount.read(NOISE).is_err());
    let other = "big/noise-1m4";
    mount.read_at(other, 0, 4096).unwrap();
    image.proxy.clear_faults();
    let said = pulls(&node, &image);
    assert!(said.contains("its tree is not the image's"), "{said}");
    // No mount reads by it any more.
    let lied = |layer: &PathBuf| {
        let state = fs::read_to_string(layer.join("state.json")).unwrap_or_default();
        state.contains("lied about layer") && !layer.join("data").exists()
    };
    assert_eq!(node.layers().iter().filter(|layer| lied(layer)).count(), 1);
    mount.unmount();
    assert_verified(&node, &image);
    assert_right(&node.mount(&image.name, &[]), &Exceptions::ext4());
}

/// An image with an index beside it that shows other contents, of a blob that is not the image's: the image, its own blob, the
/// other, and what is right of [`NOISE`].
fn with_a_lying_index() -> (Published, String, String, Vec<u8>) {
    let right = noise();
    let (layout, honest, forged) = with_forgery(&right[100_000..100_040]);
    let image = Published::plain(layout.path());
    let other = Layout(tempfile::tempdir().unwrap());
    fs::create_dir_all(other.path().join("blobs/sha256")).unwrap();
    for name in ["index.json", "oci-layout"] {
        fs::copy(layout.path().join(name), other.path().join(name)).unwrap();
    }
    for blob in fs::read_dir(layout.path().join("blobs/sha256")).unwrap().flatten() {
        fs::copy(blob.path(), other.path().join("blobs/sha256").join(blob.file_name())).unwrap();
    }
    other.change(|manifest| {
        manifest["layers"][0]["digest"] = forged.clone().into();
        let diff_id = forged.clone();
        other.configure(manifest, |config| config["rootfs"]["diff_ids"][0] = diff_id.into());
    });
    let pushed = push_layout(&image.registry.host(), REPO, "other", other.path()).unwrap();
    let about =
        Published { digest: pushed.digest, name: format!("{}/{REPO}:other", image.proxy.host()), ..image };
    Node::new().says(&["index", "--push", &about.name]);
    let mut index = about.index();
    let image = Published {
        digest: layout.json(&layout.path().join("index.json"))["manifests"][0]["digest"]
            .as_str()
            .unwrap()
            .to_owned(),
        name: format!("{}/{REPO}:v1", about.proxy.host()),
        ..about
    };
    index["subject"]["digest"] = image.digest.clone().into();
    let bytes = serde_json::to_vec(&index).unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    hoist_testkit::push::push_manifest(&image.registry.host(), REPO, &image.index_tag(), media_type, &bytes)
        .unwrap();
    (image, honest, forged, right)
}

/// A published index that shows other contents of a blob beside the image's.
#[test]
fn a_pull_finds_an_index_that_lied() {
    let (image, _, _, right) = with_a_lying_index();
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert!(mount.read(NOISE).unwrap() != right);
    mount.unmount();
    let said = pulls(&node, &image);
    assert!(said.contains("its extents are not those of the image"), "{said}");
    node.wait_distrusted();
    assert_verified(&node, &image);
    assert!(node.mount(&image.name, &[]).read(NOISE).unwrap() == right);
}

/// What comes is not what such an index says: all of the image, read by its own format, tells that the index is wrong.
#[test]
fn doubts_about_an_index_are_settled_by_a_pull() {
    let (image, honest, forged, right) = with_a_lying_index();
    let node = Node::new();
    let mount = node.mount(&image.name, &["--background", "off"]);
    serve_instead(&image, &forged, &honest);
    assert!(mount.read(NOISE).is_err_and(|e| e.raw_os_error() == Some(libc::EIO)));
    node.wait_distrusted();
    mount.unmount();
    let told = inspect(&node, &image.name, &[]);
    assert!(told["index"].is_null(), "{told}");
    assert!(node.mount(&image.name, &[]).read(NOISE).unwrap() == right);
    assert_verified(&node, &image);
}

/// Without trust they are fetched whole, once, and verified; then no request is needed, and none is lazy.
#[test]
fn without_trust_they_are_fetched_whole() {
    for (format, trust, right) in
        [("overlaybd", "none", Exceptions::ext4()), ("turbooci-erofs", "local", Exceptions::turbo_erofs())]
    {
        let image = published(format);
        let node = Node::new();
        let options = ["--trust-index", trust];
        assert_eq!(inspect(&node, &image.name, &options)["lazy"], false);
        image.proxy.reset();
        let mount = node.mount(&image.name, &options);
        let log = image.proxy.log();
        let mut asked: Vec<_> = log.iter().map(|r| (&r.method, &r.path, &r.range)).collect();
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), log.len(), "{log:?}");
        image.proxy.reset();
        assert_right(&mount, &right);
        mount.unmount();
        assert_eq!(image.proxy.log(), []);
        let by_digest = format!("{}@{}", image.name.rsplit_once(':').unwrap().0, image.digest);
        assert_right(&node.mount(&by_digest, &options), &right);
        assert_eq!(image.proxy.log(), []);
        assert_verified(&node, &image);
    }
}
