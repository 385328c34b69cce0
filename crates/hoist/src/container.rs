//! A container on disk: `containers/<name>/{container.json,image,upper,work,rootfs,bundle,state,output}` in the store.
//!
//! The image is mounted on `image`; an overlay of `upper` over it on `rootfs` is what the program sees.
//! A container that was not run with `--rm` keeps its `upper` until `hoist rm`.

mod program;
mod stop;

use std::ffi::OsString;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use serde::{Deserialize, Serialize};

use crate::failure::user_hint;

pub use program::Program;
pub use stop::stop;

/// The folder of a container, locked for as long as the container runs: by this process, and by the OCI
/// runtime's, which outlives this one if that is killed.
#[derive(Debug)]
pub struct Container {
    name: String,
    dir: PathBuf,
    lock: File,
}

/// Names become file names and runtime ids: letters, digits and `_.-`, not beginning with one of these.
fn check_name(name: &str) -> anyhow::Result<()> {
    let head = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if head && rest && name.len() <= 64 {
        return Ok(());
    }
    Err(user_hint(
        format!("{name:?} can't name a container"),
        "use up to 64 letters, digits, and _ . - (not first)",
    ))
}

fn containers(root: &Path) -> PathBuf {
    root.join("containers")
}

fn lock(dir: &Path) -> std::io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
    // Who only looks has it for a moment.
    for _ in 0..20 {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(None)
}

/// What is known of a container beside its files: `container.json` in its folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The image's name, as it was given.
    pub image: Option<String>,
    /// Its manifest.
    pub digest: Option<String>,
    /// What was run.
    pub command: Vec<String>,
    /// What showed the image.
    pub driver: Option<String>,
    /// When it was started, in seconds since 1970.
    pub started: Option<u64>,
    /// When it ended.
    pub ended: Option<u64>,
    /// With which exit code.
    pub exit_code: Option<u8>,
    /// Reads of its image that had to wait for data.
    pub demand_stalls: Option<u64>,
    /// The OCI runtime that runs it.
    pub runtime: Option<PathBuf>,
    /// The signal that asks its program to end, if its image names one.
    pub stop_signal: Option<String>,
}

/// A container of the store.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Somebody runs it.
    pub running: bool,
    /// Its first process, while that lives.
    pub program: Option<Program>,
    /// None where it has none: it never ran.
    pub record: Option<Record>,
}

/// The containers of the store at `root`, by name.
///
/// # Errors
/// Their folder can't be read.
pub fn list(root: &Path) -> anyhow::Result<Vec<Listed>> {
    let parent = containers(root);
    let entries = match std::fs::read_dir(&parent) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("listing {}", parent.display()))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut listed: Vec<Listed> = names
        .filter(|name| check_name(name).is_ok())
        .map(|name| {
            let dir = parent.join(&name);
            let lock = File::open(dir.join("lock"));
            let running =
                lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)));
            let program = Program::of(&dir).filter(|_| running);
            Listed { record: record(&dir), name, running, program }
        })
        .collect();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(listed)
}

const RECORD: &str = "container.json";

fn record(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(dir.join(RECORD)).ok()?).ok()
}

/// A container that runs: its program, and what is known of it.
///
/// # Errors
/// There is none of this name, or it does not run: the user's to mend.
pub fn running(root: &Path, name: &str) -> anyhow::Result<(Program, Record)> {
    let dir = folder(root, name).ok_or_else(|| unknown(name))?;
    let program = Program::of(&dir).ok_or_else(|| {
        user_hint(format!("the container {name:?} does not run"), "`hoist ps` tells how it ended")
    })?;
    Ok((program, record(&dir).unwrap_or_default()))
}

fn unknown(name: &str) -> anyhow::Error {
    user_hint(
        format!("there is no container {name:?}"),
        "`hoist ps` lists those of the store; --root names another store",
    )
}

/// The runtime's folder for the container of this name.
pub fn state_of(root: &Path, name: &str) -> PathBuf {
    containers(root).join(name).join("state")
}

/// The folder of a container that is there.
fn folder(root: &Path, name: &str) -> Option<PathBuf> {
    check_name(name).ok()?;
    Some(containers(root).join(name)).filter(|dir| dir.is_dir())
}

