//! A guard that outlives the process which fills a lazy mount.
//!
//! When the last holder of a fanotify group goes away, the kernel allows every read it had asked about
//! and every later one, and holes read as zeros. So a second process, the keeper, holds the group as
//! well. It does nothing while the filler lives. Once the filler has died, for whatever reason, it fails
//! every waiting and every later read of absent data with EIO, for as long as the mount is there.
//!
//! The filler notes in a shared [`Table`] which events it has taken and not answered: the kernel does
//! not deliver them again, but anybody who has the group may answer them by their descriptor number.
//!
//! The keeper is the same program, started anew under another name, because a copy made by `fork` of a
//! process with threads could not safely do anything. It therefore must be in the same mount namespace,
//! and a SIGKILL to both at once (as to a whole cgroup) is more than it can guard against.

mod guard;
mod mounts;
mod table;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

pub use table::{Slot, Table};

/// `argv[0]` and process name of the keeper.
const NAME: &str = "hoist-keeper";
/// Sent by [`Keeper::end`].
const CLEAN_END: u8 = b'.';

/// Becomes the keeper if this process was started as one, and then never returns.
///
/// To be called first in `main`, before threads are started or files opened.
pub fn main_if_asked() {
    let mut arguments = std::env::args_os();
    if arguments.next().as_deref() != Some(OsStr::new(NAME)) {
        return;
    }
    match guard::run(arguments) {
        Ok(()) => std::process::exit(0),
        Err(e) => {
            let _ = writeln!(
                io::stderr(),
                "{NAME}: {e}; nothing guards the mount should the process that serves it die"
            );
            std::process::exit(2)
        }
    }
}

/// A running keeper, as the filler sees it.
///
/// Dropped without [`Keeper::end`], it takes the filler for dead.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
    end: OwnedFd,
}

impl Keeper {
    /// Starts a keeper of `group`, before anything is mounted on the folders `mounts`. It may not be up
    /// yet at return, but from then on it guards: it has the descriptors.
    ///
    /// # Errors
    /// A folder that is not there, or the kernel's from starting a process.
    pub fn spawn(group: &impl AsFd, table: &Table, mounts: &[&Path]) -> io::Result<Self> {
        let filler = pidfd_open(getpid(), PidfdFlags::empty())?;
        let (told, end) = pipe_with(PipeFlags::CLOEXEC)?;
        let inherited: [RawFd; guard::DESCRIPTORS] =
            [group.as_fd().as_raw_fd(), table.as_fd().as_raw_fd(), filler.as_raw_fd(), told.as_raw_fd()];
        let mut command = Command::new("/proc/self/exe");
        command.arg0(NAME).env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command.args(inherited.map(|fd| fd.to_string())).arg(mounts::newest_superblock().to_string());
        for mount in mounts {
            let path = mount.canonicalize();
            let path =
                path.map_err(|e| io::Error::new(e.kind(), format!("finding {}: {e}", mount.display())))?;
            command.arg(path);
        }
        // SAFETY: between fork and exec `detach` only makes async-signal-safe calls, and it captures
        // plain integers; the descriptors stay open in this process until spawn has returned.
        unsafe { command.pre_exec(move || detach(inherited)) };
        let child = command.spawn().map_err(|e| io::Error::new(e.kind(), format!("starting {NAME}: {e}")))?;
        Ok(Self { child, end })
    }

    /// Process id of the keeper.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends the keeper home and waits for it to be gone. Only after the unmount: once the group is
    /// closed nothing stands between a reader and the holes.
    pub fn end(mut self) {
        // It fails only where the keeper is gone already, and then there is nothing to wait for either.
        let _ = rustix::io::write(&self.end, &[CLEAN_END]);
        let _ = self.child.wait();
    }
}

/// In the child, before exec: a session of its own, deaf to polite signals, with just these descriptors
/// let through. Numbers are kept: moving them could hit one that std uses to report a failed exec.
fn detach(inherited: [RawFd; guard::DESCRIPTORS]) -> io::Result<()> {
    for fd in inherited {
        // SAFETY: clears the only descriptor flag there is, FD_CLOEXEC, of a descriptor of this process.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: no arguments. It cannot fail in a child that leads no group, and would do no harm.
    unsafe { libc::setsid() };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: no handler is installed; "ignored" is the one disposition that exec keeps.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    Ok(())
}
