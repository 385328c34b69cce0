//! A container's writes, mounted over its image.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::Container;

impl Container {
    /// Mounts the overlay of the container's writes over the image. Writes that are thrown away at the end
    /// are `volatile`: never synced, which would take longer than a small program runs.
    /// In a user namespace overlayfs notes what it has to note in attributes that such a root may write.
    pub fn mount_overlay(&self, volatile: bool, user_attributes: bool) -> anyhow::Result<()> {
        let root_mode = self.image().metadata().context("reading the image's root folder")?;
        // The overlay shows the upper folder's owner and mode as those of `/`.
        let upper = self.dir.join("upper");
        std::fs::set_permissions(&upper, root_mode.permissions()).context("preparing the overlay")?;
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

/// Unmounts what is mounted there, if anything is.
pub(super) fn detach(target: &Path) -> anyhow::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Not mounted, or not even there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmounting {}", target.display())),
    }
}
