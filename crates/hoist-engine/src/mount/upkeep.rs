//! What is done beside reading, by one task for all mounts of a process: page cache given back, what was fetched
//! made durable, complete layers noticed, the store's limit kept, condemnations by other processes heard, tables that
//! nobody uses put away, and trees that nobody reads.
//!
//! It sleeps until there is something to do. The fill path rings when something was published or read; of reads
//! of complete layers, which come past us, and of what other processes write, the kernel tells
//! (`hoist_sys::watch`). Where it cannot (too many watches), everything is looked at again and again.

mod second;
mod trees;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hoist_sys::watch::{Told, Watch, Watcher};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::filling::Kept;
use super::layer::{LazyLayer, MountedLayer};
use super::table::waitable;
use crate::config::Driver;
use crate::engine::Engine;
use crate::evict;
use crate::fill::Meter;
use second::Second;
pub(super) use trees::Tree;
use trees::Trees;

/// After something was read or published there is a turn, and another each so often until all is done.
const TURN: Duration = Duration::from_millis(250);
/// What was published is made durable so long after it was, and as often while more comes.
const SYNC_AFTER: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub(crate) struct Upkeep {
    state: Mutex<State>,
    trees: Trees,
}

#[derive(Default)]
struct State {
    /// By their address: two may have the same file, as they are served in other ways.
    lazy: HashMap<usize, Filled>,
    second: Second,
    /// The engines of the mounts, for the limit of the last of them.
    engines: Vec<Weak<Engine>>,
    running: bool,
}

/// A layer that is being filled.
struct Filled {
    layer: Weak<LazyLayer>,
    /// Of its folder.
    watch: Option<Watch>,
}

/// A mount that is looked after, as long as this lives.
pub(super) struct Attended {
    upkeep: Arc<Upkeep>,
    engine: Option<Arc<Engine>>,
    whole: Vec<Arc<File>>,
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.whole.clear();
        if let Some(meter) = self.engine.take().map(|engine| Arc::clone(&engine.meter)) {
            self.upkeep.lock().second.forget_gone();
            meter.chores.notify_one();
        }
    }
}

impl Upkeep {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tree whose bytes are asked for as long as something is mounted.
    pub fn tree(&self, path: &Path, meter: &Arc<Meter>) -> io::Result<Arc<Tree>> {
        self.trees.of(path, meter)
    }

    /// Looks after a mount's layers until the value is dropped.
    pub fn attend(self: &Arc<Self>, engine: &Engine, layers: &[MountedLayer], driver: Driver) -> Attended {
        // Reads through a loop device are not told.
        let told = driver != Driver::ErofsFuse;
        let engine = Arc::new(engine.clone());
        let mut state = self.lock();
        let mut whole = Vec::new();
        for layer in layers {
            match layer {
                MountedLayer::Whole(path) => {
                    whole.extend(File::open(path).ok().and_then(|file| state.second.add(file, told)));
                }
                MountedLayer::Lazy(layer) => {
                    layer.read_through_loop(!told);
                    let layer = Arc::downgrade(layer);
                    let known = state.lazy.get(&(layer.as_ptr() as usize));
                    if !known.is_some_and(|known| known.layer.ptr_eq(&layer)) {
                        state.lazy.insert(layer.as_ptr() as usize, Filled { layer, watch: None });
                    }
                }
            }
        }
        state.engines.push(Arc::downgrade(&engine));
        engine.meter.chores.notify_one();
        if !std::mem::replace(&mut state.running, true) {
            tokio::spawn(run(Arc::clone(self), Arc::clone(&engine.meter), engine.config.tables_for));
        }
        Attended { upkeep: Arc::clone(self), engine: Some(engine), whole }
    }

