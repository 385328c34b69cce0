//! SOCI: plain layers that have an index beside them.

use hoist_testkit::push;
use serde_json::json;

use super::*;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const V1: &str = "application/vnd.amazon.soci.index.v1+json";
const V2: &str = "application/vnd.amazon.soci.index.v2+json";
const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
const OF_LAYER: &str = "com.amazon.soci.image-layer-digest";
/// A file that stands in the spans 3 to 9 of the lower layer, which are fetched first.
const LARGE: &str = "big/text-9m";

fn descriptor(layout: &Layout, digest: &str, artifact_type: Option<&str>) -> Value {
    let size = fs::metadata(layout.blob(&digest.into())).unwrap().len();
    let mut descriptor = json!({
        "mediaType": OCI_MANIFEST, "digest": digest, "size": size,
        "platform": { "os": "linux", "architecture": "amd64" },
    });
    artifact_type.into_iter().for_each(|kind| descriptor["artifactType"] = kind.into());
    descriptor
}

/// A list of what refers to an image.
fn list(descriptor: &Value) -> Vec<u8> {
    let list = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor] });
    serde_json::to_vec(&list).unwrap()
}

/// The list of the image of `soci-v1`.
fn list_v1() -> Vec<u8> {
    let layout = Layout::of("soci-v1");
    list(&layout.json(&layout.path().join("index.json"))["manifests"][1])
}

/// Where the list stands in a registry without the referrers API.
fn push_list(image: &Published, list: &[u8]) {
    let tag = image.digest.replace(':', "-");
    push::push_manifest(&image.registry.host(), REPO, &tag, OCI_INDEX, list).unwrap();
}

/// Layers of 3 MB have zTOCs of 0.7 MB, of which the windows are most.
#[test]
fn version_2() {
    let named = "SOCI index v2, zTOC version 0.9";
    is_read_as_it_is(published("soci-v2"), named, (3, 20), &Exceptions::full());
}

/// With smaller spans the windows are more.
#[test]
fn version_1_by_the_fallback_tag() {
    let named = "SOCI index v1, zTOC version 0.9";
    let image = published("soci-v1");
    push_list(&image, &list_v1());
    is_read_as_it_is(image, named, (2, 20), &Exceptions::full());
}

/// A registry with the API: what it answers stands elsewhere in it.
#[test]
fn version_1_by_the_referrers_api() {
    let image = published("soci-v1");
    let node = Node::new();
    assert_eq!(inspect(&node, &image.name, &[])["lazy"], false);
    let (list, stored) = (list_v1(), node.path("list"));
    fs::write(&stored, &list).unwrap();
    push::push_blob(&image.registry.host(), REPO, &digest(&list), &stored).unwrap();
    let to = ("location".to_owned(), format!("/v2/{REPO}/blobs/{}", digest(&list)));
    image.proxy.inject(Fault::new("/referrers/", When::Always, FaultKind::Status(307, vec![to])));
    assert_eq!(inspect(&node, &image.name, &["--trust-index", "local"])["lazy"], false);
    let told = inspect(&node, &image.name, &[]);
    assert_eq!(told["lazy"], true, "{told}");
    let mount = node.mount(&image.name, &[]);
    assert_right(&mount, &Exceptions::full());
    let stats = mount.unmount();
    assert!(count(&stats, "demand_stalls") > 0, "{stats}");
}

/// What the manifest names, a registry need not be trusted for.
#[test]
fn what_the_manifest_names_is_a_matter_of_no_trust() {
    let image = published("soci-v2");
    let node = Node::new();
    assert_eq!(inspect(&node, &image.name, &["--trust-index", "none"])["lazy"], false);
    assert_eq!(inspect(&node, &image.name, &["--trust-index", "local"])["lazy"], true);
    let mount = node.mount(&image.name, &["--trust-index", "local"]);
    assert_right(&mount, &Exceptions::full());
    let stats = mount.unmount();
    assert!(count(&stats, "demand_stalls") > 0, "{stats}");
}

/// The image of `soci-v2` with another index: its manifest names it as before.
fn with_index(change: impl FnOnce(&Layout, &mut Value)) -> (Layout, Published) {
    changed(|layout, _, index| change(layout, index))
}

