//! Which of the drivers this machine, this user and this store can have.

use std::io;
use std::path::Path;
use std::sync::Arc;

use hoist_sys::fanotify::Group;

use crate::config::Driver;

/// A driver, and what is missing for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverState {
    /// Which.
    pub driver: Driver,
    /// None if it works here.
    pub missing: Option<String>,
}

/// Gives the group that is asked whether there are events.
type Events<'e> = dyn Fn() -> Result<Arc<Group>, String> + 'e;

/// What each driver has to say of a store at `root` (or where it would be made), the fastest first.
pub fn drivers(root: &Path) -> [DriverState; 3] {
    let group = || Group::new().map(Arc::new).map_err(|e| e.to_string());
    Driver::ALL.map(|driver| DriverState { driver, missing: missing(driver, root, &group).err() })
}

/// The driver that is wanted, or the fastest that works. `group` is one that lives on: to close one takes the
/// kernel many milliseconds.
pub(super) fn choose(wanted: Option<Driver>, root: &Path, group: &Events<'_>) -> Result<Driver, String> {
    if let Some(driver) = wanted {
        let named = |why| format!("the driver {} does not work here: {why}", driver.name());
        return missing(driver, root, group).map(|()| driver).map_err(named);
    }
    let mut each = Vec::new();
    for driver in Driver::ALL {
        match missing(driver, root, group) {
            Ok(()) => return Ok(driver),
            Err(why) => each.push(format!("{}: {why}", driver.name())),
        }
    }
    Err(format!("no driver works here ({})", each.join("; ")))
}

/// The error is what is missing.
fn missing(driver: Driver, root: &Path, group: &Events<'_>) -> Result<(), String> {
    match driver {
        Driver::Erofs => erofs().and_then(|()| events(root, &*group()?)),
        Driver::ErofsFuse => {
            erofs()?;
            hoist_sys::loop_device::available().map_err(|e| format!("no loop device can be had ({e})"))?;
            fuse_device()
        }
        Driver::Fuse => {
            fuse_device()?;
            match (hoist_sys::mount::knows("fuse"), hoist_sys::fuse::find_helper()) {
                (Ok(()), _) | (_, Some(_)) => Ok(()),
                (Err(_), None) => Err("neither root nor fusermount3 (package fuse3) is to be had".into()),
            }
        }
    }
}

fn erofs() -> Result<(), String> {
    hoist_sys::mount::knows("erofs").map_err(|e| match e.raw_os_error() {
        Some(libc::EPERM) => "mounting EROFS takes root".to_owned(),
        Some(libc::ENODEV) => "this kernel has no EROFS".to_owned(),
        _ => format!("EROFS cannot be mounted ({e})"),
    })?;
    if !hoist_sys::userns::is_initial() {
        return Err("mounting EROFS takes root of the machine, not of a user namespace".into());
    }
    hoist_sys::mount::erofs_knows_devices().map_err(|e| {
        format!("this kernel's EROFS takes one device alone ({e}): Linux 5.16 and later take more")
    })
}

fn fuse_device() -> Result<(), String> {
    hoist_sys::fuse::Device::open().map(drop).map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => format!("{e}: a udev rule or root must make it mode 0666"),
        _ => e.to_string(),
    })
}

/// Whether files of the store can have pre-content events: asks for those of one.
fn events(root: &Path, group: &Group) -> Result<(), String> {
    let there = root.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let probe = tempfile::tempfile_in(there)
        .map_err(|e| format!("a file cannot be made in {}: {e}", there.display()))?;
    group.mark(&probe).map_err(|e| {
        format!(
            "the file system of {} gives no pre-content events ({e}): ext4, xfs and btrfs do, on kernel 6.14 or newer",
            there.display()
        )
    })
}