    /// What is still there of the layers that are being filled; their folders are watched. False where some cannot be.
    fn filled(&self, watcher: Option<&Watcher>) -> (Vec<Arc<LazyLayer>>, bool) {
        let mut state = self.lock();
        let (mut alive, mut fresh, mut all_watched) = (Vec::new(), Vec::new(), true);
        let mut over = BTreeSet::new();
        state.lazy.retain(|_, filled| {
            let Some(layer) = filled.layer.upgrade() else {
                over.extend(filled.watch);
                return false;
            };
            if filled.watch.is_none() {
                filled.watch = watcher.and_then(|watcher| watcher.arrivals(layer.dir().path()).ok());
                all_watched &= filled.watch.is_some();
                fresh.push(Arc::clone(&layer));
            }
            alive.push(layer);
            true
        });
        // Two layers may have had the same folder, the one before the other.
        let kept: BTreeSet<Watch> = state.lazy.values().filter_map(|filled| filled.watch).collect();
        over.difference(&kept).for_each(|watch| watcher.iter().for_each(|w| w.forget(*watch)));
        drop(state);
        // What came before it was watched.
        fresh.iter().for_each(|layer| layer.hear());
        (alive, all_watched)
    }

    fn alive(&self) -> Vec<Arc<LazyLayer>> {
        self.lock().lazy.values().filter_map(|filled| filled.layer.upgrade()).collect()
    }

    fn heard(&self, watch: Watch) -> Vec<Arc<LazyLayer>> {
        let state = self.lock();
        state.lazy.values().filter(|f| f.watch == Some(watch)).filter_map(|f| f.layer.upgrade()).collect()
    }

    /// Whose limit is to be kept: the last one's that has any.
    fn limited(&self) -> Option<Engine> {
        let mut state = self.lock();
        state.engines.retain(|engine| engine.strong_count() > 0);
        let engines = state.engines.iter().rev().filter_map(Weak::upgrade);
        engines.map(|engine| (*engine).clone()).find(|engine| engine.config.store_limit.is_some())
    }

    /// Nothing is mounted any more: true if the task may end.
    fn is_over(&self) -> bool {
        let mut state = self.lock();
        state.engines.retain(|engine| engine.strong_count() > 0);
        let over = state.engines.is_empty();
        if over {
            *state = State::default();
        }
        over
    }
}

/// What is to be done next, and when.
struct Round {
    watcher: Option<Arc<Watcher>>,
    turn: Option<Instant>,
    sync: Option<Instant>,
    look: Option<Instant>,
    limit: Option<Instant>,
    limited_at: Option<Instant>,
    /// While tables are in memory: when those go that nobody has used since the last time; and how long they may stay.
    away: Option<Instant>,
    tables_for: Duration,
}

impl Round {
    fn due(&self) -> Option<Instant> {
        [self.turn, self.look, self.limit, self.away].into_iter().flatten().min()
    }

    fn put_away_later(&mut self) {
        self.away.get_or_insert_with(|| Instant::now() + self.tables_for);
    }

    fn turn_by(&mut self, at: Instant) {
        self.turn = Some(self.turn.map_or(at, |turn| turn.min(at)));
    }
}

fn is_due(at: &mut Option<Instant>) -> bool {
    at.take_if(|at| *at <= Instant::now()).is_some()
}

