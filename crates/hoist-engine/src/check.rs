//! Holds a published index against the image: what a whole, verified pass over a layer found must
//! be what the index said (`docs/SEMANTICS.md`, "Trust").

use std::collections::BTreeMap;

use hoist_format::digest::Digest;

use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::ingest::{Expected, Ingested};
use crate::store::{LayerDir, LayerState};

/// Why a published table is not the one that the layer has; None when it is.
pub fn lie(published: &[u8], own: &[u8]) -> Option<&'static str> {
    if published == own {
        return None;
    }
    // Compression may differ between versions of zstd; what it says may not.
    let (Ok(a), Ok(b)) =
        (hoist_format::table::Table::decode(published), hoist_format::table::Table::decode(own))
    else {
        return Some("its table cannot be read");
    };
    if a.extents != b.extents {
        Some("its extents are not those of the layer")
    } else if a.spans.linear().map(|s| s.codec) != b.spans.linear().map(|s| s.codec)
        || a.spans.stream_size() != b.spans.stream_size()
    {
        Some("its spans are not those of the layer")
    } else {
        None
    }
}

impl Engine {
    /// After a whole pull: every layer that also stands here in a published layout is checked
    /// against the own one, and the published tree against the merged one.
    pub(crate) fn check_published(&self, image: &Image, expected: &[Expected]) -> Result<(), Error> {
        let Some(index) = &image.index else { return Ok(()) };
        for e in expected {
            let theirs = self.store.layer(&e.blob, Some(&index.digest));
            let ours = self.store.layer(&e.blob, None);
            let told = index.layers.get(&e.blob).map(|(table, _)| table.digest);
            // What was damaged here accuses nobody: theirs is fetched again when it is wanted.
            let Some(a) = theirs.table_bytes().filter(|a| Some(Digest::of(a)) == told) else { continue };
            match ours.sound_part("table", |parts| &parts.table) {
                Some(b) => self.judge(&index.digest, &theirs, lie(&a, &b))?,
                None => ours.disown()?,
            }
        }
        self.judge_tree(image, &index.digest)
    }

    /// The published tree against the one merged anew; only once every layer was passed over whole.
    pub(crate) fn judge_tree(&self, image: &Image, index: &Digest) -> Result<(), Error> {
        let dir = self.store.image(&image.digest);
        // One that was damaged here accuses nobody: the next mount fetches it again.
        let Some(theirs) = dir.read_tree(Some(index)) else { return Ok(()) };
        // A layer is here in our own layout after a pull, in the index's after a lazy mount.
        let layers: Vec<_> = image.manifest.layers.iter().map(|layer| layer.digest).collect();
        let mut held = Vec::new();
        let mut folders = BTreeMap::new();
        for blob in &layers {
            let own = self.store.layer(blob, None);
            // It is no mount's: others may take it away, unless it is held.
            let here = own.hold_what_is_here()?.filter(|_| own.is_whole());
            folders.insert(*blob, if here.is_some() { own } else { self.store.layer(blob, Some(index)) });
            held.extend(here);
        }
        let own = self.merged(&layers, &image.digest, |blob| folders[blob].clone())?;
        if theirs == own {
            return dir.save_judged(index);
        }
        let why = format!("index {index} lied: its tree is not that of image {}", image.digest);
        for layer in &image.manifest.layers {
            self.store.layer(&layer.digest, Some(index)).condemn(&why)?;
        }
        let _ = std::fs::remove_file(dir.tree_path(Some(index)));
        self.denounce(index, &why)
    }

    /// Draws the consequence for a layer in a published layout.
    pub(crate) fn judge(&self, index: &Digest, theirs: &LayerDir, lie: Option<&str>) -> Result<(), Error> {
        match lie {
            None => {
                let state = theirs.state();
                theirs.save_state(&LayerState { verified: true, ..state })
            }
            Some(lie) => {
                let why = format!("index {index} lied about layer {}: {lie}", theirs.blob());
                theirs.condemn(&why)?;
                self.denounce(index, &why)
            }
        }
    }

    fn denounce(&self, index: &Digest, why: &str) -> Result<(), Error> {
        tracing::error!(%index, "{why}; its data is thrown away, and it is never used again");
        self.store.distrust(index, why)
    }

    /// Checks a layer whose blob was fetched whole while it was mounted lazily: the same pass as a
    /// pull, over the kept blob. `Ok(None)`: the index told the truth; the reason otherwise.
    pub(crate) fn verdict(table: &[u8], passed: Result<Ingested, Error>) -> Result<Option<String>, Error> {
        match passed {
            Ok(done) => Ok(lie(table, &done.table.encode()).map(str::to_owned)),
            Err(e @ (Error::Digest { .. } | Error::Layer { .. })) => Ok(Some(e.to_string())),
            Err(e) => Err(e),
        }
    }
}
