//! The awkward image in every format, each made by the project that owns the format, and what containerd's
//! own unpack of it looks like.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::tree::{self, Entry, Tree};

/// Nothing in the fixtures' tars is as late as this (2026-10), so a folder with a later time in
/// `expected.jsonl` got it from the unpacking: it has no entry of its own in the layer that touched it last.
const UNPACKED_AFTER_NS: i128 = 1_790_000_000_000_000_000;

/// Where the fixtures are: `HOIST_FIXTURES`, else `../shared/fixtures` beside the workspace.
pub fn fixtures_dir() -> Result<PathBuf> {
    let directory = match std::env::var_os("HOIST_FIXTURES") {
        Some(given) => PathBuf::from(given),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
    };
    if !directory.join("expected.jsonl").exists() {
        bail!("no fixtures in {}: set HOIST_FIXTURES to their folder", directory.display());
    }
    Ok(directory)
}

/// Where a format or another implementation rightly differs from `expected.jsonl`.
#[derive(Debug, Clone, Default)]
pub struct Exceptions {
    /// Paths that are not in the tree.
    pub without: Vec<String>,
    /// Paths that the tree has besides.
    pub besides: Vec<String>,
    /// Folders without an entry of their own, and the root, have mode 0777.
    pub open_folders: bool,
}

impl Exceptions {
    /// The full tree: `tar`, `gzip`, `zstd` and most others.
    pub fn full() -> Self {
        Self::default()
    }

    /// The plain tree, which has no FIFO: nydus.
    pub fn without_fifo() -> Self {
        Self { without: vec!["dev/fifo".into()], ..Self::default() }
    }

    /// What ext4 adds of its own, and an owner that overlaybd's tools lose: overlaybd, TurboOCI on ext4.
    pub fn ext4() -> Self {
        let owner_lost = "ids/big".to_owned();
        Self {
            without: vec![owner_lost.clone()],
            besides: vec!["lost+found".into(), owner_lost],
            ..Self::default()
        }
    }

    /// What mkfs.erofs makes of folders without an entry of their own: native EROFS layers.
    pub fn erofs() -> Self {
        Self { open_folders: true, ..Self::default() }
    }

    /// And a name that overlaybd's tools cut by a byte: TurboOCI on EROFS.
    pub fn turbo_erofs() -> Self {
        let name = |len| format!("names/{}", "n".repeat(len));
        Self { without: vec![name(255)], besides: vec![name(254)], open_folders: true }
    }
}

#[derive(Deserialize)]
struct Line {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    mode: Option<String>,
    uid: u32,
    gid: u32,
    mtime_ns: i64,
    size: Option<u64>,
    sha256: Option<String>,
    target: Option<String>,
    rdev: Option<(u32, u32)>,
    xattrs: Option<BTreeMap<String, String>>,
    same_inode_as: Option<String>,
}

/// The tree of `expected.jsonl`.
pub fn expected() -> Result<Tree> {
    let file = fixtures_dir()?.join("expected.jsonl");
    let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let mut tree = Tree::new();
    let mut groups: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let at = || format!("{} line {}", file.display(), number + 1);
        let line: Line = serde_json::from_str(line).with_context(at)?;
        if let Some(first) = &line.same_inode_as {
            let group = groups.entry(first.clone()).or_insert_with(|| vec![first.clone().into()]);
            group.push(line.path.clone().into());
        }
        tree.insert(line.path.clone().into(), entry(line).with_context(at)?);
    }
    tree::link_up(&mut tree, groups.into_values());
    Ok(tree)
}

fn entry(line: Line) -> Result<Entry> {
    let mode = match &line.mode {
        Some(mode) => u32::from_str_radix(mode.trim_start_matches("0o"), 8)?,
        // Links have no mode of their own in the listing; Linux shows this one.
        None => 0o777,
    };
    let mut xattrs = BTreeMap::new();
    for (name, value) in line.xattrs.unwrap_or_default() {
        xattrs.insert(name.into_bytes(), unhex(&value)?);
    }
    Ok(Entry {
        kind: line.kind,
        mode,
        uid: line.uid,
        gid: line.gid,
        mtime_ns: line.mtime_ns.into(),
        size: line.size.unwrap_or_default(),
        sha256: line.sha256.unwrap_or_default(),
        target: line.target.unwrap_or_default().into_bytes(),
        rdev: line.rdev.unwrap_or_default(),
        xattrs,
        same_inode_as: None,
    })
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let pair = |i| text.get(i..i + 2).context("an odd number of hexadecimal digits");
    (0..text.len()).step_by(2).map(|i| Ok(u8::from_str_radix(pair(i)?, 16)?)).collect()
}

/// How a mounted fixture differs from what it must be: one line per difference, none when it is right.
///
/// Times that implementations rightly differ in are not compared: of folders without an entry of their own,
/// of the root, and of `times/*`, which containerd clamps.
pub fn compare_tree(mounted: &Path, exceptions: &Exceptions) -> Result<Vec<String>> {
    let mut found = tree::walk(mounted)?;
    let mut wanted = expected()?;
    for path in &exceptions.without {
        wanted.remove(path.as_bytes());
    }
    for path in &exceptions.besides {
        found.remove(path.as_bytes());
    }
    for (path, wanted) in &mut wanted {
        let unpack_time = wanted.kind == "dir" && wanted.mtime_ns > UNPACKED_AFTER_NS;
        if path == b"." || path.starts_with(b"times/") || unpack_time {
            wanted.mtime_ns = found.get(path).map_or(0, |found| found.mtime_ns);
        }
        let is_open = found.get(path).is_some_and(|found| found.mode & 0o7777 == 0o777);
        if exceptions.open_folders && (path == b"." || unpack_time) && is_open {
            wanted.mode = found.get(path).map_or(0, |found| found.mode);
        }
    }
    Ok(tree::diff(&found, &wanted))
}
