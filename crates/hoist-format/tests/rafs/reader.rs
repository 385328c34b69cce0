//! The reader of nydus images, driven as the engine drives it, and what it makes of the fixtures and of damage.

use std::collections::HashMap;
use std::fs;

use hoist_format::build::Described;
use hoist_format::codec::decode_chunk;
use hoist_format::digest::Digest;
use hoist_format::formats::{Covers, Found, ImageFacts, LayerFacts, Refusal, Step, Want, readers};
use hoist_format::tree::Kind;
use serde_json::Value;

use crate::fixtures::compare;
use crate::unpacked::fixtures;

/// An image and all its blobs, which tests may change.
struct Served {
    facts: ImageFacts,
    blobs: HashMap<Digest, Vec<u8>>,
    /// Bytes that were asked for.
    asked: u64,
}

impl Served {
    fn open(name: &str) -> Self {
        let dir = fixtures().join(name);
        let mut blobs = HashMap::new();
        for entry in fs::read_dir(dir.join("blobs/sha256")).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            blobs.insert(Digest::of(&bytes), bytes);
        }
        let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
        let digest: Digest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
        let manifest: Value = serde_json::from_slice(&blobs[&digest]).unwrap();
        let layer = |layer: &Value| LayerFacts {
            media_type: layer["mediaType"].as_str().unwrap().to_owned(),
            digest: layer["digest"].as_str().unwrap().parse().unwrap(),
            size: layer["size"].as_u64().unwrap(),
            annotations: serde_json::from_value(layer["annotations"].clone()).unwrap(),
        };
        let layers = manifest["layers"].as_array().unwrap().iter().map(layer).collect();
        let facts = ImageFacts { digest, annotations: Default::default(), layers, unpinned: false };
        Self { facts, blobs, asked: 0 }
    }

    fn read(&mut self) -> Result<Found, Refusal> {
        let mut all = readers(&self.facts);
        assert_eq!(all.len(), 1, "the image as a whole is of one format");
        let mut reader = all.remove(0);
        assert_eq!((reader.covers(), reader.format()), (Covers::Image, "nydus"));
        let mut answers = Vec::new();
        loop {
            match reader.step(answers)? {
                Step::Done(found) => return Ok(found),
                Step::Fetch(wants) => answers = wants.into_iter().map(|want| self.answer(want)).collect(),
            }
        }
    }

    fn answer(&mut self, want: Want) -> Option<Vec<u8>> {
        let answer = match want {
            Want::Range { blob, range } => {
                self.blobs.get(&blob)?.get(range.start as usize..range.end as usize)?.to_vec()
            }
            Want::Blob { blob, size } => self.blobs.get(&blob).filter(|b| b.len() as u64 == size)?.clone(),
            other => panic!("nydus has no {other:?}"),
        };
        self.asked += answer.len() as u64;
        Some(answer)
    }

    fn bootstrap(&mut self) -> &mut LayerFacts {
        self.facts.layers.last_mut().unwrap()
    }
}

/// The files' contents, the slow way: every chunk decoded and checked, every piece copied.
fn contents(described: &Described, blobs: &HashMap<Digest, Vec<u8>>) -> HashMap<u32, Vec<u8>> {
    let table = described.table.spans.chunks().unwrap();
    let mut stream = Vec::new();
    for i in 0..table.chunks.len() {
        let stored = table.stored_range(i);
        let blob = &blobs[&table.blobs[usize::from(table.chunks[i].blob)].digest];
        let state = table.state(i).map(|s| &described.windows[s.offset as usize..][..s.len as usize]);
        let raw = decode_chunk(table, i, &blob[stored.start as usize..stored.end as usize], state).unwrap();
        stream.extend_from_slice(&raw);
    }
    let mut data = vec![0; described.table.extents.data_size as usize];
    for p in &described.table.extents.pieces {
        let from = &stream[p.stream_offset as usize..(p.stream_offset + p.len) as usize];
        data[p.data_offset as usize..(p.data_offset + p.len) as usize].copy_from_slice(from);
    }
    let content = |(id, inode): (u32, &hoist_format::tree::Inode)| match &inode.kind {
        Kind::File { size, data: at } if *size > 0 => {
            Some((id, data[at.offset as usize..(at.offset + size) as usize].to_vec()))
        }
        _ => None,
    };
    (0..).zip(&described.tree.inodes).filter_map(content).collect()
}

