//! The fixture's plain tar layers, decoded and merged, against containerd's own unpack of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use hoist_format::digest::Digest;
use hoist_format::layer::{DataSink, Layer, LayerBuilder};
use hoist_format::merge::merge;
use hoist_format::tree::{FileData, InodeId, Kind, ROOT, Tree};
use serde_json::Value;

fn fixtures() -> PathBuf {
    std::env::var_os("HOIST_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
        PathBuf::from,
    )
}

#[derive(Default)]
struct Mem(Vec<u8>);

impl DataSink for Mem {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset as usize + bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }
}

fn decode(stream: &[u8], step: usize) -> (Layer, Vec<u8>) {
    let (mut builder, mut data) = (LayerBuilder::new(), Mem::default());
    for part in stream.chunks(step) {
        builder.feed(part, &mut data).unwrap();
    }
    let layer = builder.finish().unwrap();
    data.0.resize(layer.extents.data_size as usize, 0);
    (layer, data.0)
}

fn layers() -> Vec<Vec<u8>> {
    let dir = fixtures().join("tar");
    let read = |d: &str| fs::read(dir.join("blobs/sha256").join(d.trim_start_matches("sha256:"))).unwrap();
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let index = json(&fs::read(dir.join("index.json")).unwrap());
    let manifest = json(&read(index["manifests"][0]["digest"].as_str().unwrap()));
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|l| read(l["digest"].as_str().unwrap())).collect()
}

fn walk(tree: &Tree, dir: InodeId, path: &str, out: &mut BTreeMap<String, InodeId>) {
    for (name, &id) in tree.entries(dir).into_iter().flatten() {
        let path = format!("{path}{}", std::str::from_utf8(name).unwrap());
        walk(tree, id, &format!("{path}/"), out);
        out.insert(path, id);
    }
}

#[test]
fn merged_layers_equal_containerds_unpack() {
    let decoded: Vec<_> = layers().iter().map(|l| decode(l, 1 << 20)).collect();
    let trees: Vec<&Tree> = decoded.iter().map(|(l, _)| &l.tree).collect();
    let tree = merge(&trees).unwrap();
    let mut ours = BTreeMap::from([(".".to_owned(), ROOT)]);
    walk(&tree, ROOT, "", &mut ours);
    let implied = |path: &str| {
        path == "." || trees.iter().any(|t| t.lookup(path.as_bytes()).is_some_and(|id| t.get(id).implied))
    };
    let (mut groups, mut count) = (BTreeMap::new(), 0);
    for line in fs::read_to_string(fixtures().join("expected.jsonl")).unwrap().lines() {
        let want: Value = serde_json::from_str(line).unwrap();
        let path = want["path"].as_str().unwrap();
        let id = ours.remove(path).unwrap_or_else(|| panic!("{path} is missing"));
        let inode = tree.get(id);
        let kind = match &inode.kind {
            Kind::Dir(_) => "dir",
            Kind::File { .. } => "reg",
            Kind::Symlink(_) => "lnk",
            Kind::Char(_) => "chr",
            Kind::Block(_) => "blk",
            Kind::Fifo => "fifo",
            Kind::Socket => "sock",
            Kind::Whiteout => "whiteout",
        };
        assert_eq!(want["type"], kind, "{path}");
        assert_eq!(want["uid"], inode.meta.uid, "{path}");
        assert_eq!(want["gid"], inode.meta.gid, "{path}");
        if let Some(mode) = want["mode"].as_str() {
            assert_eq!(mode, format!("{:#o}", inode.meta.perm), "{path}");
        }
        if !path.starts_with("times/") && !implied(path) {
            let ns = i128::from(inode.meta.mtime.secs) * 1_000_000_000 + i128::from(inode.meta.mtime.nanos);
            assert_eq!(want["mtime_ns"].as_i64().map(i128::from), Some(ns), "{path}");
        }
        match &inode.kind {
            Kind::File { size, data: FileData { layer, offset } } => {
                assert_eq!(want["size"], *size, "{path}");
                let bytes = match size {
                    0 => &[][..],
                    _ => &decoded[usize::from(*layer)].1[*offset as usize..(*offset + *size) as usize],
                };
                assert_eq!(want["sha256"].as_str(), Some(&*Digest::of(bytes).hex()), "{path}");
            }
            Kind::Symlink(target) => assert_eq!(want["target"].as_str().unwrap().as_bytes(), &**target),
            Kind::Char(dev) | Kind::Block(dev) => {
                assert_eq!(want["rdev"], serde_json::json!([dev.major, dev.minor]), "{path}");
            }
            _ => {}
        }
        let hex = |v: &[u8]| v.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let xattrs: BTreeMap<_, _> =
            inode.meta.xattrs.iter().map(|(n, v)| (String::from_utf8(n.to_vec()).unwrap(), hex(v))).collect();
        let expected = want.get("xattrs").map(|x| serde_json::from_value(x.clone()).unwrap());
        assert_eq!(xattrs, expected.unwrap_or_default(), "{path}");
        if let Some(group) = want["same_inode_as"].as_str() {
            assert_eq!(*groups.entry(group.to_owned()).or_insert(id), id, "{path}");
        }
        count += 1;
    }
    assert!(count > 2000);
    assert_eq!(ours.into_keys().collect::<Vec<_>>(), Vec::<String>::new(), "paths containerd has not");
}

/// The table against its own definition: digests over the data file, pieces equal to the stream.
#[test]
fn extents_tell_of_stream_and_data() {
    for stream in layers() {
        let (layer, data) = decode(&stream, 1 << 20);
        assert_eq!(layer, decode(&stream, 777).0, "the feed's grain must not show");
        let table = &layer.extents;
        let mut end = 0;
        for (i, e) in table.extents.iter().enumerate() {
            assert!(e.data_offset % 4096 == 0 && e.data_offset >= end, "extent {i}");
            end = e.data_offset + e.len;
            let bytes = &data[e.data_offset as usize..end as usize];
            assert_eq!(e.digest, *blake3::hash(bytes).as_bytes(), "extent {i}");
            for p in table.pieces_of(i) {
                let range = |at: u64| at as usize..(at + p.len) as usize;
                assert_eq!(stream[range(p.stream_offset)], data[range(p.data_offset)], "extent {i}");
            }
        }
    }
}

/// Any prefix and any flipped bit of a layer: an error or a tree, never a panic.
#[test]
fn damaged_streams_do_not_panic() {
    let stream = &layers()[1];
    let small = &stream[..stream.len().min(24 << 10)];
    let run = |bytes: &[u8]| {
        let mut builder = LayerBuilder::new();
        builder.feed(bytes, &mut Mem::default()).and_then(|()| builder.finish()).map(drop)
    };
    for end in 0..small.len() {
        let _ = run(&small[..end]);
    }
    for at in 0..small.len() {
        let mut bad = small.to_vec();
        bad[at] ^= 1 << (at % 8);
        let _ = run(&bad);
    }
}
