//! Images that were converted for other systems, as those systems' own tools made them: read as they are.

mod common;
#[path = "formats/dialects.rs"]
mod dialects;
#[path = "formats/hard_times.rs"]
mod hard_times;
#[path = "formats/indexed.rs"]
mod indexed;
#[path = "formats/instead.rs"]
mod instead;
#[path = "formats/made.rs"]
mod made;
mod node;
#[path = "formats/proven.rs"]
mod proven;
#[path = "formats/soci.rs"]
mod soci;
#[path = "formats/told.rs"]
mod told;
#[path = "formats/trusted.rs"]
mod trusted;
#[path = "formats/whole.rs"]
mod whole;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hoist_testkit::{Exceptions, Fault, FaultKind, When, compare_tree, fixtures_dir, process, push_layout};
use node::case::PATIENCE;
use node::{Mounted, Node, Published, REPO, count};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A file of the layer with many files.
const SMALL: &str = "many/d02/f1752";

fn published(format: &str) -> Published {
    Published::plain(&fixtures_dir().unwrap().join(format))
}

/// An image whose manifest has no digests of its layers' TOCs.
fn unpinned() -> Published {
    let layout = Layout::of("estargz");
    layout.change(|manifest| {
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer.as_object_mut().unwrap().remove("annotations");
        }
    });
    Published::plain(layout.path())
}

fn assert_right(mount: &Mounted, exceptions: &Exceptions) {
    let differences = compare_tree(mount.root(), exceptions).unwrap();
    assert_eq!(differences, [""; 0], "{} differences", differences.len());
}

fn inspect(node: &Node, image: &str, options: &[&str]) -> Value {
    let told = node.says(&[&["inspect", "--json", image], options].concat());
    serde_json::from_str(&told).unwrap()
}

fn sizes(told: &Value) -> Vec<u64> {
    told["layers"].as_array().unwrap().iter().map(|l| l["size"].as_u64().unwrap()).collect()
}

/// Right lazily, with each driver, metadata and a small file at a small part of the layers; again without a registry;
/// pulled; and with an index of ours.
fn is_read_as_it_is(mut image: Published, named: &str, parts: (u64, u64), exceptions: &Exceptions) {
    let mut manifest = String::new();
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        let told = inspect(&node, &image.name, &[]);
        assert_eq!(told["lazy"], true, "{told}");
        for layer in told["layers"].as_array().unwrap() {
            assert!(layer["format"].as_str().unwrap().contains(named), "{told}");
        }
        manifest = told["digest"].as_str().unwrap().to_owned();
        image.proxy.reset();
        let mount = node.mount(&image.name, &[]);
        let names = hoist_testkit::reading::walk(mount.root()).unwrap();
        assert!(names.paths > 2000, "{names:?}");
        let whole: u64 = sizes(&told).iter().sum();
        let metadata = image.proxy.stats().body_bytes;
        mount.read(SMALL).unwrap();
        let one = image.proxy.stats().body_bytes - metadata;
        assert!(metadata < whole / parts.0 && one < whole / parts.1, "{metadata} + {one} of {whole} bytes");
        assert_right(&mount, exceptions);
        let stats = mount.unmount();
        assert!(count(&stats, "demand_stalls") > 0, "{stats}");

        image.proxy.reset();
        let mount = node.mount(&image.name, &[]);
        assert_right(&mount, exceptions);
        mount.unmount();
        let blobs = image.proxy.log().iter().filter(|r| r.path.contains("/blobs/")).count();
        assert_eq!(blobs, 0, "{:?}", image.proxy.log());
        node.says(&["fsck"]);
    }
    let pulled = Node::new();
    pulled.says(&["pull", &image.name]);
    assert_right(&pulled.mount(&image.name, &[]), exceptions);

    let offline = Node::new();
    let mount = offline.mount(&image.name, &[]);
    assert_right(&mount, exceptions);
    mount.unmount();

    let indexed = Node::new();
    indexed.make_store();
    Node::new().says(&["index", "--push", &image.name]);
    let told = inspect(&indexed, &image.name, &[]);
    assert!(told["index"].is_string() && told["lazy"] == true, "{told}");
    image.proxy.reset();
    let mount = indexed.mount(&image.name, &[]);
    assert!(hoist_testkit::reading::walk(mount.root()).unwrap().paths > 2000);
    // Nothing of its own metadata is: what was asked for are parts of the index.
    image.digest.clone_from(&manifest);
    let parts = image.parts("");
    let asked = image.proxy.log();
    let blobs = asked.iter().filter_map(|r| r.path.split_once("/blobs/"));
    assert!(blobs.clone().all(|(_, blob)| parts.iter().any(|part| part == blob)), "{asked:?}");
    assert_right(&mount, exceptions);
    mount.unmount();

    let Published { proxy, registry, name, .. } = image;
    drop((proxy, registry));
    for driver in ["erofs", "fuse"] {
        assert_right(&pulled.mount(&name, &["--driver", driver]), exceptions);
    }
    assert_right(&offline.mount(&name, &[]), exceptions);
    assert_right(
        &offline.mount(&format!("{}@{manifest}", name.rsplit_once(':').unwrap().0), &[]),
        exceptions,
    );
}

