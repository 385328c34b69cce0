//! What runs in the keeper's process: no threads, and nothing that must still be read from disk.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, getrlimit};

use super::mounts::Mounts;
use super::{CLEAN_END, NAME, table};
use crate::fanotify::{self, Answer};

/// Group, table, pidfd of the filler, read end of the pipe.
pub(super) const DESCRIPTORS: usize = 4;
/// How often to look whether the mounts are still there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// No process gets more descriptors than this by default (`fs.nr_open`).
const MOST_DESCRIPTORS: u64 = 1 << 20;
const DENY: Answer = Answer::Deny(libc::EIO);

struct Guard {
    group: OwnedFd,
    table: File,
    filler: OwnedFd,
    pipe: OwnedFd,
    mounts: Mounts,
}

/// The keeper's life.
///
/// # Errors
/// With what kept it from taking up its post.
pub(super) fn run(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let [group, table, filler, pipe] = take_descriptors(&mut arguments)?;
    let before = arguments.next().and_then(|a| a.to_str()?.parse().ok()).ok_or_else(usage)?;
    let mounts = Mounts::new(arguments.map(PathBuf::from), before)?;
    let mut guard = Guard { group, table: table.into(), filler, pipe, mounts };
    prepare();
    let mut room = table::room();
    if guard.watch()? == Seen::CleanEnd {
        return Ok(());
    }
    if guard.mounts.alive() {
        // Not eprintln, which panics when standard error is closed.
        let _ = writeln!(
            io::stderr(),
            "{NAME}: the process that served a mount is gone; until it is unmounted, reads of data \
             that is not there yet fail with EIO"
        );
    }
    // Whoever reads what the filler wrote must not wait for us.
    let null = File::options().write(true).open("/dev/null");
    let _ = null.map(rustix::stdio::dup2_stderr);
    guard.deny_orphans(&mut room);
    guard.hold();
    Ok(())
}

#[derive(PartialEq)]
enum Seen {
    CleanEnd,
    Death,
}

impl Guard {
    /// Waits for the filler to end, well or badly.
    fn watch(&mut self) -> io::Result<Seen> {
        loop {
            if !self.mounts.all_seen() {
                // A failed look is made up for by the last one, after the filler's death.
                let _ = self.mounts.look();
            }
            let mut polled = vec![
                PollFd::new(&self.pipe, PollFlags::IN),
                PollFd::new(&self.filler, PollFlags::IN),
                PollFd::from_borrowed_fd(self.mounts.changes(), PollFlags::PRI),
            ];
            // Others' mounts are no reason to wake up.
            polled.truncate(if self.mounts.all_seen() { 2 } else { 3 });
            match poll(&mut polled, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            let [pipe, filler] = [0, 1].map(|i: usize| !polled[i].revents().is_empty());
            if pipe {
                let mut byte = [0];
                let ended = rustix::io::read(&self.pipe, &mut byte) == Ok(1) && byte[0] == CLEAN_END;
                return Ok(if ended { Seen::CleanEnd } else { Seen::Death });
            }
            if filler {
                return Ok(Seen::Death);
            }
        }
    }

    /// Fails the reads about which the filler was asked and which it did not answer.
    fn deny_orphans(&self, room: &mut table::Room) {
        if let Ok(fds) = table::in_work(&self.table, room) {
            fds.for_each(|fd| self.deny(fd));
        }
        // It may have died between being asked and noting it. Numbers that were not asked about are
        // refused by the kernel, each in well under a microsecond. Before we take events of our own:
        // theirs may have the same numbers.
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS);
        (0..most as RawFd).for_each(|fd| self.deny(fd));
    }

    fn deny(&self, event_fd: RawFd) {
        // Fails where the reader was killed or already has its answer.
        let _ = fanotify::respond(self.group.as_fd(), event_fd, DENY);
    }

    /// Fails every further read until nobody has the mounts any more.
    fn hold(&mut self) {
        let mut buffer = vec![0; 16 << 10];
        let pause = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY.subsec_nanos().into() };
        let mut looked: Option<Instant> = None;
        loop {
            if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                if !self.mounts.alive() {
                    return;
                }
                looked = Some(Instant::now());
            }
            let mut polled = [PollFd::new(&self.group, PollFlags::IN)];
            if !matches!(poll(&mut polled, Some(&pause)), Ok(1..)) {
                continue;
            }
            // Another's mount on the same data files may ask by now, and its own group answers it.
            if !self.mounts.alive() {
                return;
            }
            if let Ok(n) = rustix::io::read(&self.group, &mut buffer) {
                fanotify::parse(&buffer[..n]).iter().for_each(|event| self.deny(event.fd.as_raw_fd()));
            }
        }
    }
}

/// Best effort, each for itself: a keeper without them still keeps.
fn prepare() {
    let _ = rustix::thread::set_name(c"hoist-keeper");
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    // Its code may lie on the very file system whose reads it answers.
    let _ = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE);
}

fn usage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is started by hoist, not by hand")
}

/// Takes ownership of the inherited descriptors and closes all others.
fn take_descriptors(arguments: &mut impl Iterator<Item = OsString>) -> io::Result<[OwnedFd; DESCRIPTORS]> {
    let mut numbers = [0; DESCRIPTORS];
    for number in &mut numbers {
        let fd: RawFd = arguments.next().and_then(|a| a.to_str()?.parse().ok()).ok_or_else(usage)?;
        // SAFETY: F_GETFD only asks whether the number is that of an open descriptor.
        if fd < 3 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(usage());
        }
        *number = fd;
    }
    let mut sorted = numbers;
    sorted.sort_unstable();
    if sorted.windows(2).any(|w| w[0] == w[1]) {
        return Err(usage());
    }
    let mut next = 3;
    for fd in sorted.into_iter().chain([RawFd::MAX]) {
        if next < fd {
            // SAFETY: at the start of main nobody in this process owns a descriptor of 3 or above.
            unsafe { libc::close_range(next.cast_unsigned(), (fd - 1).cast_unsigned(), 0) };
        }
        next = fd.saturating_add(1);
    }
    // SAFETY: open, all different, inherited for us and owned by nobody else in this process.
    Ok(numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}
