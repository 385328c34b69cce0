//! Answers the kernel's questions about absent data, and keeps the house while a mount lives.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use hoist_format::digest::Digest;
use hoist_sys::fanotify::{Answer, Group};
use hoist_sys::keeper::{Asked, Keeper, Start, Table as InWork, Told};
use hoist_sys::presence::Presence;

use super::MountedLayer;
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::{FillCounts, FillError, LayerFill};
use crate::image::Image;
use crate::ingest::Ingest;

/// The data file's cached pages are given back this often.
const TRIM_EVERY: Duration = Duration::from_millis(250);
/// What was published is made durable this often.
const SYNC_EVERY: u32 = 8;

/// The serving half of a mount.
pub struct Server {
    group: Arc<Group>,
    layers: Vec<MountedLayer>,
    by_identity: HashMap<(u64, u64), Arc<LayerFill>>,
    counts: Arc<FillCounts>,
    timeout: Duration,
    runtime: tokio::runtime::Handle,
    in_work: InWork,
    keeper: Mutex<Option<Keeper>>,
    stopping: AtomicBool,
    probing: AtomicBool,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Server {
    /// Marks the data files and starts answering. The error is for people: what is missing.
    pub fn start(
        engine: &Engine,
        layers: Vec<MountedLayer>,
        counts: Arc<FillCounts>,
        target: &Path,
    ) -> Result<Arc<Self>, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let group = Arc::new(Group::new().map_err(|e| text(&e))?);
        let mut by_identity = HashMap::new();
        let mut lazy = false;
        for layer in &layers {
            if let MountedLayer::Lazy(fill) = layer {
                lazy = true;
                group.mark(fill.data()).map_err(|e| {
                    format!("the file system of the store gives no pre-content events ({e}): ext4, xfs and btrfs do, on kernel 6.14 or newer")
                })?;
                by_identity.insert(identity(fill.data()).map_err(|e| text(&e))?, Arc::clone(fill));
            }
        }
        let in_work = InWork::new().map_err(|e| text(&e))?;
        let keeper = if lazy { Some(guard(engine, &group, &in_work, target)?) } else { None };
        let server = Arc::new(Self {
            group,
            layers,
            by_identity,
            counts,
            timeout: engine.config.read_timeout,
            runtime: tokio::runtime::Handle::current(),
            in_work,
            keeper: Mutex::new(keeper),
            stopping: AtomicBool::new(false),
            probing: AtomicBool::new(true),
            thread: Mutex::new(None),
        });
        if lazy {
            let this = Arc::clone(&server);
            let thread = thread::Builder::new().name("hoist-events".into()).spawn(move || this.answer_all());
            *server.thread.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(thread.map_err(|e| text(&e))?);
        }
        server.probe_writers();
        Ok(server)
    }

    /// A data file that was opened after another process had marked it raises events for our own
    /// writes. The descriptor that comes with an event never does: one harmless read of our own,
    /// before anything is mounted, brings it.
    fn probe_writers(&self) {
        use std::os::unix::fs::FileExt;
        self.lazy().for_each(|fill| {
            let _ = fill.data().read_at(&mut [0], 0);
        });
        self.probing.store(false, Ordering::Release);
    }

    /// The data files in the order of the image's layers.
    pub fn devices(&self) -> Vec<PathBuf> {
        let path = |l: &MountedLayer| match l {
            MountedLayer::Whole(path) => path.clone(),
            MountedLayer::Lazy(fill) => fill.dir().file("data"),
        };
        self.layers.iter().map(path).collect()
    }

    fn lazy(&self) -> impl Iterator<Item = &Arc<LayerFill>> {
        self.layers.iter().filter_map(|l| match l {
            MountedLayer::Lazy(fill) => Some(fill),
            MountedLayer::Whole(_) => None,
        })
    }

    fn answer_all(self: Arc<Self>) {
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
        let Some(fill) = asked.file().and_then(|id| self.by_identity.get(&id)).map(Arc::clone) else {
            // Not a file of ours: nothing to say against it.
            return answer(asked, Answer::Allow);
        };
        let ((start, end), pid, count) = (asked.range(), asked.pid(), asked.count());
        if pid == std::process::id()
            && self.probing.load(Ordering::Acquire)
            && let Some(descriptor) = asked.descriptor()
        {
            fill.adopt_writer(descriptor);
            return answer(asked, Answer::Allow);
        }
        if fill.condemned().is_none() && fill.is_present(start, end) {
            fill.note_read(start, end);
            return answer(asked, Answer::Allow);
        }
        self.counts.demand_stalls.fetch_add(1, Ordering::Relaxed);
        self.counts.demand_bytes.fetch_add(count, Ordering::Relaxed);
        let timeout = self.timeout;
        self.runtime.spawn(async move {
            let filled = tokio::time::timeout(timeout, fill.fill(start, end)).await;
            match filled.unwrap_or(Err(FillError::Timeout(timeout))) {
                Ok(()) => {
                    fill.note_read(start, end);
                    answer(asked, Answer::Allow);
                }
                Err(e) => {
                    answer(asked, Answer::Deny(e.errno()));
                    let layer = fill.dir().blob();
                    tracing::error!(%layer, offset = start, bytes = count, pid, "a read failed: {e}");
                }
            }
        });
    }