#[test]
fn estargz() {
    is_read_as_it_is(published("estargz"), "eStargz, TOC version 1", (10, 4), &Exceptions::full());
}

#[test]
fn estargz_with_several_files_in_a_member() {
    is_read_as_it_is(published("estargz-inner"), "eStargz, TOC version 1", (10, 1), &Exceptions::full());
}

#[test]
fn estargz_with_its_toc_in_another_image() {
    let image = published("estargz-extern");
    let tocs = fixtures_dir().unwrap().join("estargz-extern-esgztoc");
    push_layout(&image.registry.host(), REPO, "v1-esgztoc", &tocs).unwrap();
    is_read_as_it_is(image, "its TOC in another image, TOC version 1", (10, 4), &Exceptions::full());
}

#[test]
fn zstd_chunked_of_stargz() {
    is_read_as_it_is(published("zstdchunked-stargz"), "zstd:chunked of stargz", (10, 4), &Exceptions::full());
}

#[test]
fn zstd_chunked_of_containers() {
    let image = published("zstdchunked-containers");
    is_read_as_it_is(image, "zstd:chunked of containers", (10, 4), &Exceptions::full());
}

/// Right with each driver, read as it is; again without a registry; pulled; and told of. Gives what it took: to mount and
/// list, to read one small file, and what all layers have.
fn is_converted(image: Published, named: &str, exceptions: &Exceptions) -> (u64, u64) {
    let mut taken = (0, 0);
    // It is called the same, whatever is trusted and before anything of it is here.
    for trust in ["registry", "local", "none"] {
        let told = inspect(&Node::new(), &image.name, &["--trust-index", trust]);
        for layer in told["layers"].as_array().unwrap() {
            assert!(layer["format"].as_str().unwrap().starts_with(named), "{trust}: {told}");
        }
        let why = told["why"].as_str().unwrap();
        assert!(told["lazy"] == (trust == "registry"), "{trust}: {told}");
        assert!(trust == "registry" || why.contains("digests of its whole blobs"), "{trust}: {told}");
    }
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        image.proxy.reset();
        let mount = node.mount(&image.name, &[]);
        let names = hoist_testkit::reading::walk(mount.root()).unwrap();
        assert!(names.paths > 2000, "{names:?}");
        let metadata = image.proxy.stats().body_bytes;
        mount.read(SMALL).unwrap();
        taken = (metadata, image.proxy.stats().body_bytes - metadata);
        let requests = image.proxy.log().iter().filter(|r| r.path.contains("/blobs/")).count();
        assert!(requests < 40, "{requests} requests to mount, list and read a small file");
        assert_right(&mount, exceptions);
        let stats = mount.unmount();
        assert!(count(&stats, "demand_stalls") > 0, "{stats}");

        image.proxy.reset();
        let mount = node.mount(&image.name, &[]);
        assert_right(&mount, exceptions);
        mount.unmount();
        let blobs = image.proxy.log().iter().filter(|r| r.path.contains("/blobs/")).count();
        assert_eq!(blobs, 0, "{:?}", image.proxy.log());
        image.proxy.reset();
        let by_digest = format!("{}@{}", image.name.rsplit_once(':').unwrap().0, image.digest);
        assert_right(&node.mount(&by_digest, &[]), exceptions);
        assert_eq!(image.proxy.log(), []);
        node.says(&["fsck"]);
        let told = inspect(&node, &image.name, &[]);
        for layer in told["layers"].as_array().unwrap() {
            assert!(layer["format"].as_str().unwrap().starts_with(named), "{told}");
            // They are one file system, and nothing is here of one layer alone.
            assert!(layer.get("present").is_none(), "{told}");
        }
        assert!(
            told["present"][0].as_u64() > Some(0)
                && told["present"][0].as_u64() <= told["present"][1].as_u64(),
            "{told}"
        );
        let vouched = if named.starts_with("TurboOCI") { "nothing when" } else { "checksums alone, until" };
        assert!(told["vouched"].as_str().unwrap().starts_with(vouched), "{told}");
    }
    // Each blob once, whole, and nothing else after it.
    let pulled = Node::new();
    pulled.says(&["pull", &image.name]);
    let told = inspect(&pulled, &image.name, &[]);
    assert!(told["layers"].as_array().unwrap().iter().all(|layer| layer["verified"] == true), "{told}");
    assert!(told["vouched"].as_str().unwrap().starts_with("the image's own digests: all"), "{told}");
    image.proxy.reset();
    assert_right(&pulled.mount(&image.name, &[]), exceptions);
    assert!(image.proxy.log().iter().all(|r| !r.path.contains("/blobs/")), "{:?}", image.proxy.log());
    let Published { proxy, registry, name, .. } = image;
    drop((proxy, registry));
    for driver in ["erofs", "fuse"] {
        assert_right(&pulled.mount(&name, &["--driver", driver]), exceptions);
    }
    taken
}

