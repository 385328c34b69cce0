//! A container's writes, mounted over its image.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

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
            .map_err(|e| match e.downcast_ref() {
                Some(&Errno::PERM) if user_attributes => {
                    e.context("a user namespace's root may mount overlayfs from Linux 5.11 on")
                }
                _ => e,
            })
            .with_context(|| format!("mounting the overlay on {}", self.rootfs().display()))
    }

    /// Takes the overlay away.
    pub fn unmount_overlay(&self) -> anyhow::Result<()> {
        detach(&self.rootfs())
    }
}

fn overlay(lower: &Path, upper: &Path, work: &Path, target: &Path, flags: &[&str]) -> anyhow::Result<()> {
    // By mount(2): the newer calls take a path with a comma in it only since Linux 6.5, and a lower one that has a colon since
    // 6.7 ("lowerdir+").
    let mut options = Vec::new();
    for (option, path) in [("lowerdir", lower), ("upperdir", upper), ("workdir", work)] {
        options.extend_from_slice(option.as_bytes());
        options.push(b'=');
        options.extend(escaped(path));
        options.push(b',');
    }
    options.extend_from_slice(flags.join(",").as_bytes());
    let options = CString::new(options)?;
    Ok(rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())?)
}

/// overlayfs takes a backslash for an escape, commas to part options, and colons to part lower folders (`ovl_next_opt`,
/// `ovl_unescape` and `ovl_split_lowerdirs` in fs/overlayfs).
fn escaped(path: &Path) -> impl Iterator<Item = u8> {
    let bytes = path.as_os_str().as_bytes().iter();
    bytes.flat_map(|&b| [b'\\', b].into_iter().skip(usize::from(!matches!(b, b'\\' | b',' | b':'))))
}

/// Unmounts what is mounted there, if anything is.
pub(super) fn detach(target: &Path) -> anyhow::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Not mounted, or not even there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmounting {}", target.display())),
    }
}
