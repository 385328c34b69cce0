//! The server's keeper: one for all mounts of a process that need one, started with the first of them and sent home
//! after the last.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hoist_sys::fanotify::Group;
use hoist_sys::fuse::Session;
use hoist_sys::keeper::{Asked, Inheritance, Keeper, Start, Table, Told, session_deposit_name};
use hoist_sys::presence::Presence;

use super::serve::Server;
use super::stored::Stored;
use crate::config::{Successor, Vault};
use crate::engine::Engine;
use crate::error::Error;
use crate::store::Store;

/// Under which name a mount's lease is deposited.
fn deposit_name(id: &str) -> String {
    format!("mount {id}")
}

/// Under which name a process's bequest is.
pub(super) const BEQUEST: &str = "bequest";

/// What the process before this one has left in memory, if anything.
pub fn bequeathed(inheritance: &Inheritance) -> Option<File> {
    inheritance.deposits().get(BEQUEST)?.try_clone().ok().map(File::from)
}

/// The ids of the mounts whose leases were deposited.
pub(super) fn deposited(inheritance: &Inheritance) -> Vec<String> {
    ids(inheritance.deposits().keys())
}

pub(super) fn ids<'n>(names: impl Iterator<Item = &'n String>) -> Vec<String> {
    names.filter_map(|name| name.strip_prefix("mount ").map(str::to_owned)).collect()
}

/// A mount, and what keeps it going.
pub(super) struct Guarded<'a> {
    pub id: &'a str,
    pub lease: BorrowedFd<'a>,
    pub by: By<'a>,
}

