//! A mounted image: EROFS over the layers' sparse data files, filled by pre-content events.
//!
//! Order is what makes it safe: data files are opened, then marked, then mounted; at the end
//! unmounted, then unmarked. In between nobody but a verified `publish` makes a byte readable.

mod background;
mod chosen;
mod drivers;
mod files;
mod filling;
mod fuse;
mod guard;
mod journal;
mod layer;
mod lazy;
mod lost;
mod onward;
mod others;
mod prefetch;
mod repeat;
mod resume;
mod serve;
mod slow;
mod status;
mod stored;
mod table;
mod upkeep;
pub(crate) mod verify;

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use hoist_sys::fuse::Session;
use hoist_sys::mount as sys;
use hoist_sys::presence::{Presence, Snapshot};

use crate::config::Driver;
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::Counts;
use crate::image::Image;
use crate::progress::Progress;
use crate::stats::Stats;
use crate::store::mounts::{FuseRecord, Lease};
use crate::store::{MountRecord, Servers};

pub(crate) use lost::retire as retire_lost;
pub(crate) use others::all_answer;

use chosen::Chosen;
pub use drivers::{DriverState, drivers};
pub use files::Files;
pub use guard::bequeathed;
use guard::{By, Guarded};
use journal::Journal;
use layer::{LazyLayer, MountedLayer};
use serve::Server;

pub use status::{LayerStatus, Needs, Viewer};
pub use table::{MountTable, waitable};
use upkeep::{Attended, Upkeep};

/// A mount that is seen only elsewhere, or not any more, is looked for this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Just after it has changed, sooner; each time twice as late.
const LOOK_AT_FIRST: Duration = Duration::from_millis(1);

/// What will be done with a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It may be only looked at: nothing of a layer is fetched before somebody reads.
    Look,
    /// A program is about to run in it: what its first reads need is fetched beside the mounting.
    Run,
}

/// An image mounted by this process, served as long as this value lives.
pub struct Mount {
    engine: Engine,
    record: MountRecord,
    /// Held until this value is dropped: `hoist unmount` waits for it.
    lease: Arc<Lease>,
    layers: Layers,
    /// Its names, as a file.
    tree: PathBuf,
    /// Whose keeper guards it, if it needs one.
    guarded: Option<Arc<Server>>,
    /// The FUSE session that shows it, if one does.
    served: Option<Arc<fuse::Served>>,
    driver: Driver,
    /// Counts of the layers before this mount, which may share them.
    before: Counts,
    journal: Arc<Journal>,
    seconds_to_mount: f64,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    attended: Option<Attended>,
}

/// The layers of a mount, lowest first; the lazy ones are served until it is dropped.
struct Layers {
    all: Vec<MountedLayer>,
    server: Option<Arc<Server>>,
    /// Mounted, so that they must be served whatever becomes of this value.
    shown: bool,
}

impl Layers {
    fn lazy(&self) -> impl Iterator<Item = &Arc<LazyLayer>> {
        self.all.iter().filter_map(|l| match l {
            MountedLayer::Lazy(layer) => Some(layer),
            MountedLayer::Whole(_) => None,
        })
    }

    fn devices(&self) -> Vec<PathBuf> {
        let path = |l: &MountedLayer| match l {
            MountedLayer::Whole(path) => path.clone(),
            MountedLayer::Lazy(layer) => layer.dir().file("data"),
        };
        self.all.iter().map(path).collect()
    }

    /// The same as this process has them open: a path may be another file's by now.
    fn opened(&self) -> Vec<PathBuf> {
        let path = |l: &MountedLayer| match l {
            MountedLayer::Whole(path) => path.clone(),
            MountedLayer::Lazy(layer) => format!("/proc/self/fd/{}", layer.data().as_raw_fd()).into(),
        };
        self.all.iter().map(path).collect()
    }

    fn counts(&self) -> Counts {
        self.lazy().map(|l| l.counts.so_far()).fold(Counts::default(), Counts::and)
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if let (Some(server), false) = (&self.server, self.shown) {
            self.lazy().for_each(|layer| server.release(layer));
        }
    }
}

