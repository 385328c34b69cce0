//! A layer's folder: `table`, `windows`, `tree` (own layouts only), `data`, `blob` (fetched
//! compressed bytes, kept until the layer is verified), `present` and `state.json`.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use hoist_format::digest::Digest;
use hoist_format::table::Table;
use serde::{Deserialize, Serialize};

use super::{write_atomic, write_durable};
use crate::error::Error;

/// What is known of a layer as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerState {
    /// Every extent is in the data file and synced.
    pub complete: bool,
    /// Blob digest and diffID were checked over the whole layer, and layout and data with them.
    pub verified: bool,
    /// The layout was found to lie: nothing of this folder is served.
    pub lied: Option<String>,
    /// What a complete layer consists of, so that damage shows.
    #[serde(default)]
    pub parts: Option<Parts>,
}

/// The files of a complete layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Bytes of `data`, at least.
    pub data_size: u64,
    /// Of `table`.
    pub table: Digest,
    /// Of `tree`.
    pub tree: Digest,
}

impl LayerState {
    /// Of a layer that is all here and what the image says.
    pub fn whole(parts: Parts) -> Self {
        Self { complete: true, verified: true, lied: None, parts: Some(parts) }
    }
}

/// Folder of one layer in one layout.
#[derive(Debug, Clone)]
pub struct LayerDir {
    path: PathBuf,
    blob: Digest,
}

