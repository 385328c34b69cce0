//! The merged trees of images: what the kernel mounts, so they are to be what was checked when they were written.
//!
//! Beside `tree.X.erofs` stands `tree.X.sum`, its BLAKE3. To hash a tree at every mount would make mounts as slow as
//! trees are large; so `tree.X.seen` notes the file that was hashed last, by boot, inode number and change time: while
//! it is that one, it is taken as it is. A tree is hashed when it is first mounted after a boot, after anybody wrote to
//! it, and before an index is blamed for it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hoist_format::digest::Digest;
use tempfile::NamedTempFile;

use super::usage::make_and_hold;
use super::{ImageDir, place, write_aside};
use crate::error::Error;

impl ImageDir {
    /// The merged tree as the kernel mounts it, per index as layers are.
    pub fn tree_path(&self, index: Option<&Digest>) -> PathBuf {
        self.path().join(match index {
            None => "tree.erofs".to_owned(),
            Some(index) => format!("tree.{}.erofs", index.short()),
        })
    }

    /// Keeps a merged tree.
    ///
    /// # Errors
    /// The file system's.
    pub fn save_tree(&self, index: Option<&Digest>, erofs: &[u8]) -> Result<PathBuf, Error> {
        self.tree_aside(index, erofs)?.keep()
    }

    /// Writes a merged tree that may still turn out to be none to keep.
    pub(crate) fn tree_aside(&self, index: Option<&Digest>, erofs: &[u8]) -> Result<TreeAside, Error> {
        let held = make_and_hold(self.path())?;
        let path = self.tree_path(index);
        let sum = blake3::hash(erofs).to_hex();
        let sum = write_aside(&path.with_extension("sum"), sum.as_bytes())?;
        let tree = write_aside(&path, erofs)?;
        Ok(TreeAside { path, sum, tree, _held: held })
    }

    /// The merged tree, if it is here and what was written.
    pub fn sound_tree(&self, index: Option<&Digest>) -> Option<PathBuf> {
        let path = self.tree_path(index);
        let seen = fs::read_to_string(path.with_extension("seen"));
        if seen.is_ok_and(|seen| Some(seen) == identity(&path)) {
            return Some(path);
        }
        self.read_tree(index)?;
        note_seen(&path);
        Some(path)
    }

    /// Its bytes, hashed.
    pub fn read_tree(&self, index: Option<&Digest>) -> Option<Vec<u8>> {
        let path = self.tree_path(index);
        let bytes = fs::read(&path).ok()?;
        let sum = fs::read_to_string(path.with_extension("sum"));
        if sum.is_ok_and(|sum| sum == blake3::hash(&bytes).to_hex().as_str()) {
            return Some(bytes);
        }
        tracing::error!(tree = %path.display(), "is not what was written: it was damaged on the disk");
        None
    }
}

/// A merged tree that has no name yet; it goes when this is dropped. Until then its image's folder is not taken away.
pub(crate) struct TreeAside {
    _held: File,
    path: PathBuf,
    sum: NamedTempFile,
    tree: NamedTempFile,
}

impl TreeAside {
    /// Gives it its name.
    pub fn keep(self) -> Result<PathBuf, Error> {
        let Self { path, sum, tree, _held } = self;
        // The sum first: a tree without one is as good as none.
        place(sum, &path.with_extension("sum"))?;
        place(tree, &path)?;
        note_seen(&path);
        Ok(path)
    }
}

/// Tells this very file, as it is now, from any other.
fn identity(path: &Path) -> Option<String> {
    let meta = fs::metadata(path).ok()?;
    let boot = hoist_sys::file::boot_id().ok()?;
    Some(format!("{boot} {} {} {}.{}", meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
}

/// Best effort: without it, it is hashed again.
fn note_seen(path: &Path) {
    if let (Some(identity), Some(dir)) = (identity(path), path.parent())
        && let Ok(mut file) = super::aside::for_place_in(dir)
        && file.write_all(identity.as_bytes()).is_ok()
    {
        let _: Result<File, _> = file.persist(path.with_extension("seen"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn what_was_written_is_sound_and_what_was_changed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let image = Store::open(dir.path()).unwrap().image(&Digest::of(b"image"));
        let path = image.save_tree(None, &[7; 9000]).unwrap();
        assert_eq!(image.sound_tree(None), Some(path.clone()));
        // As after a reboot.
        fs::remove_file(path.with_extension("seen")).unwrap();
        assert_eq!(image.sound_tree(None), Some(path.clone()));
        fs::write(&path, [8; 9000]).unwrap();
        assert_eq!(image.sound_tree(None), None);
        fs::write(&path, [7; 9000]).unwrap();
        assert_eq!(image.sound_tree(None), Some(path.clone()));
        fs::remove_file(path.with_extension("sum")).unwrap();
        fs::remove_file(path.with_extension("seen")).unwrap();
        assert_eq!(image.sound_tree(None), None);
    }
}
