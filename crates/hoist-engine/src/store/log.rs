//! Logs of processes in the background, one file each in the store's `log` folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::Store;
use crate::error::Error;

/// Room that a log has whatever becomes of the disk, bytes.
const RESERVED: u64 = 64 << 10;

/// Makes a log in the store at `root`, named after `what`. It is locked for as long as anybody has it open.
///
/// # Errors
/// The file system's.
pub fn new_log(root: &Path, what: &str) -> Result<(File, PathBuf), Error> {
    let dir = root.join("log");
    fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    // Long-lived processes leave a log each; those that had nothing to say are of no use to anyone.
    for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))?.flatten() {
        if entry.metadata().is_ok_and(|meta| meta.len() == 0) && !is_open(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let log =
        tempfile::Builder::new().prefix(&format!("{what}-")).suffix(".log").append(true).tempfile_in(&dir);
    let log = log.map_err(Error::io("make a log in", &dir))?;
    log.as_file().try_lock_shared().map_err(|e| Error::io("lock", log.path())(e.into()))?;
    // What is said of a full disk must find room on it. Without that, it is lost, and nothing else.
    let _ = hoist_sys::file::reserve(log.as_file(), RESERVED);
    log.keep().map_err(|e| Error::io("keep a log in", &dir)(e.error))
}

/// Whether a process still writes to this log: it holds the lock it got with the descriptor.
fn is_open(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock().is_err())
}

impl Store {
    /// See [`new_log`].
    ///
    /// # Errors
    /// As there.
    pub fn new_log(&self, what: &str) -> Result<File, Error> {
        new_log(self.root(), what).map(|(file, _)| file)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_log_has_room_before_it_says_anything() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let (file, _) = new_log(dir.path(), "test").unwrap();
        let meta = file.metadata().unwrap();
        assert!(meta.len() == 0 && meta.blocks() * 512 >= RESERVED, "{meta:?}");
    }
}