impl LayerDir {
    pub(super) fn new(path: PathBuf, blob: Digest) -> Self {
        Self { path, blob }
    }
    /// The layer's folder at `path`, if it has the name of one.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let blob = format!("sha256:{}", name.split('.').next()?).parse().ok()?;
        Some(Self { path: path.to_owned(), blob })
    }
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The layer's blob digest.
    pub fn blob(&self) -> &Digest {
        &self.blob
    }
    /// Is it in the layout of a published index, or of a conversion?
    pub fn is_published(&self) -> bool {
        self.path.extension().is_some()
    }
    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
    /// Makes the folder.
    pub fn create(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.path).map_err(Error::io("create", &self.path))
    }
    /// The layer's state; the default when there is none.
    pub fn state(&self) -> LayerState {
        let bytes = fs::read(self.file("state.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }
    /// Keeps the state.
    pub fn save_state(&self, state: &LayerState) -> Result<(), Error> {
        let bytes = serde_json::to_vec(state).map_err(|e| Error::Internal(e.to_string()))?;
        write_durable(&self.file("state.json"), &bytes)
    }
    /// Is the layer complete, and its data file as long as it should be?
    pub fn is_whole(&self) -> bool {
        let state = self.state();
        state.complete && self.has_data(state.parts.map_or(0, |parts| parts.data_size))
    }
    /// A file of a complete layer, if it is what was written.
    pub fn sound_part(&self, name: &str, digest: impl Fn(&Parts) -> &Digest) -> Option<Vec<u8>> {
        let bytes = fs::read(self.file(name)).ok();
        let state = self.state();
        // Layers of stores before this was noted are taken as they are.
        let sound =
            bytes.filter(|b| state.parts.as_ref().is_none_or(|parts| Digest::of(b) == *digest(parts)));
        if sound.is_none() {
            tracing::error!(layer = %self.blob, "its {name} is gone, or was damaged on the disk");
        }
        sound
    }
    /// It is not whole any more: what is damaged or gone of it is fetched again.
    pub fn disown(&self) -> Result<(), Error> {
        let state = self.state();
        self.save_state(&LayerState { lied: state.lied, ..LayerState::default() })
    }
    /// The stored table's bytes.
    pub fn table_bytes(&self) -> Option<Vec<u8>> {
        fs::read(self.file("table")).ok()
    }
    /// The table, if one is here.
    pub fn table(&self) -> Result<Option<Table>, Error> {
        let Some(bytes) = self.table_bytes() else { return Ok(None) };
        let table = Table::decode(&bytes).map_err(|e| Error::Store {
            path: self.file("table"),
            why: format!("is damaged: {e}; remove the image with `hoist rm` and pull it again"),
        })?;
        Ok(Some(table))
    }
    /// Keeps a table.
    pub fn save(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.create()?;
        write_atomic(&self.file(name), bytes)
    }
    /// Opens the data file, making it if absent. One that is missing or short has not what the maps of it say:
    /// they go first, so that whoever is killed in between leaves nothing that a hole could pass for.
    pub fn open_data(&self, size: u64) -> Result<File, Error> {
        if !self.has_data(size) {
            if self.state().complete {
                tracing::error!(layer = %self.blob, "its data is gone, or cut short: fetching it again");
                self.disown()?;
            }
            self.forget_maps()?;
        }
        self.open_sparse("data", size)
    }
    fn forget_maps(&self) -> Result<(), Error> {
        self.remove("live")?;
        self.remove("present")?;
        super::sync_dir(&self.path)
    }
    /// Begins with an empty data file; who has the old one open keeps it. Only where nobody fills that.
    pub fn forget_data(&self) -> Result<(), Error> {
        self.forget_maps()?;
        self.remove("data")
    }
    /// Is there a data file of at least this size?
    pub fn has_data(&self, size: u64) -> bool {
        fs::metadata(self.file("data")).is_ok_and(|meta| meta.len() >= size)
    }
    /// Opens (making it if absent) a sparse file of the layer, of at least `size` bytes.
    pub fn open_sparse(&self, name: &str, size: u64) -> Result<File, Error> {
        let path = self.file(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let have = file.metadata().map_err(Error::io("look at", &path))?.len();
        if have < size {
            file.set_len(size).map_err(Error::io("size", &path))?;
        }
        Ok(file)
    }
    /// Which extents are on disk for good: the bits of `present`, none where it is damaged.
    pub fn load_presence(&self, extents: usize) -> Vec<u8> {
        self.sound_presence(extents).unwrap_or_else(|| vec![0; extents.div_ceil(8)])
    }
    /// Is there a map of what is present, and not damaged?
    pub fn has_sound_presence(&self, extents: usize) -> bool {
        self.sound_presence(extents).is_some()
    }
    fn sound_presence(&self, extents: usize) -> Option<Vec<u8>> {
        let bytes = fs::read(self.file("present")).ok()?;
        let (hash, bits) = bytes.split_at_checked(32)?;
        (bits.len() == extents.div_ceil(8) && blake3::hash(bits).as_bytes()[..] == *hash)
            .then(|| bits.to_vec())
    }
    /// Was what an earlier boot has left of it looked at in this one?
    pub fn is_checked(&self) -> bool {
        let checked = fs::read_to_string(self.file("checked"));
        checked.is_ok_and(|boot| hoist_sys::file::boot_id().is_ok_and(|now| now == boot))
    }
    /// It was. Best effort: else it is looked at again.
    pub fn note_checked(&self) {
        let noted = hoist_sys::file::boot_id().and_then(|boot| fs::write(self.file("checked"), boot));
        if let Err(e) = noted {
            tracing::debug!(layer = %self.blob, "noting that it was looked at: {e}");
        }
    }
    /// Notes that the layer is used now.
    pub fn touch(&self) {
        let touched = File::create(self.file("used"));
        let _ = touched.and_then(|file| file.set_modified(std::time::SystemTime::now()));
    }
    /// When it was last used.
    pub fn last_used(&self) -> std::time::SystemTime {
        let noted = fs::metadata(self.file("used")).and_then(|meta| meta.modified());
        noted.unwrap_or(std::time::SystemTime::UNIX_EPOCH)
    }
    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        match fs::remove_file(self.file(name)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(Error::io("remove", self.file(name))),
        }
    }
    /// Records which extents are on disk. To be called only after the data file was synced.
    pub fn save_presence(&self, bits: &[u8]) -> Result<(), Error> {
        let mut bytes = blake3::hash(bits).as_bytes().to_vec();
        bytes.extend_from_slice(bits);
        write_atomic(&self.file("present"), &bytes)
    }
    /// Takes the layer out of service: what it holds is thrown away, the reason stays.
    pub fn condemn(&self, why: &str) -> Result<(), Error> {
        self.save_state(&LayerState { lied: Some(why.to_owned()), ..LayerState::default() })?;
        // Unlinked, never emptied: a mount may be reading, and a hole would be zeros to it.
        for name in ["present", "live", "kept", "blob", "windows", "digests", "data"] {
            let _ = fs::remove_file(self.file(name));
        }
        Ok(())
    }
}
