//! `/dev/fuse`, opened.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)`.
const CLONE: libc::c_ulong = 0x8004_e500;

/// An open `/dev/fuse`. Close-on-exec.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl Device {
    /// Opens it, for a mount that is to be made.
    ///
    /// # Errors
    /// Where this kernel has no FUSE, or a container hides the device.
    pub fn open() -> io::Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/fuse");
        let file = file.map_err(|e| io::Error::new(e.kind(), format!("opening /dev/fuse: {e}")))?;
        Ok(Self { fd: file.into() })
    }

    /// A second device of the same mount, with a queue of its own for the requests in work.
    ///
    /// # Errors
    /// The kernel's.
    pub fn another(&self) -> io::Result<Self> {
        let new = Self::open()?;
        let fd = self.fd.as_raw_fd().cast_unsigned();
        // SAFETY: the ioctl reads one u32 from the pointer, which is that of a local.
        let done = unsafe { libc::ioctl(new.fd.as_raw_fd(), CLONE, &raw const fd) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(new) }
    }

    /// Waits for a request and reads it. `buffer` must take the longest there is: 8 KiB and, for who
    /// allows writes, what a write may carry.
    ///
    /// # Errors
    /// ENODEV once unmounted, ECONNABORTED and ENOENT for a request that was taken back.
    pub fn read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let n = rustix::io::read(&self.fd, &mut *buffer)?;
        Ok(&buffer[..n])
    }

    /// The same, to memory that others have too. How many bytes it was.
    ///
    /// # Errors
    /// As [`Device::read`].
    ///
    /// # Safety
    /// There are `len` bytes at `buffer`, which nobody else writes to meanwhile, or has a reference to other than to atomics.
    pub(super) unsafe fn read_into(&self, buffer: *mut u8, len: usize) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `len` bytes there, as the caller allows.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), buffer.cast(), len) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Whether reading waits for a request, in all processes that have this descriptor, or fails with EAGAIN.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_waiting(&self, waiting: bool) -> io::Result<()> {
        let mut flags = rustix::fs::fcntl_getfl(&self.fd)?;
        flags.set(rustix::fs::OFlags::NONBLOCK, !waiting);
        Ok(rustix::fs::fcntl_setfl(&self.fd, flags)?)
    }

    /// Replies to request `unique`: with an errno, or 0 and bytes.
    ///
    /// # Errors
    /// ENOENT where nobody waits for it any more; others are the server's fault.
    pub fn reply(&self, unique: u64, errno: i32, bytes: &[u8]) -> io::Result<()> {
        let mut header = [0; 16];
        let len = (header.len() + bytes.len()) as u32;
        header[..4].copy_from_slice(&len.to_ne_bytes());
        header[4..8].copy_from_slice(&(-errno).to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        // The kernel takes a message whole or not at all.
        rustix::io::writev(&self.fd, &[IoSlice::new(&header), IoSlice::new(bytes)])?;
        Ok(())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Device {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}
