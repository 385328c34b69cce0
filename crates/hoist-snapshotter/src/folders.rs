//! The folders of snapshots: `ID/fs` has what a snapshot changes, `ID/work` is overlayfs's own.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hoist_sys::presence::Snapshot;

use crate::error::Error;
use crate::record::Usage;

/// See the module.
pub struct Folders {
    root: PathBuf,
    next: AtomicU64,
}

/// A new folder, which goes again unless it is [kept](New::keep).
pub struct New<'a> {
    folders: &'a Folders,
    /// Its number.
    pub id: u64,
    kept: bool,
}

impl Folders {
    /// Those in `root`; numbers are given from above all that are there and all that are `known`.
    ///
    /// # Errors
    /// It can't be made or read.
    pub fn open(root: &Path, known: impl Iterator<Item = u64>) -> Result<Folders, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(Error::io("make", root))?;
        let folders = Folders { root: root.to_owned(), next: AtomicU64::new(1) };
        let most = known.chain(folders.all()?).max().unwrap_or(0);
        folders.next.store(most.saturating_add(1), Ordering::Relaxed);
        Ok(folders)
    }

    fn dir(&self, id: u64) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// What a snapshot changes.
    pub fn upper(&self, id: u64) -> PathBuf {
        self.dir(id).join("fs")
    }

    /// overlayfs's own, beside it.
    pub fn work(&self, id: u64) -> PathBuf {
        self.dir(id).join("work")
    }

    fn all(&self) -> Result<Vec<u64>, Error> {
        let entries = fs::read_dir(&self.root).map_err(Error::io("read", &self.root))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    /// A folder for a new snapshot, owned by `owner`; on disk before a record can speak of it.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create(&self, owner: Option<(u32, u32)>, writable: bool) -> Result<New<'_>, Error> {
        let id = self.number();
        let new = New { folders: self, id, kept: false };
        make(&self.dir(id), 0o700)?;
        let upper = self.upper(id);
        make(&upper, 0o755)?;
        if writable {
            make(&self.work(id), 0o711)?;
        }
        if let Some((user, group)) = owner {
            std::os::unix::fs::lchown(&upper, Some(user), Some(group))
                .map_err(Error::io("give away", &upper))?;
        }
        for dir in [&self.dir(id), &self.root] {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))?;
        }
        Ok(new)
    }

    /// A number that no folder has.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a folder away whose record is gone. What is mounted below it is detached. What can't be taken
    /// away now is said, and is at the next [`Folders::sweep`].
    pub fn remove(&self, id: u64) {
        let dir = self.dir(id);
        if let Err(error) = remove(&dir) {
            tracing::warn!(
                "a removed snapshot's folder {} stays until the next cleanup: {error}",
                dir.display()
            );
        }
    }

    /// Removes the folders that `known` does not have. Read before that: what is made since is spared.
    ///
    /// # Errors
    /// Those of `known`; the folder can't be read.
    pub fn sweep(&self, known: impl FnOnce() -> Result<HashSet<u64>, Error>) -> Result<(), Error> {
        let before = self.next.load(Ordering::Relaxed);
        let there = self.all()?;
        let known = known()?;
        for id in there.into_iter().filter(|id| *id < before && !known.contains(id)) {
            self.remove(id);
        }
        Ok(())
    }

    /// Removes overlayfs's marks of what a layer removes of those below it.
    ///
    /// # Errors
    /// Its folder can't be read or changed.
    pub fn drop_whiteouts(&self, id: u64) -> Result<(), Error> {
        let mut whiteouts = Vec::new();
        let upper = self.upper(id);
        each(&upper, &mut |path, about| {
            if about.file_type().is_char_device() && about.rdev() == 0 {
                whiteouts.push(path.to_owned());
            }
        })?;
        whiteouts.iter().try_for_each(|path| fs::remove_file(path).map_err(Error::io("remove", path)))
    }

    /// What a snapshot takes.
    ///
    /// # Errors
    /// Its folder can't be read.
    pub fn usage(&self, id: u64) -> Result<Usage, Error> {
        usage(&self.upper(id))
    }
}

impl New<'_> {
    /// A record speaks of it now.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.folders.remove(self.id);
        }
    }
}

/// User and group of a folder.
///
/// # Errors
/// It is not there.
pub fn owner(folder: &Path) -> Result<(u32, u32), Error> {
    let about = fs::symlink_metadata(folder).map_err(Error::io("look at", folder))?;
    Ok((about.uid(), about.gid()))
}

fn make(path: &Path, mode: u32) -> Result<(), Error> {
    DirBuilder::new().mode(mode).create(path).map_err(Error::io("make", path))?;
    // Whatever this process's umask is.
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
        .map_err(Error::io("make", path))
}

fn remove(dir: &Path) -> io::Result<()> {
    // What is mounted there is somebody's: it is detached, not emptied.
    for mount in Snapshot::take()?.below(dir) {
        hoist_sys::mount::unmount(&mount, true)?;
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Everything below a folder and the folder itself, files of several names once.
fn usage(root: &Path) -> Result<Usage, Error> {
    let mut total = Usage::default();
    let mut linked = HashSet::new();
    each(root, &mut |_, about| {
        if about.nlink() == 1 || about.is_dir() || linked.insert((about.dev(), about.ino())) {
            total.inodes += 1;
            total.size += about.blocks() * 512;
        }
    })?;
    Ok(total)
}

/// Looks at a folder and everything below it. What goes away meanwhile does not count.
fn each(root: &Path, look: &mut dyn FnMut(&Path, &fs::Metadata)) -> Result<(), Error> {
    look(root, &fs::symlink_metadata(root).map_err(Error::io("look at", root))?);
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(Error::io("read", &folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::io("read", &folder))?;
            match entry.metadata() {
                Ok(about) => {
                    look(&entry.path(), &about);
                    if about.is_dir() {
                        folders.push(entry.path());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("look at", entry.path())(error)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_never_given_twice_and_only_orphans_go() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::open(dir.path(), [4].into_iter()).unwrap();
        let five = folders.create(None, true).unwrap();
        assert_eq!(five.id, 5);
        five.keep();
        drop(folders.create(None, false).unwrap());
        let folders = Folders::open(dir.path(), [4].into_iter()).unwrap();
        folders.create(None, true).unwrap().keep();
        folders.sweep(|| Ok([5].into())).unwrap();
        assert_eq!(folders.all().unwrap(), [5]);
    }

    #[test]
    fn a_file_of_two_names_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), [1; 10_000]).unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let before = usage(dir.path()).unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("d/b")).unwrap();
        assert_eq!((before.inodes, usage(dir.path()).unwrap()), (3, before));
        assert!(before.size >= 10_000);
    }
}
