//! What became of mounts (`history/ID.json`): whether each was lazy and why not, what its readers waited for,
//! and where the bytes came from. Written by the process that serves a mount, read by `hoist why` and `hoist
//! top`, also after its end. Not synced: nothing depends on it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use hoist_format::digest::Digest;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::error::Error;
use crate::registry::HostCounts;

/// Mounts that are remembered after their end.
const REMEMBERED: usize = 100;

/// A mount, living or ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// The mount's.
    pub id: String,
    /// The mount point.
    pub target: PathBuf,
    /// The image as it was named.
    pub image: String,
    /// Its manifest.
    pub digest: Option<Digest>,
    /// What shows it.
    pub driver: String,
    /// Was it lazy?
    pub lazy: bool,
    /// Why, or why not.
    pub why: String,
    /// The published index that lays it out.
    pub index: Option<Digest>,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Until when; None while it lives.
    pub ended: Option<u64>,
    /// From the command's start until it was there.
    pub seconds_to_mount: f64,
    /// Reads that the serving process was asked about.
    pub reads: u64,
    /// Those that had to wait for data.
    pub stalls: u64,
    /// Bytes they wanted.
    pub demand_bytes: u64,
    /// Those that failed.
    pub failed: u64,
    /// How long all of them waited.
    pub waited_seconds: f64,
    /// Requests sent.
    pub requests: u64,
    /// Body bytes received.
    pub wire_bytes: u64,
    /// Bytes taken from other layers of the store instead.
    pub copied_bytes: u64,
    /// What came from which server.
    pub sources: BTreeMap<String, HostCounts>,
    /// Bytes of file contents that were here at its end, and of how many.
    pub present: Option<(u64, u64)>,
    /// The slowest reads, and before them those that failed.
    pub slowest: Vec<SlowRead>,
}

/// A read that waited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlowRead {
    /// When it was answered, in seconds since 1970.
    pub at: u64,
    /// The tree that names the file.
    pub tree: PathBuf,
    /// The layer's number in it.
    pub layer: u16,
    /// Where in the layer's data file.
    pub offset: u64,
    /// How many bytes were wanted.
    pub bytes: u64,
    /// How long it waited.
    pub waited_ms: u64,
    /// Who read.
    pub pid: u32,
    /// Requests sent meanwhile.
    pub requests: u64,
    /// The servers that gave bytes meanwhile.
    pub from: Vec<String>,
    /// What went wrong meanwhile.
    pub trouble: Vec<String>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
}

impl History {
    /// Whether it was never mounted: see [`Store::note_left`].
    pub fn was_left(&self) -> bool {
        self.driver.is_empty()
    }
}

impl SlowRead {
    /// What comes first when few can be told: failures, then by the time they took.
    pub(crate) fn rank(&self) -> (bool, u64) {
        (self.failed.is_some(), self.waited_ms)
    }

    /// The file that was read, by its tree.
    pub fn file(&self) -> String {
        super::Names { tree: self.tree.clone(), layer: self.layer }.of(self.offset)
    }
}

impl Store {
    fn history_dir(&self) -> PathBuf {
        self.root().join("history")
    }

    /// Every mount that is remembered, the newest first.
    pub fn histories(&self) -> Vec<History> {
        let dir = self.history_dir();
        let files = super::names(&dir).unwrap_or_default();
        let mut all: Vec<History> = files.iter().filter_map(|name| read(&dir.join(name))).collect();
        all.sort_by(|a, b| (b.since, &b.id).cmp(&(a.since, &a.id)));
        all
    }

    /// Remembers that an image was not mounted but left to somebody else to unpack, and why. Of each image the last
    /// time counts.
    ///
    /// # Errors
    /// It can't be written.
    pub fn note_left(&self, image: &str, why: &str) -> Result<(), Error> {
        let now = crate::registry::date::now();
        self.save_history(&History {
            id: format!("left-{}", &Digest::of(image.as_bytes()).hex()[..16]),
            image: image.to_owned(),
            why: why.to_owned(),
            since: now,
            ended: Some(now),
            ..History::default()
        })
    }

    /// What is remembered of a mount.
    pub fn history(&self, id: &str) -> Option<History> {
        read(&self.history_dir().join(format!("{id}.json")))
    }

    /// Keeps what is known of a mount. Of those that ended long ago some are forgotten.
    pub(crate) fn save_history(&self, history: &History) -> Result<(), Error> {
        let dir = self.history_dir();
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let path = dir.join(format!("{}.json", history.id));
        let bytes = serde_json::to_vec(history).map_err(|e| Error::Internal(e.to_string()))?;
        let file = super::aside::for_place_in(&dir)?;
        fs::write(file.path(), bytes).map_err(Error::io("write", &path))?;
        file.persist(&path).map_err(|e| Error::io("rename to", &path)(e.error))?;
        if history.ended.is_some() {
            self.forget_old(&dir);
        }
        Ok(())
    }

    fn forget_old(&self, dir: &Path) {
        let names = super::names(dir).unwrap_or_default();
        if names.len() <= REMEMBERED {
            return;
        }
        // By name: to read all records at the end of each mount would make many mounts slow.
        let records = self.root().join("mounts");
        let time = |name: &String| fs::metadata(dir.join(name)).and_then(|meta| meta.modified()).ok();
        let mut names: Vec<_> = names
            .into_iter()
            .filter(|name| !records.join(name).exists())
            .map(|name| (time(&name), name))
            .collect();
        names.sort();
        let over = names.len().saturating_sub(REMEMBERED);
        for (_, name) in &names[..over] {
            let _ = fs::remove_file(dir.join(name));
        }
    }
}

/// What is half written or damaged counts as not there.
fn read(path: &Path) -> Option<History> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_remembered_and_damage_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for i in 0..REMEMBERED as u64 + 5 {
            let history = History { id: format!("{i:04}"), since: i, ended: Some(i), ..History::default() };
            store.save_history(&history).unwrap();
            // The clock of a file system may be coarse.
            let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(i + 1);
            let file = fs::File::options().write(true).open(dir.path().join(format!("history/{i:04}.json")));
            file.unwrap().set_modified(past).unwrap();
        }
        fs::write(dir.path().join("history/x.json"), "{").unwrap();
        let all = store.histories();
        assert_eq!((all.len(), all[0].since), (REMEMBERED, REMEMBERED as u64 + 4));
        assert!(store.history("0000").is_none() && store.history("0104").is_some());
        store.note_left("app:1", "no index").unwrap();
        store.note_left("app:1", "none yet").unwrap();
        let left: Vec<_> = store.histories().into_iter().filter(|one| one.image == "app:1").collect();
        assert_eq!(left.len(), 1);
        assert!(left[0].was_left() && !left[0].lazy && left[0].why == "none yet");
    }
}
