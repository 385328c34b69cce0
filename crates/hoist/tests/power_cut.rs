//! The power is cut between any two system calls of a pull, a lazy mount, a pruning: what is on disk then is
//! opened by another process, and nothing counts as present that is not what it should be.
//!
//! `strace` records what hoist did to its store. The disk that a cut leaves is made up by the rules of journalling
//! file systems: names change in the order in which they were changed, up to a point that lies behind the
//! last sync of the folder, in each folder for itself; of written bytes only those are sure that a sync
//! of their file followed, the others are there, missing, or zeros.

mod node;
#[path = "power_cut/trace.rs"]
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hoist_testkit::layout::Compression;
use hoist_testkit::process;
use node::tree::Source;
use node::{Node, Published};
use trace::Op;

/// The disk after a cut.
#[derive(Default)]
struct Disk {
    names: BTreeMap<PathBuf, Entry>,
    files: BTreeMap<u64, Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Entry {
    Folder,
    File(u64),
}

/// What became of what was not sure: nothing is lost, everything is, or chance has it.
#[derive(Clone, Copy, Debug)]
enum Luck {
    Good,
    Bad,
    Chance(u64),
}

impl Luck {
    fn roll(self, at: usize) -> u64 {
        let Luck::Chance(seed) = self else { return 0 };
        let mut x =
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (at as u64).wrapping_mul(0xd1b5_4a32_d192_ed03);
        x ^= x >> 29;
        x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ x >> 32
    }
}

impl Disk {
    /// The disk when the power is cut after `done`.
    fn after(done: &[Op], luck: Luck) -> Disk {
        let mut disk = Disk::default();
        // In each folder the change of names that was the last to reach the disk.
        let mut last: BTreeMap<&Path, usize> = BTreeMap::new();
        for (at, op) in done.iter().enumerate() {
            if let Op::SyncFolder(folder) = op {
                last.insert(folder, at);
            }
        }
        let mut stopped = BTreeSet::new();
        for (at, op) in done.iter().enumerate() {
            let Some(folder) = op.folder() else { continue };
            if last.get(folder).is_some_and(|&last| at <= last) || stopped.contains(folder) {
                continue;
            }
            let further = match luck {
                Luck::Good => true,
                Luck::Bad => false,
                Luck::Chance(_) => !luck.roll(at).is_multiple_of(4),
            };
            match further {
                true => drop(last.insert(folder, at)),
                false => drop(stopped.insert(folder)),
            }
        }
        // What the program saw: a file is renamed whether or not its first name ever reached the disk.
        let mut seen = Disk::default();
        for (at, op) in done.iter().enumerate() {
            let reaches = op.folder().is_none_or(|folder| last.get(folder).is_some_and(|&last| at <= last));
            let moved = match op {
                Op::Create(path, file) => seen.names.insert(path.clone(), Entry::File(*file)),
                Op::Rename(from, to) => {
                    let moved = seen.names.get(from).copied();
                    seen.rename(from, to);
                    moved
                }
                _ => None,
            };
            if !reaches {
                continue;
            }
            match op {
                Op::Folder(path) => {
                    disk.names.insert(path.clone(), Entry::Folder);
                }
                Op::Create(path, file) => {
                    disk.names.insert(path.clone(), Entry::File(*file));
                }
                Op::Rename(from, to) => {
                    disk.rename(from, to);
                    if let Some(file @ Entry::File(_)) = moved {
                        disk.names.insert(to.clone(), file);
                    }
                }
                Op::Link(from, to) => {
                    if let Some(&entry) = disk.names.get(from) {
                        disk.names.insert(to.clone(), entry);
                    }
                }
                Op::Remove(path) => {
                    disk.names.remove(path);
                }
                Op::Write(file, offset, bytes) => {
                    let sure = done[at..].contains(&Op::SyncFile(*file));
                    let there = match luck {
                        _ if sure => 1,
                        Luck::Good => 1,
                        Luck::Bad => 0,
                        Luck::Chance(_) => luck.roll(at) % 3,
                    };
                    let zeros = vec![0; bytes.len()];
                    match there {
                        0 => {}
                        1 => disk.write(*file, *offset, bytes),
                        _ => disk.write(*file, *offset, &zeros),
                    }
                }
                Op::Resize(file, length) => disk.files.entry(*file).or_default().resize(*length as usize, 0),
                Op::SyncFile(_) | Op::SyncFolder(_) => {}
            }
        }
        disk
    }

    fn write(&mut self, file: u64, offset: u64, bytes: &[u8]) {
        let content = self.files.entry(file).or_default();
        let end = offset as usize + bytes.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset as usize..end].copy_from_slice(bytes);
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let moved: Vec<_> = self.names.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for path in moved {
            let entry = self.names.remove(&path).unwrap();
            let rest = path.strip_prefix(from).unwrap();
            self.names.insert(if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) }, entry);
        }
    }

    /// Makes it real. What the page cache had for this boot only is not there after another.
    fn build(&self, root: &Path) {
        for (path, entry) in &self.names {
            let path = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) };
            // A name in a folder that the disk never heard of is lost with it.
            if path == root
                || !path.parent().unwrap().is_dir()
                || path.ends_with("live")
                || path.ends_with("kept")
            {
                continue;
            }
            match entry {
                Entry::Folder => fs::create_dir(&path).unwrap(),
                Entry::File(file) => fs::write(&path, self.files.get(file).map_or(&[][..], |f| f)).unwrap(),
            }
        }
    }
}

