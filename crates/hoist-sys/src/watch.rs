//! Being told that a file is read, or that a folder has got a new file (`inotify(7)`): what else would have to be
//! looked for again and again.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// What is watched, until it is forgotten. Its descriptor is readable when there is something to tell.
#[derive(Debug)]
pub struct Watcher(OwnedFd);

/// One thing that is watched. The same file or folder watched again is the same watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watch(i32);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The file was read; this watch is over.
    Read(Watch),
    /// The file was written; this watch is over.
    Written(Watch),
    /// A file of this name was renamed into the folder.
    Arrived(Watch, Vec<u8>),
    /// More than could be remembered: look at everything.
    Lost,
}

impl Watcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// EMFILE where this user has too many (`fs.inotify.max_user_instances`).
    pub fn new() -> io::Result<Self> {
        Ok(Self(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?))
    }

    /// The next read of the file is told, and then no other. Reads through a loop device, and those that find all in a
    /// cache above the file, are none.
    ///
    /// # Errors
    /// ENOSPC where this user watches too much (`fs.inotify.max_user_watches`).
    pub fn next_read(&self, file: &File) -> io::Result<Watch> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(Watch(inotify::add_watch(&self.0, path, WatchFlags::ACCESS | WatchFlags::ONESHOT)?))
    }

    /// The next write to the file is told, and then no other.
    ///
    /// # Errors
    /// As for [`Watcher::next_read`].
    pub fn next_write(&self, file: &File) -> io::Result<Watch> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(Watch(inotify::add_watch(&self.0, path, WatchFlags::MODIFY | WatchFlags::ONESHOT)?))
    }

    /// Files that are renamed into the folder are told.
    ///
    /// # Errors
    /// As for [`Watcher::next_read`]; ENOENT.
    pub fn arrivals(&self, folder: &Path) -> io::Result<Watch> {
        Ok(Watch(inotify::add_watch(&self.0, folder, WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?))
    }

    /// It is watched no more.
    pub fn forget(&self, watch: Watch) {
        // It fails where the watch was over anyway.
        let _ = inotify::remove_watch(&self.0, watch.0);
    }

    /// What has happened so far; does not wait.
    ///
    /// # Errors
    /// The kernel's.
    pub fn told(&self) -> io::Result<Vec<Told>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.0, &mut buffer);
        let mut told = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::WOULDBLOCK) => return Ok(told),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let (watch, what) = (Watch(event.wd()), event.events());
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                told.push(Told::Lost);
            } else if what.contains(ReadFlags::ACCESS) {
                told.push(Told::Read(watch));
            } else if what.contains(ReadFlags::MODIFY) {
                told.push(Told::Written(watch));
            } else if let Some(name) = event.file_name().filter(|_| what.contains(ReadFlags::MOVED_TO)) {
                told.push(Told::Arrived(watch, name.to_bytes().to_vec()));
            }
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_first_write_is_told_and_no_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let watcher = Watcher::new().unwrap();
        let watch = watcher.next_write(file.as_file()).unwrap();
        for told in [vec![Told::Written(watch)], vec![]] {
            std::io::Write::write_all(&mut file.as_file(), b"x").unwrap();
            assert_eq!(watcher.told().unwrap(), told);
        }
    }

    #[test]
    fn the_first_read_is_told_and_no_other() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "x").unwrap();
        let watcher = Watcher::new().unwrap();
        let watch = watcher.next_read(file.as_file()).unwrap();
        assert_eq!(watcher.told().unwrap(), []);
        std::fs::write(file.path(), "yes").unwrap();
        for told in [vec![Told::Read(watch)], vec![]] {
            file.as_file_mut().read_exact(&mut [0]).unwrap();
            assert_eq!(watcher.told().unwrap(), told);
        }
        watcher.forget(watch);
    }

    #[test]
    fn what_is_renamed_into_a_folder_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = Watcher::new().unwrap();
        let watch = watcher.arrivals(dir.path()).unwrap();
        assert_eq!(watcher.arrivals(dir.path()).unwrap(), watch);
        std::fs::write(dir.path().join("a"), "").unwrap();
        std::fs::rename(dir.path().join("a"), dir.path().join("state.json")).unwrap();
        assert_eq!(watcher.told().unwrap(), [Told::Arrived(watch, b"state.json".to_vec())]);
        watcher.forget(watch);
        assert!(watcher.arrivals(&dir.path().join("state.json")).is_err());
    }
}