/// What is mounted and must be looked after.
struct Shown {
    record: MountRecord,
    layers: Layers,
    tree: PathBuf,
    lease: Arc<Lease>,
    driver: Driver,
    guarded: Option<Arc<Server>>,
    served: Option<Arc<fuse::Served>>,
    /// Why it is lazy, or why not.
    why: String,
}

/// The server of a process, once there is one; it ends with the last engine.
#[derive(Default)]
pub(crate) struct Serving {
    server: Mutex<Option<Arc<Server>>>,
    /// The layers of mounts that FUSE serves, by their data file: those who ask for the same share it.
    unwatched: Mutex<HashMap<(u64, u64), Weak<LazyLayer>>>,
    /// One mount is made at a time: superblocks are told apart by which is new.
    mounting: Mutex<()>,
    upkeep: Arc<Upkeep>,
}

impl Serving {
    fn server(&self, engine: &Engine) -> Result<Arc<Server>, String> {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = &*server {
            return Ok(Arc::clone(server));
        }
        let started = Server::start(engine)?;
        *server = Some(Arc::clone(&started));
        Ok(started)
    }

    fn current(&self) -> Option<Arc<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, server: &Arc<Server>) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(server));
    }

    /// The layer as other mounts of this process have it, where they do.
    fn share(&self, fresh: LazyLayer) -> Result<Arc<LazyLayer>, Error> {
        let id = hoist_sys::file::identity(fresh.data());
        let id = id.map_err(Error::io("look at", fresh.dir().file("data")))?;
        // What another wrote to a watched file would be asked for, and fetched, once more.
        if let Some(watched) = self.current().and_then(|server| server.layer_of(fresh.data())) {
            return Ok(watched);
        }
        let mut all = self.unwatched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&id).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let layer = Arc::new(fresh);
        layer.end_probing();
        all.retain(|_, layer| layer.strong_count() > 0);
        all.insert(id, Arc::downgrade(&layer));
        Ok(layer)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(server) = self.server.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            server.stop();
        }
    }
}

impl Engine {
    /// Mounts an image read-only at `target`: lazily where an index is trusted, else after a pull.
    ///
    /// # Errors
    /// When this kernel cannot do it, or the image cannot be had.
    pub async fn mount(
        &self,
        image: &Image,
        target: &Path,
        purpose: Use,
        progress: &dyn Progress,
    ) -> Result<Mount, Error> {
        let cannot = |why: String| Error::Mount { image: image.name.clone(), why };
        let group = || self.serving.server(self)?.group();
        let driver = drivers::choose(self.config.driver, self.store.root(), &group).map_err(&cannot)?;
        let chosen = self.choose(image, (purpose, driver), progress).await?;
        let Chosen { image, by_index, tree, mut layers, why, choosing } = chosen;
        let mut record = recorded((&image, by_index), target, &layers, driver)?;
        let lease = Arc::new(self.store.record_mount(&record)?);
        drop(choosing);
        let shown = self.show(driver, &tree, &layers, &mut record, &lease).await;
        let (driver, guarded, served) = shown.map_err(|why| {
            lease.end();
            cannot(why)
        })?;
        layers.shown = true;
        for data in &record.data {
            data.parent().and_then(crate::store::LayerDir::at).iter().for_each(crate::store::LayerDir::touch);
        }
        let mut mount =
            self.attend(&image, Shown { record, layers, tree, lease, driver, guarded, served, why });
        if purpose == Use::Run {
            let lazy = mount.layers.lazy().map(Arc::clone).collect();
            mount.tasks.push(tokio::spawn(prefetch::follow(lazy, Arc::clone(&self.meter))));
        }
        Ok(mount)
    }

    /// Has this process replaced by one that runs the program as it now stands on disk, without readers
    /// noticing. It ends once that one is ready; if that fails, the log says so and it serves on.
    ///
    /// # Errors
    /// When the keeper has just died: try again.
    pub fn upgrade(&self) -> Result<(), Error> {
        self.serving.current().map_or(Ok(()), |server| server.guard.upgrade())
    }

