//! A successor's side of a takeover: it gets what its predecessor had, makes ready, and begins when it is
//! its turn.
//!
//! An event is known by a descriptor's number. So before this process opens anything, the numbers of its
//! predecessor's events are taken by placeholders, each given back when its event is answered: no new
//! event can have the number of an old one.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::launch::SOCKET;
use super::table::{Asked, Table};
use super::wire::{self, Word};
use super::{Keeper, Start, Told, session};
use crate::fanotify::Group;
use crate::presence::{Presence, Snapshot};

/// Descriptors that the process needs for itself.
const SPARE: u64 = 512;

/// What a dead or leaving filler left to this process.
#[derive(Debug)]
pub struct Inheritance {
    group: Option<Arc<Group>>,
    table: Table,
    mounts: Vec<Presence>,
    deposits: BTreeMap<String, OwnedFd>,
    socket: OwnedFd,
    keeper: OwnedFd,
    placeholders: HashMap<RawFd, OwnedFd>,
    beside: bool,
}

impl Inheritance {
    /// Takes what the keeper has for this process, of which it is the first deed.
    ///
    /// # Errors
    /// It was not started by a keeper, or one of another version; or the keeper is gone.
    pub(super) fn receive() -> io::Result<Self> {
        let by_hand = || io::Error::new(io::ErrorKind::InvalidInput, "it is started by hoist, not by hand");
        crate::limits::raise_open_files();
        // SAFETY: F_GETFD only asks whether the number is that of an open descriptor.
        let flags = unsafe { libc::fcntl(SOCKET, libc::F_GETFD) };
        // SAFETY: at the start of main nobody in this process owns it; F_SETFD sets its one flag.
        if flags < 0 || unsafe { libc::fcntl(SOCKET, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(by_hand());
        }
        // SAFETY: as above.
        let socket = unsafe { OwnedFd::from_raw_fd(SOCKET) };
        let next = || wire::receive(&socket, false)?.ok_or_else(|| io::Error::other("the keeper is gone"));
        let Word::Hello { keeper, reserve, beside } = next().map_err(|_| by_hand())? else {
            return Err(by_hand());
        };
        let placeholders = take_numbers(reserve)?;
        let Word::Table(table) = next()? else { return Err(by_hand()) };
        let table = Table::of(File::from(table))?;
        let (mut group, mut mounts, mut deposits) = (None, Vec::new(), BTreeMap::new());
        loop {
            match next()? {
                Word::Group(fd) => group = Some(Arc::new(Group::of(fd)?)),
                Word::Watch(mount) => mounts.push(mount),
                Word::Deposit(name, fd) => drop(deposits.insert(name, fd)),
                Word::All => break,
                _ => return Err(by_hand()),
            }
        }
        Ok(Self { group, table, mounts, deposits, socket, keeper, placeholders, beside })
    }

    /// The fanotify group: its marks are the predecessor's. None where that had only FUSE sessions.
    pub fn group(&self) -> Option<&Arc<Group>> {
        self.group.as_ref()
    }

    /// The table of events in work.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The mounts that are guarded.
    pub fn mounts(&self) -> &[Presence] {
        &self.mounts
    }

    /// What the predecessor deposited.
    pub fn deposits(&self) -> &BTreeMap<String, OwnedFd> {
        &self.deposits
    }

    /// Is any of it still there for anyone? Yes when in doubt.
    pub fn is_needed(&self) -> bool {
        let Ok(now) = Snapshot::take() else { return true };
        let mut sessions = self.deposits.iter().filter(|(name, _)| session::is_queue(name));
        self.mounts.iter().any(|mount| mount.is_alive(&now))
            || sessions.any(|(_, fd)| session::is_connected(fd))
    }

    /// Says that this process could begin, and waits until it may: at once where the predecessor is
    /// dead, else when it has gone. Then nobody else reads the group, and the events that were in work
    /// are this process's.
    ///
    /// Those that are *exposed* must be answered before the first event is taken.
    ///
    /// # Errors
    /// The predecessor stays, or the keeper is gone while the predecessor may still be there.
    pub fn take_over(
        mut self,
        start: Start,
        told: impl Fn(Told) + Send + Sync + 'static,
    ) -> io::Result<(Keeper, Vec<Asked>)> {
        let gone = || io::Error::other("the keeper is gone, and the process before this one may serve on");
        let waited = Word::Ready.send(&self.socket).and_then(|()| {
            // A predecessor that lives may have changed what was told before: all of it comes again.
            let (mut mounts, mut deposits) = (Vec::new(), BTreeMap::new());
            loop {
                match wire::receive(&self.socket, false)? {
                    Some(Word::Watch(mount)) => mounts.push(mount),
                    Some(Word::Deposit(name, fd)) => drop(deposits.insert(name, fd)),
                    Some(Word::Go) => {
                        (self.mounts, self.deposits) = (mounts, deposits);
                        return Ok(());
                    }
                    Some(_) => {}
                    None => return Err(gone()),
                }
            }
        });
        // A dead predecessor's successor serves, keeper or none: a new keeper is started soon.
        if self.beside {
            waited?;
        }
        let Self { group, table, mounts, deposits, socket, keeper, mut placeholders, .. } = self;
        let orphans = table.adopt(group.as_ref(), |number| placeholders.remove(&number));
        drop(placeholders);
        let keeper = Keeper::inherited(group, table, start, socket, keeper, mounts, deposits, told)?;
        Ok((keeper, orphans))
    }

    /// There is nothing left to serve: sends the keeper home.
    pub fn decline(self) {
        // It fails where the keeper is gone already.
        let _ = Word::End.send(&self.socket);
    }
}

/// Takes all numbers below `reserve` that are free.
fn take_numbers(reserve: u64) -> io::Result<HashMap<RawFd, OwnedFd>> {
    let limit = getrlimit(Resource::Nofile);
    let needed = reserve.saturating_add(SPARE);
    if limit.current.is_some_and(|current| current < needed) {
        let current = limit.maximum.map_or(needed, |most| most.min(needed));
        setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..limit })?;
    }
    let null = File::open("/dev/null")?;
    let mut taken = HashMap::new();
    loop {
        let fd = null.as_fd().try_clone_to_owned()?;
        if fd.as_raw_fd().cast_unsigned() as u64 >= reserve {
            break;
        }
        taken.insert(fd.as_raw_fd(), fd);
    }
    // The first one that was free holds the file that the others are copies of.
    let number = null.as_raw_fd();
    if (number.cast_unsigned() as u64) < reserve {
        taken.insert(number, null.into());
    }
    Ok(taken)
}
