//! The fixtures, and a tree against their `expected.jsonl`: containerd's own unpack of the same layers.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use hoist_format::digest::Digest;
use hoist_format::layer::{DataSink, LayerBuilder};
use hoist_format::tree::{FileData, InodeId, Kind, ROOT, Tree};
use serde_json::Value;

pub fn fixtures() -> PathBuf {
    std::env::var_os("HOIST_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
        PathBuf::from,
    )
}

pub fn blob(image: &str, digest: &str) -> Vec<u8> {
    fs::read(fixtures().join(image).join("blobs/sha256").join(digest.trim_start_matches("sha256:"))).unwrap()
}

/// An image's manifest.
pub fn manifest(image: &str) -> (Digest, Value) {
    let mut bytes = fs::read(fixtures().join(image).join("index.json")).unwrap();
    loop {
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        let Some(first) = json["manifests"][0]["digest"].as_str() else { return (Digest::of(&bytes), json) };
        bytes = blob(image, first);
    }
}

/// The layers of an image's manifest, lowest first: descriptor and bytes.
pub fn layers(image: &str) -> Vec<(Value, Vec<u8>)> {
    let manifest = manifest(image).1;
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|l| (l.clone(), blob(image, l["digest"].as_str().unwrap()))).collect()
}

/// Where a format rightly differs (the fixtures' README).
pub struct Allowed {
    /// Paths that the format adds.
    pub more: &'static [&'static str],
    /// Paths that the format's own tool gets wrong, as other tools see too.
    pub without: fn(&str) -> bool,
    /// Folders without an entry of their own have this mode.
    pub implied_mode: Option<&'static str>,
}

impl Default for Allowed {
    fn default() -> Self {
        Self { more: &[], without: |_| false, implied_mode: None }
    }
}

fn walk(tree: &Tree, dir: InodeId, path: &str, out: &mut BTreeMap<String, InodeId>) {
    for (name, &id) in tree.entries(dir).into_iter().flatten() {
        let path = format!("{path}{}", std::str::from_utf8(name).unwrap());
        walk(tree, id, &format!("{path}/"), out);
        out.insert(path, id);
    }
}

/// Discards what it is given.
struct Nowhere;

impl DataSink for Nowhere {
    fn write(&mut self, _: u64, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

/// The plain layers' own trees, to tell which folders have no entry of their own.
fn plain_layers() -> Vec<Tree> {
    let decode = |(_, layer): (Value, Vec<u8>)| {
        let mut builder = LayerBuilder::new();
        builder.feed(&layer, &mut Nowhere).unwrap();
        builder.finish().unwrap().tree
    };
    layers("tar").into_iter().map(decode).collect()
}

/// Panics with the path where the tree is not as expected. `content`: the bytes of a file of that size.
pub fn compare(tree: &Tree, allowed: &Allowed, content: impl Fn(InodeId, FileData, u64) -> Vec<u8>) {
    let plain = plain_layers();
    let implied = |path: &str| {
        path == "." || plain.iter().any(|t| t.lookup(path.as_bytes()).is_some_and(|id| t.get(id).implied))
    };
    let mut ours = BTreeMap::from([(".".to_owned(), ROOT)]);
    walk(tree, ROOT, "", &mut ours);
    let (mut groups, mut count) = (BTreeMap::new(), 0);
    for line in fs::read_to_string(fixtures().join("expected.jsonl")).unwrap().lines() {
        let want: Value = serde_json::from_str(line).unwrap();
        let path = want["path"].as_str().unwrap();
        if (allowed.without)(path) {
            ours.remove(path);
            continue;
        }
        let id = ours.remove(path).unwrap_or_else(|| panic!("{path} is missing"));
        let inode = tree.get(id);
        let is_implied = implied(path);
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
            let ours = format!("{:#o}", inode.meta.perm);
            assert!(mode == ours || is_implied && allowed.implied_mode == Some(&ours), "{path}: {ours}");
        }
        if !path.starts_with("times/") && !is_implied {
            let ns = i128::from(inode.meta.mtime.secs) * 1_000_000_000 + i128::from(inode.meta.mtime.nanos);
            let wanted = want["mtime_ns"].as_i64().map(i128::from).unwrap();
            assert_eq!(wanted, ns, "{path}");
        }
        match &inode.kind {
            Kind::File { size, data } => {
                assert_eq!(want["size"], *size, "{path}");
                let bytes = if *size == 0 { Vec::new() } else { content(id, *data, *size) };
                assert_eq!(want["sha256"].as_str(), Some(&*Digest::of(&bytes).hex()), "{path}");
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
    let more: Vec<_> = ours
        .into_keys()
        .filter(|path| !allowed.more.contains(&path.as_str()) && !(allowed.without)(path))
        .collect();
    assert_eq!(more, Vec::<String>::new(), "paths that nobody expects");
}