/// Bytes of the largest layer, or of the originals of TurboOCI.
const OVERLAYBD: u64 = 6_788_096;
const ORIGINAL: u64 = 3_043_686;

#[test]
fn overlaybd() {
    let (metadata, one) = is_converted(published("overlaybd"), "overlaybd 0.1.0 (ext4)", &Exceptions::ext4());
    assert!(metadata < OVERLAYBD / 8 && one < OVERLAYBD / 10, "{metadata} + {one}");
}

#[test]
fn turbooci_on_ext4() {
    let named = "TurboOCI 0.1.0-turbo.ociv1 (ext4)";
    let (metadata, one) = is_converted(published("turbooci-ext4"), named, &Exceptions::ext4());
    assert!(metadata < 120 << 10 && one < ORIGINAL / 2, "{metadata} + {one}");
}

#[test]
fn turbooci_on_erofs() {
    let named = "TurboOCI 0.1.0-turbo.ociv1 (erofs)";
    let (metadata, one) = is_converted(published("turbooci-erofs"), named, &Exceptions::turbo_erofs());
    assert!(metadata < 120 << 10 && one < ORIGINAL / 2, "{metadata} + {one}");
}

/// A program runs that reads nothing of its image: so much of it is fetched all the same.
fn fetches_unasked(image: &Published, wanted: u64) {
    let node = Node::new();
    let tools = node.path("tools");
    common::make_rootfs(&tools);
    let volume = format!("{}:/tools:ro", tools.display());
    let linker = fs::read_dir(tools.join("lib64")).unwrap().next().unwrap().unwrap().file_name();
    let linker = format!("/tools/lib64/{}", linker.to_str().unwrap());
    let options = ["run", "--rm", "-i", "--background", "off", "-v", &volume, &image.name];
    let program = [&linker, "--library-path", "/tools/lib/x86_64-linux-gnu", "/tools/bin/sh", "-c", "read x"];
    let mut running = node.hoist(&[&options[..], &program].concat()).stdin(Stdio::piped()).spawn().unwrap();
    let here = || {
        let told = inspect(&node, &image.name, &[]);
        let layers = told["layers"].as_array().unwrap().iter();
        let of = |told: &Value| told["present"][0].as_u64().unwrap_or_default();
        of(&told) + layers.map(of).sum::<u64>()
    };
    process::wait_until("what is fetched first", PATIENCE, || Ok(here() >= wanted)).unwrap();
    drop(running.stdin.take());
    running.wait().unwrap();
}

