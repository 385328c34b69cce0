//! A guard that outlives the process which fills lazy mounts, and sees to it that there is a next one.
//!
//! When the last holder of a fanotify group goes away, the kernel allows every read it had asked about
//! and every later one, and holes read as zeros. So a second process, the *keeper*, holds the group as
//! well, and the [`Table`] of the events in work. It does nothing while the filler lives. When the filler
//! dies, for whatever reason, it starts a successor, which gets the group, the table and whatever else was
//! [deposited](Keeper::deposit), answers what was asked and not answered, and goes on: readers wait a little
//! longer, and that is all. Only where no successor comes to anything is what is asked denied, with EIO.
//!
//! What FUSE serves needs no group. The descriptors of such a [session](crate::fuse::Session), deposited with
//! [`Keeper::deposit_session`], are all that keeps it alive; requests that nobody has answered are in its own
//! list. While nobody serves, the keeper fails them with EIO, as it denies the events of a group. A process
//! that has nothing but sessions, as an ordinary user's, has no group at all.
//!
//! The other way round the filler watches the keeper, and starts a new one when it dies.
//!
//! A filler that wants to be replaced by another version of itself asks for a successor while it serves
//! ([`Keeper::upgrade`]); once that is ready, it goes.
//!
//! The keeper is the same program, started anew under another name, because a copy made by `fork` of a
//! process with threads could not safely do anything. It must be in the same mount namespace, and a SIGKILL
//! to both at once (as to a whole cgroup) is more than it can guard against.

mod guard;
mod inherit;
mod launch;
mod refuse;
mod session;
mod table;
mod watch;
mod wire;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::fanotify::Group;
use crate::presence::Presence;
use wire::Word;

pub use inherit::Inheritance;
pub use refuse::refuse_for;
pub use session::deposit_name as session_deposit_name;
pub use table::{Asked, FileId, Received, Table};
pub use watch::Keeper;

/// `argv[0]` and process name of the keeper.
const NAME: &str = "hoist-keeper";

/// Becomes the keeper if this process was started as one, and then never returns. If it was started as a
/// successor, what it inherits.
///
/// To be called first in `main`, before threads are started or files opened.
pub fn main_if_asked() -> Option<Inheritance> {
    let mut arguments = std::env::args_os();
    let name = arguments.next()?;
    let failed = if name == NAME {
        match guard::run(arguments) {
            Ok(()) => std::process::exit(0),
            Err(e) => {
                format!("{NAME}: {e}; nothing guards the mounts should the process that serves them die")
            }
        }
    } else if name == OsStr::from_bytes(launch::NAME.to_bytes()) {
        match Inheritance::receive() {
            Ok(inheritance) => return Some(inheritance),
            Err(e) => format!("{}: {e}", launch::NAME.to_string_lossy()),
        }
    } else {
        return None;
    };
    // Not eprintln, which panics when standard error is closed.
    let _ = writeln!(io::stderr(), "{failed}");
    std::process::exit(2)
}

/// How keeper and successors are started.
#[derive(Debug)]
pub struct Start {
    /// The successor's program; None where nobody is to take over: then a dead filler's mounts fail
    /// with EIO until they are unmounted.
    pub program: Option<PathBuf>,
    /// Its arguments. Everybody can read them: no secrets. The environment is inherited as it is.
    pub arguments: Vec<OsString>,
    /// Where keeper and successors say what goes wrong: standard error of both.
    pub log: File,
}

/// What the filler is told of.
#[derive(Debug)]
pub enum Told {
    /// The keeper had died, and this process is the new one.
    Replaced(u32),
    /// The keeper has died, and no new one can be started yet: nothing guards the mounts. It is tried
    /// again and again.
    Unguarded(io::Error),
    /// A successor is ready: take no more events, answer nothing more, and exit at once, without
    /// [`Keeper::end`].
    Superseded,
    /// The successor that was asked for came to nothing; serve on.
    UpgradeFailed,
}

/// The keeper's process as its filler sees it.
#[derive(Debug)]
struct Link {
    socket: OwnedFd,
    /// A pidfd.
    life: OwnedFd,
    /// Of those that were started here, which are reaped here.
    child: Option<Child>,
}

impl Link {
    /// Starts a keeper. It may not be up yet at return, but from then on it guards: it has the
    /// descriptors.
    fn spawn(group: Option<&Group>, table: &Table, start: &Start) -> io::Result<Self> {
        let filler = pidfd_open(getpid(), PidfdFlags::empty())?;
        let (ours, theirs) = wire::pair()?;
        let mut inherited: Vec<RawFd> =
            [table.as_fd(), filler.as_fd(), theirs.as_fd()].map(|fd| fd.as_raw_fd()).into();
        inherited.extend(group.map(|group| group.as_fd().as_raw_fd()));
        let mut command = Command::new("/proc/self/exe");
        command.arg0(NAME).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(start.log.try_clone()?);
        command.args(inherited.iter().map(RawFd::to_string)).args(group.is_none().then_some(guard::NONE));
        command.arg(start.program.as_deref().unwrap_or(Path::new(""))).args(&start.arguments);
        // SAFETY: between fork and exec `detach` only makes async-signal-safe calls, on plain
        // integers; the descriptors stay open in this process until spawn has returned.
        unsafe { command.pre_exec(move || detach(&inherited)) };
        let child = command.spawn().map_err(|e| io::Error::new(e.kind(), format!("starting {NAME}: {e}")))?;
        let pid = rustix::process::Pid::from_child(&child);
        // Nobody reaps it before: the number is its own.
        let life = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { socket: ours, life, child: Some(child) })
    }

    fn told(self, mounts: &[Presence], deposits: &BTreeMap<String, OwnedFd>) -> io::Result<Self> {
        mounts.iter().try_for_each(|mount| self.watch(mount))?;
        deposits.iter().try_for_each(|(name, fd)| self.deposit(name, fd.as_fd()))?;
        Ok(self)
    }

    fn watch(&self, mount: &Presence) -> io::Result<()> {
        Word::Watch(mount.clone()).send(&self.socket)
    }

    fn deposit(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        wire::deposit(&self.socket, name, fd)
    }
}

/// Starts a keeper of what a filler and its keeper have left with somebody else, both being dead. It starts a
/// successor, as if this process were the filler and had died just now. Its process is reaped by a thread.
///
/// # Errors
/// The kernel's from starting a process. Then nobody guards: keep the descriptors.
pub fn revive(
    group: Option<&Group>,
    table: &Table,
    start: &Start,
    mounts: &[Presence],
    deposits: &BTreeMap<String, OwnedFd>,
) -> io::Result<()> {
    let mut link = Link::spawn(group, table, start)?.told(mounts, deposits)?;
    let child = link.child.take();
    // It hears that the socket is closed.
    drop(link);
    std::thread::spawn(move || child.map(|mut child| child.wait()));
    Ok(())
}

/// In the child, before exec: a session of its own, deaf to polite signals, with just these descriptors
/// let through. Numbers are kept: moving them could hit one that std uses to report a failed exec.
fn detach(inherited: &[RawFd]) -> io::Result<()> {
    for &fd in inherited {
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
