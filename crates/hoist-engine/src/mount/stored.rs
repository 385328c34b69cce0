//! What a service manager holds beside filler and keeper, for the case that both are killed together.
//!
//! It has copies of all that the keeper has, each under a name that begins with the *set* it belongs to: the one of a
//! filler, its keeper and their successors. One of them is the end of a pipe whose other end only these have: so whoever
//! is started next with the whole set can tell whether any of them lives. If none does, a new keeper is started for the set,
//! and that starts a successor. Nobody has answered meanwhile, so readers have waited.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hoist_sys::fanotify::Group;
use hoist_sys::keeper::{Keeper, Table, refuse_for, revive};
use hoist_sys::presence::Snapshot;
use hoist_sys::stored;

use super::guard;
use crate::config::Vault;
use crate::engine::Engine;
use crate::error::Error;

const GROUP: &str = "group";
const TABLE: &str = "table";
const LIFE: &str = "life";
/// What the keeper's deposit of the other end is called: the set's name follows.
const LIVES: &str = "life ";
/// What is dead and cannot be given a keeper is tried again after this, and then ever later.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After this long who reads it is refused meanwhile.
const WAIT_MOST: Duration = Duration::from_secs(30);

/// The set of this process.
#[derive(Debug)]
pub(super) struct Stored {
    vault: Arc<dyn Vault>,
    set: String,
}

impl Stored {
    /// Begins a set: what a filler has before its first mount.
    pub fn begin(
        vault: Arc<dyn Vault>,
        keeper: &Keeper,
        group: Option<BorrowedFd<'_>>,
        table: &Table,
    ) -> std::io::Result<Self> {
        let this = Self { vault, set: format!("{:016x}", rand::random::<u64>()) };
        let (watched, held) = stored::life()?;
        keeper.deposit(&format!("{LIVES}{}", this.set), held.as_fd())?;
        this.hold(LIFE, watched.as_fd());
        this.hold(TABLE, table.as_fd());
        group.iter().for_each(|group| this.hold(GROUP, *group));
        Ok(this)
    }

    /// The set that a process before this one has begun, if it has.
    pub fn of(vault: Arc<dyn Vault>, keeper: &Keeper) -> Option<Self> {
        let set = keeper.deposits().iter().find_map(|name| name.strip_prefix(LIVES).map(str::to_owned))?;
        Some(Self { vault, set })
    }

    /// One more.
    pub fn hold(&self, name: &str, fd: BorrowedFd<'_>) {
        self.vault.hold(&format!("{} {name}", self.set), fd);
    }

    /// One less.
    pub fn release(&self, name: &str) {
        self.vault.release(&format!("{} {name}", self.set));
    }

    /// Nothing is mounted any more.
    pub fn end(self) {
        [LIFE, TABLE, GROUP, guard::BEQUEST].iter().for_each(|name| self.release(name));
    }
}

/// Descriptors of a set by their names in it.
type Set = BTreeMap<String, OwnedFd>;

impl Engine {
    /// Sees to what a service manager has kept of processes that are dead: whatever of it is still mounted gets a keeper and
    /// a successor. To be called once, at the start. What fails is said in the log.
    pub fn revive(&self, kept: Vec<(String, OwnedFd)>) {
        let mut sets: BTreeMap<String, Set> = BTreeMap::new();
        for (name, fd) in kept {
            if let Some((set, name)) = name.split_once(' ') {
                sets.entry(set.to_owned()).or_default().insert(name.to_owned(), fd);
            }
        }
        for (name, set) in sets {
            match set.get(LIFE).is_some_and(stored::lives) {
                // Its turn may come: until then its descriptors are safe here too.
                true => {
                    let this = self.clone();
                    std::thread::spawn(move || {
                        set.get(LIFE).iter().for_each(|life| stored::wait_for_death(life));
                        this.revive_dead(&name, set);
                    });
                }
                false => self.revive_dead(&name, set),
            }
        }
    }

