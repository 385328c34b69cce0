//! Who uses what, so that nothing is taken away under its users.
//!
//! A mount is known by its record (`mounts`). Until it has one, who chooses its layers holds the lock
//! `choosing` with others; who takes something away holds it alone. Who writes a layer locks its folder.
//! All of these locks end with their process, however it ends.
//!
//! What goes away is first renamed into `gone`, so that it vanishes at once and whole; a process that dies
//! in between leaves it to the next one to be deleted.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hoist_format::digest::Digest;
use hoist_sys::presence::Snapshot;

use super::{LayerDir, Store, sync_dir};
use crate::error::Error;

/// Those who choose are done within moments, or wait for a registry: then another time is better.
const PATIENCE: Duration = Duration::from_secs(5);

/// While it lives, nothing is taken away.
#[derive(Debug)]
pub struct Choosing(#[expect(dead_code, reason = "held for its lock")] File);

/// While it lives, nobody begins to use anything: what it finds unused may be taken away.
#[derive(Debug)]
pub struct Clearing {
    root: PathBuf,
    _alone: File,
    /// Images and folders of layers that are mounted.
    images: BTreeSet<Digest>,
    layers: BTreeSet<PathBuf>,
}

impl LayerDir {
    /// Makes the folder, and keeps it from being taken away until the file is dropped.
    ///
    /// # Errors
    /// The file system's.
    pub fn hold(&self) -> Result<File, Error> {
        make_and_hold(self.path())
    }

    /// The same of a folder that is there; None if there is none, or it is just being taken away.
    ///
    /// # Errors
    /// The file system's.
    pub fn hold_what_is_here(&self) -> Result<Option<File>, Error> {
        hold(self.path())
    }
}

/// Makes a folder, and keeps it from being taken away until the file is dropped, though others take away what they find.
///
/// # Errors
/// The file system's.
pub(super) fn make_and_hold(path: &Path) -> Result<File, Error> {
    loop {
        let is_other = || path.symlink_metadata().is_ok_and(|there| !there.is_dir());
        match fs::create_dir_all(path) {
            // The folder for which it was not made was taken away before it was looked at.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && !is_other() => {}
            made => made.map_err(Error::io("create", path))?,
        }
        if let Some(held) = hold(path)? {
            return Ok(held);
        }
    }
}

/// Keeps a folder from being taken away until the file is dropped; None if there is none, or it is just being taken away.
///
/// # Errors
/// The file system's.
pub(super) fn hold(path: &Path) -> Result<Option<File>, Error> {
    let folder = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        folder => folder.map_err(Error::io("open", path))?,
    };
    folder.lock_shared().map_err(Error::io("lock", path))?;
    // It may have been taken away just before.
    let (locked, now) = (folder.metadata(), fs::metadata(path));
    let is_it = matches!((locked, now), (Ok(locked), Ok(now))
        if (locked.dev(), locked.ino()) == (now.dev(), now.ino()));
    Ok(is_it.then_some(folder))
}

impl Store {
    fn lock_file(&self) -> Result<File, Error> {
        let path = self.root().join("choosing");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        file.map_err(Error::io("open", path))
    }

    /// See [`Choosing`].
    ///
    /// # Errors
    /// The file system's.
    pub fn choosing(&self) -> Result<Choosing, Error> {
        let file = self.lock_file()?;
        file.lock_shared().map_err(Error::io("lock", self.root().join("choosing")))?;
        Ok(Choosing(file))
    }

    /// See [`Clearing`].
    ///
    /// # Errors
    /// When somebody goes on choosing.
    pub fn clearing(&self) -> Result<Clearing, Error> {
        let path = self.root().join("choosing");
        let file = self.lock_file()?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if began.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::NotFound(
                        "an image of this store is just being mounted: try again in a moment".to_owned(),
                    ));
                }
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
            }
        }
        let (mut images, mut layers) = (BTreeSet::new(), BTreeSet::new());
        let mounted = Snapshot::take().map_err(Error::io("read", "/proc/self/mountinfo"))?;
        for record in self.mounts()? {
            // From its record on: its lease is signed only once it is mounted.
            if self.is_held(&record.id) || record.presence().is_alive(&mounted) {
                images.insert(record.manifest);
                layers.extend(record.data.iter().filter_map(|data| data.parent()).map(Path::to_owned));
            }
        }
        Ok(Clearing { root: self.root().to_owned(), _alone: file, images, layers })
    }
}

impl Clearing {
    /// Is this image mounted?
    pub fn uses_image(&self, digest: &Digest) -> bool {
        self.images.contains(digest)
    }

