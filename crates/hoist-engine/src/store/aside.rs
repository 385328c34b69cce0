//! Where files are written before they have their place: what a killed process leaves there is found and removed by
//! whoever opens the store next, at the cost of looking into one folder.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::Store;
use crate::error::Error;

/// The folder's name.
pub(super) const FOLDER: &str = "aside";

impl Store {
    /// A file of this process's own, on the store's file system, removed unless it is given a place.
    ///
    /// # Errors
    /// The file system's.
    pub fn aside(&self) -> Result<NamedTempFile, Error> {
        let dir = self.aside_folder();
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        locked_in(&dir)
    }

    /// The folder of such files; it may have to be made.
    pub fn aside_folder(&self) -> PathBuf {
        self.root().join(FOLDER)
    }
}

/// The same, to be given a place in `dir`, the store's root or a folder at most two levels below it.
pub(super) fn for_place_in(dir: &Path) -> Result<NamedTempFile, Error> {
    let aside = dir.ancestors().take(3).map(|above| above.join(FOLDER)).find(|aside| aside.is_dir());
    // A store that is just being made has none yet.
    locked_in(&aside.unwrap_or_else(|| PathBuf::from(dir)))
}

fn locked_in(dir: &Path) -> Result<NamedTempFile, Error> {
    loop {
        let made = NamedTempFile::new_in(dir).map_err(Error::io("write in", dir))?;
        made.as_file().lock_shared().map_err(Error::io("lock", made.path()))?;
        // Before it was locked it looked like a dead process's.
        if made.path().exists() {
            return Ok(made);
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
        let layers = dir.path().join("layers/one");
        fs::create_dir(&layers).unwrap();
        for place in [dir.path(), &layers] {
            let made = || for_place_in(place).unwrap();
            let (held, large) = (made(), store.aside().unwrap());
            let left = [made(), store.aside().unwrap()].map(|file| file.keep().unwrap().1);
            Store::open(dir.path()).unwrap();
            assert!(held.path().exists() && large.path().exists() && !left.iter().any(|path| path.exists()));
            held.persist(place.join("named")).unwrap();
            assert_eq!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), 1);
        }
    }
}
