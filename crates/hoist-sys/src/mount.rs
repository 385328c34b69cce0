//! Mounting through the kernel's own calls: util-linux's `mount` would slip in a loop device.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

fn c(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Adds the kernel's own words, which a file system context keeps for its opener to read.
pub(crate) fn explain(context: &impl AsFd, doing: &str, error: rustix::io::Errno) -> io::Error {
    let mut words = String::new();
    let mut line = [0; 512];
    while let Ok(n) = rustix::io::read(context, &mut line) {
        if n == 0 {
            break;
        }
        words.push_str("; ");
        words.push_str(String::from_utf8_lossy(&line[..n]).trim_start_matches("e ").trim());
    }
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{doing}: {error}{words}"))
}

/// Whether this kernel knows a file system and lets this process begin to mount one.
///
/// # Errors
/// ENODEV where it is not in the kernel, EPERM without CAP_SYS_ADMIN over the mount namespace, ENOSYS
/// before Linux 5.2.
pub fn knows(file_system: &str) -> io::Result<()> {
    fsopen(file_system, FsOpenFlags::FSOPEN_CLOEXEC)?;
    Ok(())
}

/// Whether this kernel's EROFS takes files of a file system from other devices than its first.
///
/// # Errors
/// EINVAL before Linux 5.16; as [`knows`].
pub fn erofs_knows_devices() -> io::Result<()> {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // It is looked at when the file system is made, which this one never is.
    fsconfig_set_string(&fs, "device", "/")?;
    Ok(())
}

/// Mounts an EROFS image, read-only, its external devices in order, on folder `target`: all files, or all
/// block devices.
///
/// # Errors
/// With the kernel's own words. ENOTBLK for files is a kernel without file-backed EROFS (Linux 6.12).
pub fn erofs(image: &Path, devices: &[&Path], target: &Path) -> io::Result<()> {
    attach(&unattached(image, devices)?, target)
}

/// Times that a mount is made anew because others were made in the same instant.
const TRIES: u32 = 100;

/// The same for files, and gives the number of the superblock, which tells later whether it is still there (see
/// [`presence`](crate::presence)). None where the kernel does not list it.
///
/// The kernel says the numbers of all that are there, not which is whose. So a mount that came into being together
/// with others, of whatever process, is thrown away before anybody has seen it, and made anew a little later.
///
/// # Errors
/// As [`erofs`].
pub fn erofs_numbered(image: &Path, devices: &[&Path], target: &Path) -> io::Result<Option<u64>> {
    for _ in 0..TRIES {
        let before = crate::presence::superblocks();
        let mount = unattached(image, devices)?;
        let new = crate::presence::superblocks();
        let mut new = new.difference(&before);
        let number = new.next().copied();
        if new.next().is_none() {
            attach(&mount, target)?;
            return Ok(number);
        }
        drop(mount);
        // At random, or those that met would meet again.
        let chance = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        std::thread::sleep(std::time::Duration::from_micros(chance % 10_000));
    }
    erofs(image, devices, target).map(|()| None)
}

fn unattached(image: &Path, devices: &[&Path]) -> io::Result<OwnedFd> {
    let open = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC);
    let fs = open
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("this kernel has no EROFS ({e})")))?;
    let set = |key: &str, path: &Path| {
        fsconfig_set_string(fs.as_fd(), key, c(path)?)
            .map_err(|e| explain(&fs, &format!("setting {key}={}", path.display()), e))
    };
    set("source", image)?;
    devices.iter().try_for_each(|d| set("device", d))?;
    // Or block devices would be opened for writing.
    fsconfig_set_flag(fs.as_fd(), "ro").map_err(|e| explain(&fs, "setting ro", e))?;
    create(&fs, "mounting EROFS", MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// Makes the file system and a mount of it that stands nowhere yet.
pub(crate) fn create(fs: &impl AsFd, doing: &str, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    fsconfig_create(fs.as_fd()).map_err(|e| explain(fs, doing, e))?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|e| explain(fs, doing, e))
}

/// Puts a mount on a folder.
pub(crate) fn attach(mount: &impl AsFd, target: &Path) -> io::Result<()> {
    let moved = move_mount(mount.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    moved.map_err(|e| {
        let e = io::Error::from(e);
        io::Error::new(e.kind(), format!("attaching to {}: {e}", target.display()))
    })
}

/// Unmounts `target`; `lazy` detaches it even while it is in use.
///
/// # Errors
/// EBUSY while in use; EINVAL where nothing is mounted.
pub fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    Ok(rustix::mount::unmount(target, flags | UnmountFlags::NOFOLLOW)?)
}

/// The mount table: a descriptor with something of priority to tell (POLLPRI) whenever the table has changed since it was
/// made, or since that was told last.
///
/// # Errors
/// Where /proc is not mounted.
pub fn table() -> io::Result<std::fs::File> {
    // proc(5): a changed mount table is a priority event and an error on its file.
    std::fs::File::open("/proc/self/mountinfo")
}

/// Is something mounted on this very path (absolute, canonical)?
///
/// # Errors
/// Where /proc is not mounted.
pub fn is_mountpoint(path: &Path) -> io::Result<bool> {
    device_of(path).map(|device| device.is_some())
}

/// `major:minor` of what is mounted on this very path (absolute, canonical), the topmost.
///
/// # Errors
/// Where /proc is not mounted.
pub fn device_of(path: &Path) -> io::Result<Option<String>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    // proc(5): field 5 is the mount point, with space, tab, newline and backslash in octal; field 3 the
    // device.
    let wanted: Vec<u8> = path
        .as_os_str()
        .as_bytes()
        .iter()
        .flat_map(|&b| match b {
            b' ' | b'\t' | b'\n' | b'\\' => format!("\\{b:03o}").into_bytes(),
            _ => vec![b],
        })
        .collect();
    let mut found = None;
    for line in table.split(|&b| b == b'\n') {
        let mut fields = line.split(|&b| b == b' ');
        if let (Some(device), Some(point)) = (fields.nth(2), fields.nth(1))
            && *point == wanted
        {
            found = Some(String::from_utf8_lossy(device).into_owned());
        }
    }
    Ok(found)
}
