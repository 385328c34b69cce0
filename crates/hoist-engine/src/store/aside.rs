//! Where large files are written before they have their place: what a killed process leaves there is found and
//! removed by whoever opens the store next, at the cost of looking into one folder.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::NamedTempFile;

use super::Store;
use crate::error::Error;

const FOLDER: &str = "aside";

impl Store {
    /// A file of this process's own, on the store's file system, removed unless it is given a place.
    ///
    /// # Errors
    /// The file system's.
    pub fn aside(&self) -> Result<NamedTempFile, Error> {
        let dir = self.root().join(FOLDER);
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        loop {
            let made = tempfile::Builder::new().prefix("data.").tempfile_in(&dir);
            let made = made.map_err(Error::io("write in", &dir))?;
            made.as_file().lock_shared().map_err(Error::io("lock", made.path()))?;
            // Before it was locked it looked like a dead process's.
            if made.path().exists() {
                return Ok(made);
            }
        }
    }
}

/// Removes what nobody writes to any more.
pub(super) fn clear(root: &Path) {
    for entry in fs::read_dir(root.join(FOLDER)).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_ok()
            && let Ok(meta) = file.metadata()
            && fs::remove_file(&path).is_ok()
        {
            tracing::info!(
                bytes = meta.blocks() * 512,
                "removed what a killed process had left: {}",
                path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_stays_and_what_a_killed_process_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let held = store.aside().unwrap();
        let left = store.aside().unwrap().keep().unwrap().1;
        Store::open(dir.path()).unwrap();
        assert!(held.path().exists() && !left.exists());
    }
}
