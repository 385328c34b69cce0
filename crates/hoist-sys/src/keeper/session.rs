//! FUSE sessions that the keeper holds: what becomes of them while nobody serves them.
//!
//! A session lives as long as somebody has its descriptors, and then what is asked waits in the kernel. What a
//! dead process had read and not answered is put back there (Linux 6.9), and then fails like the rest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::fuse::Device;

/// What the names of a session's descriptors among the deposits begin with.
const PREFIX: &str = "fuse ";

/// The name under which one of a session's descriptors is deposited.
pub fn deposit_name(session: &str, queue: usize) -> String {
    format!("{PREFIX}{session} {queue}")
}

/// Is what has this name a session's?
pub(super) fn is_one(name: &str) -> bool {
    name.starts_with(PREFIX)
}

fn state(fd: &OwnedFd) -> PollFlags {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    match poll(&mut polled, Some(&at_once)) {
        Ok(_) => polled[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

/// Is its file system still mounted for anyone? Yes when in doubt.
pub(super) fn is_connected(fd: &OwnedFd) -> bool {
    !state(fd).contains(PollFlags::ERR)
}

/// Does anybody wait for it?
pub(super) fn is_asked(fd: &OwnedFd) -> bool {
    let state = state(fd);
    state.contains(PollFlags::IN) && !state.contains(PollFlags::ERR)
}

fn device(fd: &OwnedFd) -> io::Result<Device> {
    Ok(fd.as_fd().try_clone_to_owned()?.into())
}

/// Puts back what a dead process had read.
pub(super) fn resend(fd: &OwnedFd) -> io::Result<()> {
    device(fd)?.resend()
}

/// From now on what it is asked is refused, what was asked before included.
pub(super) fn begin_refusing(fd: &OwnedFd) -> io::Result<()> {
    let device = device(fd)?;
    device.set_waiting(false)?;
    device.resend()?;
    crate::fuse::refuse_all(&device)
}

/// Somebody is to serve it again.
pub(super) fn end_refusing(fd: &OwnedFd) -> io::Result<()> {
    device(fd)?.set_waiting(true)
}

/// Refuses what is asked now. An error is that it is over.
pub(super) fn refuse_all(fd: &OwnedFd) -> io::Result<()> {
    crate::fuse::refuse_all(&device(fd)?)
}