/// CRC-32C as overlaybd has it: the register as it is, neither begun nor ended with ones (`zfile/crc32/crc32c.cpp`).
fn crc32c(from: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(from, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}

/// The image of `overlaybd` with a layer that tells what of its lowest layer was read: so many bytes from there on.
fn traced(from: u64, mebibytes: u64, damage: impl FnOnce(&mut Vec<u8>)) -> Published {
    let mut records = Vec::new();
    for i in 0..mebibytes {
        records.extend_from_slice(&[b'R', 0, 0, 0, 0, 0, 0, 0]);
        records.extend_from_slice(&(1u64 << 20).to_le_bytes());
        records.extend_from_slice(&(from + (i << 20)).to_le_bytes());
    }
    let mut trace = 0xC2EF_1820u64.to_le_bytes().to_vec();
    trace.extend_from_slice(&(records.len() as u64).to_le_bytes());
    trace.extend_from_slice(&u64::from(crc32c(0, &records)).to_le_bytes());
    trace.extend_from_slice(&records);
    damage(&mut trace);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("trace"), &trace).unwrap();
    let tar = filter("tar", &["-C", dir.path().to_str().unwrap(), "-cf", "-", "trace"], b"");
    let layout = Layout::of("overlaybd");
    layout.change(|manifest| {
        let mut layer = manifest["layers"][1].clone();
        let digest = layout.add(&tar);
        layer["digest"] = digest.clone().into();
        layer["size"] = tar.len().into();
        let key = |name: &str| format!("containerd.io/snapshot/overlaybd/{name}");
        layer["annotations"][key("blob-digest")] = digest.clone().into();
        layer["annotations"][key("blob-size")] = tar.len().to_string().into();
        layer["annotations"][key("acceleration-layer")] = "yes".into();
        manifest["layers"].as_array_mut().unwrap().push(layer);
        layout.configure(manifest, |config| {
            config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(digest.into());
        });
    });
    Published::plain(layout.path())
}

/// What an acceleration layer has recorded is fetched first; one that is damaged tells nothing, and is no harm.
#[test]
fn overlaybd_with_a_trace_of_what_is_read() {
    let image = traced(4 << 20, 3, |_| {});
    fetches_unasked(&image, 2 << 20);
    assert_right(&Node::new().mount(&image.name, &[]), &Exceptions::ext4());
    let image = traced(4 << 20, 3, |trace| trace[30] ^= 1);
    assert_right(&Node::new().mount(&image.name, &[]), &Exceptions::ext4());
}

