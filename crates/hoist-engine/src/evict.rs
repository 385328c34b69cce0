//! Keeps the store within its limit: layers that were used least recently go, whole, one by one.
//!
//! What is mounted or being written stays, and so does what a pinned image has; if that alone is more than the limit, the
//! store is larger than it should be, and the log says so. A layer that went is fetched again when it is
//! wanted: what cannot be fetched again is to be pinned.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::engine::Engine;
use crate::error::Error;
use crate::oci::{self, Manifest};
use crate::store::LayerDir;
use crate::store::usage::on_disk;

/// While mounted images grow, the limit is looked after this often.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);

struct Candidate {
    dir: LayerDir,
    /// Does a name still stand for an image that has it?
    named: bool,
    used: SystemTime,
    bytes: u64,
}

impl Engine {
    /// Removes layers until the store is within its limit, if it has one; none of the blobs `spared`. Blocks.
    ///
    /// # Errors
    /// The file system's; and when somebody keeps choosing layers meanwhile.
    pub fn keep_limit(&self, spared: &BTreeSet<String>) -> Result<(), Error> {
        self.store.delete_left()?;
        let Some(limit) = self.config.store_limit else { return Ok(()) };
        let folder = |name: String| self.store.root().join("layers").join(name);
        let folders: Vec<PathBuf> = self.store.layer_names()?.into_iter().map(folder).collect();
        let mut total: u64 = folders.iter().map(|folder| on_disk(folder)).sum();
        if total <= limit {
            return Ok(());
        }
        let (named, pinned) = self.wanted_blobs()?;
        let clearing = self.store.clearing()?;
        let unused = folders.iter().filter(|folder| !clearing.uses_layer(folder));
        let mut candidates: Vec<Candidate> = unused
            .filter_map(|folder| LayerDir::at(folder))
            .filter(|dir| !pinned.contains(&dir.blob().hex()) && !spared.contains(&dir.blob().hex()))
            .map(|dir| {
                let (used, bytes) = (dir.last_used(), on_disk(dir.path()));
                Candidate { named: named.contains(&dir.blob().hex()), used, bytes, dir }
            })
            .collect();
        candidates.sort_by_key(|c| (c.named, c.used));
        for candidate in candidates {
            if total <= limit {
                break;
            }
            if !clearing.take_away(candidate.dir.path())? {
                continue;
            }
            total = total.saturating_sub(candidate.bytes);
            tracing::info!(layer = %candidate.dir.blob(), bytes = candidate.bytes, "made room");
        }
        clearing.delete()?;
        if total > limit {
            tracing::warn!(
                bytes = total,
                limit,
                "the store is larger than its limit, and the rest of it is mounted, pinned or what was just pulled"
            );
        }
        Ok(())
    }

    /// The blobs of all images that a name stands for, and those of pinned ones.
    fn wanted_blobs(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), Error> {
        let (mut named, mut pinned) = (BTreeSet::new(), BTreeSet::new());
        for record in self.store.refs()? {
            let Some((manifest, _)) = self.store.image(&record.manifest).load(&record.manifest) else {
                continue;
            };
            let manifest: Manifest = oci::parse("manifest", &record.manifest, &manifest)?;
            let blobs = self.blobs_of(&record.manifest, &manifest);
            if record.pinned {
                pinned.extend(blobs.iter().cloned());
            }
            named.extend(blobs);
        }
        Ok((named, pinned))
    }

    /// Keeps the data of an image in the store, whatever its limit; or no longer.
    ///
    /// # Errors
    /// When no image is known by that name.
    pub fn pin(&self, name: &str, pinned: bool) -> Result<(), Error> {
        let mut record = self.store.lookup(&self.spelled_out(name)?).ok_or_else(|| {
            let name = crate::reference::told(name);
            Error::NotFound(format!(
                "no image {name:?} here; `hoist images` lists them, `hoist pull` brings one"
            ))
        })?;
        record.pinned = pinned;
        self.store.remember(&record)?;
        crate::store::sync_dir(&self.store.root().join("refs"))
    }
}

/// What it cannot do now it can do later: a warning, no failure.
pub(crate) async fn keep_limit(engine: &Engine, spared: BTreeSet<String>) {
    let engine = engine.clone();
    let kept = tokio::task::spawn_blocking(move || engine.keep_limit(&spared));
    if let Ok(Err(e)) = kept.await {
        tracing::warn!("keeping the store within its limit: {e}");
    }
}
