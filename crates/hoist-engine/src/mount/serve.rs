//! Answers the kernel's questions about absent data: one fanotify group and one thread for all mounts of
//! a process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hoist_sys::fanotify::{Answer, Group};
use hoist_sys::file::identity;
use hoist_sys::keeper::{Asked, Keeper, Start, Table as InWork, Told};
use hoist_sys::presence::Presence;

use super::layer::LazyLayer;
use crate::error::Error;
use crate::fill::FillError;
use crate::store::Store;

/// The serving half of all mounts.
pub(crate) struct Server {
    group: Arc<Group>,
    layers: Mutex<HashMap<(u64, u64), Served>>,
    timeout: Duration,
    runtime: tokio::runtime::Handle,
    in_work: InWork,
    guarded: Mutex<Guarded>,
    stopping: AtomicBool,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

/// The keeper, while there is a lazy mount.
#[derive(Default)]
struct Guarded {
    keeper: Option<Keeper>,
    mounts: usize,
}

/// A layer and how many mounts show it.
struct Served {
    layer: Arc<LazyLayer>,
    mounts: usize,
}

impl Server {
    /// Starts answering; no file is marked yet. The error is for people: what is missing.
    pub fn start(timeout: Duration) -> Result<Arc<Self>, String> {
        let text = |e: std::io::Error| e.to_string();
        let server = Arc::new(Self {
            group: Arc::new(Group::new().map_err(text)?),
            layers: Mutex::default(),
            timeout,
            runtime: tokio::runtime::Handle::current(),
            in_work: InWork::new().map_err(text)?,
            guarded: Mutex::default(),
            stopping: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let this = Arc::clone(&server);
        let thread = thread::Builder::new().name("hoist-events".into()).spawn(move || this.answer_all());
        *server.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread.map_err(text)?);
        Ok(server)
    }

    fn layers(&self) -> MutexGuard<'_, HashMap<(u64, u64), Served>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a layer's data file, for one more mount. Returns the layer as other mounts of this
    /// process have it, where they do. Only then may it be mounted.
    pub fn add(&self, fresh: LazyLayer) -> Result<Arc<LazyLayer>, Error> {
        let path = || fresh.dir().file("data");
        let id = identity(fresh.data()).map_err(Error::io("look at", path()))?;
        let layer = {
            let mut layers = self.layers();
            if let Some(served) = layers.get_mut(&id) {
                served.mounts += 1;
                return Ok(Arc::clone(&served.layer));
            }
            self.group.mark(fresh.data()).map_err(|e| Error::Store {
                path: path(),
                why: format!(
                    "is on a file system without pre-content events ({e}): ext4, xfs and btrfs have them, on kernel 6.14 or newer"
                ),
            })?;
            let layer = Arc::new(fresh);
            layers.insert(id, Served { layer: Arc::clone(&layer), mounts: 1 });
            layer
        };
        self.probe_writer(&layer);
        Ok(layer)
    }

    /// A data file that was opened after another process had marked it raises events for our own
    /// writes. The descriptor that comes with an event never does: one harmless read of our own,
    /// before anything is mounted, brings it.
    fn probe_writer(&self, layer: &LazyLayer) {
        use std::os::unix::fs::FileExt;
        let _ = layer.data().read_at(&mut [0], 0);
        layer.end_probing();
    }

    /// One mount less shows this layer; only after the unmount.
    pub fn release(&self, layer: &LazyLayer) {
        let Ok(id) = identity(layer.data()) else { return };
        let mut layers = self.layers();
        if let Some(served) = layers.get_mut(&id) {
            served.mounts -= 1;
            if served.mounts == 0 {
                let _ = self.group.unmark(layer.data());
                layers.remove(&id);
            }
        }
    }

    /// The layer is complete and verified: its readers go past us from now on.
    pub fn unmark(&self, layer: &LazyLayer) {
        let _ = self.group.unmark(layer.data());
    }

    /// Has the keeper guard what is about to be mounted on `target`, until `unguard`: without a holder of
    /// the group the kernel would let holes be read as zeros.
    pub fn guard(&self, store: &Store, target: &Path) -> Result<(), String> {
        let cannot = |e: &dyn std::fmt::Display| format!("starting the keeper: {e}");
        let mut guarded = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        let keeper = match guarded.keeper.take() {
            Some(keeper) => keeper,
            None => {
                let log = store.new_log("keeper").map_err(|e| cannot(&e))?;
                let start = Start { program: None, arguments: Vec::new(), log };
                Keeper::spawn(Arc::clone(&self.group), self.in_work.clone(), start, heard)
                    .map_err(|e| cannot(&e))?
            }
        };
        let watched = Presence::before(target).and_then(|mount| keeper.watch(&mount));
        guarded.keeper = Some(keeper);
        watched.map_err(|e| cannot(&e))?;
        guarded.mounts += 1;
        Ok(())
    }

    /// One guarded mount is gone. The keeper goes with the last one.
    pub fn unguard(&self, target: &Path) {
        let mut guarded = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        guarded.mounts = guarded.mounts.saturating_sub(1);
        match guarded.keeper.take() {
            Some(keeper) if guarded.mounts == 0 => keeper.end(),
            Some(keeper) => {
                if let Err(e) = keeper.forget(target) {
                    tracing::warn!(target = %target.display(), "telling the keeper of an unmount: {e}");
                }
                guarded.keeper = Some(keeper);
            }
            None => {}
        }
    }

    fn answer_all(self: Arc<Self>) {
        let _alive = DiesWithUs;
        while !self.stopping.load(Ordering::Acquire) {
            let taken =
                self.group.wait().and_then(|()| self.in_work.take(&self.group, |asked| self.take(asked)));
            if let Err(e) = taken {
                tracing::error!("reading pre-content events: {e}");
                // To spin here would help nobody.
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Answers at once what is present, hands the rest to the fill path.
    fn take(self: &Arc<Self>, asked: Asked) {
        let layer = asked.file().and_then(|id| Some(Arc::clone(&self.layers().get(&id)?.layer)));
        let Some(layer) = layer else {
            // Not a file of ours, or not any more: nothing to say against it.
            return answer(asked, Answer::Allow);
        };
        let (start, end) = asked.range();
        if layer.is_probed_by(asked.pid())
            && let Some(descriptor) = asked.descriptor()
        {
            layer.adopt_writer(descriptor);
            return answer(asked, Answer::Allow);
        }
        if let Some(fill) = layer.filling()
            && fill.condemned().is_none()
            && fill.is_present(start, end)
        {
            fill.note_read(start, end);
            return answer(asked, Answer::Allow);
        }
        self.runtime.spawn(self.clone().fill(layer, asked));
    }

    async fn fill(self: Arc<Self>, layer: Arc<LazyLayer>, asked: Asked) {
        let ((start, end), pid, bytes) = (asked.range(), asked.pid(), asked.count());
        let timeout = self.timeout;
        let since = Instant::now();
        let filling = async {
            let fill = layer.fill().await?;
            // It may have been here all along, under a table that nobody had read yet.
            if fill.condemned().is_some() || !fill.is_present(start, end) {
                layer.counts.stalled(bytes);
            }
            fill.fill(start, end).await?;
            fill.note_read(start, end);
            Ok(())
        };
        match tokio::time::timeout(timeout, filling).await.unwrap_or(Err(FillError::Timeout(timeout))) {
            Ok(()) => {
                answer(asked, Answer::Allow);
                let waited = since.elapsed();
                tracing::debug!(layer = %layer.dir().blob(), offset = start, bytes, pid, ?waited, "a read waited");
            }
            Err(e) => {
                answer(asked, Answer::Deny(e.errno()));
                tracing::error!(layer = %layer.dir().blob(), offset = start, bytes, pid, "a read failed: {e}");
            }
        }
    }

    /// Stops answering; only once nothing is mounted.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = self.group.wake();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
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

fn answer(asked: Asked, answer: Answer) {
    if let Err(e) = asked.answer(answer) {
        tracing::debug!("answering a pre-content event: {e}");
    }
}

fn heard(told: Told) {
    match told {
        Told::Replaced(pid) => tracing::warn!(pid, "the keeper had died; there is a new one"),
        Told::Unguarded(e) => tracing::error!("the keeper died, and no new one can be started: {e}"),
        Told::Superseded | Told::UpgradeFailed => {}
    }
}
