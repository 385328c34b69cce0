//! The filler's side: it tells the keeper what to guard, hears what the keeper says, and starts a new one
//! when it dies.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::table::Table;
use super::wire::{self, Word};
use super::{Link, Start, Told, session};
use crate::fanotify::Group;
use crate::presence::Presence;

/// How soon it is tried again to start a keeper.
const AGAIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A running keeper, as the filler sees it.
///
/// Dropped without [`Keeper::end`], it takes the filler for dead.
pub struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    group: Option<Arc<Group>>,
    table: Table,
    start: Start,
    state: Mutex<State>,
    /// Readable once the thread is to end.
    stop: OwnedFd,
    told: Box<dyn Fn(Told) + Send + Sync>,
}

struct State {
    link: Link,
    mounts: Vec<Presence>,
    deposits: BTreeMap<String, OwnedFd>,
}

impl Keeper {
    /// Starts a keeper of `group`, or where there is none, of what will be deposited. What happens to it is told from a thread of its own.
    ///
    /// # Errors
    /// The kernel's from starting a process or a thread.
    pub fn spawn(
        group: Option<Arc<Group>>,
        table: Table,
        start: Start,
        told: impl Fn(Told) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let link = Link::spawn(group.as_deref(), &table, &start)?;
        let state = State { link, mounts: Vec::new(), deposits: BTreeMap::new() };
        Self::run(group, table, start, state, told)
    }

    #[expect(clippy::too_many_arguments, reason = "what is inherited is many things")]
    pub(super) fn inherited(
        group: Option<Arc<Group>>,
        table: Table,
        start: Start,
        socket: OwnedFd,
        life: OwnedFd,
        mounts: Vec<Presence>,
        deposits: BTreeMap<String, OwnedFd>,
        told: impl Fn(Told) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let link = Link { socket, life, child: None };
        Self::run(group, table, start, State { link, mounts, deposits }, told)
    }

    fn run(
        group: Option<Arc<Group>>,
        table: Table,
        start: Start,
        state: State,
        told: impl Fn(Told) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let told = Box::new(told);
        let shared = Arc::new(Shared { group, table, start, state: Mutex::new(state), stop, told });
        let this = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("hoist-keeper".into()).spawn(move || this.watch())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Process id of the keeper.
    pub fn id(&self) -> u32 {
        let state = self.shared.lock();
        match &state.link.child {
            Some(child) => child.id(),
            None => pid_of(&state.link.life).unwrap_or(0),
        }
    }

    /// Guards this mount too: to be called before it is made, and again when more is known of it.
    ///
    /// # Errors
    /// A path that is too long. A dead keeper is none: the next one is told.
    pub fn watch(&self, mount: &Presence) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.mounts.retain(|m| m.target != mount.target);
        state.mounts.push(mount.clone());
        unless_gone(state.link.watch(mount))
    }

