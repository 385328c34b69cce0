//! Making a FUSE mount: with the privilege to mount (root's, or that of a user namespace's root), or through
//! `fusermount3`, the set-user-id helper that lets ordinary users do it on folders of their own.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{FsOpenFlags, MountAttrFlags, fsconfig_set_flag, fsconfig_set_string, fsopen};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use super::device::Device;
use crate::mount::{attach, create, explain};

/// How it is mounted: always read-only. Where others may look, the kernel checks permissions; a user alone
/// with a mount of its own may read all of it.
#[derive(Debug, Clone, Copy)]
pub struct MountOptions<'a> {
    /// What the mount table shows as its source.
    pub source: &'a str,
    /// Whether others than the mounting user may look.
    pub allow_other: bool,
    /// Takes set-user-id bits and capabilities of files away.
    pub nosuid: bool,
    /// Takes device files away.
    pub nodev: bool,
}

/// `fuse.hoist` in the mount table.
const SUBTYPE: &str = "hoist";

/// A mount that stands nowhere yet. Its files can be opened through [`Detached::path`]; it goes away with
/// this value and the last file that is open in it.
#[derive(Debug)]
pub struct Detached {
    mount: OwnedFd,
}

impl Detached {
    /// Makes the mount. Nothing can be opened in it before the [`Session`](super::Session) is started and
    /// served.
    ///
    /// # Errors
    /// With the kernel's own words. EPERM without CAP_SYS_ADMIN in the mount namespace's user namespace.
    pub fn new(options: &MountOptions<'_>) -> io::Result<(Self, Device)> {
        let device = Device::open()?;
        let fs = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| {
            io::Error::new(io::Error::from(e).kind(), format!("opening a FUSE file system: {e}"))
        })?;
        let set = |key: &str, value: &str| {
            fsconfig_set_string(&fs, key, value)
                .map_err(|e| explain(&fs, &format!("setting {key}={value}"), e))
        };
        set("source", options.source)?;
        set("subtype", SUBTYPE)?;
        set("fd", &device.as_fd().as_raw_fd().to_string())?;
        // S_IFDIR, in octal; the real mode comes with the first getattr.
        set("rootmode", "40000")?;
        set("user_id", &rustix::process::geteuid().as_raw().to_string())?;
        set("group_id", &rustix::process::getegid().as_raw().to_string())?;
        let flag =
            |key: &str| fsconfig_set_flag(&fs, key).map_err(|e| explain(&fs, &format!("setting {key}"), e));
        if options.allow_other {
            flag("allow_other")?;
            flag("default_permissions")?;
        }
        flag("ro")?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, options.nosuid);
        attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, options.nodev);
        let mount = create(&fs, "mounting FUSE", attributes)?;
        Ok((Self { mount }, device))
    }

    /// A path in the mount, as this process can open it.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.mount.as_raw_fd()))
    }

    /// Puts it on folder `target`, where it stays.
    ///
    /// # Errors
    /// The kernel's.
    pub fn attach(self, target: &Path) -> io::Result<()> {
        attach(&self.mount, target)
    }
}

/// Mounts on folder `target` through the kernel's own calls.
///
/// # Errors
/// As for [`Detached::new`].
pub fn mount(target: &Path, options: &MountOptions<'_>) -> io::Result<Device> {
    let (detached, device) = Detached::new(options)?;
    detached.attach(target)?;
    Ok(device)
}

/// Lets programs that read in order be read ahead for by this much, as FUSE itself would not. Takes root.
/// The mount must be the topmost on its path.
///
/// # Errors
/// The mount is not there, or sysfs is not to be written.
pub fn set_readahead(target: &Path, bytes: u64) -> io::Result<()> {
    let device = crate::mount::device_of(target)?;
    let device = device.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not mounted"))?;
    std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), (bytes >> 10).to_string())
}

/// Where the helper is, if it is installed.
pub fn find_helper() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let places =
        std::env::split_paths(&path).flat_map(|dir| ["fusermount3", "fusermount"].map(|n| dir.join(n)));
    places.into_iter().find(|place| place.is_file())
}

fn helper() -> io::Result<Command> {
    let found = find_helper().ok_or_else(|| {
        let text = "fusermount3 is not on PATH: install the package fuse3";
        io::Error::new(io::ErrorKind::NotFound, text)
    })?;
    Ok(Command::new(found))
}

/// Mounts on folder `target` through the helper, which makes it nosuid and nodev whatever is asked.
///
/// # Errors
/// With the helper's own words.
pub fn mount_by_helper(target: &Path, options: &MountOptions<'_>) -> io::Result<Device> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A comma would end the name.
    let source = options.source.replace(['\\', ','], "_");
    let mut wanted = format!("ro,nosuid,nodev,subtype={SUBTYPE},fsname={source}");
    if options.allow_other {
        wanted.push_str(",allow_other,default_permissions");
    }
    let mut command = helper()?;
    command.args(["-o", &wanted, "--"]).arg(target);
    // It sends the device over the socket whose number stands here: its standard input.
    command.env("_FUSE_COMMFD", "0").stdin(theirs).stdout(Stdio::null()).stderr(Stdio::piped());
    let child =
        command.spawn().map_err(|e| io::Error::new(e.kind(), format!("starting fusermount3: {e}")))?;
    // Its end of the socket must not stay open here, or a helper that dies would be waited for.
    drop(command);
    let received = receive(&ours);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    match received? {
        Some(fd) if output.status.success() => Ok(fd.into()),
        _ => Err(io::Error::other(format!("fusermount3 failed ({}): {}", output.status, said.trim()))),
    }
}

/// One descriptor sent over a socket; None if its other end is closed.
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        let iov = &mut [IoSliceMut::new(&mut byte)];
        match recvmsg(socket, iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            received => received?,
        };
        break;
    }
    let messages = control.drain();
    Ok(messages
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.into_iter().next(),
            _ => None,
        })
        .next())
}

/// Unmounts as root can, or else, where it is a FUSE mount of this user, through the helper.
///
/// # Errors
/// As for [`crate::mount::unmount`], or with the helper's own words.
pub fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    match crate::mount::unmount(target, lazy) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => unmount_by_helper(target, lazy),
        done => done,
    }
}

/// Unmounts what the helper has mounted; `lazy` detaches it even while it is in use.
///
/// # Errors
/// With the helper's own words.
pub fn unmount_by_helper(target: &Path, lazy: bool) -> io::Result<()> {
    let mut command = helper()?;
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(target);
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let kind = if said.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, format!("fusermount3 -u failed ({}): {}", output.status, said.trim())))
}
