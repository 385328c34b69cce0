//! Answers the kernel's questions about absent data: one fanotify group and one thread for all mounts of
//! a process. And all that those have in common that FUSE serves: the keeper, and who signs the leases.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use hoist_sys::fanotify::{Answer, Group};
use hoist_sys::file::identity;
use hoist_sys::keeper::{Asked, FileId, Inheritance, Table as InWork};

use super::guard::Guard;
use super::layer::LazyLayer;
use super::others;
use super::slow::Watch;
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::FillError;
use crate::store::mounts::Lease;
use crate::store::{Servers, Store};

/// The serving half of all mounts.
pub(crate) struct Server {
    /// None where this process may not have one: it serves FUSE sessions alone. And why.
    group: Result<Arc<Group>, String>,
    in_work: InWork,
    files: Mutex<Files>,
    leases: Mutex<Vec<Arc<Lease>>>,
    store: Store,
    timeout: Duration,
    runtime: tokio::runtime::Handle,
    pub(super) guard: Guard,
    /// It has the group of a process before it.
    resumed: bool,
    stopping: AtomicBool,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Default)]
struct Files {
    lazy: HashMap<FileId, Served>,
    /// Files that are none of ours any more, or never were to be filled.
    free: HashSet<FileId>,
}

/// Why a layer is not watched.
pub(crate) enum NotWatched {
    /// There is no way to, here.
    Cannot(Error),
    /// Another process that is asked about it too does not answer.
    Unanswered(Error),
}

impl From<NotWatched> for Error {
    fn from(why: NotWatched) -> Self {
        match why {
            NotWatched::Cannot(error) | NotWatched::Unanswered(error) => error,
        }
    }
}

/// A layer and how many mounts show it.
struct Served {
    layer: Arc<LazyLayer>,
    mounts: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Starts answering; no file is marked yet. The error is for people.
    pub fn start(engine: &Engine) -> Result<Arc<Self>, String> {
        let text = |e: std::io::Error| e.to_string();
        hoist_sys::limits::raise_open_files();
        let group = Group::new().map(Arc::new).map_err(text);
        let server = Self::new(engine, group, InWork::new().map_err(text)?, false);
        server.run().map_err(text)?;
        Ok(server)
    }

    /// Its group, or why there is none.
    pub fn group(&self) -> Result<Arc<Group>, String> {
        self.group.clone()
    }

    fn new(engine: &Engine, group: Result<Arc<Group>, String>, in_work: InWork, resumed: bool) -> Arc<Self> {
        Arc::new(Self {
            group,
            in_work,
            files: Mutex::default(),
            leases: Mutex::default(),
            store: engine.store.clone(),
            timeout: engine.config.read_timeout,
            runtime: tokio::runtime::Handle::current(),
            guard: Guard::new(engine),
            resumed,
            stopping: AtomicBool::new(false),
            thread: Mutex::new(None),
        })
    }

    /// One that goes on with what another process left. It answers nothing before [`Server::take_over`].
    pub fn resume(engine: &Engine, inheritance: &Inheritance) -> Arc<Self> {
        let none = || "the process before this one had none".to_owned();
        let group = inheritance.group().map(Arc::clone).ok_or_else(none);
        Self::new(engine, group, inheritance.table().clone(), true)
    }

    /// Waits for this process's turn, then answers, the oldest questions first. All layers have been
    /// added by then. Blocks.
    pub fn take_over(self: &Arc<Self>, inheritance: Inheritance) -> Result<(), Error> {
        let orphans = self.guard.inherit(self, inheritance)?;
        let (exposed, orphans): (Vec<_>, Vec<_>) = orphans.into_iter().partition(Asked::is_exposed);
        // Their numbers could be given to new events: they cannot wait.
        exposed.into_iter().for_each(|asked| self.answer_at_once(asked));
        self.run().map_err(Error::io("start answering for", "the mounts"))?;
        let layers: Vec<_> = lock(&self.files).lazy.values().map(|s| Arc::clone(&s.layer)).collect();
        let mut answered = true;
        for layer in &layers {
            // A later event brings the descriptor too; and who hangs here shall not hang all others.
            answered = answered && self.probe_writer(layer).inspect_err(|e| tracing::error!("{e}")).is_ok();
            layer.end_probing();
        }
        orphans.into_iter().for_each(|asked| self.take(asked));
        Ok(())
    }

