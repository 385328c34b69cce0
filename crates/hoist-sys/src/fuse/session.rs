//! A mounted file system's conversation with the kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::device::Device;
use super::in_work::{INBOX_BYTES, INBOXES, InWork};
use super::request::{Operation, Request};
use crate::keeper::Table;

/// `FUSE_*` flags of the handshake.
mod flag {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const INIT_EXT: u64 = 1 << 30;
}

/// Read-only, never changing, without open files: names, attributes, links and pages may be cached for good.
const WANTED: u64 = flag::ASYNC_READ
    | flag::EXPORT_SUPPORT
    | flag::DO_READDIRPLUS
    | flag::READDIRPLUS_AUTO
    | flag::NO_OPEN_SUPPORT
    | flag::PARALLEL_DIROPS
    | flag::MAX_PAGES
    | flag::CACHE_SYMLINKS
    | flag::NO_OPENDIR_SUPPORT
    | flag::INIT_EXT;

/// Oldest minor version of the protocol that is spoken to: Linux 2.6.31.
const OLDEST: u32 = 12;
/// What is told to the kernel, which takes the lower of the two.
const MINOR: u32 = 45;
/// Pages of one read at most: 1 MiB, the most without a sysctl.
const MAX_PAGES: u16 = 256;
/// Reads that nobody waits for by itself, under way at once, before the kernel holds back more.
const MAX_BACKGROUND: u16 = 64;

/// What server and kernel have agreed on: what a successor must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Minor version of the protocol.
    pub minor: u32,
    /// What both can do.
    pub flags: u64,
    /// The most the kernel reads ahead, in bytes.
    pub max_readahead: u32,
}

impl Negotiated {
    /// Does the kernel go on without opens (files since Linux 4.14, folders since 5.1)? Else they must be
    /// answered.
    pub fn without_opens(&self) -> bool {
        self.flags & flag::NO_OPEN_SUPPORT != 0 && self.flags & flag::NO_OPENDIR_SUPPORT != 0
    }
}

/// A session whose handshake is done.
#[derive(Debug)]
pub struct Session {
    pub(super) devices: Vec<Arc<Device>>,
    pub(super) in_work: InWork,
    negotiated: Negotiated,
    pub(super) answers: Option<Table>,
}

impl Session {
    /// Does the handshake over the device of a mount just made, and opens more queues beside it until
    /// there are `queues`. With `check` the kernel checks permissions, access control lists among them.
    ///
    /// # Errors
    /// The kernel's, or a protocol of another age.
    pub fn start(device: Device, queues: usize, check: bool) -> io::Result<Self> {
        let in_work = InWork::new()?;
        let mut buffer = vec![0; INBOX_BYTES];
        // It implies `default_permissions`.
        let wanted = if check { WANTED | flag::POSIX_ACL } else { WANTED };
        let negotiated = loop {
            let request = match device.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            let request = Request::parse(request).map_err(io::Error::other)?;
            let Operation::Init { major, minor, max_readahead, flags } = request.operation else {
                return Err(io::Error::other("the kernel began a FUSE session without a handshake"));
            };
            // A kernel of a later major version asks again in ours.
            if major > 7 {
                device.reply(request.unique, 0, &agree(0, 0))?;
                continue;
            }
            if major < 7 || minor < OLDEST {
                device.reply(request.unique, libc::EPROTO, &[])?;
                let text = format!("this kernel speaks FUSE {major}.{minor}, hoist 7.{OLDEST} or newer");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            let flags = flags & wanted;
            device.reply(request.unique, 0, &agree(max_readahead, flags))?;
            break Negotiated { minor: minor.min(MINOR), flags, max_readahead };
        };
        let mut devices = vec![Arc::new(device)];
        while devices.len() < queues.clamp(1, INBOXES) {
            // Old kernels have one queue (before 4.2); it serves any number of threads.
            match devices[0].another() {
                Ok(another) => devices.push(Arc::new(another)),
                Err(_) => break,
            }
        }
        Ok(Self { devices, in_work, negotiated, answers: None })
    }

    /// Goes on with a session whose descriptors (all of [`Session::fds`], in that order) and agreement come from
    /// another process, which is dead.
    ///
    /// # Errors
    /// Without a list of requests and a queue, or with more queues than there may be.
    pub fn from_fds(fds: Vec<OwnedFd>, negotiated: Negotiated) -> io::Result<Self> {
        let mut fds = fds.into_iter();
        let in_work = fds.next().map(|list| InWork::of(list.into())).transpose()?;
        let devices: Vec<_> = fds.map(|fd| Arc::new(fd.into())).collect();
        match in_work {
            Some(in_work) if (1..=INBOXES).contains(&devices.len()) => {
                Ok(Self { devices, in_work, negotiated, answers: None })
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not all of a FUSE session's descriptors")),
        }
    }

    /// Counts answers where the keeper sees it.
    pub fn count_answers(&mut self, table: &Table) {
        self.answers = Some(table.clone());
    }

    /// Its descriptors: whoever holds them all keeps the mount from failing. The first is the list of the requests in
    /// work, the others are queues. A request in work belongs to the queue that it was read from; a queue that is closed
    /// for good fails those it had.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.in_work.as_fd()].into_iter().chain(self.devices.iter().map(|d| d.as_fd()))
    }

    /// What was agreed on.
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }
}

/// `struct fuse_init_out`.
fn agree(max_readahead: u32, flags: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    for word in [7, MINOR, max_readahead, flags as u32] {
        out.extend(word.to_ne_bytes());
    }
    for short in [MAX_BACKGROUND, MAX_BACKGROUND * 3 / 4] {
        out.extend(short.to_ne_bytes());
    }
    // max_write (the least there is), time_gran.
    for word in [4096u32, 1] {
        out.extend(word.to_ne_bytes());
    }
    // max_pages, map_alignment.
    for short in [MAX_PAGES, 0] {
        out.extend(short.to_ne_bytes());
    }
    out.extend(((flags >> 32) as u32).to_ne_bytes());
    out.resize(64, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agreement_is_as_long_as_its_struct() {
        let bytes = agree(1 << 17, WANTED);
        assert_eq!(bytes.len(), 64);
        assert_eq!(bytes[12..16], (WANTED as u32).to_ne_bytes());
        assert_eq!(bytes[32..36], ((WANTED >> 32) as u32).to_ne_bytes());
    }
}