    /// Looks after something that is mounted.
    fn attend(
        &self,
        image: &Image,
        Shown { record, layers, tree, lease, driver, guarded, served, why }: Shown,
    ) -> Mount {
        let seconds_to_mount = self.started.elapsed().as_secs_f64();
        let lazy = layers.lazy().next().is_some();
        let fresh = journal::fresh(&record, driver.name(), lazy, why, seconds_to_mount);
        let journal = Arc::new(Journal::new(self, &record, &layers, fresh));
        let attended = self.serving.upkeep.attend(self, &layers.all, driver);
        let mut tasks = vec![tokio::spawn(Arc::clone(&journal).keep())];
        if let Some(index) = &image.index {
            let lazy: Vec<_> = layers.lazy().map(Arc::clone).collect();
            let (server, served) = (layers.server.clone(), served.clone());
            let pass_by = move |layer: &LazyLayer| {
                server.iter().for_each(|server| server.unmark(layer));
                served.iter().for_each(|served| served.pass_by(layer));
            };
            let (engine, of, lazily) = (self.clone(), image.clone(), Vec::clone(&lazy));
            tasks.push(tokio::spawn(verify::settle_doubts(lazily, engine, of, index.digest)));
            let (engine, image) = (self.clone(), image.clone());
            tasks.push(tokio::spawn(verify::when_whole(pass_by, lazy, engine, image, index.digest)));
        }
        tasks.push(tokio::spawn(onward::follow(layers.lazy().map(Arc::clone).collect())));
        if let Some(how) = self.config.background {
            let lazy = layers.lazy().map(Arc::clone).collect();
            tasks.push(tokio::spawn(background::complete(lazy, Arc::clone(&self.meter), how)));
        }
        Mount {
            engine: self.clone(),
            record,
            lease,
            before: layers.counts(),
            layers,
            tree,
            guarded,
            served,
            driver,
            seconds_to_mount,
            journal,
            tasks,
            attended: Some(attended),
        }
    }
}

/// What is recorded of a mount before it is made.
fn recorded(
    (image, by_index): (&Image, bool),
    target: &Path,
    layers: &Layers,
    driver: Driver,
) -> Result<MountRecord, Error> {
    let cannot = |why: String| Error::Mount { image: image.name.clone(), why };
    let presence = Presence::before(target).map_err(|e| cannot(e.to_string()))?;
    if presence.target.to_str().is_none() {
        return Err(cannot(format!("the path {} is not UTF-8", presence.target.display())));
    }
    let index = image.index.as_ref().filter(|_| by_index);
    Ok(MountRecord {
        id: format!("{:016x}", rand::random::<u64>()),
        boot: crate::store::mounts::boot()?,
        target: presence.target,
        image: crate::image::absolute_name(&image.name),
        manifest: image.digest,
        index: index.map(|index| String::from_utf8_lossy(&index.bytes).into_owned()),
        data: layers.devices(),
        // What FUSE serves fails when nobody has its session: nothing of it is ever lost to zeros.
        lazy: layers.lazy().next().is_some() && driver == Driver::Erofs,
        before: match driver {
            Driver::Erofs => presence.before,
            // Neither a FUSE file system nor EROFS on loop devices is listed: another's superblock would be taken for ours.
            Driver::ErofsFuse | Driver::Fuse => u64::MAX,
        },
        superblocks: Vec::new(),
        fuse: None,
        lost: false,
        since: Some(crate::registry::date::now()),
    })
}

