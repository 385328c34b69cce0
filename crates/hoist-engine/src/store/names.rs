//! The names of files by the places of their bytes.

use std::fs::File;
use std::path::PathBuf;

use hoist_format::erofs;
use hoist_sys::map::FileMap;

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
            // Trees of large images have many bytes, and few of them are looked at.
            let tree = FileMap::of(&File::open(&self.tree).ok()?).ok()?;
            erofs::Image::new(&tree).ok()?.owner_of(self.layer, offset).ok()?
        };
        match look() {
            Some(path) => format!("/{}", String::from_utf8_lossy(&path)),
            None => "a file that its tree does not name".to_owned(),
        }
    }
}
