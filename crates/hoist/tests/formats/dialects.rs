//! What formats were written like before, made of what their tools write today.

use super::*;

const OF_NOW: &str = "io.github.containers.zstd-chunked.";
const AT_FIRST: &str = "io.containers.zstd-chunked.";

/// Puts other bytes in a layer's place, which may decompress to others too.
pub fn replace(layout: &Layout, manifest: &mut Value, layer: usize, stored: &[u8], decompress: &[&str]) {
    let stream = filter(decompress[0], &decompress[1..], stored);
    let mut config = layout.json(&layout.blob(&manifest["config"]["digest"]));
    config["rootfs"]["diff_ids"][layer] = digest(&stream).into();
    let bytes = serde_json::to_vec(&config).unwrap();
    manifest["config"]["digest"] = layout.add(&bytes).into();
    manifest["config"]["size"] = bytes.len().into();
    manifest["layers"][layer]["digest"] = layout.add(stored).into();
    manifest["layers"][layer]["size"] = stored.len().into();
}

/// eStargz as stargz was (google/crfs): a footer of 47 bytes, digests of files and none of chunks, nothing in the manifest.
fn as_stargz(blob: &[u8]) -> Vec<u8> {
    let (body, footer) = blob.split_at(blob.len() - 51);
    let offset = std::str::from_utf8(&footer[16..32]).unwrap();
    let (files, toc) = body.split_at(usize::from_str_radix(offset, 16).unwrap());
    let tar = filter("gzip", &["-dc"], toc);
    let size = usize::from_str_radix(std::str::from_utf8(&tar[124..135]).unwrap(), 8).unwrap();
    let mut toc: Value = serde_json::from_slice(&tar[512..512 + size]).unwrap();
    for entry in toc["entries"].as_array_mut().unwrap() {
        entry.as_object_mut().unwrap().remove("chunkDigest");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("stargz.index.json"), serde_json::to_vec(&toc).unwrap()).unwrap();
    let tar = filter("tar", &["-C", dir.path().to_str().unwrap(), "-cf", "-", "stargz.index.json"], b"");
    let mut all = [files, &filter("gzip", &["-n"], &tar)].concat();
    all.extend_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 22, 0]);
    all.extend_from_slice(format!("{offset}STARGZ").as_bytes());
    all.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    all
}

/// A layer of small files is read lazily. One with a file of several chunks has no digest that a chunk could be held to: it
/// is fetched whole, and the reason told.
#[test]
fn stargz() {
    let layout = Layout::of("estargz");
    layout.change(|manifest| {
        for layer in 0..2 {
            manifest["layers"][layer].as_object_mut().unwrap().remove("annotations");
            let blob = fs::read(layout.blob(&manifest["layers"][layer]["digest"])).unwrap();
            replace(&layout, manifest, layer, &as_stargz(&blob), &["gzip", "-dc"]);
        }
    });
    let image = Published::plain(layout.path());
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        assert_eq!(inspect(&node, &image.name, &["--trust-index", "local"])["lazy"], false);
        let told = inspect(&node, &image.name, &[]);
        let note = told["layers"][0]["note"].as_str().unwrap_or_default();
        assert!(note.contains("chunks without a digest"), "{told}");
        assert!(
            told["layers"][1]["format"] == "stargz, TOC version 1" && told["layers"][1]["note"].is_null(),
            "{told}"
        );
        let mount = node.mount(&image.name, &[]);
        assert_right(&mount, &Exceptions::full());
        let stats = mount.unmount();
        assert!(count(&stats, "demand_stalls") > 0, "{stats}");
    }
}

/// zstd:chunked as containers/storage wrote it at first: the annotations' names were those that stargz-snapshotter still has.
#[test]
fn zstd_chunked_with_the_first_annotations() {
    let layout = Layout::of("zstdchunked-containers");
    layout.change(|manifest| {
        for layer in manifest["layers"].as_array_mut().unwrap() {
            let annotations = layer["annotations"].as_object_mut().unwrap();
            for (name, value) in std::mem::take(annotations) {
                if let Some(rest) = name.strip_prefix(OF_NOW).filter(|rest| rest.starts_with("manifest-")) {
                    annotations.insert(format!("{AT_FIRST}{rest}"), value);
                }
            }
            assert_eq!(annotations.len(), 2);
        }
    });
    is_read_as_it_is(Published::plain(layout.path()), "zstd:chunked", (10, 4), &Exceptions::full());
}

/// The same without any annotation, by the first footer: 40 bytes, without a word of tar-split.
#[test]
fn zstd_chunked_with_the_first_footer() {
    let layout = Layout::of("zstdchunked-containers");
    layout.change(|manifest| {
        for layer in 0..2 {
            let described = &mut manifest["layers"][layer];
            let position = described["annotations"][format!("{OF_NOW}manifest-position")].clone();
            described.as_object_mut().unwrap().remove("annotations");
            let mut blob = fs::read(layout.blob(&described["digest"])).unwrap();
            // A skippable frame of 64 bytes.
            let frame = blob.len() - 72;
            assert_eq!(blob[frame..frame + 8], [0x50, 0x2a, 0x4d, 0x18, 64, 0, 0, 0]);
            blob.truncate(frame + 4);
            blob.extend_from_slice(&40u32.to_le_bytes());
            for number in position.as_str().unwrap().split(':') {
                blob.extend_from_slice(&number.parse::<u64>().unwrap().to_le_bytes());
            }
            blob.extend_from_slice(b"GNUlInUx");
            replace(&layout, manifest, layer, &blob, &["zstd", "-dc"]);
        }
    });
    let image = Published::plain(layout.path());
    let node = Node::new();
    assert_eq!(inspect(&node, &image.name, &["--trust-index", "local"])["lazy"], false);
    let told = inspect(&node, &image.name, &[]);
    for layer in told["layers"].as_array().unwrap() {
        assert_eq!(layer["format"], "zstd:chunked of containers, TOC version 1", "{told}");
    }
    let mount = node.mount(&image.name, &[]);
    assert_right(&mount, &Exceptions::full());
    let stats = mount.unmount();
    assert!(count(&stats, "demand_stalls") > 0, "{stats}");
}