/// Nothing else can be made of a block device: the reason is said, and nothing is mounted.
#[test]
fn block_devices_that_cannot_be_read_are_refused() {
    let layout = Layout::of("overlaybd");
    layout.change(|manifest| {
        let layer = &mut manifest["layers"][1];
        let mut blob = fs::read(layout.blob(&layer["digest"])).unwrap();
        blob[1536 + 40] ^= 1;
        let digest = layout.add(&blob);
        layer["digest"] = digest.clone().into();
        layout.configure(manifest, |config| config["rootfs"]["diff_ids"][1] = digest.into());
    });
    let image = Published::plain(layout.path());
    let node = Node::new();
    type Attempt<'a> = &'a dyn Fn() -> String;
    let pull: Attempt<'_> = &|| node.fails(&["pull", &image.name]);
    let mount: Attempt<'_> = &|| node.try_mount(&image.name, &[]).err().unwrap();
    // Of whole blobs with right digests nothing is asked twice; of parts, as they may have been damaged on the way.
    for (attempt, most) in [(pull, 1), (mount, 2)] {
        image.proxy.reset();
        let said = attempt();
        assert!(said.contains("another checksum"), "{said}");
        let log = image.proxy.log();
        let times = |r| log.iter().filter(|other| *other == r).count();
        assert!(log.iter().all(|r| times(r) <= most), "{log:?}");
    }
}

/// Metadata that came wrong is fetched once more before anything is made of it.
#[test]
fn bits_that_flip_in_metadata_are_fetched_again() {
    let image = published("overlaybd");
    let lower = &image.layers()[0];
    // Both ends are asked for side by side; of the first it is the ZFile's header.
    let fault = FaultKind::FlipBit(1536 + 40);
    image.proxy.inject(Fault::new(format!("/blobs/{lower}"), When::First(2), fault));
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    let log = image.proxy.log();
    let first = log.iter().find(|r| r.path.ends_with(lower.as_str())).unwrap();
    assert_eq!(log.iter().filter(|r| *r == first).count(), 2, "{log:?}");
    assert_right(&mount, &Exceptions::ext4());
}

/// A pull of such an image makes room like any other, and spares what it has just brought.
#[test]
fn a_pull_keeps_the_limit() {
    let (plain, converted) = (published("gzip"), published("overlaybd"));
    let node = Node::new();
    node.says(&["pull", &plain.name]);
    let before = node.layers();
    node.says(&["--store-limit", "1M", "pull", &converted.name]);
    let after = node.layers();
    assert!(!before.is_empty() && before.iter().all(|layer| !after.contains(layer)), "{after:?}");
    converted.proxy.reset();
    assert_right(&node.mount(&converted.name, &[]), &Exceptions::ext4());
    assert!(converted.proxy.log().iter().all(|r| !r.path.contains("/blobs/")), "{:?}", converted.proxy.log());
}

/// An image layout of a test's own, made from a fixture.
struct Layout(tempfile::TempDir);

