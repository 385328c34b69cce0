//! Awkward layers on top of each other, made up by chance, against containerd's own unpack of them: the same seeds
//! always, so a failure can be looked at again.

mod node;

use std::collections::{BTreeMap, BTreeSet};

use hoist_testkit::containerd::Daemon;
use hoist_testkit::layout::Builder;
use hoist_testkit::tree::Tree;
use hoist_testkit::{Registry, diff, digest, push_layout, walk, walk_overlay};
use node::Node;
use node::tar::{Entry, archive};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const STACKS: u64 = 60;

/// xorshift: any sequence will do, if it is the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % n
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// Few names, so that paths meet.
    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        (0..depth).map(|_| *self.one(&["a", "b", "c"])).collect::<Vec<_>>().join("/")
    }
}

/// What a layer has said so far of its paths.
#[derive(Default)]
struct Said {
    /// Last kind of each path; of those that only stand above another one, a folder's.
    kinds: BTreeMap<String, u8>,
    hidden: BTreeSet<String>,
}

impl Said {
    fn files(&self) -> Vec<String> {
        self.kinds.iter().filter(|(_, kind)| **kind == b'0').map(|(path, _)| path.clone()).collect()
    }

    /// A path replaces what was at its place, and what was below that.
    fn note(&mut self, path: &str, kind: u8) {
        if kind != b'5' {
            let below = format!("{path}/");
            self.kinds.retain(|p, _| !p.starts_with(&below));
        }
        self.kinds.insert(path.to_owned(), kind);
    }
}

/// A layer that an applier has no reason to refuse: what stands above a path is a folder in this layer, or sometimes
/// a link; hard links are to its own files. A whiteout and a folder of one name are for tests of their own.
fn layer(chance: &mut Chance) -> Vec<Entry> {
    let (mut entries, mut said) = (Vec::new(), Said::default());
    // Half the archives name every folder, half none.
    let implied = chance.below(2) == 0;
    for number in 0..3 + chance.below(8) {
        let path = chance.path();
        let parents: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
        let link = chance.below(4) == 0;
        let walkable = |p: &&str| match said.kinds.get(*p) {
            Some(b'2') => link,
            other => matches!(other, None | Some(b'5')) && !said.hidden.contains(*p),
        };
        if !parents.iter().all(walkable) {
            continue;
        }
        let there = said.kinds.get(&path).copied();
        let mut entry = match chance.below(12) {
            // One that already stands there implied would keep attributes of the lower layers' folder.
            0..=2 if !(said.hidden.contains(&path) || implied && there == Some(b'5')) => Entry::dir(&path),
            // containerd sets the times of all folders last, by path, and fails if there is none any more.
            _ if there == Some(b'5') => continue,
            3..=5 => Entry::file(&path, format!("{path} {number}").repeat(1 + chance.below(300) as usize)),
            6 => Entry::symlink(
                &path,
                chance.one(&["a", "../b", "/a/b", "/c", "b/c", "nowhere", "../../../a"]),
            ),
            7 if said.files().iter().any(|f| *f != path) => {
                let others: Vec<_> = said.files().into_iter().filter(|f| *f != path).collect();
                Entry::hardlink(&path, chance.one(&others))
            }
            8 => Entry::new(&path, b'6'),
            9 => Entry { device: (1, 3), ..Entry::new(&path, *chance.one(b"34")) },
            10 if there.is_none() && !said.hidden.contains(&path) => {
                said.hidden.insert(path.clone());
                let (dir, base) = path.rsplit_once('/').unwrap_or((".", &path));
                Entry::file(format!("{dir}/.wh.{base}"), "")
            }
            _ => continue,
        };
        for parent in parents {
            if !said.kinds.contains_key(parent) {
                if !implied {
                    entries.push(Entry { mtime: 1_650_000_000, ..Entry::dir(parent) });
                }
                said.note(parent, b'5');
            }
        }
        entry.mode = *chance.one(&[0o600, 0o644, 0o755, 0o1777, 0o4755]);
        entry.owner = (chance.below(3) as u32 * 1000, chance.below(70_000) as u32);
        entry.mtime = 1_600_000_000 + chance.below(1000);
        if chance.below(5) == 0 && matches!(entry.kind, b'0' | b'5') {
            entry = entry.record("SCHILY.xattr.user.number", number.to_string());
        }
        if entry.path == path.as_bytes() {
            said.note(&path, entry.kind);
        }
        let opaque = entry.kind == b'5' && chance.below(3) == 0;
        entries.push(entry);
        if opaque {
            entries.push(Entry::file(format!("{path}/.wh..wh..opq"), ""));
        }
    }
    entries
}

/// Where images are pushed and unpacked.
struct Judge {
    registry: Registry,
    containerd: Daemon,
    node: Node,
}

impl Judge {
    fn new() -> Judge {
        Judge {
            registry: Registry::start().unwrap(),
            containerd: Daemon::start().unwrap(),
            node: Node::new(),
        }
    }