/// The image of `soci-v2` with another manifest and another index, which it names.
fn changed(change: impl FnOnce(&Layout, &mut Value, &mut Value)) -> (Layout, Published) {
    let layout = Layout::of("soci-v2");
    let list = layout.json(&layout.path().join("index.json"));
    let list = layout.json(&layout.blob(&list["manifests"][0]["digest"]));
    let mut manifest = layout.json(&layout.blob(&list["manifests"][0]["digest"]));
    let mut index = layout.json(&layout.blob(&list["manifests"][1]["digest"]));
    change(&layout, &mut manifest, &mut index);
    let index = layout.add(&serde_json::to_vec(&index).unwrap());
    manifest["annotations"][INDEX_DIGEST] = index.clone().into();
    let manifest = layout.add(&serde_json::to_vec(&manifest).unwrap());
    layout.write_index(&[descriptor(&layout, &manifest, None), descriptor(&layout, &index, Some(V2))]);
    let image = Published::plain(layout.path());
    (layout, image)
}

/// An index lists zTOCs, the lower layer's first, and then what is fetched first.
fn ztoc(layout: &Layout, index: &Value, layer: usize) -> Vec<u8> {
    fs::read(layout.blob(&index["layers"][layer]["digest"])).unwrap()
}

fn set_ztoc(layout: &Layout, index: &mut Value, layer: usize, ztoc: &[u8]) {
    index["layers"][layer]["digest"] = layout.add(ztoc).into();
    index["layers"][layer]["size"] = ztoc.len().into();
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    let all: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(what)).collect();
    assert_eq!(all.len(), 1, "{what:?}");
    all[0]
}

/// Where in a zTOC its checkpoints begin: behind their number and the size of spans.
fn checkpoints(ztoc: &[u8]) -> usize {
    find(ztoc, &[(1u64 << 20).to_le_bytes(), 10u64.to_le_bytes(), 0u64.to_le_bytes()].concat()) + 8
}

const CHECKPOINT: usize = 8 + 8 + 1 + (32 << 10);

/// As the first version of checkpoints was: without the one behind the gzip header.
fn without_first(ztoc: &mut [u8]) {
    let first = checkpoints(ztoc);
    let count = u32::from_le_bytes(ztoc[first - 12..first - 8].try_into().unwrap()) as usize;
    ztoc.copy_within(first + CHECKPOINT..first + count * CHECKPOINT, first);
    let len = (12 + (count - 1) * CHECKPOINT) as u32;
    ztoc[first - 16..first - 12].copy_from_slice(&len.to_le_bytes());
}

/// Such checkpoints are good for layers with the header that they take for granted.
#[test]
fn checkpoints_of_the_first_version() {
    let mut lower = String::new();
    let (_layout, image) = with_index(|layout, index| {
        for layer in 0..2 {
            let mut bytes = ztoc(layout, index, layer);
            without_first(&mut bytes);
            set_ztoc(layout, index, layer, &bytes);
        }
        lower = index["layers"][0]["annotations"][OF_LAYER].as_str().unwrap().to_owned();
    });
    // Nothing but the header is asked of the layers.
    let local = ["--trust-index", "local"];
    image.proxy.inject(Fault::new(format!("blobs/{lower}"), When::Always, FaultKind::FlipBit(0)));
    let told = inspect(&Node::new(), &image.name, &local);
    let note = |layer: usize| told["layers"][layer]["note"].as_str().unwrap_or_default();
    assert!(note(0).contains("another gzip header") && note(1).is_empty(), "{told}");
    image.proxy.clear_faults();
    let node = Node::new();
    let told = inspect(&node, &image.name, &local);
    assert!(told["layers"].as_array().unwrap().iter().all(|layer| layer["note"].is_null()), "{told}");
    let mount = node.mount(&image.name, &local);
    assert_right(&mount, &Exceptions::full());
    let stats = mount.unmount();
    assert!(count(&stats, "demand_stalls") > 0, "{stats}");
}

