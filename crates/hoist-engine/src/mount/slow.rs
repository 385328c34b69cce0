//! Reads that made somebody wait long, told by the name of the file: what a user asks first.

use std::path::PathBuf;
use std::time::Duration;

use hoist_format::erofs;

/// A read that waited this long is told of.
pub(super) const SLOW: Duration = Duration::from_millis(500);

/// Where a layer's files have names: a merged tree, and which of its devices the layer is.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// The tree as it is mounted.
    pub tree: PathBuf,
    /// The layer's number in it.
    pub layer: u16,
}

impl Names {
    /// The path of the file that has this byte of the data file; a word for it where it can't be told.
    pub fn of(&self, offset: u64) -> String {
        let look = || -> Option<Vec<u8>> {
            let bytes = std::fs::read(&self.tree).ok()?;
            erofs::Image::new(&bytes).ok()?.owner_of(self.layer, offset).ok()?
        };
        match look() {
            Some(path) => format!("/{}", String::from_utf8_lossy(&path)),
            None => "a file that its tree does not name".to_owned(),
        }
    }
}
