//! fanotify pre-content events: the kernel asks before it reads a range of a marked file
//! (Linux 6.14, `include/uapi/linux/fanotify.h`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

/// `FAN_PRE_ACCESS`.
const PRE_ACCESS: u64 = 0x0010_0000;
/// `FAN_EVENT_INFO_TYPE_RANGE`: header (4 bytes), u32 pad, u64 offset, u64 count.
const INFO_RANGE: u8 = 6;
/// Its length.
const RANGE: usize = 24;
/// Length of `struct fanotify_event_metadata`.
const METADATA: usize = 24;

/// The answer to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The range may be read.
    Allow,
    /// The read fails with this errno.
    Deny(i32),
}

/// A fanotify group for pre-content events. Its descriptor is close-on-exec.
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
    wake: OwnedFd,
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Group {
    /// A new group.
    ///
    /// # Errors
    /// With what is missing: the kernel's support or the privilege.
    pub fn new() -> io::Result<Self> {
        // Told by their threads, which are what waits.
        let flags =
            libc::FAN_CLASS_PRE_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_REPORT_TID;
        let event_flags = (libc::O_RDWR | libc::O_LARGEFILE | libc::O_CLOEXEC) as u32;
        // SAFETY: takes two integers, returns a new descriptor or -1.
        let fd = checked(unsafe { libc::fanotify_init(flags, event_flags) }).map_err(|e| {
            let hint = match e.raw_os_error() {
                Some(libc::EPERM) => "fanotify needs CAP_SYS_ADMIN: run as root",
                Some(libc::ENOSYS | libc::EINVAL) => "this kernel has no fanotify permission events",
                _ => "fanotify_init failed",
            };
            io::Error::new(e.kind(), format!("{hint} ({e})"))
        })?;
        // SAFETY: the descriptor was just made and is owned by nobody else.
        Self::of(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The group that this descriptor is of.
    ///
    /// # Errors
    /// The kernel's: too many open files.
    pub fn of(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd, wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    fn change(&self, action: u32, file: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: both descriptors are open; a null path means the file of `dirfd` itself.
        let done = unsafe {
            libc::fanotify_mark(self.fd.as_raw_fd(), action, PRE_ACCESS, file.as_raw_fd(), std::ptr::null())
        };
        checked(done).map(drop)
    }

    /// Asks for events of `file`.
    ///
    /// # Errors
    /// EINVAL or EOPNOTSUPP where kernel or file system has no pre-content events.
    pub fn mark(&self, file: &impl AsFd) -> io::Result<()> {
        self.change(libc::FAN_MARK_ADD, file.as_fd())
    }

    /// Ends the events of `file`.
    ///
    /// # Errors
    /// ENOENT where it was not marked.
    pub fn unmark(&self, file: &impl AsFd) -> io::Result<()> {
        self.change(libc::FAN_MARK_REMOVE, file.as_fd())
    }

    /// Waits for an event to be there, or for [`Group::wake`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self) -> io::Result<()> {
        let mut polled = [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Reads one event, if there is any, to `at`; returns the bytes that it took there.
    ///
    /// # Safety
    /// [`Record::LEN`] bytes at `at` may be written.
    pub(crate) unsafe fn read_one(&self, at: *mut u8) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), at.cast(), Record::LEN) };
        if got >= 0 {
            return Ok(got as usize);
        }
        let e = io::Error::last_os_error();
        let none = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&e.kind());
        if none { Ok(0) } else { Err(e) }
    }

    /// Makes a waiting [`Group::wait`] return, and every later one too.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wake(&self) -> io::Result<()> {
        rustix::io::write(&self.wake, &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// Answers the event with this descriptor number. Every event must be answered once.
    ///
    /// # Errors
    /// ENOENT where no such event waits (its reader was killed).
    pub fn respond(&self, event_fd: RawFd, answer: Answer) -> io::Result<()> {
        let response: u32 = match answer {
            Answer::Allow => libc::FAN_ALLOW,
            // Only these may be told to the reader (fs/notify/fanotify/fanotify_user.c); others become EPERM.
            Answer::Deny(
                errno @ (libc::EPERM
                | libc::EIO
                | libc::EBUSY
                | libc::ETXTBSY
                | libc::EAGAIN
                | libc::ENOSPC
                | libc::EDQUOT),
            ) => libc::FAN_DENY | (errno as u32) << 24,
            Answer::Deny(_) => libc::FAN_DENY | (libc::EIO as u32) << 24,
        };
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&event_fd.to_ne_bytes());
        bytes[4..].copy_from_slice(&response.to_ne_bytes());
        rustix::io::write(&self.fd, &bytes)?;
        Ok(())
    }
}

/// An event as the kernel writes it: a descriptor's number, which nobody owns yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub fd: RawFd,
    pub pid: i32,
    pub offset: u64,
    pub count: u64,
}

impl Record {
    /// Bytes of an event that has a range.
    pub const LEN: usize = METADATA + RANGE;
}

/// Reads `struct fanotify_event_metadata` records, native-endian as the kernel writes them.
pub(crate) fn records(mut bytes: &[u8]) -> impl Iterator<Item = Record> {
    let u32_at = |b: &[u8], at: usize| u32::from_ne_bytes(b[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |b: &[u8], at: usize| u64::from_ne_bytes(b[at..at + 8].try_into().expect("8 bytes"));
    std::iter::from_fn(move || {
        while bytes.len() >= METADATA {
            let len = u32_at(bytes, 0) as usize;
            if len < METADATA || len > bytes.len() {
                return None;
            }
            let (event, rest) = bytes.split_at(len);
            bytes = rest;
            let fd = u32_at(event, 16) as i32;
            if fd < 0 {
                continue;
            }
            // Without a range the whole file is meant.
            let (mut offset, mut count) = (0, u64::MAX);
            let mut info = &event[(u16::from_ne_bytes([event[6], event[7]]) as usize).min(len)..];
            while info.len() >= 4 {
                let length = u16::from_ne_bytes([info[2], info[3]]) as usize;
                if length < 4 || length > info.len() {
                    break;
                }
                if info[0] == INFO_RANGE && length >= RANGE {
                    (offset, count) = (u64_at(info, 8), u64_at(info, 16));
                }
                info = &info[length..];
            }
            return Some(Record { fd, pid: u32_at(event, 20) as i32, offset, count });
        }
        None
    })
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Says what is missing for pre-content events on the file system of `dir`; tries it on a file there.
///
/// # Errors
/// With the reason, for people.
pub fn probe(dir: &std::path::Path) -> io::Result<()> {
    let group = Group::new()?;
    let path = dir.join(format!(".hoist-probe-{}", std::process::id()));
    let file = std::fs::File::create_new(&path)?;
    let marked = group.mark(&file);
    let _ = std::fs::remove_file(&path);
    marked.map_err(|e| {
        io::Error::new(e.kind(), format!(
            "no pre-content events on the file system of {} ({e}): needs Linux 6.14 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS and ext4, xfs or btrfs",
            dir.display()
        ))
    })
}

/// Can this process make groups for pre-content events at all? [`probe`] tells about a file system.
///
/// # Errors
/// With the reason, for people.
pub fn supported() -> io::Result<()> {
    Group::new().map(drop)
}