    /// Gives page cache back, syncs, and hears of condemnations by others.
    pub async fn keep_house(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TRIM_EVERY);
        for round in 0u32.. {
            tick.tick().await;
            let this = Arc::clone(&self);
            let work = tokio::task::spawn_blocking(move || {
                this.trim(false);
                for fill in this.lazy() {
                    if fill.condemned().is_none()
                        && let Some(why) = fill.dir().state().lied
                    {
                        fill.condemn(&why);
                    }
                }
                if round % SYNC_EVERY == SYNC_EVERY - 1 {
                    if let Err(e) = this.sync() {
                        tracing::error!("{e}");
                    }
                    this.trim(true);
                }
            });
            let _ = work.await;
        }
    }

    fn trim(&self, forget: bool) {
        for layer in &self.layers {
            match layer {
                MountedLayer::Lazy(fill) => fill.trim_cache(forget),
                MountedLayer::Whole(path) => {
                    if let Ok(file) = std::fs::File::open(path) {
                        crate::fill::trim_second_copy(&file);
                    }
                }
            }
        }
    }

    /// Once a layer's blob was fetched whole, holds the published index against the image.
    pub async fn verify_when_whole(self: Arc<Self>, engine: Engine, image: Image, index: Digest) {
        let mut left: Vec<_> = self.lazy().map(Arc::clone).collect();
        if left.is_empty() {
            return;
        }
        let mut tick = tokio::time::interval(TRIM_EVERY);
        while !left.is_empty() {
            tick.tick().await;
            let mut still = Vec::new();
            for fill in left {
                if !fill.is_complete() {
                    still.push(fill);
                    continue;
                }
                if let Err(e) = fill.keep_rest().await {
                    tracing::warn!(layer = %fill.dir().blob(), "fetching the rest to check the layer: {e}");
                    still.push(fill);
                    continue;
                }
                if let Err(e) = self.verify(&engine, &image, &index, &fill).await {
                    tracing::error!(layer = %fill.dir().blob(), "checking the layer against the image: {e}");
                }
            }
            left = still;
        }
        let judged = tokio::task::spawn_blocking(move || engine.judge_tree(&image, &index)).await;
        if let Ok(Err(e)) = judged {
            tracing::error!("checking the published tree against the layers: {e}");
        }
    }

    async fn verify(
        self: &Arc<Self>,
        engine: &Engine,
        image: &Image,
        index: &Digest,
        fill: &Arc<LayerFill>,
    ) -> Result<(), Error> {
        let expected = image.expected()?.into_iter().find(|e| e.blob == *fill.dir().blob());
        let expected =
            expected.ok_or_else(|| Error::Internal("a mounted layer is not the image's".into()))?;
        let (this, layer, wanted) = (Arc::clone(fill), fill.dir().clone(), expected.clone());
        let passed = tokio::task::spawn_blocking(move || -> Result<_, Error> {
            let ingest = Ingest::start(wanted, None)?;
            let mut at = 0;
            while let Some(bytes) = this.kept_bytes(at).map_err(Error::io("read", layer.file("blob")))? {
                at += bytes.len() as u64;
                ingest.feed(bytes);
            }
            Ok(ingest.finish())
        });
        let mut passed = passed.await.map_err(|e| Error::Internal(e.to_string()))??;
        if matches!(passed, Err(Error::Digest { .. } | Error::Layer { .. })) {
            // What was kept may have been damaged here: only the registry's own bytes accuse.
            passed =
                crate::pull::fetch_and_ingest(&expected, &image.source, None, &crate::progress::Silent).await;
        }
        if let Ok(done) = &passed {
            crate::pull::keep_tree(fill.dir(), done)?;
        }
        let table = fill.table().encode();
        let lie = Engine::verdict(&table, passed)?;
        if let Some(why) = &lie {
            fill.condemn(why);
        }
        engine.judge(index, fill.dir(), lie.as_deref())?;
        match lie {
            Some(_) => {}
            None => {
                let this = Arc::clone(fill);
                let native = tokio::task::spawn_blocking(move || this.become_native()).await;
                native.map_err(|e| Error::Internal(e.to_string()))??;
                let _ = self.group.unmark(fill.data());
                tracing::info!(layer = %fill.dir().blob(), "complete, and all of it is what the image says");
            }
        }
        Ok(())
    }

    /// Makes everything published so far durable.
    pub fn sync(&self) -> Result<(), Error> {
        self.lazy().try_for_each(|fill| fill.sync())
    }

    /// Starts writing back what is not synced yet.
    pub fn start_writeback(&self) {
        self.lazy().for_each(|fill| fill.start_writeback());
    }

    /// Stops answering; only after the unmount.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = self.group.wake();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
        if let Some(keeper) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            keeper.end();
        }
    }
}

/// Which file a descriptor is of.
fn identity(fd: &impl std::os::fd::AsFd) -> std::io::Result<(u64, u64)> {
    hoist_sys::file::identity(fd)
}

/// A guard that outlives us: without a holder of the group the kernel would let holes be read as zeros.
fn guard(engine: &Engine, group: &Arc<Group>, in_work: &InWork, target: &Path) -> Result<Keeper, String> {
    let cannot = |e: &dyn std::fmt::Display| format!("starting the keeper: {e}");
    let log = engine.store.new_log("keeper").map_err(|e| cannot(&e))?;
    let start = Start { program: None, arguments: Vec::new(), log };
    let keeper = Keeper::spawn(Arc::clone(group), in_work.clone(), start, |told| match told {
        Told::Replaced(pid) => tracing::warn!(pid, "the keeper had died; there is a new one"),
        Told::Unguarded(e) => tracing::error!("the keeper died, and no new one can be started: {e}"),
        Told::Superseded | Told::UpgradeFailed => {}
    });
    let keeper = keeper.map_err(|e| cannot(&e))?;
    let mount = Presence::before(target).map_err(|e| cannot(&e))?;
    keeper.watch(&mount).map_err(|e| cannot(&e))?;
    Ok(keeper)
}

fn answer(asked: Asked, answer: Answer) {
    if let Err(e) = asked.answer(answer) {
        tracing::debug!("answering a pre-content event: {e}");
    }
}