/// A device that overlayfs would take for a whiteout is no file of an image that has no layers below it.
#[test]
fn whiteouts_of_overlayfs_are_no_files() {
    let mut image = Served::open("nydus-v6");
    let devices = |image: &mut Served| {
        let tree = image.read().unwrap().parts.remove(0).1.tree;
        let folders = tree.inodes.iter().filter_map(|inode| match &inode.kind {
            Kind::Dir(entries) => Some(entries.values()),
            _ => None,
        });
        let device = |id: &u32| match tree.get(*id).kind {
            Kind::Char(dev) => Some(dev),
            _ => None,
        };
        folders.flatten().filter_map(device).collect::<Vec<_>>()
    };
    let before = devices(&mut image);
    let digest = image.bootstrap().digest;
    let mut layer = crate::support::gunzip(&image.blobs[&digest]);
    // Inodes of 64 bytes: format, mode and device stand at 0, 4 and 16 (kernel `fs/erofs/erofs_fs.h`).
    let number = (before[0].major << 8 | before[0].minor).to_le_bytes();
    let is_it = |bytes: &[u8]| bytes[0] & 0xf == 1 && bytes[5] & 0xf0 == 0x20 && bytes[16..20] == number;
    let places: Vec<usize> =
        (0..layer.len() - 64).step_by(32).filter(|&at| is_it(&layer[at..at + 64])).collect();
    assert_eq!(places.len(), 1, "{before:?}");
    layer[places[0] + 16..places[0] + 20].fill(0);
    image.bootstrap().size = layer.len() as u64;
    image.blobs.insert(digest, layer);
    assert_eq!(devices(&mut image), before[1..]);
}

#[test]
fn images_are_described_from_their_bootstraps_alone() {
    for (name, format, blobs) in [
        ("nydus-v5", "nydus RAFS v5", 2),
        ("nydus-v6", "nydus RAFS v6", 2),
        ("nydus-zran", "nydus RAFS v6 zran", 2),
    ] {
        let mut image = Served::open(name);
        let Found { format: found, pinned, mut parts, .. } = image.read().unwrap();
        assert_eq!((&*found, pinned, parts.len()), (format, true, 1));
        let size = image.bootstrap().size;
        assert_eq!(image.asked, size, "nothing but the bootstrap's layer");
        let (covers, described) = parts.remove(0);
        assert_eq!(covers, Covers::Image);
        let table = described.table.spans.chunks().unwrap();
        assert_eq!(table.blobs.len(), blobs);
        for blob in &table.blobs {
            assert_eq!(image.blobs[&blob.digest].len() as u64, blob.size, "{name}");
        }
        compare(&described.tree, &contents(&described, &image.blobs));
    }
}

