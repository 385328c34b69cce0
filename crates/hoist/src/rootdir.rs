//! Reading an image's root folder without ever leaving it.
//!
//! Links in an image are hostile: `/etc/passwd -> /etc/shadow` must be the image's own file, never the
//! host's. Every path is resolved by the kernel with the folder as its root (openat2, RESOLVE_IN_ROOT).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The most of an image's `/etc/passwd` or `/etc/group` that is read.
const MAX_FILE: u64 = 4 << 20;

/// An open root folder.
#[derive(Debug)]
pub struct RootDir {
    fd: OwnedFd,
    /// How often something was looked for.
    #[cfg(test)]
    pub looked: std::sync::atomic::AtomicUsize,
}

/// What a folder has, by paths.
#[derive(Debug, Default)]
pub struct Listing {
    /// Regular files and their sizes.
    pub files: Vec<(PathBuf, u64)>,
    /// Folders.
    pub folders: Vec<PathBuf>,
}

impl RootDir {
    /// Opens `path` itself, a trusted folder of the host's.
    pub fn open(path: &Path) -> io::Result<RootDir> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(RootDir {
            fd: rustix::fs::open(path, flags, Mode::empty())?,
            #[cfg(test)]
            looked: std::sync::atomic::AtomicUsize::new(0),
        })
    }

    fn open_inside(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        #[cfg(test)]
        self.looked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // A rename raced with the walk; the kernel asks to try again.
                Err(Errno::AGAIN | Errno::INTR) => continue,
                other => return Ok(other?),
            }
        }
    }

    /// Opens a regular file; `None` if there is none at `path`.
    pub fn open_file(&self, path: &Path) -> io::Result<Option<File>> {
        // NONBLOCK: opening a FIFO must not wait for a writer.
        let file = match self.open_inside(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(fd) => File::from(fd),
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(file.metadata()?.is_file().then_some(file))
    }

    /// A regular file's content, at most 4 MiB of it; `None` if there is no such regular file.
    pub fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open_file(path)? else { return Ok(None) };
        let mut content = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut content)?;
        Ok(Some(content))
    }

    /// Opens a regular file that has an execute bit; `None` if there is none at `path`.
    pub fn open_program(&self, path: &Path) -> io::Result<Option<File>> {
        let Some(file) = self.open_file(path)? else { return Ok(None) };
        let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata()?);
        Ok((mode & 0o111 != 0).then_some(file))
    }

    /// Where a file that was opened here stands, through no links; `None` if it has been moved out.
    pub fn path_of(&self, file: &File) -> io::Result<Option<PathBuf>> {
        let target = |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let (root, own) = (target(self.fd.as_fd())?, target(file.as_fd())?);
        Ok(own.strip_prefix(root).ok().map(|path| Path::new("/").join(path)))
    }

    /// What a folder has: the names of its regular files with their sizes, and those of its folders. None of what is no folder.
    /// Of a folder that has more than `most` names, any `most` of them.
    pub fn list(&self, path: &Path, most: usize) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let folder = match self.open_inside(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(folder) => folder,
            Err(error) if is_absent(&error) => return Ok(listing),
            Err(error) => return Err(error),
        };
        for entry in rustix::fs::Dir::read_from(&folder)?.take(most) {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            match entry.file_type() {
                FileType::RegularFile => {
                    let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    listing.files.push((path.join(name), u64::try_from(stat.st_size).unwrap_or(0)));
                }
                FileType::Directory if name != "." && name != ".." => listing.folders.push(path.join(name)),
                _ => {}
            }
        }
        Ok(listing)
    }

    /// Whether there is anything at `path`.
    pub fn has(&self, path: &Path) -> io::Result<bool> {
        match self.open_inside(path, OFlags::PATH) {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a folder and its parents (mode 0755), following links inside the root only.
    pub fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut made = std::path::PathBuf::from("/");
        for component in path.components() {
            match component {
                Component::Normal(name) => {
                    let parent = self.open_inside(&made, OFlags::PATH | OFlags::DIRECTORY)?;
                    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    made.push(name);
                }
                Component::ParentDir => {
                    made.pop();
                }
                _ => {}
            }
        }
        self.open_inside(&made, OFlags::PATH | OFlags::DIRECTORY).map(drop)
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::NODEV | Errno::NAMETOOLONG)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "host").unwrap();
        symlink(outside.path().join("secret"), dir.path().join("absolute")).unwrap();
        symlink("../../../../../../../../etc/hostname", dir.path().join("dots")).unwrap();
        symlink("/inner", dir.path().join("link")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        std::fs::write(dir.path().join("inner"), "image").unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        for path in ["/absolute", "/dots", "/loop", "/none", "/inner/x"] {
            assert_eq!(root.read(Path::new(path)).unwrap(), None, "{path}");
        }
        assert_eq!(root.read(Path::new("/link")).unwrap().unwrap(), b"image");
    }

    #[test]
    fn folders_are_made_inside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        root.create_dir_all(Path::new("/a/b/../c")).unwrap();
        assert!(dir.path().join("a/c").is_dir());
        assert!(root.create_dir_all(Path::new("/out/x")).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn fifos_and_folders_are_no_files() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        assert_eq!(root.read(Path::new("/fifo")).unwrap(), None);
        assert_eq!(root.read(Path::new("/")).unwrap(), None);
    }
}
