//! nydus images, as nydus-image made them, from a real registry: read as they are, or refused with the reason.

mod node;

use std::fs;
use std::process::Command;

use hoist_testkit::{Exceptions, Fault, FaultKind, When, compare_tree, fixtures_dir};
use node::{Mounted, Node, Published, count};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A file of the layer with many files.
const SMALL: &str = "many/d02/f1752";

fn published(fixture: &str) -> Published {
    Published::plain(&fixtures_dir().unwrap().join(fixture))
}

fn assert_right(mount: &Mounted) {
    let differences = compare_tree(mount.root(), &Exceptions::without_fifo()).unwrap();
    assert_eq!(differences, [""; 0], "{} differences", differences.len());
}

fn inspect(node: &Node, image: &str) -> Value {
    serde_json::from_str(&node.says(&["inspect", "--json", image])).unwrap()
}

/// Right lazily with each driver, at the price of the bootstrap's layer and of little more than one chunk for one small
/// file; again, pulled and offline. Gives what the file took.
fn is_read_as_it_is(image: Published, format: &str, bootstrap: u64) -> u64 {
    let mut one = 0;
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        node.make_store();
        let told = inspect(&node, &image.name);
        assert_eq!(told["lazy"], true, "{told}");
        for layer in told["layers"].as_array().unwrap() {
            assert_eq!(layer["format"], format, "{told}");
        }
        image.proxy.reset();
        let mount = node.mount(&image.name, &[]);
        assert!(hoist_testkit::reading::walk(mount.root()).unwrap().paths > 2000);
        let metadata = image.proxy.stats().body_bytes;
        // Manifest and config besides.
        assert!((bootstrap..bootstrap + 4096).contains(&metadata), "{metadata}");
        mount.read(SMALL).unwrap();
        one = image.proxy.stats().body_bytes - metadata;
        assert_right(&mount);
        let stats = mount.unmount();
        assert!(count(&stats, "demand_stalls") > 0, "{stats}");

        image.proxy.reset();
        let mount = node.mount(&image.name, &[]);
        assert_right(&mount);
        mount.unmount();
        let blobs = image.proxy.log().iter().filter(|r| r.path.contains("/blobs/")).count();
        assert_eq!(blobs, 0, "{:?}", image.proxy.log());
        node.says(&["fsck"]);
    }
    let pulled = Node::new();
    pulled.says(&["pull", &image.name]);
    let Published { proxy, registry, name, .. } = image;
    drop((proxy, registry));
    for driver in ["erofs", "fuse", "erofs-fuse"] {
        assert_right(&pulled.mount(&name, &["--driver", driver]));
    }
    one
}

#[test]
fn rafs_v5() {
    let one = is_read_as_it_is(published("nydus-v5"), "nydus RAFS v5", 192_597);
    assert!(one < 64 << 10, "{one}");
}

#[test]
fn rafs_v6() {
    let one = is_read_as_it_is(published("nydus-v6"), "nydus RAFS v6", 142_797);
    assert!(one < 64 << 10, "{one}");
}

#[test]
fn zran() {
    let one = is_read_as_it_is(published("nydus-zran"), "nydus RAFS v6 zran", 260_661);
    // One context has 34,819 bytes.
    assert!(one < 256 << 10, "{one}");
}