async fn run(upkeep: Arc<Upkeep>, meter: Arc<Meter>, tables_for: Duration) {
    let watcher = Watcher::new().and_then(|watcher| waitable(Arc::new(watcher), Interest::READABLE));
    let watcher =
        watcher.inspect_err(|e| tracing::info!("looking at everything four times a second: {e}")).ok();
    let shared = watcher.as_ref().map(|watcher| Arc::clone(watcher.get_ref()));
    let mut round = Round {
        watcher: shared,
        turn: None,
        sync: None,
        look: None,
        limit: None,
        limited_at: None,
        away: None,
        tables_for,
    };
    loop {
        let due = round.due();
        let told = tokio::select! {
            () = meter.chores.notified() => {
                round.turn_by(Instant::now() + TURN);
                Vec::new()
            }
            told = next(watcher.as_ref()) => told,
            () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => Vec::new(),
        };
        if is_due(&mut round.limit) {
            round.limited_at = Some(Instant::now());
            if let Some(engine) = upkeep.limited() {
                tokio::spawn(async move { evict::keep_limit(&engine, BTreeSet::new()).await });
            }
        }
        let this = Arc::clone(&upkeep);
        let worked = tokio::task::spawn_blocking(move || {
            this.work(&mut round, told);
            if is_due(&mut round.away) {
                this.put_away(&mut round);
            }
            round
        });
        let Ok(same) = worked.await else { return };
        round = same;
        if round.due().is_none() && upkeep.is_over() {
            return;
        }
    }
}

impl Upkeep {
    fn work(&self, round: &mut Round, told: Vec<Told>) {
        let watcher = round.watcher.clone();
        for told in told {
            match told {
                Told::Read(watch) => {
                    self.lock().second.read(watch);
                    round.look.get_or_insert_with(Instant::now);
                }
                Told::Arrived(watch, name) if name == b"state.json" => {
                    self.heard(watch).iter().for_each(|layer| layer.hear());
                }
                Told::Arrived(..) | Told::Written(_) => {}
                Told::Lost => {
                    self.lock().second.read_all();
                    round.look.get_or_insert_with(Instant::now);
                    self.filled(None).0.iter().for_each(|layer| layer.hear());
                }
            }
        }
        if is_due(&mut round.turn) {
            self.turn(round, watcher.as_deref());
        }
        if is_due(&mut round.look) {
            round.look = second::trim(|| self.lock(), watcher.as_deref()).map(|pause| Instant::now() + pause);
        }
    }

    /// Tables that nobody has used for long go. What each took is scattered over the heap, so that it is the kernel's
    /// again only when asked for.
    fn put_away(&self, round: &mut Round) {
        let mut gone = 0;
        for layer in self.alive() {
            match layer.put_away() {
                Kept::AsItWas => {}
                Kept::InUse => round.put_away_later(),
                Kept::PutAway => gone += 1,
            }
        }
        if gone > 0 || round.away.is_none() {
            tracing::debug!(tables = gone, "put away what nobody uses");
            hoist_sys::memory::give_back();
        }
    }

    fn turn(&self, round: &mut Round, watcher: Option<&Watcher>) {
        let (layers, all_watched) = self.filled(watcher);
        let sync = is_due(&mut round.sync);
        let mut busy = false;
        for layer in &layers {
            if !all_watched {
                layer.hear();
            }
            let Some(fill) = layer.filling() else { continue };
            round.put_away_later();
            if fill.is_native() {
                self.lock().second.add_native(layer);
            } else if fill.has_chores() {
                busy = true;
                fill.trim_read(sync);
                if sync && let Err(e) = fill.sync() {
                    tracing::error!("{e}");
                }
            }
            layer.notice_complete();
        }
        if sync {
            round.limit = Some(round.limited_at.map_or_else(Instant::now, |at| at + evict::LOOK_EVERY));
        }
        if busy && !sync {
            round.sync.get_or_insert_with(|| Instant::now() + SYNC_AFTER);
        }
        if self.trees.rest() || busy || !all_watched {
            round.turn_by(Instant::now() + TURN);
        }
        if self.lock().second.has_some_awake() {
            round.look.get_or_insert_with(Instant::now);
        }
    }
}

/// What the watcher has to tell, once there is something.
async fn next(watcher: Option<&AsyncFd<Arc<Watcher>>>) -> Vec<Told> {
    let Some(watcher) = watcher else { return std::future::pending().await };
    let Ok(mut ready) = watcher.readable().await else { return std::future::pending().await };
    ready.clear_ready();
    watcher.get_ref().told().unwrap_or_else(|_| vec![Told::Lost])
}
