//! What a mount shows and how far its layers are, for those who ask.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use hoist_format::digest::Digest;
use serde::{Deserialize, Serialize};

use hoist_sys::presence::Snapshot;

use super::Mount;
use super::layer::{LazyLayer, MountedLayer};
use crate::config::Driver;
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::Here;
use crate::store::{LayerDir, LayerState, MountRecord};

/// A layer of a mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerStatus {
    /// Its blob.
    pub digest: Digest,
    /// Bytes of file contents that are here.
    pub present_bytes: u64,
    /// Of how many.
    pub total_bytes: u64,
    /// All of it is here: the kernel serves it alone.
    pub complete: bool,
    /// Blob digest and diffID were checked.
    pub verified: bool,
    /// Why it is out of service, if it is.
    pub condemned: Option<String>,
}

/// Who must be there for a mount to be readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// The kernel alone.
    Nobody,
    /// This process, or a successor that its keeper starts.
    Server,
}

impl Mount {
    /// Who must be there for it to be readable.
    pub fn needs(&self) -> Needs {
        match (self.driver, self.record.lazy) {
            (Driver::Erofs, false) => Needs::Nobody,
            _ => Needs::Server,
        }
    }

    /// Its layers, lowest first.
    pub fn layers(&self) -> Vec<LayerStatus> {
        self.layers.all.iter().filter_map(status).collect()
    }

    /// What shows it.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Reads of its layers that had to wait since it was mounted.
    pub fn demand_stalls(&self) -> u64 {
        (self.layers.counts() - self.before).stalls
    }
}

impl Engine {
    /// Why nobody new is to use what is mounted at `target` (canonical). None also where nothing of ours is.
    ///
    /// # Errors
    /// The file system's.
    pub fn out_of_service(&self, target: &Path) -> Result<Option<String>, Error> {
        let now = Snapshot::take().map_err(Error::io("read", "/proc/self/mountinfo"))?;
        let mut why = None;
        for record in self.store.mounts()? {
            if record.target != target || !record.presence().is_alive(&now) {
                continue;
            }
            // What was mounted there before may still be used by others.
            match self.condemned(&record) {
                Some(found) => why = Some(found),
                None => return Ok(None),
            }
        }
        Ok(why)
    }

    fn condemned(&self, record: &MountRecord) -> Option<String> {
        if record.lost {
            return Some("whoever filled it died together with its keeper".into());
        }
        let index = record.index.as_ref().map(|index| Digest::of(index.as_bytes()));
        let layers = || record.data.iter().filter_map(|data| LayerDir::at(data.parent()?)?.state().lied);
        index.and_then(|index| self.store.distrusted(&index)).or_else(|| layers().next())
    }
}

impl MountRecord {
    /// What shows it.
    pub fn driver(&self) -> Driver {
        match &self.fuse {
            None => Driver::Erofs,
            Some(fuse) if fuse.carried.is_some() => Driver::ErofsFuse,
            Some(_) => Driver::Fuse,
        }
    }
}

/// Looks at mounts that other processes serve, again and again: tables are read once.
#[derive(Default)]
pub struct Viewer {
    /// The lengths of a layer's extents, bytes.
    extents: HashMap<PathBuf, Vec<u64>>,
}

impl Viewer {
    /// The layers of a mount, lowest first, as the store shows them.
    pub fn layers(&mut self, record: &MountRecord) -> Vec<LayerStatus> {
        record.data.iter().filter_map(|data| self.layer(data)).collect()
    }

    /// Of a layer that is filled, what all processes of this boot have made readable.
    fn layer(&mut self, data: &Path) -> Option<LayerStatus> {
        let dir = LayerDir::at(data.parent()?)?;
        let state = dir.state();
        if state.complete {
            return whole(data);
        }
        if !self.extents.contains_key(dir.path())
            && let Some(lengths) = stored_lengths(&dir)
        {
            self.extents.insert(dir.path().to_owned(), lengths);
        }
        let (present_bytes, total_bytes) = match self.extents.get(dir.path()) {
            Some(lengths) => present_of(&dir, &state, lengths),
            // Nobody has read of it yet.
            None => (0, data.metadata().map_or(0, |meta| meta.len())),
        };
        let LayerState { complete, verified, lied: condemned, .. } = state;
        let digest = *dir.blob();
        Some(LayerStatus { digest, present_bytes, total_bytes, complete, verified, condemned })
    }
}

/// The lengths of a layer's extents by the table that is in the store, bytes; None where none is.
pub(super) fn stored_lengths(dir: &LayerDir) -> Option<Vec<u64>> {
    let table = dir.table().ok().flatten()?;
    Some(table.extents.extents.iter().map(|extent| extent.len).collect())
}

/// Bytes of a layer with these extents that are readable by what the store has of it, and of how many.
fn present_of(dir: &LayerDir, state: &LayerState, lengths: &[u64]) -> (u64, u64) {
    // A table has fewer extents than 2^32.
    let here = Here::of(dir, state, lengths.len() as u32);
    let present = lengths.iter().enumerate().filter(|(i, _)| here.has(*i as u32));
    (present.map(|(_, len)| len).sum(), lengths.iter().sum())
}

fn status(layer: &MountedLayer) -> Option<LayerStatus> {
    match layer {
        MountedLayer::Whole(data) => whole(data),
        MountedLayer::Lazy(layer) => Some(lazy(layer)),
    }
}

/// The folder's name begins with the blob's digest.
fn whole(data: &Path) -> Option<LayerStatus> {
    let dir = data.parent()?;
    let digest = format!("sha256:{}", dir.file_name()?.to_str()?.split('.').next()?).parse().ok()?;
    let bytes = std::fs::read(dir.join("state.json")).unwrap_or_default();
    let state: LayerState = serde_json::from_slice(&bytes).unwrap_or_default();
    let total_bytes = data.metadata().map_or(0, |meta| meta.len());
    Some(LayerStatus {
        digest,
        present_bytes: if state.complete { total_bytes } else { 0 },
        total_bytes,
        complete: state.complete,
        verified: state.verified,
        condemned: state.lied,
    })
}

fn lazy(layer: &LazyLayer) -> LayerStatus {
    let state = layer.dir().state();
    // Nobody may have read of it yet in this process: others, or an earlier mount, may have filled some of it.
    let unread = || match layer.stored_lengths() {
        Some(lengths) => present_of(layer.dir(), &state, lengths),
        None => (0, layer.data().metadata().map_or(0, |meta| meta.len())),
    };
    let (present_bytes, total_bytes) = layer.present_bytes().unwrap_or_else(unread);
    let condemned = layer.filling().and_then(|fill| fill.condemned()).or(state.lied);
    let (complete, verified) = (state.complete, state.verified);
    LayerStatus { digest: *layer.dir().blob(), present_bytes, total_bytes, complete, verified, condemned }
}