/// Each layer's lie is told of, and both are fetched whole.
#[test]
fn ztocs_that_cannot_be_are_not_used() {
    type Change = fn(&mut Vec<u8>);
    let end: Change = |ztoc| {
        let at = find(ztoc, &[5000u64.to_le_bytes(), 7168u64.to_le_bytes()].concat());
        ztoc[at + 8..at + 16].copy_from_slice(&(u64::MAX - 9).to_le_bytes());
    };
    let count: Change = |ztoc| {
        let at = checkpoints(ztoc) - 12;
        ztoc[at] += 1;
    };
    let order: Change = |ztoc| {
        let at = checkpoints(ztoc) + 3 * CHECKPOINT;
        let (first, second) = ztoc[at..].split_at_mut(CHECKPOINT);
        first.swap_with_slice(&mut second[..CHECKPOINT]);
    };
    let no_digest: Change = |ztoc| {
        let at = ztoc.windows(7).position(|w| w == b"sha256:").unwrap();
        ztoc[at + 3..at + 6].copy_from_slice(b"512");
    };
    for (changes, reasons) in [
        ([order, end], ["not in order", "beyond the end"]),
        ([count, no_digest], ["one checkpoint", "no SHA-256"]),
    ] {
        let (_layout, image) = with_index(|layout, index| {
            for (layer, change) in changes.into_iter().enumerate() {
                let mut bytes = ztoc(layout, index, layer);
                change(&mut bytes);
                set_ztoc(layout, index, layer, &bytes);
            }
        });
        assert_eq!(inspect(&Node::new(), &image.name, &[])["lazy"], false);
        for reason in reasons {
            assert!(refusal(&image).contains(reason), "{reason}: {}", refusal(&image));
        }
        falls_back(&image, &[], reasons[0]);
    }
}

fn refusal(image: &Published) -> String {
    let told = inspect(&Node::new(), &image.name, &[]);
    told["layers"].as_array().unwrap().iter().map(|layer| layer["note"].to_string()).collect()
}

/// An index, or its zTOCs, of other layers; and one that is none.
#[test]
fn an_index_of_something_else_is_not_used() {
    let swapped = with_index(|_, index| {
        let (first, second) =
            (index["layers"][0]["annotations"].clone(), index["layers"][1]["annotations"].clone());
        index["layers"][0]["annotations"] = second;
        index["layers"][1]["annotations"] = first;
    });
    falls_back(&swapped.1, &[], "it is of a layer of");
    let of_others = with_index(|_, index| {
        for part in index["layers"].as_array_mut().unwrap() {
            part["annotations"][OF_LAYER] = format!("sha256:{:064}", 7).into();
        }
    });
    falls_back(&of_others.1, &[], "no zTOC of any of its layers");
    let no_index = with_index(|_, index| index["config"]["mediaType"] = V1.into());
    falls_back(&no_index.1, &[], "is of type");

    // Who lists it says that it refers to the image.
    let layout = Layout::of("soci-v1");
    let top = layout.json(&layout.path().join("index.json"));
    let mut index = layout.json(&layout.blob(&top["manifests"][1]["digest"]));
    index["subject"]["digest"] = format!("sha256:{:064}", 7).into();
    let index = layout.add(&serde_json::to_vec(&index).unwrap());
    let listed = descriptor(&layout, &index, Some(V1));
    layout.write_index(&[top["manifests"][0].clone(), listed.clone()]);
    let image = Published::plain(layout.path());
    push_list(&image, &list(&listed));
    falls_back(&image, &[], "about another image");
}

/// A window with a flipped bit would decode to other bytes: its zTOC has not its digest.
#[test]
fn a_ztoc_with_a_flipped_bit_is_not_used() {
    let image = published("soci-v2");
    let layout = Layout::of("soci-v2");
    let list = layout.json(&layout.path().join("index.json"));
    let list = layout.json(&layout.blob(&list["manifests"][0]["digest"]));
    let index = layout.json(&layout.blob(&list["manifests"][1]["digest"]));
    let mut bytes = ztoc(&layout, &index, 0);
    let window = checkpoints(&bytes) + 10 * CHECKPOINT + 17 + 32_000;
    bytes[window] ^= 1;
    let digest = index["layers"][0]["digest"].as_str().unwrap();
    fs::write(image.registry.blob_path(digest), bytes).unwrap();
    falls_back(&image, &[], "cannot be fetched");
}

