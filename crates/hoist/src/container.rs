//! A container on disk: `containers/<name>/{container.json,image,upper,work,rootfs,bundle,state,output}` in the store.
//!
//! The image is mounted on `image`; an overlay of `upper` over it on `rootfs` is what the program sees.
//! A container that was not run with `--rm` keeps its `upper` until `hoist rm`.

mod left;
pub mod output;
mod overlay;
mod program;
mod record;
mod removal;
mod said;
mod stop;

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use self::removal::{not_mounted, remove_tree};
use crate::failure::user_hint;

pub use left::remove_left;
pub use program::Program;
pub use record::{Listed, Record, environment, is_running, is_there, list, process, running};
pub use removal::{Removal, remove};
pub use said::Output;
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

/// What a program without a terminal has said.
const OUTPUT: &str = "output";

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

    /// A name for its control group: other stores have containers of the same name.
    ///
    /// # Errors
    /// Its folder can't be looked at.
    pub fn cgroup(&self) -> anyhow::Result<String> {
        let folder = self.dir.metadata().with_context(|| format!("looking at {}", self.dir.display()))?;
        Ok(format!("hoist-{:x}-{:x}-{}", folder.dev(), folder.ino(), self.name))
    }

    /// What is locked; to be held by whoever runs the container.
    pub fn lock(&self) -> &File {
        &self.lock
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
        self.dir.join(OUTPUT)
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

    /// Removes what is of no use after the end, with the writes too if `all`. Nothing of it where something is still
    /// mounted in it: whoever unmounts that finds the container and removes it.
    ///
    /// # Errors
    /// Something is mounted in it, or the file system's.
    pub fn clean(self, all: bool) -> anyhow::Result<()> {
        let dir = &self.dir;
        if all {
            for folder in ["rootfs", "image"] {
                not_mounted(&dir.join(folder))?;
            }
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
    fn random_names_are_good_names() {
        let name = random_name().unwrap();
        assert_eq!(name.len(), 12);
        check_name(&name).unwrap();
        assert_ne!(name, random_name().unwrap());
    }
}