    /// This mount is gone.
    ///
    /// # Errors
    /// As for [`Keeper::watch`].
    pub fn forget(&self, target: &Path) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.mounts.retain(|m| m.target != target);
        unless_gone(Word::Forget(target.to_owned()).send(&state.link.socket))
    }

    /// Keeps a copy of the descriptor for every successor, under this name.
    ///
    /// # Errors
    /// A name of more than 255 bytes; too many open files.
    pub fn deposit(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut state = self.shared.lock();
        unless_gone(state.link.deposit(name, fd))?;
        state.deposits.insert(name.to_owned(), fd.try_clone_to_owned()?);
        Ok(())
    }

    /// Keeps a FUSE session, all of it, for every successor under this name; a successor has it from
    /// [`Keeper::session`]. While nobody serves, the keeper fails what it is asked.
    ///
    /// # Errors
    /// As for [`Keeper::deposit`].
    pub fn deposit_session<'f>(
        &self,
        name: &str,
        fds: impl Iterator<Item = BorrowedFd<'f>>,
    ) -> io::Result<()> {
        let mut fds = fds.enumerate();
        fds.try_for_each(|(number, fd)| self.deposit(&session::deposit_name(name, number), fd))
    }

    /// Copies of a session's descriptors, the first first; none where there is none of this name.
    ///
    /// # Errors
    /// Too many open files.
    pub fn session(&self, name: &str) -> io::Result<Vec<OwnedFd>> {
        let state = self.shared.lock();
        let fds = (0..).map_while(|number| state.deposits.get(&session::deposit_name(name, number)));
        fds.map(OwnedFd::try_clone).collect()
    }

    /// Takes a session back: it ends with the last copy elsewhere.
    ///
    /// # Errors
    /// As for [`Keeper::watch`].
    pub fn withdraw_session(&self, name: &str) -> io::Result<()> {
        let fds = self.session(name)?.len();
        (0..fds).try_for_each(|number| self.withdraw(&session::deposit_name(name, number)))
    }

    /// The names of all deposits but sessions.
    pub fn deposits(&self) -> Vec<String> {
        let state = self.shared.lock();
        state.deposits.keys().filter(|name| !session::is_part(name)).cloned().collect()
    }

    /// A copy of what was deposited under this name, by this process or one before it.
    ///
    /// # Errors
    /// Too many open files.
    pub fn deposited(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        self.shared.lock().deposits.get(name).map(OwnedFd::try_clone).transpose()
    }

    /// Takes a deposit back.
    ///
    /// # Errors
    /// As for [`Keeper::watch`].
    pub fn withdraw(&self, name: &str) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.deposits.remove(name);
        unless_gone(Word::Withdraw(name.to_owned()).send(&state.link.socket))
    }

    /// Has the program of this path started as a successor. It is told whether it came to anything:
    /// [`Told::Superseded`] or [`Told::UpgradeFailed`].
    ///
    /// # Errors
    /// The keeper has just died: try again.
    pub fn upgrade(&self, program: &Path) -> io::Result<()> {
        Word::Upgrade(program.to_owned()).send(&self.shared.lock().link.socket)
    }

    /// Sends the keeper home and waits for it to be gone. Only after the unmount: once the group is
    /// closed nothing stands between a reader and the holes.
    pub fn end(mut self) {
        self.stop_watching();
        let mut state = self.shared.lock();
        // It fails only where the keeper is gone already, and then there is nothing to wait for either.
        let _ = Word::End.send(&state.link.socket);
        let _ = retry(|| poll(&mut [PollFd::new(&state.link.life, PollFlags::IN)], None));
        if let Some(child) = &mut state.link.child {
            let _ = child.wait();
        }
    }

    fn stop_watching(&mut self) {
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop_watching();
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's life.
    fn watch(&self) {
        loop {
            let (life, socket) = {
                let state = self.lock();
                let Ok(copies) =
                    state.link.life.try_clone().and_then(|l| Ok((l, state.link.socket.try_clone()?)))
                else {
                    // Too many open files, for the moment.
                    drop(state);
                    if self.stopped_within(AGAIN) {
                        return;
                    }
                    continue;
                };
                copies
            };
            let mut polled = [&life, &socket, &self.stop].map(|fd| PollFd::new(fd, PollFlags::IN));
            if retry(|| poll(&mut polled, None)).is_err() && self.stopped_within(AGAIN) {
                return;
            }
            let [gone, spoke, stop] = [0, 1, 2].map(|i: usize| !polled[i].revents().is_empty());
            if stop {
                return;
            }
            let silent = spoke && self.hear(&socket);
            if (gone || silent) && !self.replace() {
                return;
            }
        }
    }

    /// True when the keeper will say no more.
    fn hear(&self, socket: &OwnedFd) -> bool {
        match wire::receive(socket, true) {
            Ok(Some(Word::Superseded)) => (self.told)(Told::Superseded),
            Ok(Some(Word::Failed)) => (self.told)(Told::UpgradeFailed),
            Ok(None) => return true,
            _ => {}
        }
        false
    }

    /// Starts a new keeper in the place of the dead one. False when asked to stop meanwhile.
    fn replace(&self) -> bool {
        loop {
            let started = {
                let mut state = self.lock();
                Link::spawn(self.group.as_deref(), &self.table, &self.start).and_then(|link| {
                    let link = link.told(&state.mounts, &state.deposits)?;
                    let pid = link.child.as_ref().map_or(0, std::process::Child::id);
                    let mut before = std::mem::replace(&mut state.link, link);
                    if let Some(child) = &mut before.child {
                        let _ = child.wait();
                    }
                    Ok(pid)
                })
            };
            match started {
                Ok(pid) => {
                    (self.told)(Told::Replaced(pid));
                    return true;
                }
                Err(e) => (self.told)(Told::Unguarded(e)),
            }
            if self.stopped_within(AGAIN) {
                return false;
            }
        }
    }

    fn stopped_within(&self, time: Timespec) -> bool {
        matches!(poll(&mut [PollFd::new(&self.stop, PollFlags::IN)], Some(&time)), Ok(1..))
    }
}

/// A keeper that is gone is replaced, and the next one is told everything.
fn unless_gone(sent: io::Result<()>) -> io::Result<()> {
    match sent {
        Err(e) if [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&e.kind()) => Ok(()),
        other => other,
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}

fn pid_of(life: &OwnedFd) -> Option<u32> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", life.as_raw_fd())).ok()?;
    about.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}