/// A layer without a zTOC, or whose zTOC is gone, stands whole beside one that is read lazily.
#[test]
fn layers_without_a_ztoc() {
    let (_layout, none) = with_index(|_, index| drop(index["layers"].as_array_mut().unwrap().remove(1)));
    let (layout, gone) = with_index(|_, index| drop(index["layers"].as_array_mut().unwrap().remove(3)));
    let list = layout.json(&layout.path().join("index.json"));
    let index = layout.json(&layout.blob(&list["manifests"][1]["digest"]));
    let path = format!("blobs/{}", index["layers"][1]["digest"].as_str().unwrap());
    gone.proxy.inject(Fault::new(path, When::Always, FaultKind::Status(404, vec![])));
    for (image, reason) in [(none, "has no zTOC of it"), (gone, "its zTOC is not there")] {
        let node = Node::new();
        let told = inspect(&node, &image.name, &[]);
        let note = |layer: usize| told["layers"][layer]["note"].as_str().unwrap_or_default();
        assert!(told["lazy"] == true && note(0).is_empty() && note(1).contains(reason), "{told}");
        let mount = node.mount(&image.name, &[]);
        assert_right(&mount, &Exceptions::full());
        let stats = mount.unmount();
        assert!(count(&stats, "demand_stalls") > 0, "{stats}");
    }
}

/// Each layer by the format that it has itself, and one that has none by its zTOC.
#[test]
fn beside_layers_of_another_format() {
    let (layout, soci) = (Layout::of("estargz"), Layout::of("soci-v2"));
    let list = soci.json(&soci.path().join("index.json"));
    let list = soci.json(&soci.blob(&list["manifests"][0]["digest"]));
    let plain = soci.json(&soci.blob(&list["manifests"][0]["digest"]));
    let plain_config = soci.json(&soci.blob(&plain["config"]["digest"]));
    let mut index = soci.json(&soci.blob(&list["manifests"][1]["digest"]));
    let mut named = String::new();
    for blob in fs::read_dir(soci.path().join("blobs/sha256")).unwrap().flatten() {
        layout.add(&fs::read(blob.path()).unwrap());
    }
    layout.change(|manifest| {
        manifest["layers"][1] = plain["layers"][1].clone();
        // It has a zTOC of both.
        index["layers"][0]["annotations"][OF_LAYER] = manifest["layers"][0]["digest"].clone();
        named = layout.add(&serde_json::to_vec(&index).unwrap());
        manifest["annotations"] = json!({ INDEX_DIGEST: named });
        let mut config = layout.json(&layout.blob(&manifest["config"]["digest"]));
        config["rootfs"]["diff_ids"][1] = plain_config["rootfs"]["diff_ids"][1].clone();
        let bytes = serde_json::to_vec(&config).unwrap();
        manifest["config"]["digest"] = layout.add(&bytes).into();
        manifest["config"]["size"] = bytes.len().into();
    });
    let image = layout.json(&layout.path().join("index.json"))["manifests"][0].clone();
    layout.write_index(&[image, descriptor(&layout, &named, Some(V2))]);
    let image = Published::plain(layout.path());
    let node = Node::new();
    let told = inspect(&node, &image.name, &["--trust-index", "local"]);
    assert_eq!(told["layers"][0]["format"], "eStargz, TOC version 1", "{told}");
    assert_eq!(told["layers"][1]["format"], "SOCI index v2, zTOC version 0.9", "{told}");
    image.proxy.reset();
    let mount = node.mount(&image.name, &["--trust-index", "local"]);
    assert_right(&mount, &Exceptions::full());
    let stats = mount.unmount();
    assert!(count(&stats, "demand_stalls") > 0, "{stats}");
    // What is read by its own format needs no zTOC.
    let log = image.proxy.log();
    let asked = |layer: usize| {
        let ztoc = index["layers"][layer]["digest"].as_str().unwrap();
        log.iter().any(|request| request.path.contains(ztoc))
    };
    assert!(!asked(0) && asked(1), "{log:?}");
}