/// Cuts the power after each of the recorded calls, with all kinds of luck; `base` stood there before. What is mounted then must
/// be `shown`.
fn cut_everywhere(image: &Published, shown: &dyn Fn(&Path), base: &[Op], ops: &[Op]) {
    let all: Vec<Op> = base.iter().chain(ops).cloned().collect();
    let mut lucks = vec![Luck::Good, Luck::Bad];
    lucks.extend((0..2).map(Luck::Chance));
    let mut tried = 0;
    for cut in base.len()..=all.len() {
        for &luck in &lucks {
            let node = Node::new();
            fs::create_dir(node.store("")).unwrap();
            Disk::after(&all[..cut], luck).build(&node.store(""));
            let what =
                || format!("cut after {cut} of {}, {luck:?}: {:?}", all.len(), all.get(cut.wrapping_sub(1)));
            // The store's own version file may not have been written whole: there was no store yet.
            if !node.store("version").exists() {
                continue;
            }
            let output = node.hoist(&["fsck", "--json"]).output().unwrap();
            let found: serde_json::Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|e| panic!("{}: {e} {}", what(), node::stderr(&output)));
            assert_eq!(node::count(&found, "bad_extents"), 0, "{}: {found}", what());
            // Names may be lost, never what is in a file that has its name.
            assert!(!found.to_string().contains("damaged"), "{}: {found}", what());
            tried += 1;
            if tried % 40 == 0 || cut == all.len() {
                shown(node.mount(&image.name, &[]).root());
            }
        }
    }
    assert!(tried > ops.len(), "{tried} disks of {} calls", ops.len());
}

/// Small enough that every byte can be recorded.
fn small() -> (Source, Published) {
    let source = Source::small();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    (source, image)
}

#[test]
fn in_a_pull() {
    let (source, image) = small();
    let node = Node::new();
    let ops = trace::record(&node, &["pull", &image.name], || {});
    assert!(ops.iter().any(|op| matches!(op, Op::Rename(_, to) if to.ends_with("state.json"))), "{ops:?}");
    cut_everywhere(&image, &|root| source.assert_shown(root), &[], &ops);
}

#[test]
fn in_a_lazy_mount() {
    let (source, image) = small();
    let node = Node::new();
    let point = node.path("mnt");
    fs::create_dir(&point).unwrap();
    let args = ["mount", "--foreground", &image.name, point.to_str().unwrap()];
    let ops = trace::record(&node, &args, || {
        let wait = |what: &str, look: &dyn Fn() -> bool| {
            process::wait_until(what, Duration::from_secs(30), || Ok(look())).unwrap();
        };
        wait("the mount", &|| point.join("etc/motd").exists());
        assert!(fs::read(point.join("etc/motd")).unwrap() == source.read("etc/motd"));
        let present = || {
            let layer = fs::read_dir(node.store("layers")).unwrap().next()?.unwrap().path();
            fs::read(layer.join("present")).ok()
        };
        wait("the first record of what is present", &|| present().is_some());
        let first = present();
        source.assert_shown(&point);
        wait("the second", &|| present() != first);
        node.says(&["unmount", point.to_str().unwrap()]);
    });
    assert!(ops.iter().any(|op| matches!(op, Op::Rename(_, to) if to.ends_with("present"))), "{ops:?}");
    cut_everywhere(&image, &|root| source.assert_shown(root), &[], &ops);
}

/// Of an image that has checksums only, so that digests are recorded as its parts come.
#[test]
fn in_a_conversion() {
    let image = Published::plain(&hoist_testkit::fixtures_dir().unwrap().join("overlaybd"));
    let node = Node::new();
    let point = node.path("mnt");
    fs::create_dir(&point).unwrap();
    let args = ["mount", "--foreground", "--background", "off", &image.name, point.to_str().unwrap()];
    let ops = trace::record(&node, &args, || {
        let wait = |what: &str, look: &dyn Fn() -> bool| {
            process::wait_until(what, Duration::from_secs(60), || Ok(look())).unwrap();
        };
        wait("the mount", &|| point.join("many/d02/f1752").exists());
        fs::read(point.join("many/d02/f1752")).unwrap();
        let present = || {
            let layers = fs::read_dir(node.store("layers")).unwrap().map(|layer| layer.unwrap().path());
            layers.filter_map(|layer| fs::read(layer.join("present")).ok()).next()
        };
        wait("the record of what is present", &|| present().is_some());
        node.says(&["unmount", point.to_str().unwrap()]);
    });
    for record in ["present", "converted.json", "table"] {
        assert!(ops.iter().any(|op| matches!(op, Op::Rename(_, to) if to.ends_with(record))), "{ops:?}");
    }
    let shown = |root: &Path| {
        let differences = hoist_testkit::compare_tree(root, &hoist_testkit::Exceptions::ext4()).unwrap();
        assert_eq!(differences, [""; 0]);
    };
    cut_everywhere(&image, &shown, &[], &ops);
}

#[test]
fn in_a_pruning() {
    let (source, image) = small();
    let node = Node::new();
    let mut base = trace::record(&node, &["pull", &image.name], || {});
    base.extend(trace::record_from(&base, &node, &["rm", &image.name], || {}));
    let ops = trace::record_from(&base, &node, &["prune"], || {});
    assert!(ops.iter().any(|op| matches!(op, Op::Rename(_, to) if to.starts_with("gone"))), "{ops:?}");
    cut_everywhere(&image, &|root| source.assert_shown(root), &base, &ops);
}
