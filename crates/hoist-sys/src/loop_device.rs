//! Loop devices: files as block devices, for kernels whose EROFS mounts nothing else (before Linux 6.12), and since the file
//! behind one can be changed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
/// Linux 5.8.
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;
const LOOP_CHANGE_FD: libc::c_ulong = 0x4c06;
const LOOP_SET_DIRECT_IO: libc::c_ulong = 0x4c08;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Bytes of `struct loop_info64`, which begins with device and inode of the file behind it.
const INFO: usize = 232;
/// Bytes of `struct loop_config`, and where in it the flags stand.
const CONFIG: usize = 304;
const FLAGS_AT: usize = 8 + 52;

/// A read-only loop device. It goes away with its last user: this value, or who has it mounted.
#[derive(Debug)]
pub struct LoopDevice {
    device: File,
    path: PathBuf,
}

/// Whether this process may have loop devices.
///
/// # Errors
/// NotFound where the kernel has none, or nobody has made `/dev/loop-control`; PermissionDenied.
pub fn available() -> io::Result<()> {
    control().map(drop)
}

fn control() -> io::Result<File> {
    let opened = File::options().read(true).write(true).open("/dev/loop-control");
    opened.map_err(|e| io::Error::new(e.kind(), format!("opening /dev/loop-control: {e}")))
}

impl LoopDevice {
    /// Sets a free device up over `backing`, whose size must be a multiple of `block` (512 to 4096). It reads through the
    /// file's page cache.
    ///
    /// # Errors
    /// The kernel's: no loop devices here, or none that this process may open.
    pub fn over(backing: &impl AsFd, block: u32) -> io::Result<Self> {
        let explain = |what: &'static str| {
            move |e: io::Error| io::Error::new(e.kind(), format!("{what} a loop device: {e}"))
        };
        let control = control().map_err(explain("asking for"))?;
        loop {
            // SAFETY: takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(explain("asking for")(io::Error::last_os_error()));
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = File::options().read(true).open(&path).map_err(explain("opening"))?;
            match configure(&device, backing.as_fd().as_raw_fd(), block) {
                Ok(()) => return Ok(Self { device, path }),
                // Another was quicker.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
                Err(e) => return Err(explain("setting up")(e)),
            }
        }
    }

    /// The device of this path, if it still shows the file that [`LoopDevice::backing`] told of: by now its
    /// number may be another's.
    ///
    /// # Errors
    /// NotFound where it does not; the kernel's.
    pub fn find(path: &Path, backing: (u64, u64)) -> io::Result<Self> {
        let device = Self { device: File::options().read(true).open(path)?, path: path.to_owned() };
        // Open, it stays what it is.
        if device.backing()? == backing {
            return Ok(device);
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("{} shows another file by now", path.display())))
    }

    /// Device and inode number of the file behind it.
    ///
    /// # Errors
    /// ENXIO where there is none.
    pub fn backing(&self) -> io::Result<(u64, u64)> {
        let mut info = [0u64; INFO / 8];
        // SAFETY: the kernel writes one struct of this length to the pointer.
        let done = unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok((info[0], info[1])) }
    }

    /// Puts another file of the same size in the place of the one behind the device, without its users
    /// noticing.
    ///
    /// # Errors
    /// EINVAL for another size.
    pub fn change_backing(&self, backing: &impl AsFd) -> io::Result<()> {
        let fd = backing.as_fd().as_raw_fd();
        // SAFETY: takes the number of an open descriptor.
        let done = unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CHANGE_FD, fd) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// From now on reads go past the page cache of the file behind it.
    ///
    /// # Errors
    /// EINVAL where the file's system has no such reads.
    pub fn read_directly(&self) -> io::Result<()> {
        // SAFETY: takes a number.
        let done = unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_SET_DIRECT_IO, 1 as libc::c_ulong) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn configure(device: &File, backing: i32, block: u32) -> io::Result<()> {
    // `struct loop_config`: descriptor, block size, `struct loop_info64`, eight reserved words.
    let mut config = [0u8; CONFIG];
    config[..4].copy_from_slice(&backing.to_ne_bytes());
    config[4..8].copy_from_slice(&block.to_ne_bytes());
    let flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    config[FLAGS_AT..FLAGS_AT + 4].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads one struct of this length from the pointer.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    fn backing(byte: u8) -> File {
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all(&[byte; 8192]).unwrap();
        file
    }

    #[test]
    fn a_device_shows_its_file_and_then_another() {
        let device = LoopDevice::over(&backing(1), 4096).unwrap();
        let read = |at| {
            let mut bytes = [0; 4096];
            device.device.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        assert_eq!(read(0), [1; 4096]);
        let shown = device.backing().unwrap();
        let found = LoopDevice::find(device.path(), shown).unwrap();
        device.change_backing(&backing(2)).unwrap();
        assert_eq!(LoopDevice::find(found.path(), shown).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(read(4096), [2; 4096]);
        let told = |what: &str| {
            let name = device.path.file_name().unwrap().display();
            std::fs::read_to_string(format!("/sys/block/{name}/{what}")).unwrap().trim().to_owned()
        };
        assert_eq!([told("ro"), told("loop/dio")], ["1", "0"]);
        device.read_directly().unwrap();
        assert_eq!(told("loop/dio"), "1");
        assert_eq!(read(0), [2; 4096]);
    }
}