/// The digest of a span that is of other bytes: nothing of that span can be read, and of the others all.
#[test]
fn spans_that_no_digest_vouches_for_are_never_shown() {
    let (_layout, image) = with_index(|layout, index| {
        let mut bytes = ztoc(layout, index, 0);
        let blob = fs::read(layout.blob(&index["layers"][0]["annotations"][OF_LAYER])).unwrap();
        let first = checkpoints(&bytes);
        let input = |span: usize| {
            let at = first + span * CHECKPOINT;
            let input = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            (input, input - usize::from(bytes[at + 16] > 0))
        };
        let digest = |span: usize| digest(&blob[input(span).1..input(span + 1).0]);
        let (fourth, fifth) = (digest(4), digest(5));
        let place = find(&bytes, fourth.as_bytes());
        bytes[place..place + 71].copy_from_slice(fifth.as_bytes());
        set_ztoc(layout, index, 0, &bytes);
    });
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        let mount = node.mount(&image.name, &["--read-timeout", "20s"]);
        let said = mount.read(LARGE).unwrap_err();
        assert_eq!(said.raw_os_error(), Some(libc::EIO), "{said}");
        assert_eq!(mount.read(SMALL).unwrap().len(), 5);
    }
}

/// An image index lists an image and what is about it, for the same platform and in any order.
#[test]
fn an_index_is_no_image() {
    let layout = Layout::of("soci-v2");
    let list = layout.json(&layout.path().join("index.json"));
    let mut list = layout.json(&layout.blob(&list["manifests"][0]["digest"]));
    let image = list["manifests"][0]["digest"].clone();
    list["manifests"].as_array_mut().unwrap().reverse();
    for marked in ["both", "artifactType", "annotations"] {
        let mut list = list.clone();
        if marked != "both" {
            let other = if marked == "artifactType" { "annotations" } else { "artifactType" };
            list["manifests"][0].as_object_mut().unwrap().remove(other).unwrap();
        }
        let digest = layout.add(&serde_json::to_vec(&list).unwrap());
        layout.write_index(&[json!({ "mediaType": OCI_INDEX, "digest": digest, "size": 0 })]);
        let published = Published::plain(layout.path());
        for trust in ["registry", "none"] {
            let told = inspect(&Node::new(), &published.name, &["--trust-index", trust]);
            assert_eq!(told["digest"], image, "{told}");
        }
    }
}

/// Where a field of a zTOC's root table stands (`ztoc/fbs/ztoc.fbs`, FlatBuffers "Internals").
fn field(ztoc: &[u8], number: usize) -> usize {
    let le = |at: usize| u32::from_le_bytes(ztoc[at..at + 4].try_into().unwrap());
    let root = le(0) as usize;
    let slot = (root as i64 - i64::from(le(root).cast_signed())) as usize + 4 + 2 * number;
    root + usize::from(u16::from_le_bytes(ztoc[slot..slot + 2].try_into().unwrap()))
}

/// What tells the spans of a layer that is not compressed, as soci-snapshotter 0.16.1 writes it: FlatBuffers' bytes.
fn spans_of_tar(tar: usize, span: usize) -> Vec<u8> {
    let mut bytes = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 28, 0, 24, 0, 12, 0, 4, 0, 10, 0, 0, 0];
    bytes.extend_from_slice(&(tar as u64).to_le_bytes());
    bytes.extend_from_slice(&(span as u64).to_le_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, 2, 0, 0, 0]);
    bytes
}

/// As it was written at first.
fn bare_spans_of_tar(tar: usize, span: usize) -> Vec<u8> {
    [&1u32.to_le_bytes()[..], &(span as u64).to_le_bytes(), &(tar as u64).to_le_bytes()].concat()
}