impl Container {
    /// Makes the folders of a new container; without a name it gets a random one.
    ///
    /// # Errors
    /// A bad name or one in use (the user's), or the folders can't be made.
    pub fn create(root: &Path, name: Option<&str>) -> anyhow::Result<Container> {
        let parent = containers(root);
        std::fs::create_dir_all(&parent)
            .with_context(|| format!("making the folder {}", parent.display()))?;
        let name = match name {
            Some(name) => {
                check_name(name)?;
                name.to_owned()
            }
            None => random_name()?,
        };
        let dir = parent.join(&name);
        // 0711: the root file system below must be reachable for users other than root.
        let mut make = DirBuilder::new();
        match make.mode(0o711).create(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(user_hint(
                    format!("there is a container {name:?} already"),
                    format!("remove it with: hoist rm {name}"),
                ));
            }
            other => other.with_context(|| format!("making the folder {}", dir.display()))?,
        }
        let lock = lock(&dir)?.context("locking a container's new folder")?;
        for (folder, mode) in [
            ("image", 0o755),
            ("upper", 0o755),
            ("work", 0o700),
            ("rootfs", 0o755),
            ("bundle", 0o700),
            ("state", 0o700),
        ] {
            let path = dir.join(folder);
            DirBuilder::new()
                .mode(mode)
                .create(&path)
                .with_context(|| format!("making {}", path.display()))?;
        }
        Ok(Container { name, dir, lock })
    }

    /// A container that somebody else has made; waits until who has it is gone.
    ///
    /// # Errors
    /// There is none any more.
    pub fn reopen(root: &Path, name: &str) -> anyhow::Result<Container> {
        check_name(name)?;
        let dir = containers(root).join(name);
        let open = File::options().write(true).open(dir.join("lock"));
        let lock = open.with_context(|| format!("opening the container {name}"))?;
        lock.lock().with_context(|| format!("locking the container {name}"))?;
        Ok(Container { name: name.to_owned(), dir, lock })
    }

    /// The container's name, its id for the runtime.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is locked; to be held by whoever runs the container.
    pub fn lock(&self) -> &File {
        &self.lock
    }

    /// Notes what is known of it.
    ///
    /// # Errors
    /// The file system's.
    pub fn note(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.dir.join(RECORD);
        crate::stats_file::write_atomically(&path, &serde_json::to_vec(record)?)
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Where the image is mounted.
    pub fn image(&self) -> PathBuf {
        self.dir.join("image")
    }

    /// The root file system the program sees.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// The OCI bundle's folder.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// Where its output goes where it has no terminal.
    pub fn output_path(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// Makes that file.
    ///
    /// # Errors
    /// The file system's.
    pub fn output(&self) -> anyhow::Result<File> {
        let path = self.output_path();
        let file = File::options().create(true).append(true).open(&path);
        file.with_context(|| format!("making {}", path.display()))
    }

    /// The runtime's folder for this container.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Mounts the overlay of the container's writes over the image. Writes that are thrown away at the end
    /// are `volatile`: never synced, which would take longer than a small program runs.
    /// In a user namespace overlayfs notes what it has to note in attributes that such a root may write.
    pub fn mount_overlay(&self, volatile: bool, user_attributes: bool) -> anyhow::Result<()> {
        let root_mode = self.image().metadata().context("reading the image's root folder")?;
        // The overlay shows the upper folder's owner and mode as those of `/`.
        let upper = self.dir.join("upper");
        std::fs::set_permissions(&upper, root_mode.permissions()).context("preparing the overlay")?;
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::chown(&upper, Some(root_mode.uid()), Some(root_mode.gid()))
            .context("preparing the overlay")?;
        let flags = [(volatile, "volatile"), (user_attributes, "userxattr")];
        let flags: Vec<&str> = flags.into_iter().filter_map(|(set, name)| set.then_some(name)).collect();
        overlay(&self.image(), &upper, &self.dir.join("work"), &self.rootfs(), &flags)
            .with_context(|| format!("mounting the overlay on {}", self.rootfs().display()))
    }

    /// Takes the overlay away.
    pub fn unmount_overlay(&self) -> anyhow::Result<()> {
        detach(&self.rootfs())
    }

    /// Removes what is of no use after the end, with the writes too if `all`.
    pub fn clean(self, all: bool) -> anyhow::Result<()> {
        let dir = &self.dir;
        if all {
            return remove_tree(dir);
        }
        for folder in ["bundle", "state", "work", "image", "rootfs"] {
            remove_tree(&dir.join(folder))?;
        }
        Ok(())
    }
}

/// Where the image of the container of this name is mounted.
///
/// # Errors
/// The name is none: the user's to mend.
pub fn image_of(root: &Path, name: &str) -> anyhow::Result<PathBuf> {
    check_name(name)?;
    Ok(containers(root).join(name).join("image"))
}

/// The name of the container whose image is mounted there, if one's is.
pub fn name_of(root: &Path, target: &Path) -> Option<String> {
    let below = target.strip_prefix(containers(root)).ok()?;
    let name = below.parent().filter(|_| below.file_name().is_some_and(|name| name == "image"))?;
    name.to_str().filter(|name| check_name(name).is_ok()).map(str::to_owned)
}

/// What became of a container that was to be removed.
#[derive(Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// There is none of this name.
    Unknown,
}