/// Without `image/*.blob.meta` beside the bootstrap, zran contexts are read where the blobs have them.
#[test]
fn contexts_are_fetched_where_the_bootstrap_has_none_beside_it() {
    let mut image = Served::open("nydus-zran");
    let layer = image.bootstrap().digest;
    let mut tar = crate::support::gunzip(&image.blobs[&layer]);
    while let Some(at) = tar.windows(10).position(|w| w == b".blob.meta") {
        tar[at + 9] = b'z';
        let header = at / 512 * 512;
        let sum: u32 =
            (0..512).map(|i| if (148..156).contains(&i) { 32 } else { tar[header + i].into() }).sum();
        tar[header + 148..header + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    image.bootstrap().digest = Digest::of(&tar);
    image.bootstrap().size = tar.len() as u64;
    image.blobs.insert(Digest::of(&tar), tar.clone());
    let found = image.read().unwrap();
    // Compressed arrays of 136,116 and 123 bytes, each with its header, and the blobs' ends.
    assert_eq!(image.asked, tar.len() as u64 + 136_116 + 123 + 2 * 4096 + 2 * 4096);
    compare(&found.parts[0].1.tree, &contents(&found.parts[0].1, &image.blobs));
    // And are not to be had.
    let blobs = image.blobs.clone();
    for layer in &image.facts.layers[..2] {
        image.blobs.remove(&layer.digest);
    }
    let refusal = image.read().unwrap_err().to_string();
    assert!(refusal.contains("does not have a blob with contexts"), "{refusal}");
    // Or damaged.
    image.blobs = blobs;
    let (first, size) = (image.facts.layers[0].digest, image.facts.layers[0].size as usize);
    for at in [1000, 100_000, size - 600, size - 100] {
        let damaged = image.blobs.get_mut(&first).unwrap();
        damaged[at] ^= 1;
        let refusal = image.read().expect_err("damage").to_string();
        assert!(refusal.contains("nydus"), "{refusal}");
        image.blobs.get_mut(&first).unwrap()[at] ^= 1;
    }
    image.read().unwrap();
}

#[test]
fn refusals_say_why() {
    let refused = |change: &dyn Fn(&mut Served), why: &str| {
        let mut image = Served::open("nydus-v6");
        change(&mut image);
        let refusal = image.read().expect_err(why).to_string();
        assert!(refusal.contains(why), "{refusal}");
    };
    let replace = |image: &mut Served, bytes: Vec<u8>| {
        let layer = image.bootstrap();
        (layer.digest, layer.size) = (Digest::of(&bytes), bytes.len() as u64);
        image.blobs.insert(Digest::of(&bytes), bytes);
    };
    let bootstrap = |image: &mut Served| {
        let digest = image.bootstrap().digest;
        crate::support::gunzip(&image.blobs[&digest])
    };
    refused(&|image| drop(image.facts.layers.pop()), "no layer with a bootstrap");
    refused(&|image| image.blobs.clear(), "does not have the layer with its bootstrap");
    refused(&|image| image.bootstrap().size = 1 << 40, "more than 256 MiB");
    refused(&|image| image.bootstrap().media_type += "+encrypted", "encrypted");
    refused(&|image| replace(image, vec![0; 1024]), "no image/image.boot");
    refused(&|image| replace(image, b"no tar".to_vec()), "its bootstrap's layer");
    refused(&|image| replace(image, vec![0x1f, 0x8b, 8, 0]), "its bootstrap's layer");
    refused(
        &|image| {
            let tar = bootstrap(image);
            replace(image, tar[..tar.len() / 2].to_vec());
        },
        "its bootstrap's layer",
    );
    // The superblock's magic number, behind a folder's header and the file's own.
    refused(
        &|image| {
            let mut tar = bootstrap(image);
            tar[1024 + 1024] ^= 1;
            replace(image, tar);
        },
        "magic number",
    );
    refused(
        &|image| {
            let mut tar = bootstrap(image);
            tar[1024 + 1152 + 3] |= 2;
            replace(image, tar);
        },
        "encrypted",
    );
    refused(
        &|image| {
            let mut bomb = Vec::new();
            for _ in 0..1100 {
                bomb.extend(zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap());
            }
            replace(image, bomb);
        },
        "decompression bomb",
    );
    let mut other = Served::open("nydus-v6");
    for layer in &mut other.facts.layers {
        layer.annotations.clear();
        layer.media_type = "application/vnd.oci.image.layer.v1.tar+gzip".into();
    }
    assert!(readers(&other.facts).iter().all(|reader| reader.covers() != Covers::Image));
}