impl Layout {
    fn of(fixture: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = fixtures_dir().unwrap().join(fixture);
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        for blob in fs::read_dir(from.join("blobs/sha256")).unwrap().flatten() {
            fs::write(dir.path().join("blobs/sha256").join(blob.file_name()), fs::read(blob.path()).unwrap())
                .unwrap();
        }
        for name in ["index.json", "oci-layout"] {
            fs::write(dir.path().join(name), fs::read(from.join(name)).unwrap()).unwrap();
        }
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn blob(&self, digest: &Value) -> PathBuf {
        self.path().join("blobs").join(digest.as_str().unwrap().replace(':', "/"))
    }

    fn add(&self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        fs::write(self.blob(&digest.clone().into()), bytes).unwrap();
        digest
    }

    fn json(&self, path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn manifest(&self) -> Value {
        let index = self.json(&self.path().join("index.json"));
        self.json(&self.blob(&index["manifests"][0]["digest"]))
    }

    /// Makes it one of these manifests, the first of which its tag names.
    fn write_index(&self, manifests: &[Value]) {
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }

    /// Changes the config that a manifest names.
    fn configure(&self, manifest: &mut Value, change: impl FnOnce(&mut Value)) {
        let mut config = self.json(&self.blob(&manifest["config"]["digest"]));
        change(&mut config);
        let bytes = serde_json::to_vec(&config).unwrap();
        manifest["config"]["digest"] = self.add(&bytes).into();
        manifest["config"]["size"] = bytes.len().into();
    }

    /// Changes the manifest of its image.
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut index = self.json(&self.path().join("index.json"));
        let old = self.blob(&index["manifests"][0]["digest"]);
        let mut manifest = self.json(&old);
        change(&mut manifest);
        let bytes = serde_json::to_vec(&manifest).unwrap();
        fs::remove_file(old).unwrap();
        index["manifests"][0]["digest"] = self.add(&bytes).into();
        index["manifests"][0]["size"] = bytes.len().into();
        fs::write(self.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

fn filter(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let (mut to, input) = (child.stdin.take().unwrap(), input.to_vec());
    let feeding = std::thread::spawn(move || std::io::Write::write_all(&mut to, &input));
    let output = child.wait_with_output().unwrap();
    let _ = feeding.join();
    output.stdout
}

const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// The image whose TOCs stand in another one, with the TOC of its first layer told otherwise: by `change`, and then
/// as bytes by `damage`.
fn retold(change: impl FnOnce(&mut Vec<Value>)) -> (Published, Layout) {
    let (image, tocs) = (Layout::of("estargz-extern"), Layout::of("estargz-extern-esgztoc"));
    let mut of_json = String::new();
    let mut about = Value::Null;
    tocs.change(|manifest| {
        let layers = manifest["layers"].as_array_mut().unwrap();
        let layer = layers.iter_mut().max_by_key(|l| l["size"].as_u64()).unwrap();
        about = layer["annotations"]["containerd.io/snapshot/stargz/layer.digest"].clone();
        let tar = filter("gzip", &["-dc"], &fs::read(tocs.blob(&layer["digest"])).unwrap());
        let size = u64::from_str_radix(std::str::from_utf8(&tar[124..135]).unwrap(), 8).unwrap() as usize;
        let mut toc: Value = serde_json::from_slice(&tar[512..512 + size]).unwrap();
        change(toc["entries"].as_array_mut().unwrap());
        let json = serde_json::to_vec(&toc).unwrap();
        of_json = tocs.add(&json);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("stargz.index.json"), &json).unwrap();
        let tar = filter("tar", &["-C", dir.path().to_str().unwrap(), "-cf", "-", "stargz.index.json"], b"");
        let stored = filter("gzip", &["-n"], &tar);
        layer["digest"] = tocs.add(&stored).into();
        layer["size"] = stored.len().into();
    });
    image.change(|manifest| {
        let layers = manifest["layers"].as_array_mut().unwrap();
        let layer = layers.iter_mut().find(|l| l["digest"] == about).unwrap();
        layer["annotations"][TOC_DIGEST] = of_json.into();
    });
    let published = Published::plain(image.path());
    push_layout(&published.registry.host(), REPO, "v1-esgztoc", tocs.path()).unwrap();
    (published, tocs)
}

fn entry<'a>(entries: &'a mut [Value], name: &str) -> &'a mut Value {
    entries.iter_mut().find(|e| e["name"] == name).unwrap()
}

/// The plain fallback was taken: nothing of that layer is lazy, and it is right all the same.
fn falls_back(image: &Published, options: &[&str], reason: &str) {
    let node = Node::new();
    let told = inspect(&node, &image.name, options);
    let refused = |l: &&Value| l["note"].as_str().is_some_and(|note| note.contains(reason));
    assert!(told["layers"].as_array().unwrap().iter().any(|l| refused(&l)), "{reason}: {told}");
    let mount = node.mount(&image.name, options);
    assert_right(&mount, &Exceptions::full());
    mount.unmount();
}

#[test]
fn a_toc_that_cannot_be_is_not_used() {
    type Change = fn(&mut Vec<Value>);
    let lies: [(&str, Change); 6] = [
        ("behind the last one", |e| entry(e, SMALL)["offset"] = 1_000_000_000.into()),
        ("beyond the end of its file", |e| entry(e, "big/text-9m")["chunkSize"] = 99_000_000.into()),
        ("does not follow its file", |e| e.retain(|e| e["name"] != "big/text-9m" || e["type"] != "reg")),
        ("not all of it", |e| e.retain(|e| e["type"] != "chunk")),
        ("can hold", |e| entry(e, SMALL)["size"] = 50_000_000.into()),
        ("many levels of symbolic links", |e| {
            for (name, to) in [("loop-a", "loop-b"), ("loop-b", "loop-a")] {
                e.push(serde_json::json!({ "name": name, "type": "symlink", "linkName": to }));
            }
            e.push(serde_json::json!({ "name": "loop-a/below", "type": "dir" }));
        }),
    ];
    for (reason, change) in lies {
        let (image, _tocs) = retold(change);
        falls_back(&image, &[], reason);
    }
}

/// A TOC whose digests are of other bytes: of the files concerned nothing can be read, and of the others all.
#[test]
fn bytes_that_a_toc_does_not_vouch_for_are_never_shown() {
    let other = "big/text-9m";
    let (image, _tocs) = retold(|entries| {
        let taken = entry(entries, other)["chunkDigest"].clone();
        let small = entry(entries, SMALL);
        (small["digest"], small["chunkDigest"]) = (taken.clone(), taken);
    });
    let node = Node::new();
    let mount = node.mount(&image.name, &["--read-timeout", "20s"]);
    let said = mount.read(SMALL).unwrap_err();
    assert_eq!(said.raw_os_error(), Some(libc::EIO), "{said}");
    assert_eq!(mount.read(other).unwrap().len(), 9 << 20);
}

/// A TOC that names a path twice means the one that it names last.
#[test]
fn a_toc_that_names_a_file_twice() {
    let (image, _tocs) = retold(|entries| {
        let mut again = entry(entries, "big/text-9m").clone();
        again["size"] = 4_194_304.into();
        entries.push(again);
    });
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert_eq!(mount.read("big/text-9m").unwrap().len(), 4 << 20);
}

/// A digest in the manifest that is of another TOC; and one that is missing, which is a matter of trust.
#[test]
fn a_toc_is_what_the_manifest_says_or_a_matter_of_trust() {
    let layout = Layout::of("estargz");
    layout.change(|manifest| {
        let layers = manifest["layers"].as_array_mut().unwrap();
        let other = layers[1]["annotations"][TOC_DIGEST].clone();
        layers[0]["annotations"][TOC_DIGEST] = other;
    });
    // The other layer is read as it is, in the same image.
    falls_back(&Published::plain(layout.path()), &[], "its manifest says");

    let image = unpinned();
    let node = Node::new();
    assert_eq!(inspect(&node, &image.name, &["--trust-index", "local"])["lazy"], false);
    assert_eq!(inspect(&node, &image.name, &[])["lazy"], true);
    let mount = node.mount(&image.name, &[]);
    assert_right(&mount, &Exceptions::full());
    let stats = mount.unmount();
    assert!(count(&stats, "demand_stalls") > 0, "{stats}");
    // With a digest in the manifest no registry needs to be trusted; without any trust nothing is read lazily.
    let image = published("estargz");
    assert_eq!(inspect(&node, &image.name, &["--trust-index", "local"])["lazy"], true);
    assert_eq!(inspect(&node, &image.name, &["--trust-index", "none"])["lazy"], false);
}

/// What a manifest says of the place of its layer's TOC, and what stands there.
#[test]
fn places_of_a_toc_that_cannot_be() {
    const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
    const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
    // Of the fields of the position: offset, length, length decompressed, type.
    for (field, number, reason) in [
        (0, "99999999999", "stand where it cannot"),
        (1, "18446744073709551615", "stand where it cannot"),
        (2, "10", "cannot be decompressed"),
        (2, "99999999999", "more than 128 MiB"),
        (3, "2", "of type 2"),
    ] {
        let layout = Layout::of("zstdchunked-containers");
        layout.change(|manifest| {
            let annotations = &mut manifest["layers"][0]["annotations"];
            let told = annotations[POSITION].as_str().unwrap().to_owned();
            let mut fields: Vec<_> = told.split(':').collect();
            fields[field] = number;
            annotations[POSITION] = fields.join(":").into();
        });
        falls_back(&Published::plain(layout.path()), &[], reason);
    }
    let layout = Layout::of("zstdchunked-containers");
    layout.change(|manifest| {
        let other = manifest["layers"][1]["annotations"][CHECKSUM].clone();
        manifest["layers"][0]["annotations"][CHECKSUM] = other;
    });
    falls_back(&Published::plain(layout.path()), &[], "not the digest that its manifest says");
}

/// A TOC of a few KiB that decompresses to 200 MB: no more of it is made than a TOC may have.
#[test]
fn a_toc_that_is_a_bomb_is_not_used() {
    let layout = Layout::of("estargz");
    layout.change(|manifest| {
        manifest["layers"][0].as_object_mut().unwrap().remove("annotations");
        let blob = fs::read(layout.blob(&manifest["layers"][0]["digest"])).unwrap();
        let (body, footer) = blob.split_at(blob.len() - 51);
        let offset = std::str::from_utf8(&footer[16..32]).unwrap();
        let files = &body[..usize::from_str_radix(offset, 16).unwrap()];
        let dir = tempfile::tempdir().unwrap();
        fs::File::create(dir.path().join("stargz.index.json")).unwrap().set_len(200 << 20).unwrap();
        let tar = filter("tar", &["-C", dir.path().to_str().unwrap(), "-cf", "-", "stargz.index.json"], b"");
        let all = [files, &filter("gzip", &["-n"], &tar), footer].concat();
        dialects::replace(&layout, manifest, 0, &all, &["gzip", "-dc"]);
    });
    falls_back(&Published::plain(layout.path()), &[], "more than 128 MiB");
}

/// A layer without a TOC stands whole beside one that is read as it is.
#[test]
fn layers_of_one_image_may_differ() {
    let (estargz, gzip) = (Layout::of("estargz"), Layout::of("gzip"));
    let index = gzip.json(&gzip.path().join("index.json"));
    let plain = gzip.json(&gzip.blob(&index["manifests"][0]["digest"]));
    let plain_config = gzip.json(&gzip.blob(&plain["config"]["digest"]));
    estargz.change(|manifest| {
        let top = plain["layers"][1].clone();
        estargz.add(&fs::read(gzip.blob(&top["digest"])).unwrap());
        manifest["layers"][1] = top;
        let diff_id = plain_config["rootfs"]["diff_ids"][1].clone();
        estargz.configure(manifest, |config| config["rootfs"]["diff_ids"][1] = diff_id);
    });
    let image = Published::plain(estargz.path());
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        let told = inspect(&node, &image.name, &[]);
        assert!(told["lazy"] == true && told["layers"][1]["format"] == "tar+gzip", "{told}");
        let mount = node.mount(&image.name, &[]);
        assert_right(&mount, &Exceptions::full());
        let stats = mount.unmount();
        assert!(count(&stats, "demand_stalls") > 0, "{stats}");
    }
}

/// Bits that flip on the way are noticed: once and it is fetched again, always and it is an error.
#[test]
fn flipped_bits_are_never_shown() {
    let image = published("estargz");
    for (when, is_right) in [(When::Nth(1), true), (When::Always, false)] {
        let node = Node::new();
        let mount = node.mount(&image.name, &["--read-timeout", "20s"]);
        image.proxy.inject(Fault::new("/blobs/", when, FaultKind::FlipBit(40)));
        let read = mount.read(SMALL);
        assert_eq!(read.is_ok(), is_right, "{when:?}: {read:?}");
        image.proxy.clear_faults();
        node::tree::wait_mended(mount.root());
        assert_right(&mount, &Exceptions::full());
    }
}