    /// What containerd and hoist make of these layers: a tree, or an error.
    fn both(&self, tag: &str, layers: &[Vec<Entry>]) -> [Result<Tree, String>; 2] {
        let dir = tempfile::tempdir().unwrap();
        let mut layout = Builder::new(dir.path()).unwrap();
        for layer in layers {
            let tar = archive(layer);
            layout = layout.raw_layer(TAR, &tar, &digest::of_bytes(&tar)).unwrap();
        }
        push_layout(&self.registry.host(), node::REPO, tag, &layout.write(tag).unwrap().directory).unwrap();
        let name = format!("{}/{}:{tag}", self.registry.host(), node::REPO);
        let theirs = self.containerd.unpack(&name).map(|view| walk_overlay(view.path()).unwrap());
        let ours = self.node.try_mount(&name, &[]).map(|mount| walk(mount.root()).unwrap());
        [theirs.map_err(|e| format!("{e:#}")), ours]
    }
}

/// Times of folders that a tar names no time of are those of the unpacking.
fn forget_times(wanted: &mut Tree, found: &Tree) {
    const MADE_UP: i128 = 1_700_000_000_000_000_000;
    for (path, entry) in wanted.iter_mut().filter(|(_, e)| e.kind == "dir" && e.mtime_ns > MADE_UP) {
        entry.mtime_ns = found.get(path).map_or(0, |e| e.mtime_ns);
    }
}

fn told(layers: &[Vec<Entry>]) -> String {
    let line = |e: &Entry| {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        format!("    {} {:o} {:?} {} {}\n", e.kind as char, e.mode, e.owner, text(&e.path), text(&e.link))
    };
    let layer =
        |(i, l): (usize, &Vec<Entry>)| format!("  layer {i}\n{}", l.iter().map(line).collect::<String>());
    layers.iter().enumerate().map(layer).collect()
}

#[test]
fn stacks_made_up_by_chance_equal_containerds_unpack() {
    let judge = Judge::new();
    let (mut compared, mut failures) = (0, Vec::new());
    for seed in 1..=STACKS {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let layers: Vec<_> = (0..2 + chance.below(3)).map(|_| layer(&mut chance)).collect();
        match judge.both(&format!("v{seed}"), &layers) {
            [Ok(mut wanted), Ok(found)] => {
                forget_times(&mut wanted, &found);
                compared += 1;
                let lines = diff(&found, &wanted);
                if !lines.is_empty() {
                    failures.push(format!("seed {seed}:\n{}  {}", told(&layers), lines.join("\n  ")));
                }
            }
            // What containerd's own applier can't do may be done here, but not the other way round.
            [Ok(_), Err(said)] => failures.push(format!("seed {seed} refused: {said}\n{}", told(&layers))),
            [Err(_), _] => {}
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(compared >= STACKS / 2, "only {compared} of {STACKS} are taken by containerd");
}

/// The tree of `layers` here and as containerd has it, both of which must be there.
fn trees(judge: &Judge, tag: &str, layers: &[Vec<Entry>]) -> [Tree; 2] {
    judge.both(tag, layers).map(|tree| tree.unwrap_or_else(|e| panic!("{tag}: {e}")))
}

/// Where hoist does otherwise, it follows the image specification, or takes what containerd fails on
/// (docs/SEMANTICS.md, "Where containerd differs").
#[test]
fn what_hoist_does_otherwise() {
    let judge = Judge::new();
    let lower = || vec![Entry::dir("d"), Entry::file("d/old", "old"), Entry::file("f", "f")];
    let old = &b"d/old"[..];

    // A folder that its own layer hides and fills again: hidden is hidden.
    let refill = vec![Entry::file(".wh.d", ""), Entry::dir("d"), Entry::file("d/new", "new")];
    let [theirs, ours] = trees(&judge, "refill", &[lower(), refill]);
    assert!(theirs.contains_key(old) && !ours.contains_key(old));
    assert!(ours.contains_key(&b"d/new"[..]));

    // The same said the other way round, and a hard link to a lower layer's file: containerd can't, we can.
    let late = vec![Entry::dir("d"), Entry::file("d/new", "new"), Entry::file(".wh.d", "")];
    let [theirs, ours] = judge.both("late", &[lower(), late]);
    assert!(theirs.is_err() && !ours.unwrap().contains_key(old));
    let [theirs, ours] = judge.both("link", &[lower(), vec![Entry::hardlink("g", "f")]]);
    assert!(theirs.is_err());
    assert_eq!(ours.unwrap()[&b"g"[..]].same_inode_as.as_deref(), Some(&b"f"[..]));

    // A folder named after what stands in it: its attributes are the ones it names, no lower ones beside them.
    let marked = || vec![Entry::dir("d").record("SCHILY.xattr.user.a", "1")];
    let [theirs, ours] =
        trees(&judge, "late-dir", &[marked(), vec![Entry::file("d/x", ""), Entry::dir("d")]]);
    assert_eq!([theirs, ours].map(|tree| tree[&b"d"[..]].xattrs.len()), [1, 0]);

    // A file where its layer had a folder before: its own time, not the folder's.
    let turned = vec![Entry { mtime: 5, ..Entry::dir("t") }, Entry { mtime: 7, ..Entry::file("t", "") }];
    let [theirs, ours] = trees(&judge, "turned", &[turned]);
    assert_eq!([theirs, ours].map(|tree| tree[&b"t"[..]].mtime_ns / 1_000_000_000), [5, 7]);

    // A root of which the upper layer says nothing stays what it was.
    let root = vec![Entry { mode: 0o700, owner: (3, 4), ..Entry::dir("./") }];
    let [theirs, ours] = trees(&judge, "root", &[root, lower()]);
    assert_eq!(
        [theirs, ours].map(|tree| (tree[&b"."[..]].mode, tree[&b"."[..]].uid)),
        [(0o755, 0), (0o700, 3)]
    );
}
