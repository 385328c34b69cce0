//! Trees that FUSE's answers are read from: mapped once for all mounts of a process. Their pages are given back when
//! nobody has asked for a while; they stay in the page cache, as long as the kernel has room for them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hoist_sys::file::identity;
use hoist_sys::keeper::FileId;
use hoist_sys::map::FileMap;

use crate::fill::Meter;

/// A tree in memory.
#[derive(Debug)]
pub(in crate::mount) struct Tree {
    map: FileMap,
    /// Since the last look.
    used: AtomicBool,
    meter: Arc<Meter>,
}

impl Deref for Tree {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if !self.used.load(Ordering::Relaxed) && !self.used.swap(true, Ordering::Relaxed) {
            self.meter.chores.notify_one();
        }
        &self.map
    }
}

/// Every tree that is mapped.
#[derive(Debug, Default)]
pub(super) struct Trees(Mutex<HashMap<FileId, Known>>);

#[derive(Debug)]
struct Known {
    tree: Weak<Tree>,
    /// Some of it may count as this process's memory.
    held: bool,
}

impl Trees {
    /// The tree in a file that is never changed under this name: written aside, renamed and unlinked.
    pub fn of(&self, path: &Path, meter: &Arc<Meter>) -> io::Result<Arc<Tree>> {
        let file = File::open(path)?;
        let id = identity(&file)?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = known.get(&id).and_then(|known| known.tree.upgrade()) {
            return Ok(tree);
        }
        let (map, used) = (FileMap::of(&file)?, AtomicBool::new(false));
        let tree = Arc::new(Tree { map, used, meter: Arc::clone(meter) });
        known.insert(id, Known { tree: Arc::downgrade(&tree), held: false });
        Ok(tree)
    }

    /// Gives back what was not used since the last time. True if there is more to be given back later.
    pub fn rest(&self) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, known| known.tree.strong_count() > 0);
        for known in known.values_mut() {
            let Some(tree) = known.tree.upgrade() else { continue };
            let used = tree.used.swap(false, Ordering::Relaxed);
            if !used && known.held {
                tree.map.give_back();
            }
            known.held = used;
        }
        known.values().any(|known| known.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a file that this process has mapped in, and not only somewhere in the page cache (proc(5), `smaps`).
    fn resident(path: &Path) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let ours = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let size = ours.map(|line| line.strip_prefix("Rss:")).find_map(|rss| rss).unwrap();
        size.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    fn one_tree_is_mapped_once_and_given_back_when_nobody_asks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let (trees, meter) = (Trees::default(), Arc::new(Meter::default()));
        let tree = trees.of(&path, &meter).unwrap();
        assert!(Arc::ptr_eq(&tree, &trees.of(&path, &meter).unwrap()));
        let read = || assert!(tree.iter().all(|&byte| byte == 7));

        read();
        assert_eq!(resident(&path), 1 << 20);
        assert!(trees.rest(), "it is in use");
        read();
        assert!(trees.rest(), "it is in use still");
        assert_eq!(resident(&path), 1 << 20);
        assert!(!trees.rest());
        assert_eq!(resident(&path), 0);
        read();
        assert!(trees.rest());
        drop(tree);
        assert!(!trees.rest());
        assert_eq!(trees.0.lock().unwrap().len(), 0);
    }
}