/// Mounts what is recorded: guarded first, so that there is no instant in which a hole could be read.
fn show(
    (tree, layers): (&Path, &Layers),
    server: Option<&Arc<Server>>,
    record: &mut MountRecord,
    lease: &Arc<Lease>,
) -> Result<(), String> {
    let text = |e: Error| e.to_string();
    let mut presence = Presence::before(&record.target).map_err(|e| e.to_string())?;
    record.before = presence.before;
    if let Some(server) = server {
        let mount = Guarded { id: &record.id, lease: lease.as_fd(), by: By::Group(&presence) };
        server.guard.add(server, &mount).map_err(text)?;
    }
    let devices = layers.opened();
    let devices: Vec<&Path> = devices.iter().map(PathBuf::as_path).collect();
    // In this very process reads of absent data would wait for the thread that asks: mount(2) itself
    // reads metadata only, which is whole.
    let superblock = sys::erofs_numbered(tree, &devices, &record.target).map_err(|e| e.to_string())?;
    let mut known = || {
        match superblock {
            Some(number) => presence.superblocks = vec![number],
            None => presence.look(&Snapshot::take().map_err(Error::io("read", "/proc/self/mountinfo"))?),
        }
        record.superblocks.clone_from(&presence.superblocks);
        lease.record(record)?;
        match server {
            Some(server) => server.guard.tell(&presence).and_then(|()| server.serves(lease)),
            None => lease.sign(Servers { filler_pid: std::process::id(), keeper_pid: None }),
        }
    };
    known().map_err(|e| {
        let _ = sys::unmount(&record.target, true);
        e.to_string()
    })
}

impl Engine {
    /// Mounts what is recorded. Gives what shows it in the end, who guards it, and who serves it.
    async fn show(
        &self,
        driver: Driver,
        tree: &Path,
        layers: &Layers,
        record: &mut MountRecord,
        lease: &Arc<Lease>,
    ) -> Result<(Driver, Option<Arc<Server>>, Option<Arc<fuse::Served>>), String> {
        let lazy = layers.lazy().next().is_some();
        let by_files = |server: Option<&Arc<Server>>, record: &mut MountRecord| {
            let _alone = self.serving.mounting.lock().unwrap_or_else(PoisonError::into_inner);
            show((tree, layers), server, record, lease)
        };
        if driver == Driver::Erofs {
            let server = layers.server.as_ref().filter(|_| lazy);
            let shown = by_files(server, record);
            shown.inspect_err(|_| server.iter().for_each(|s| s.guard.remove(&record.target, &record.id)))?;
            return Ok((driver, server.map(Arc::clone), None));
        }
        if driver == Driver::ErofsFuse && !lazy {
            // What is whole needs no events: where files can be mounted (Linux 6.12) neither loop devices nor FUSE stand before it.
            let before = record.before;
            match by_files(None, record) {
                Ok(()) => return Ok((Driver::Erofs, None, None)),
                Err(why) => tracing::debug!("on loop devices, as EROFS takes no files here: {why}"),
            }
            record.before = before;
        }
        let server = self.serving.server(self)?;
        let shown = self.show_by_fuse(driver, tree, layers, record, lease, &server).await;
        let served = shown.inspect_err(|_| server.guard.remove(&record.target, &record.id))?;
        Ok((driver, Some(server), Some(served)))
    }

    /// Mounts what is recorded by one of the drivers of FUSE: guarded before anybody can wait for it.
    async fn show_by_fuse(
        &self,
        driver: Driver,
        tree: &Path,
        layers: &Layers,
        record: &mut MountRecord,
        lease: &Arc<Lease>,
        server: &Arc<Server>,
    ) -> Result<Arc<fuse::Served>, String> {
        let whole = layers.lazy().next().is_none();
        let (tree, layers, before) = (tree.to_owned(), layers.all.clone(), record.clone());
        let (read_timeout, owners) = (self.config.read_timeout, self.config.owners);
        let (guard, keeper_of) = (Arc::clone(lease), Arc::clone(server));
        let (upkeep, meter) = (Arc::clone(&self.serving.upkeep), Arc::clone(&self.meter));
        let serving = tokio::task::spawn_blocking(move || {
            let keep = |session: &Session, how: &FuseRecord| {
                if whole && driver == Driver::ErofsFuse {
                    // Nothing comes through it.
                    return Ok(());
                }
                let text = |e: Error| e.to_string();
                guard.record(&MountRecord { fuse: Some(how.clone()), ..before.clone() }).map_err(text)?;
                let mount = Guarded { id: &before.id, lease: guard.as_fd(), by: By::Session(session) };
                keeper_of.guard.add(&keeper_of, &mount).map_err(text)
            };
            let show = fuse::Show {
                tree: &tree,
                upkeep: &upkeep,
                meter: &meter,
                layers: &layers,
                target: &before.target,
                image: &before.image,
                read_timeout,
                owners,
                answers: keeper_of.kept().1,
                resumed: false,
            };
            match driver {
                Driver::ErofsFuse => fuse::Served::carried(&show, &keep),
                _ => fuse::Served::image(&show, &keep),
            }
        });
        let served = serving.await.map_err(|e| e.to_string())??;
        record.fuse = Some(served.record().clone());
        server.serves(lease).map_err(|e| {
            let _ = hoist_sys::fuse::unmount(&record.target, true);
            e.to_string()
        })?;
        Ok(Arc::new(served))
    }
}