/// Removes an ended container; with `force` one that runs, which is killed.
///
/// # Errors
/// It is still running (the user's to mend), or its folder can't be removed.
pub fn remove(root: &Path, name: &str, force: bool) -> anyhow::Result<Removal> {
    let Some(dir) = folder(root, name) else { return Ok(Removal::Unknown) };
    let locked = || lock(&dir).with_context(|| format!("locking the container {name}"));
    let _lock = match locked() {
        Ok(Some(lock)) => lock,
        Ok(None) if force => {
            stop::stop(root, name, std::time::Duration::ZERO)?;
            match locked() {
                Ok(Some(lock)) => lock,
                Ok(None) => {
                    return Err(user_hint(format!("the container {name:?} was started anew"), "try again"));
                }
                // It was one that is removed at its end.
                Err(_) if !dir.exists() => return Ok(Removal::Removed),
                Err(error) => return Err(error),
            }
        }
        Ok(None) => {
            return Err(user_hint(
                format!("the container {name:?} is still running"),
                format!("stop it first: hoist stop {name}; or have it killed: hoist rm --force {name}"),
            ));
        }
        Err(error) => return Err(error),
    };
    // A killed `hoist run` leaves its mounts.
    detach(&dir.join("rootfs"))?;
    detach(&dir.join("image"))?;
    remove_tree(&dir)?;
    Ok(Removal::Removed)
}

fn overlay(lower: &Path, upper: &Path, work: &Path, target: &Path, flags: &[&str]) -> rustix::io::Result<()> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // "lowerdir+" takes one path as it is, colons and commas included.
    fsconfig_set_string(&fs, "lowerdir+", lower)?;
    fsconfig_set_string(&fs, "upperdir", escaped(upper))?;
    fsconfig_set_string(&fs, "workdir", escaped(work))?;
    flags.iter().try_for_each(|flag| fsconfig_set_flag(&fs, *flag))?;
    fsconfig_create(&fs)?;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&mount, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// These two options of overlayfs take a backslash for an escape (`ovl_unescape` in fs/overlayfs/params.c).
fn escaped(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes().iter();
    OsString::from_vec(bytes.flat_map(|&b| if b == b'\\' { vec![b, b] } else { vec![b] }).collect())
}

fn detach(target: &Path) -> anyhow::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Not mounted, or not even there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmounting {}", target.display())),
    }
}

fn remove_tree(path: &Path) -> anyhow::Result<()> {
    // Never through a mount: the device differs below one, and removing would empty what is mounted.
    if crate::mount_table::mounted_type(path)?.is_some() {
        anyhow::bail!("{} is still mounted and can't be removed", path.display());
    }
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A name for a container that was given none.
pub fn random_name() -> anyhow::Result<String> {
    let uuid =
        std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("choosing a container's name")?;
    Ok(uuid.bytes().filter(u8::is_ascii_hexdigit).take(12).map(char::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "web-1", "A_b.c"] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_running_container_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let container = Container::create(root.path(), Some("web")).unwrap();
        assert!(Container::create(root.path(), Some("web")).is_err());
        assert!(remove(root.path(), "web", false).is_err());
        container.clean(false).unwrap();
        assert!(root.path().join("containers/web/upper").is_dir());
        assert_eq!(remove(root.path(), "web", false).unwrap(), Removal::Removed);
        assert_eq!(remove(root.path(), "web", false).unwrap(), Removal::Unknown);
        assert_eq!(remove(root.path(), "../containers", true).unwrap(), Removal::Unknown);
    }

    #[test]
    fn random_names_are_good_names() {
        let name = random_name().unwrap();
        assert_eq!(name.len(), 12);
        check_name(&name).unwrap();
        assert_ne!(name, random_name().unwrap());
    }
}