/// What is lost with the last process that has it.
pub(super) enum By<'a> {
    /// The server's group; so the keeper must know when the mount is gone.
    Group(&'a Presence),
    /// A FUSE session, which tells that by itself.
    Session(&'a Session),
}

/// See the module.
pub(super) struct Guard {
    store: Store,
    successor: Option<Successor>,
    vault: Option<Arc<dyn Vault>>,
    bequest: Option<Arc<File>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keeper: Option<Keeper>,
    /// What is in the vault, if anything.
    stored: Option<Stored>,
    /// The ids of those that are guarded.
    mounts: BTreeSet<String>,
}

impl Guard {
    pub fn new(engine: &Engine) -> Self {
        let (successor, vault) = (engine.config.successor.clone(), engine.config.vault.clone());
        let bequest = engine.config.bequest.clone();
        Self { store: engine.store.clone(), successor, vault, bequest, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) -> Result<Start, Error> {
        start(&self.store, self.successor.clone())
    }

    /// Guards a mount that is about to be made, or a session that is about to be served.
    pub fn add(&self, server: &Arc<Server>, mount: &Guarded<'_>) -> Result<(), Error> {
        let cannot = |e| Error::io("tell the keeper about", mount.id)(e);
        let mut state = self.lock();
        let keeper = match state.keeper.take() {
            Some(keeper) => keeper,
            None => {
                let (group, table) = server.kept();
                let keeper =
                    Keeper::spawn(group.map(Arc::clone), table.clone(), self.start()?, hears(server))
                        .map_err(Error::io("start a keeper for", mount.id))?;
                let begin =
                    |vault| Stored::begin(Arc::clone(vault), &keeper, group.map(|g| g.as_fd()), table);
                state.stored = self.vault.as_ref().map(begin).transpose().map_err(cannot)?;
                if let Some(bequest) = &self.bequest {
                    keeper.deposit(BEQUEST, bequest.as_fd()).map_err(cannot)?;
                    state.stored.iter().for_each(|stored| stored.hold(BEQUEST, bequest.as_fd()));
                }
                keeper
            }
        };
        state.mounts.insert(mount.id.to_owned());
        let State { keeper: kept, stored, .. } = &mut *state;
        let keeper = kept.insert(keeper);
        match &mount.by {
            By::Group(presence) => keeper.watch(presence),
            By::Session(session) => keeper.deposit_session(mount.id, session.fds()),
        }
        .and_then(|()| keeper.deposit(&deposit_name(mount.id), mount.lease))
        .map_err(cannot)?;
        if let Some(stored) = stored {
            stored.hold(&deposit_name(mount.id), mount.lease);
            if let By::Session(session) = &mount.by {
                let fds = session.fds().enumerate();
                fds.for_each(|(n, fd)| stored.hold(&session_deposit_name(mount.id, n), fd));
            }
        }
        Ok(())
    }

    /// More is known of a mount.
    pub fn tell(&self, mount: &Presence) -> Result<(), Error> {
        match &self.lock().keeper {
            Some(keeper) => keeper.watch(mount).map_err(Error::io("tell the keeper about", &mount.target)),
            None => Ok(()),
        }
    }

    /// A mount is gone, or never came. After the last one the keeper goes home.
    pub fn remove(&self, target: &Path, id: &str) {
        let mut state = self.lock();
        if !state.mounts.remove(id) {
            return;
        }
        if let Some(keeper) = &state.keeper {
            if let Some(stored) = &state.stored {
                let fds = keeper.session(id).map_or(0, |fds| fds.len());
                (0..fds).for_each(|n| stored.release(&session_deposit_name(id, n)));
                stored.release(&deposit_name(id));
            }
            let told = keeper
                .forget(target)
                .and_then(|()| keeper.withdraw(&deposit_name(id)))
                .and_then(|()| keeper.withdraw_session(id));
            if let Err(e) = told {
                tracing::warn!(target = %target.display(), "telling the keeper that a mount is gone: {e}");
            }
        }
        if state.mounts.is_empty()
            && let Some(keeper) = state.keeper.take()
        {
            keeper.end();
            if let Some(stored) = state.stored.take() {
                stored.end();
            }
        }
    }

    /// Becomes the guard of what another process left: waits for this one's turn.
    pub fn inherit(&self, server: &Arc<Server>, inheritance: Inheritance) -> Result<Vec<Asked>, Error> {
        let taken = inheritance.take_over(self.start()?, hears(server));
        let (keeper, orphans) = taken.map_err(Error::io("take over the mounts of", self.store.root()))?;
        let mounts = ids(keeper.deposits().iter()).into_iter().collect();
        let stored = self.vault.as_ref().and_then(|vault| Stored::of(Arc::clone(vault), &keeper));
        *self.lock() = State { keeper: Some(keeper), stored, mounts };
        Ok(orphans)
    }

    /// The ids of what is guarded.
    pub fn mounts(&self) -> Vec<String> {
        self.lock().mounts.iter().cloned().collect()
    }

    /// Copies of the descriptors of a mount's FUSE session.
    pub fn session(&self, id: &str) -> std::io::Result<Vec<OwnedFd>> {
        self.lock().keeper.as_ref().map_or(Ok(Vec::new()), |keeper| keeper.session(id))
    }

    /// A copy of the lease that was deposited for a mount.
    pub fn lease(&self, id: &str) -> std::io::Result<Option<OwnedFd>> {
        self.lock().keeper.as_ref().map_or(Ok(None), |keeper| keeper.deposited(&deposit_name(id)))
    }

    /// The keeper's process.
    pub fn keeper_pid(&self) -> Option<u32> {
        self.lock().keeper.as_ref().map(Keeper::id)
    }

    /// Asks for a successor of this process; see [`Server::superseded`].
    pub fn upgrade(&self) -> Result<(), Error> {
        let path = self.successor.as_ref().map(|successor| successor.program.clone()).unwrap_or_default();
        match &self.lock().keeper {
            Some(keeper) if self.successor.is_some() => {
                keeper.upgrade(&path).map_err(Error::io("start a successor from", &path))
            }
            _ => Ok(()),
        }
    }

    /// Lets go: where mounts are left, the keeper starts a successor for them.
    pub fn stop(&self) {
        if let Some(keeper) = self.lock().keeper.take() {
            drop(keeper);
        }
    }
}

/// How keeper and successor are started.
pub(super) fn start(store: &Store, successor: Option<Successor>) -> Result<Start, Error> {
    let log = store.new_log("keeper")?;
    Ok(match successor {
        Some(Successor { program, arguments }) => Start { program: Some(program), arguments, log },
        None => Start { program: None, arguments: Vec::new(), log },
    })
}

/// What is done about the keeper's words. It does not keep the server alive.
fn hears(server: &Arc<Server>) -> impl Fn(Told) + Send + Sync + 'static {
    let server: Weak<Server> = Arc::downgrade(server);
    move |told| match told {
        Told::Replaced(pid) => {
            tracing::warn!(pid, "the keeper had died: a new one is in its place");
            if let Some(server) = server.upgrade() {
                server.sign_leases(pid);
            }
        }
        Told::Unguarded(e) => {
            tracing::error!(
                "the keeper died, and no new one can be started: should this process die too, what is absent would be read as zeros: {e}"
            );
        }
        Told::Superseded => {
            if let Some(server) = server.upgrade() {
                server.superseded();
            }
        }
        Told::UpgradeFailed => {
            tracing::error!("the successor that was asked for did not come up; serving on")
        }
    }
}

/// Denies, in a process of its own, all reads of these files until the mount is gone for everybody.
pub(super) fn deny(
    store: &Store,
    data: &[impl AsFd],
    mount: &Presence,
    lease: (&str, BorrowedFd<'_>),
) -> Result<(), Error> {
    let cannot = || Error::io("start a keeper for the mount on", &mount.target);
    let group = Arc::new(Group::new().map_err(cannot())?);
    data.iter().try_for_each(|file| group.mark(file)).map_err(cannot())?;
    let table = Table::new().map_err(cannot())?;
    let start = start(store, None)?;
    let keeper = Keeper::spawn(Some(group), table, start, |_| {}).map_err(cannot())?;
    let told = keeper.watch(mount).and_then(|()| keeper.deposit(&deposit_name(lease.0), lease.1));
    told.map_err(cannot())
}