/// A layout with another bootstrap's layer than the fixture's.
fn with_bootstrap(fixture: &str, change: impl FnOnce(&mut Vec<u8>)) -> tempfile::TempDir {
    let (from, dir) = (fixtures_dir().unwrap().join(fixture), tempfile::tempdir().unwrap());
    let blobs = dir.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for blob in fs::read_dir(from.join("blobs/sha256")).unwrap().flatten() {
        fs::copy(blob.path(), blobs.join(blob.file_name())).unwrap();
    }
    fs::copy(from.join("oci-layout"), dir.path().join("oci-layout")).unwrap();
    let add = |bytes: &[u8]| {
        let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        fs::write(blobs.join(&hex), bytes).unwrap();
        (Value::from(format!("sha256:{hex}")), Value::from(bytes.len()))
    };
    let hex = |descriptor: &Value| descriptor["digest"].as_str().unwrap()[7..].to_owned();
    let json = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
    let mut index = json(fs::read(from.join("index.json")).unwrap());
    let mut manifest = json(fs::read(blobs.join(hex(&index["manifests"][0]))).unwrap());
    let layer = manifest["layers"].as_array_mut().unwrap().last_mut().unwrap();
    let stored = fs::File::open(blobs.join(hex(layer))).unwrap();
    let mut tar = Command::new("gzip").arg("-dc").stdin(stored).output().unwrap().stdout;
    change(&mut tar);
    // A bootstrap's layer need not be compressed.
    (layer["digest"], layer["size"]) = add(&tar);
    layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
    let descriptor = &mut index["manifests"][0];
    (descriptor["digest"], descriptor["size"]) = add(&serde_json::to_vec(&manifest).unwrap());
    fs::write(dir.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    dir
}

/// Where `image/image.boot` begins in the layer: behind a folder's header and its own.
const BOOT: usize = 1024;

#[test]
fn bootstraps_that_cannot_be_are_refused_with_the_reason() {
    type Change = fn(&mut Vec<u8>);
    let lies: [(&str, &str, Change); 4] = [
        ("nydus-v6", "magic number", |tar| tar[BOOT + 1024] ^= 1),
        ("nydus-v6", "encrypted", |tar| tar[BOOT + 1152 + 3] |= 2),
        ("nydus-v5", "beyond", |tar| tar[BOOT + 35] = 0x7f),
        ("nydus-v5", "no image/image.boot", |tar| tar.fill(0)),
    ];
    for (fixture, reason, change) in lies {
        let layout = with_bootstrap(fixture, change);
        let image = Published::plain(layout.path());
        let node = Node::new();
        for said in [node.fails(&["pull", &image.name]), node.try_mount(&image.name, &[]).err().unwrap()] {
            assert!(said.contains(reason), "{reason}: {said}");
        }
        let told = inspect(&node, &image.name);
        let noted = |l: &&Value| l["note"].as_str().is_some_and(|note| note.contains(reason));
        assert!(told["layers"].as_array().unwrap().iter().all(|l| noted(&l)), "{told}");
        assert!(told["lazy"] == false && told["vouched"] == "nothing that can be read", "{told}");
        assert!(told["why"].as_str().unwrap().contains("nothing else tells what is in it"), "{told}");
    }
    let sound = with_bootstrap("nydus-v6", |_| ());
    assert_right(&Node::new().mount(&Published::plain(sound.path()).name, &[]));
}

/// A digest in the chunk table that is another's: the files concerned cannot be read, and all others can.
#[test]
fn bytes_that_a_bootstrap_does_not_vouch_for_are_never_shown() {
    let mut concerned = 0;
    let layout = with_bootstrap("nydus-v6", |tar| {
        let at = |tar: &[u8], field: usize| {
            u64::from_le_bytes(tar[BOOT + field..BOOT + field + 8].try_into().unwrap()) as usize
        };
        // Of every chunk but those of large files.
        let (table, size) = (at(tar, 1152 + 24), at(tar, 1152 + 32));
        for record in (BOOT + table..BOOT + table + size).step_by(80) {
            if u32::from_le_bytes(tar[record + 44..record + 48].try_into().unwrap()) == 5 {
                tar[record] ^= 1;
                concerned += 1;
            }
        }
    });
    assert!(concerned > 100);
    let image = Published::plain(layout.path());
    let node = Node::new();
    let mount = node.mount(&image.name, &["--read-timeout", "20"]);
    let said = mount.read("many/d02/f1752").unwrap_err();
    assert_eq!(said.raw_os_error(), Some(libc::EIO), "{said}");
    assert_eq!(mount.read("big/text-9m").unwrap().len(), 9 << 20);
}

#[test]
fn bits_that_flip_on_the_way_are_never_shown() {
    let image = published("nydus-v5");
    for (when, is_right) in [(When::Nth(1), true), (When::Always, false)] {
        let node = Node::new();
        let mount = node.mount(&image.name, &["--read-timeout", "20"]);
        image.proxy.inject(Fault::new("/blobs/", when, FaultKind::FlipBit(2)));
        let read = mount.read("big/noise-1m5");
        assert_eq!(read.is_ok(), is_right, "{when:?}: {read:?}");
        image.proxy.clear_faults();
        node::tree::wait_mended(mount.root());
        assert_right(&mount);
    }
}

/// An index with the plain image and the converted one of the same platform: lazily the second, unless other metadata
/// than a registry's digests is not to be used.
#[test]
fn beside_the_plain_image_the_converted_one_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let mut manifests = Vec::new();
    for fixture in ["gzip", "nydus-v6"] {
        let from = fixtures_dir().unwrap().join(fixture);
        for blob in fs::read_dir(from.join("blobs/sha256")).unwrap().flatten() {
            fs::copy(blob.path(), blobs.join(blob.file_name())).unwrap();
        }
        let index: Value = serde_json::from_slice(&fs::read(from.join("index.json")).unwrap()).unwrap();
        let mut descriptor = index["manifests"][0].clone();
        descriptor["platform"]["architecture"] = "amd64".into();
        descriptor["platform"]["os"] = "linux".into();
        manifests.push(descriptor);
    }
    let digests: Vec<_> = manifests.iter().map(|d| d["digest"].as_str().unwrap().to_owned()).collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    let bytes = serde_json::to_vec(&index).unwrap();
    let hex: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    fs::write(blobs.join(&hex), &bytes).unwrap();
    let entry = serde_json::json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() });
    let top = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(dir.path().join("index.json"), serde_json::to_vec(&top).unwrap()).unwrap();
    fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();

    let image = Published::plain(dir.path());
    for (options, wanted, lazy) in
        [(&[][..], &digests[1], true), (&["--trust-index", "none"], &digests[0], false)]
    {
        let node = Node::new();
        let told =
            node.says(&[&["inspect", "--json", "--platform", "linux/amd64", &image.name], options].concat());
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&told["digest"], &told["lazy"]),
            (&Value::from(wanted.as_str()), &Value::from(lazy)),
            "{told}"
        );
    }
}