impl Mount {
    /// Where it is mounted.
    pub fn target(&self) -> &Path {
        &self.record.target
    }

    /// What it cost so far.
    pub fn stats(&self) -> Stats {
        let counts = self.layers.counts() - self.before;
        Stats {
            demand_bytes: counts.demand_bytes,
            demand_stalls: counts.stalls,
            copied_bytes: self.engine.known.copied_so_far(),
            seconds_to_mount: self.seconds_to_mount,
            driver: Some(self.driver.name()),
            ..Stats::of_client(&self.engine.stats, self.engine.started.elapsed())
        }
    }

    /// Returns once it is gone for everybody, in every mount namespace.
    pub async fn wait_unmounted(&self) {
        if let Some(served) = self.served.as_ref().filter(|_| self.driver == Driver::Fuse) {
            // It ends when nobody has it any more, in whatever mount namespace.
            return served.end().await;
        }
        let table = MountTable::watch();
        let mut pause = LOOK_AT_FIRST;
        while self.is_there() {
            // Only of this mount namespace is anything told.
            match &table {
                Ok(table)
                    if sys::is_mountpoint(self.target()).unwrap_or(false)
                        && table.changed().await.is_ok() =>
                {
                    // The kernel shuts the superblock down just after it has left the table.
                    pause = LOOK_AT_FIRST;
                }
                _ => {
                    tokio::time::sleep(pause).await;
                    pause = LOOK_EVERY.min(pause * 2);
                }
            }
        }
    }

    fn is_there(&self) -> bool {
        if let Some(served) = self.served.as_ref().filter(|_| self.driver == Driver::Fuse) {
            return !served.has_ended();
        }
        // Detached while in use, EROFS still reads through the session.
        let read = self.served.as_ref().is_some_and(|served| !served.has_ended());
        read || Snapshot::take().is_ok_and(|now| self.record.presence().is_alive(&now))
    }

    /// Unmounts (if nobody has). What was fetched is good for this boot at once; it outlives a power
    /// cut as far as it was synced, which the next mount of it takes up.
    ///
    /// Where it is still there for others, in another mount namespace, it is left to a successor of this
    /// process.
    ///
    /// # Errors
    /// When it is still in use.
    pub async fn unmount(&mut self) -> Result<Stats, Error> {
        let stats = self.stats();
        let started = Instant::now();
        let patient = || started.elapsed() < Duration::from_secs(2);
        // Another may be mounted there by now.
        while self.is_there() && sys::is_mountpoint(self.target()).unwrap_or(false) {
            match hoist_sys::fuse::unmount(self.target(), false) {
                Ok(()) => break,
                // A container's last process may still be on its way out.
                Err(_) if patient() => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(e) => {
                    return Err(Error::io("unmount", self.target())(std::io::Error::other(e.to_string())));
                }
            }
        }
        while self.is_there() && patient() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.attended = None;
        if self.is_there() {
            tracing::warn!(target = %self.target().display(), "it is unmounted here, but still there for others");
            return Ok(stats);
        }
        self.layers.shown = false;
        if let Some(server) = &self.guarded {
            server.served(&self.lease);
            server.guard.remove(&self.record.target, &self.record.id);
        }
        // Who waits for the end of the lease finds all of it written.
        self.journal.end(&self.layers());
        self.lease.end();
        if self.engine.config.store_limit.is_some() {
            // One that lasted a moment was never looked at while it grew.
            crate::evict::keep_limit(&self.engine, BTreeSet::new()).await;
        }
        Ok(stats)
    }
}
