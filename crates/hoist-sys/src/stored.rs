//! Descriptors that a service manager has kept for this process (sd_listen_fds(3)), and a way to tell whether
//! anybody lives.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

/// The number of the first.
const FIRST: RawFd = 3;

/// Takes what was kept, by name; empty where this process was not started with any, and when asked again. To be called
/// before the process opens anything or starts a thread.
pub fn take() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok()?.parse::<RawFd>().ok();
    let for_us = number("LISTEN_PID") == Some(std::process::id().cast_signed());
    if !for_us || TAKEN.swap(true, Ordering::AcqRel) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, 1 << 20);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut taken = Vec::new();
    for fd in FIRST..FIRST + count {
        // SAFETY: sets the one flag of a descriptor, and fails where the number is none's.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            continue;
        }
        // SAFETY: open, given to this process at its start, and taken once.
        taken.push((names.next().unwrap_or_default(), unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    taken
}

/// Two ends: as long as anybody has the second, the first tells that somebody [lives](lives).
///
/// # Errors
/// Too many open files.
pub fn life() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// Does anybody have the other end? Yes when in doubt.
pub fn lives(watched: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(watched, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut polled, Some(&at_once)) {
        Ok(_) => !polled[0].revents().contains(PollFlags::HUP),
        Err(_) => true,
    }
}

/// Waits until nobody has the other end.
pub fn wait_for_death(watched: &OwnedFd) {
    while lives(watched) {
        let _ = poll(&mut [PollFd::new(watched, PollFlags::IN)], None);
    }
}

/// The other end once more: who has it lives in the place of the dead.
///
/// # Errors
/// Too many open files.
pub fn live_again(watched: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", watched.as_fd().as_raw_fd());
    Ok(File::options().write(true).open(path)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_ends_with_its_last_holder_and_may_begin_again() {
        let (watched, held) = life().unwrap();
        let copy = held.try_clone().unwrap();
        drop(held);
        assert!(lives(&watched));
        drop(copy);
        assert!(!lives(&watched));
        let again = live_again(&watched).unwrap();
        assert!(lives(&watched));
        let dying = std::thread::spawn(move || drop(again));
        wait_for_death(&watched);
        dying.join().unwrap();
        assert!(!lives(&watched));
    }
}
