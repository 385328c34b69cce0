//! Removing ended containers, and never what is mounted in them.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::overlay::detach;
use super::{folder, lock, stop};
use crate::failure::user_hint;

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
            stop(root, name, Duration::ZERO, &|_| ())?;
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

/// Fails where something is mounted.
pub(super) fn not_mounted(path: &Path) -> anyhow::Result<()> {
    if crate::mount_table::mounted_type(path)?.is_some() {
        anyhow::bail!("{} is still mounted and can't be removed", path.display());
    }
    Ok(())
}

/// Removes a folder with what is in it, unless something is mounted there.
pub(super) fn remove_tree(path: &Path) -> anyhow::Result<()> {
    // Never through a mount: the device differs below one, and removing would empty what is mounted.
    not_mounted(path)?;
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Container;
    use super::*;

    /// Half removed, nobody would know it for a container any more.
    #[test]
    fn one_that_something_is_mounted_in_stays_whole() {
        use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
        let root = tempfile::tempdir().unwrap();
        let container = Container::create(root.path(), Some("web")).unwrap();
        let image = container.image();
        mount("none", &image, "tmpfs", MountFlags::empty(), c"").unwrap();
        let cleaned = container.clean(true);
        unmount(&image, UnmountFlags::empty()).unwrap();
        assert!(cleaned.is_err());
        Container::reopen(root.path(), "web").unwrap().clean(true).unwrap();
        assert!(!root.path().join("containers/web").exists());
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
}
