//! An image's folder and the names that point at it.

use std::fs;
use std::path::{Path, PathBuf};

use hoist_format::digest::Digest;
use serde::{Deserialize, Serialize};

use super::usage::{hold, make_and_hold};
use super::{Store, write_atomic};
use crate::error::Error;

/// What a name meant when it was last resolved, so that it works without a registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefRecord {
    /// The name as it was resolved.
    pub name: String,
    /// The image manifest.
    pub manifest: Digest,
    /// Its data stays, whatever the store's limit.
    #[serde(default)]
    pub pinned: bool,
}

/// Folder of one image: `manifest.json`, `config.json` and EROFS images of the merged tree.
#[derive(Debug, Clone)]
pub struct ImageDir {
    path: PathBuf,
}

impl ImageDir {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Manifest and config, if both are here and still what their digests say.
    pub fn load(&self, manifest: &Digest) -> Option<(Vec<u8>, Vec<u8>)> {
        let bytes = fs::read(self.path.join("manifest.json")).ok()?;
        let config = fs::read(self.path.join("config.json")).ok()?;
        (Digest::of(&bytes) == *manifest).then_some((bytes, config))
    }
    /// Was the manifest ever here? It comes last.
    pub fn has_manifest(&self) -> bool {
        self.path.join("manifest.json").exists()
    }
    /// Keeps manifest and config, though others take away what nobody needs.
    pub fn save(&self, manifest: &[u8], config: &[u8]) -> Result<(), Error> {
        let _held = make_and_hold(&self.path)?;
        super::write_if_new(&self.path.join("config.json"), config)?;
        super::write_if_new(&self.path.join("manifest.json"), manifest)
    }
    /// Keeps it from being taken away until the file is dropped; None if it is not here.
    ///
    /// # Errors
    /// The file system's.
    pub fn hold(&self) -> Result<Option<fs::File>, Error> {
        hold(&self.path)
    }
    /// Was the tree of this index found to be the image's own?
    pub fn is_judged(&self, index: &Digest) -> bool {
        self.tree_path(Some(index)).with_extension("judged").exists()
    }
    /// Remembers that it was.
    pub fn save_judged(&self, index: &Digest) -> Result<(), Error> {
        write_atomic(&self.tree_path(Some(index)).with_extension("judged"), b"")
    }
}

impl Store {
    /// What a name meant.
    pub fn lookup(&self, name: &str) -> Option<RefRecord> {
        serde_json::from_slice(&fs::read(self.ref_path(name)).ok()?).ok()
    }
    /// Remembers what a name means.
    pub fn remember(&self, record: &RefRecord) -> Result<(), Error> {
        let bytes = serde_json::to_vec(record).map_err(|e| Error::Internal(e.to_string()))?;
        super::write_if_new(&self.ref_path(&record.name), &bytes)
    }
    /// All names.
    pub fn refs(&self) -> Result<Vec<RefRecord>, Error> {
        let dir = self.root().join("refs");
        let files = super::names(&dir)?;
        Ok(files.iter().filter_map(|f| serde_json::from_slice(&fs::read(dir.join(f)).ok()?).ok()).collect())
    }
}