    /// Is this layer's folder part of a mount, or being written? Of the second [`Clearing::take_away`] has the last word.
    pub fn uses_layer(&self, folder: &Path) -> bool {
        self.layers.contains(folder)
            || File::open(folder).is_ok_and(|f| matches!(f.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Takes a folder away; false where somebody holds it by now. It is only deleted, and its room free, by
    /// [`Clearing::delete`].
    ///
    /// # Errors
    /// The file system's.
    pub fn take_away(&self, folder: &Path) -> Result<bool, Error> {
        // Until it has another place: whoever wants to hold it then finds that it is gone, and makes a new one.
        let alone = File::open(folder).map_err(Error::io("open", folder))?;
        match alone.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", folder)(e)),
        }
        let gone = self.root.join("gone");
        fs::create_dir_all(&gone).map_err(Error::io("create", &gone))?;
        for tries in 1.. {
            let place = tempfile::tempdir_in(&gone).map_err(Error::io("write in", &gone))?.keep();
            match fs::rename(folder, place.join("folder")) {
                Ok(()) => break,
                // Who deletes what is there may have found the place still empty.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && folder.exists() && tries < 100 => {}
                Err(e) => return Err(Error::io("take away", folder)(e)),
            }
        }
        folder.parent().map_or(Ok(()), sync_dir)?;
        Ok(true)
    }

    /// Ends it and deletes what was taken away, now or by processes that did not get to it; gives the bytes
    /// that this frees on disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn delete(self) -> Result<u64, Error> {
        let root = self.root.clone();
        drop(self);
        delete_gone(&root)
    }
}

impl Store {
    /// Deletes what processes have taken away that were killed before they had deleted it.
    ///
    /// # Errors
    /// The file system's.
    pub fn delete_left(&self) -> Result<(), Error> {
        delete_gone(self.root()).map(drop)
    }
}

fn delete_gone(root: &Path) -> Result<u64, Error> {
    let gone = root.join("gone");
    let mut bytes = 0;
    for place in fs::read_dir(&gone).into_iter().flatten().flatten() {
        bytes += on_disk(&place.path().join("folder"));
        match fs::remove_dir_all(place.path()) {
            // Another process is at it too.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(Error::io("remove", place.path()))?,
        }
    }
    Ok(bytes)
}

impl Store {
    /// Bytes that images and layers take on disk, counted as for the store's limit.
    pub fn disk_bytes(&self) -> u64 {
        let folders = ["images", "layers"].into_iter().flat_map(|kind| fs::read_dir(self.root.join(kind)));
        folders.flatten().flatten().map(|folder| on_disk(&folder.path())).sum()
    }
}

/// Bytes that a flat folder of ours takes on disk. What also has another name, as a layer that two layouts
/// share, is counted for one of them.
pub(crate) fn on_disk(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|f| f.metadata().ok()).map(|m| m.blocks() * 512 / m.nlink().max(1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_layouts_share_is_counted_once() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let store = Store::open(dir.path()).unwrap();
        let [own, theirs] = [None, Some(&Digest::of(b"index"))].map(|of| store.layer(&Digest::of(b"a"), of));
        own.hold().unwrap();
        theirs.hold().unwrap();
        let before = store.disk_bytes();
        own.save("data", &[1; 90_000]).unwrap();
        File::open(own.file("data")).unwrap().sync_all().unwrap();
        let one = store.disk_bytes() - before;
        assert!(one >= 90_000);
        fs::hard_link(own.file("data"), theirs.file("data")).unwrap();
        assert_eq!(store.disk_bytes() - before, one);
    }

    #[test]
    fn what_is_held_stays_and_what_is_not_goes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let [held, free] = [b"a", b"b"].map(|blob| store.layer(&Digest::of(blob), None));
        let hold = held.hold().unwrap();
        free.hold().unwrap();
        free.save("data", &[1; 9000]).unwrap();
        let clearing = store.clearing().unwrap();
        assert!(clearing.uses_layer(held.path()) && !clearing.uses_layer(free.path()));
        assert!(clearing.take_away(free.path()).unwrap() && !free.path().exists());
        // Somebody began to write it when it had been found unused.
        let late = free.hold().unwrap();
        assert!(!clearing.take_away(free.path()).unwrap() && free.path().exists());
        drop(late);
        assert!(clearing.delete().unwrap() >= 9000);
        assert_eq!(fs::read_dir(dir.path().join("gone")).unwrap().count(), 0);
        drop(hold);
        assert!(!store.clearing().unwrap().uses_layer(held.path()));
    }

    #[test]
    fn an_image_is_written_while_others_take_images_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let image = store.image(&Digest::of(b"m"));
        assert!(image.hold().unwrap().is_none());
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    if image.path().exists() {
                        store.clearing().unwrap().take_away(image.path()).ok();
                    }
                }
            });
            let saved: Vec<_> = (0..200).map(|_| image.save(b"{}", b"{}")).collect();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            saved.into_iter().for_each(|saved| saved.unwrap());
        });
    }

    #[test]
    fn nothing_is_cleared_while_somebody_chooses() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (a, b) = (store.choosing().unwrap(), store.choosing().unwrap());
        assert!(store.clearing().is_err());
        drop((a, b));
        store.clearing().unwrap();
    }
}