    fn revive_dead(&self, name: &str, set: Set) {
        let names: Vec<String> = set.keys().map(|of| format!("{name} {of}")).collect();
        let Some(mut orphaned) = Orphaned::of(name, set) else { return self.let_go(&names) };
        match self.revive_set(&mut orphaned) {
            Ok(true) => {}
            Ok(false) => self.let_go(&names),
            Err(e) => {
                tracing::error!(
                    "nobody serves mounts whose processes are dead, and who reads them waits: {e}"
                );
                let this = self.clone();
                std::thread::spawn(move || this.revive_patiently(orphaned, &names));
            }
        }
    }

    /// Tries again and again. Nobody is left waiting for longer than a while.
    fn revive_patiently(&self, mut orphaned: Orphaned, names: &[String]) {
        let since = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match since.elapsed() < WAIT_MOST {
                true => std::thread::sleep(pause),
                false => orphaned.refuse_for(pause),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            match self.revive_set(&mut orphaned) {
                Ok(true) => return,
                Ok(false) => return self.let_go(names),
                Err(e) => tracing::error!(
                    "nobody serves mounts whose processes are dead, and after {WAIT_MOST:?} their reads fail: {e}"
                ),
            }
        }
    }

    /// Nothing of a set is of use any more.
    fn let_go(&self, names: &[String]) {
        names.iter().for_each(|name| self.config.vault.iter().for_each(|vault| vault.release(name)));
        // Whom nobody serves now must not read what is absent.
        if let Err(e) = super::lost::retire(&self.store) {
            tracing::error!("taking lost mounts out of service: {e}");
        }
    }

    /// False where nothing of it is of use any more.
    fn revive_set(&self, set: &mut Orphaned) -> Result<bool, Error> {
        let ids = guard::ids(set.deposits.keys());
        let records = self.store.mounts()?.into_iter().filter(|record| ids.contains(&record.id));
        let now = Snapshot::take().map_err(Error::io("read", "/proc/self/mountinfo"))?;
        let there: Vec<_> = records.filter(|record| record.presence().is_alive(&now)).collect();
        if there.is_empty() {
            return Ok(false);
        }
        let cannot = || Error::io("guard the mounts of", self.store.root());
        set.live().map_err(cannot())?;
        let presences: Vec<_> = there.iter().filter(|r| r.fuse.is_none()).map(|r| r.presence()).collect();
        let start = guard::start(&self.store, self.config.successor.clone())?;
        revive(set.group.as_deref(), &set.table, &start, &presences, &set.deposits).map_err(cannot())?;
        for record in there {
            tracing::warn!(
                target = %record.target.display(),
                "the process that served this mount and its keeper were killed together; others go on with what the \
                 service manager has kept of it"
            );
        }
        Ok(true)
    }
}

/// A set whose processes are dead.
struct Orphaned {
    name: String,
    life: OwnedFd,
    table: Table,
    group: Option<Arc<Group>>,
    /// What its keeper had.
    deposits: Set,
}

impl Orphaned {
    /// None where it lacks what nobody can go on without.
    fn of(name: &str, mut set: Set) -> Option<Self> {
        let (life, table, group) = (set.remove(LIFE)?, set.remove(TABLE)?, set.remove(GROUP));
        let table = Table::of(table.into());
        let group = group.map(Group::of).transpose();
        let told = |e| tracing::error!("what the service manager has kept is of no use: {e}");
        let (table, group) = (table.map_err(told).ok()?, group.map_err(told).ok()?);
        Some(Self { name: name.to_owned(), life, table, group: group.map(Arc::new), deposits: set })
    }

    /// Has it live again, by whoever has its deposits.
    fn live(&mut self) -> std::io::Result<()> {
        let held = stored::live_again(&self.life)?;
        self.deposits.insert(format!("{LIVES}{}", self.name), held);
        Ok(())
    }

    fn refuse_for(&self, time: Duration) {
        refuse_for(time, self.group.as_ref(), &self.table, &self.deposits);
    }
}