/// The zTOC of a gzip layer made that of the tar in it, as soci-snapshotter writes it for a layer that is not compressed.
fn of_tar(ztoc: &mut Vec<u8>, tar: &[u8], span: usize, spans_of: &[u8]) {
    const UNCOMPRESSED: u32 = 2;
    let spans: Vec<String> = tar.chunks(span).map(digest).collect();
    ztoc.resize(ztoc.len().next_multiple_of(8), 0);
    // A new table of spans: its vtable, and behind it the vectors that it names.
    let vtable = ztoc.len();
    for number in [12u16, 20, 4, 8, 12, 16] {
        ztoc.extend_from_slice(&number.to_le_bytes());
    }
    let table = ztoc.len();
    let (digests, checkpoints) = (table + 20, table + 20 + 4 + 4 * spans.len());
    let word = |ztoc: &mut Vec<u8>, n: usize| ztoc.extend_from_slice(&(n as u32).to_le_bytes());
    word(ztoc, table - vtable);
    ztoc.extend_from_slice(&UNCOMPRESSED.to_le_bytes());
    word(ztoc, spans.len() - 1);
    word(ztoc, digests - (table + 12));
    word(ztoc, checkpoints - (table + 16));
    word(ztoc, spans.len());
    let texts = checkpoints + 4 + spans_of.len();
    (0..spans.len()).for_each(|i| word(ztoc, texts + i * (4 + 71) - (digests + 4 + 4 * i)));
    word(ztoc, spans_of.len());
    ztoc.extend_from_slice(spans_of);
    for text in spans {
        word(ztoc, text.len());
        ztoc.extend_from_slice(text.as_bytes());
    }
    let (size, info) = (field(ztoc, 2), field(ztoc, 5));
    ztoc[size..size + 8].copy_from_slice(&(tar.len() as u64).to_le_bytes());
    ztoc[info..info + 4].copy_from_slice(&((table - info) as u32).to_le_bytes());
}

/// Bytes of a span of such layers.
const SPAN: usize = 1 << 20;

/// The image of `soci-v2` with its layers not compressed, and zTOCs of them.
fn uncompressed(damage: impl FnOnce(&mut Vec<u8>)) -> (Layout, Published) {
    let tars = Layout::of("tar");
    let plain = tars.json(&tars.path().join("index.json"));
    let plain = tars.json(&tars.blob(&plain["manifests"][0]["digest"]));
    changed(|layout, manifest, index| {
        manifest["layers"] = plain["layers"].clone();
        let mut first = Vec::new();
        for layer in 0..2 {
            let described = &plain["layers"][layer];
            let tar = fs::read(tars.blob(&described["digest"])).unwrap();
            layout.add(&tar);
            let mut bytes = ztoc(layout, index, layer);
            let spans = [spans_of_tar, bare_spans_of_tar][layer](tar.len(), SPAN);
            of_tar(&mut bytes, &tar, SPAN, &spans);
            set_ztoc(layout, index, layer, &bytes);
            index["layers"][layer]["annotations"][OF_LAYER] = described["digest"].clone();
            index["layers"][layer]["annotations"]["com.amazon.soci.image-layer-mediaType"] =
                described["mediaType"].clone();
            if layer == 0 {
                first = bytes;
            }
        }
        damage(&mut first);
        set_ztoc(layout, index, 0, &first);
    })
}

/// Layers that are not compressed have no checkpoints: a small file takes a span, and metadata is a small part.
#[test]
fn layers_that_are_not_compressed() {
    let (_layout, image) = uncompressed(|_| {});
    is_read_as_it_is(image, "SOCI index v2, zTOC version 0.9", (8, 9), &Exceptions::full());
    // The digest of another span vouches for nothing of this one.
    let (_layout, image) = uncompressed(|ztoc| {
        let texts: Vec<usize> = (0..ztoc.len() - 7).filter(|&at| &ztoc[at..at + 7] == b"sha256:").collect();
        let last = texts.len() - 20;
        let other = ztoc[texts[last + 5]..texts[last + 5] + 71].to_vec();
        (0..20).for_each(|i| ztoc[texts[last + i]..texts[last + i] + 71].copy_from_slice(&other));
    });
    let node = Node::new();
    let mount = node.mount(&image.name, &["--read-timeout", "20s"]);
    let said = mount.read(SMALL).unwrap_err();
    assert_eq!(said.raw_os_error(), Some(libc::EIO), "{said}");
    let told = inspect(&node, &image.name, &[]);
    assert_eq!(told["layers"][0]["format"], "SOCI index v2, zTOC version 0.9", "{told}");
}

/// What the index names is fetched for a program that runs, without anybody reading it.
#[test]
fn what_is_fetched_first() {
    fetches_unasked(&published("soci-v2"), 9 << 20);
}