    fn run(self: &Arc<Self>) -> std::io::Result<()> {
        let Ok(group) = self.group.clone() else { return Ok(()) };
        let this = Arc::clone(self);
        let thread =
            thread::Builder::new().name("hoist-events".into()).spawn(move || this.answer_all(&group))?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// The layer whose data file this is, if it is watched.
    pub fn layer_of(&self, data: &std::fs::File) -> Option<Arc<LazyLayer>> {
        let id = identity(data).ok()?;
        lock(&self.files).lazy.get(&id).map(|served| Arc::clone(&served.layer))
    }

    /// Watches a layer's data file, for one more mount. Returns the layer as other mounts of this
    /// process have it, where they do. Only then may it be mounted.
    ///
    /// # Errors
    /// See [`NotWatched`].
    pub fn add(&self, fresh: LazyLayer) -> Result<Arc<LazyLayer>, NotWatched> {
        let path = || fresh.dir().file("data");
        let id = identity(fresh.data()).map_err(Error::io("look at", path())).map_err(NotWatched::Cannot)?;
        let layer = {
            let mut files = lock(&self.files);
            if let Some(served) = files.lazy.get_mut(&id) {
                served.mounts += 1;
                return Ok(Arc::clone(&served.layer));
            }
            let group = self
                .group
                .as_ref()
                .map_err(|why| Error::Store { path: path(), why: format!("cannot be watched: {why}") })
                .map_err(NotWatched::Cannot)?;
            group.mark(fresh.data()).map_err(|e| NotWatched::Cannot(Error::Store {
                path: path(),
                why: format!(
                    "is on a file system without pre-content events ({e}): ext4, xfs and btrfs have them, on kernel 6.14 or newer"
                ),
            }))?;
            let layer = Arc::new(fresh);
            files.free.remove(&id);
            files.lazy.insert(id, Served { layer: Arc::clone(&layer), mounts: 1 });
            layer
        };
        // A resumed server does not answer yet: it probes when it does.
        if lock(&self.thread).is_some()
            && let Err(e) = self.probe_writer(&layer)
        {
            self.release(&layer);
            return Err(NotWatched::Unanswered(e));
        }
        Ok(layer)
    }

    /// A data file that was opened after another process had marked it raises events for our own writes. The
    /// descriptor that comes with an event never does: one harmless read of our own, before anything is mounted
    /// by this process, brings it.
    fn probe_writer(&self, layer: &LazyLayer) -> Result<(), Error> {
        let file = (layer.data(), &*layer.dir().file("data"));
        let answered = others::all_answer(&self.store, file, layer.data_size(), self.timeout);
        layer.end_probing();
        answered
    }

    /// A data file of a mount that was taken over, of which nothing is absent.
    pub fn add_whole(&self, data: &std::fs::File) {
        if let Ok(id) = identity(data) {
            lock(&self.files).free.insert(id);
            // The process before this one may have died just before.
            self.unmark_file(data);
        }
    }

    /// One mount less shows this layer; only after the unmount.
    pub fn release(&self, layer: &LazyLayer) {
        let Ok(id) = identity(layer.data()) else { return };
        let mut files = lock(&self.files);
        if let Some(served) = files.lazy.get_mut(&id) {
            served.mounts -= 1;
            if served.mounts == 0 {
                self.unmark_file(layer.data());
                files.lazy.remove(&id);
                if self.resumed {
                    files.free.insert(id);
                }
            }
        }
    }

    /// The layer is complete and verified: its readers go past us from now on.
    pub fn unmark(&self, layer: &LazyLayer) {
        self.unmark_file(layer.data());
    }

    fn unmark_file(&self, data: &std::fs::File) {
        if let Ok(group) = &self.group {
            // It fails where there is no mark.
            let _ = group.unmark(data);
        }
    }

    /// This process serves the mount of this lease.
    pub fn serves(&self, lease: &Arc<Lease>) -> Result<(), Error> {
        lock(&self.leases).push(Arc::clone(lease));
        lease.sign(Servers { filler_pid: std::process::id(), keeper_pid: self.guard.keeper_pid() })
    }

    /// It does not any more.
    pub fn served(&self, lease: &Arc<Lease>) {
        lock(&self.leases).retain(|l| !Arc::ptr_eq(l, lease));
    }

    /// There is a new keeper.
    pub(super) fn sign_leases(&self, keeper: u32) {
        let servers = Servers { filler_pid: std::process::id(), keeper_pid: Some(keeper) };
        for lease in lock(&self.leases).iter() {
            if let Err(e) = lease.sign(servers) {
                tracing::warn!("noting the new keeper: {e}");
            }
        }
    }

    /// Makes room for a successor that is ready: what is still in work is answered by that one.
    pub(super) fn superseded(&self) {
        self.stop_answering();
        tracing::info!("a successor is ready: going");
        std::process::exit(0);
    }

    /// What the group and the table of events in work are.
    pub(super) fn kept(&self) -> (Option<&Arc<Group>>, &InWork) {
        (self.group.as_ref().ok(), &self.in_work)
    }

    fn answer_all(self: Arc<Self>, group: &Arc<Group>) {
        let _alive = DiesWithUs;
        // Every read of a marked file waits for this thread, be its bytes here or not. Without that it is only slower.
        let _ = hoist_sys::thread::go_before();
        while !self.stopping.load(Ordering::Acquire) {
            let taken = group.wait().and_then(|()| self.in_work.take(group, |a| self.take(a)));
            if let Err(e) = taken {
                tracing::error!("reading pre-content events: {e}");
                // To spin here would help nobody.
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Answers at once what is present, hands the rest to the fill path.
    fn take(self: &Arc<Self>, asked: Asked) {
        let Some(file) = asked.file() else {
            self.runtime.spawn(Arc::clone(self).fill_anywhere(asked));
            return;
        };
        let Some(layer) = self.layer(&file) else { return self.answer_stranger(asked, &file) };
        if let Some(descriptor) = asked.descriptor() {
            if layer.is_probed_by(asked.thread()) {
                layer.adopt_writer(descriptor);
                return answer(asked, Answer::Allow);
            }
            if self.resumed {
                // This process opened the data file when it was marked already.
                layer.adopt_writer(descriptor);
            }
        }
        if asked.range().0 >= others::behind(layer.data_size()) {
            // Another process asks whether we answer at all.
            return answer(asked, Answer::Allow);
        }
        layer.counts.asked();
        if is_here(&layer, &asked) {
            return answer(asked, Answer::Allow);
        }
        self.runtime.spawn(Arc::clone(self).fill(layer, asked));
    }

    fn layer(&self, file: &FileId) -> Option<Arc<LazyLayer>> {
        lock(&self.files).lazy.get(file).map(|served| Arc::clone(&served.layer))
    }

    /// Not a file of ours, or not any more: nothing to say against it. But the group of another process
    /// may have files that this one could not open.
    fn answer_stranger(&self, asked: Asked, file: &FileId) {
        if !self.resumed || lock(&self.files).free.contains(file) {
            return answer(asked, Answer::Allow);
        }
        tracing::error!(thread = asked.thread(), "a read failed: its layer could not be taken over");
        answer(asked, Answer::Deny(libc::EIO));
    }

    fn answer_at_once(&self, asked: Asked) {
        let layer = asked.file().and_then(|file| self.layer(&file));
        let here = layer.is_some_and(|layer| is_here(&layer, &asked));
        if !here {
            tracing::error!(thread = asked.thread(), "a read failed: its question could not be taken over");
        }
        answer(asked, if here { Answer::Allow } else { Answer::Deny(libc::EIO) });
    }

    async fn fill(self: Arc<Self>, layer: Arc<LazyLayer>, asked: Asked) {
        let ((start, end), thread) = (asked.range(), asked.thread());
        let wait = layer.failed.wait((start, end), Some(thread), self.timeout);
        if wait.repeats && wait.left.is_zero() {
            tracing::debug!(layer = %layer.dir().blob(), offset = start, thread, "a read that has failed is repeated");
            return answer(asked, Answer::Deny(libc::EIO));
        }
        let watch = Watch::begin(&layer, start, asked.count(), thread);
        let filled = self.fill_range(&layer, start, end, Some(wait.left)).await;
        if filled.is_err() {
            layer.failed.note((start, end), Some(thread), wait);
        }
        answer(asked, filled.as_ref().map_or_else(|e| Answer::Deny(e.errno()), |()| Answer::Allow));
        watch.end(&layer, filled.as_ref().copied());
    }

    /// `counted`: it is a read that has so much time; else it has all of it, and is none of the layer's.
    async fn fill_range(
        &self,
        layer: &LazyLayer,
        start: u64,
        end: u64,
        counted: Option<Duration>,
    ) -> Result<(), FillError> {
        let filling = async {
            let fill = layer.fill().await?;
            // It may have been here all along, under a table that nobody had read yet.
            if counted.is_some() && (fill.condemned().is_some() || !fill.is_present(start, end)) {
                layer.counts.stalled(end - start);
            }
            fill.fill(start, end).await?;
            fill.note_read(start, end);
            Ok(())
        };
        let filled = tokio::time::timeout(counted.unwrap_or(self.timeout), filling).await;
        filled.unwrap_or(Err(FillError::Timeout(self.timeout)))
    }

    /// The process before this one died after it was asked and before it knew of which file: whichever
    /// it was, the range is there afterwards.
    async fn fill_anywhere(self: Arc<Self>, asked: Asked) {
        let layers: Vec<_> = lock(&self.files).lazy.values().map(|s| Arc::clone(&s.layer)).collect();
        let (start, end) = asked.range();
        let all = layers.iter().map(|layer| self.fill_range(layer, start, end, None));
        match futures_util::future::try_join_all(all).await {
            Ok(_) => answer(asked, Answer::Allow),
            Err(e) => {
                tracing::error!(offset = start, thread = asked.thread(), "a read failed: {e}");
                answer(asked, Answer::Deny(e.errno()));
            }
        }
    }

    fn stop_answering(&self) {
        self.stopping.store(true, Ordering::Release);
        if let Ok(group) = &self.group {
            let _ = group.wake();
        }
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    /// Stops answering. If anything is still mounted, a successor goes on.
    pub fn stop(&self) {
        self.stop_answering();
        self.guard.stop();
    }
}

fn is_here(layer: &LazyLayer, asked: &Asked) -> bool {
    let (start, end) = asked.range();
    let here = layer.filling().filter(|fill| fill.condemned().is_none() && fill.is_present(start, end));
    if let Some(fill) = &here {
        fill.note_read(start, end);
    }
    here.is_some()
}

fn answer(asked: Asked, answer: Answer) {
    // It fails where nobody waits any more, or was answered by the process before this one.
    if let Err(e) = asked.answer(answer) {
        tracing::debug!("answering a pre-content event: {e}");
    }
}

/// A process whose event thread has panicked would hold the group and answer nobody: better that it ends,
/// as the keeper then sees.
struct DiesWithUs;

impl Drop for DiesWithUs {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}
