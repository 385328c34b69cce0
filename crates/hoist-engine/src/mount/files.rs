//! Files of a mount that somebody knows will be read, fetched side by side and whole: read through the mount, each
//! would be asked for piece by piece.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hoist_format::erofs::{self, NodeKind};
use hoist_sys::map::FileMap;

use super::Mount;
use super::layer::{LazyLayer, MountedLayer};
use crate::fill::FillError;

/// The files of a mount's lazy layers.
#[derive(Clone)]
pub struct Files {
    tree: Arc<FileMap>,
    /// By their number in the tree.
    layers: BTreeMap<u16, Arc<LazyLayer>>,
}

impl Mount {
    /// Its files; None if none of them has to be fetched.
    ///
    /// # Errors
    /// The tree can't be read.
    pub fn files(&self) -> std::io::Result<Option<Files>> {
        let lazy = |(at, layer): (u16, &MountedLayer)| match layer {
            MountedLayer::Lazy(layer) => Some((at, Arc::clone(layer))),
            MountedLayer::Whole(_) => None,
        };
        let layers: BTreeMap<_, _> = (0..).zip(&self.layers.all).filter_map(lazy).collect();
        if layers.is_empty() {
            return Ok(None);
        }
        // Trees are written aside, renamed and unlinked, never changed.
        let tree = FileMap::of(&File::open(&self.tree)?)?;
        Ok(Some(Files { tree: Arc::new(tree), layers }))
    }
}

impl Files {
    /// Fetches the first `most` bytes of each of these files (their own paths in the image, through no links). What is no
    /// file, or is here, is passed over.
    ///
    /// # Errors
    /// What one of them could not be had for. Who reads it tries again.
    pub async fn fetch(&self, paths: &[PathBuf], most: u64) -> Result<(), FillError> {
        let mut wanted: BTreeMap<u16, Vec<Range<u64>>> = BTreeMap::new();
        for path in paths {
            if let Some((layer, range)) = self.place(path, most) {
                wanted.entry(layer).or_default().push(range);
            }
        }
        let fetching = wanted.iter().filter_map(|(layer, ranges)| {
            let layer = self.layers.get(layer)?;
            Some(async move { layer.fill().await?.fill_ahead(ranges).await })
        });
        futures_util::future::join_all(fetching).await.into_iter().collect()
    }

    /// Where a file's bytes are.
    fn place(&self, path: &Path, most: u64) -> Option<(u16, Range<u64>)> {
        use std::os::unix::ffi::OsStrExt;
        let image = erofs::Image::new(&self.tree).ok()?;
        let node = image.inode(image.lookup(path.as_os_str().as_bytes()).ok()??).ok()?;
        let NodeKind::File(at) = node.kind else { return None };
        (node.size > 0).then(|| (at.layer, at.offset..at.offset + node.size.min(most)))
    }
}
