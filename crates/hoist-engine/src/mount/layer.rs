//! One layer of a mount: whole and out of our hands, or filled as it is read.
//!
//! A mount needs to know of a lazy layer only where its data file is and how large. What stands where in
//! it, the *table*, is wanted at the first read and not before: it is fetched and decoded then. When it was not used
//! for a while it is forgotten, and decoded again from the store for the next read (`filling`).

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use hoist_format::digest::Digest;
use hoist_format::extent::BLOCK;
use hoist_format::span::SpanTable;
use hoist_format::table::Table;
use tokio::sync::{Mutex, OnceCell, Semaphore, watch};

use super::filling::{Filling, Kept};
use super::repeat::Failed;
use super::slow::Slowest;
use super::status::stored_lengths;
use crate::counters::Counters;
use crate::error::Error;
use crate::fill::{Anew, Doubt, FillCounts, FillError, LayerFill, Meter, Tables, Through};
use crate::ingest::Expected;
use crate::oci::Descriptor;
use crate::registry::ImageSource;
use crate::store::{Known, LayerDir, Names, Store};

/// So many bytes of windows are fetched with the table: the first reads would wait for them longer than for their data.
const FEW_WINDOWS: u64 = 256 << 10;

/// See the module.
#[derive(Clone)]
pub(crate) enum MountedLayer {
    /// Complete and verified: its data file.
    Whole(PathBuf),
    /// Being filled.
    Lazy(Arc<LazyLayer>),
}

/// The table of a layer as an index gives it: in the store, or in the registry.
pub(crate) struct TableSource {
    store: Store,
    pub dir: LayerDir,
    pub index: Digest,
    /// What the layer must turn out to be; None where only its chunks can tell.
    pub expected: Option<Expected>,
    pub table: Descriptor,
    pub windows: Option<Descriptor>,
    pub source: ImageSource,
    /// Of a conversion, whose parts no registry has.
    again: Option<Arc<dyn Anew>>,
    fetching: Mutex<()>,
}

impl TableSource {
    pub fn new(
        store: Store,
        dir: LayerDir,
        index: Digest,
        expected: Option<Expected>,
        (table, windows): (Descriptor, Option<Descriptor>),
        source: ImageSource,
        again: Option<Arc<dyn Anew>>,
    ) -> Self {
        Self { store, dir, index, expected, table, windows, source, again, fetching: Mutex::default() }
    }

    /// The table as it stands in the store, if it is what the index names.
    fn stored(&self) -> Option<Vec<u8>> {
        self.dir.table_bytes().filter(|bytes| Digest::of(bytes) == self.table.digest)
    }

    /// The stored or published table, not decoded; fetched at most once at a time.
    pub async fn bytes(&self) -> Result<Vec<u8>, Error> {
        let _alone = self.fetching.lock().await;
        // What stands here may have been damaged since: that accuses no index.
        if let Some(bytes) = self.stored() {
            return Ok(bytes);
        }
        if let Some(again) = &self.again {
            again.make(&|| self.stored().is_some()).await?;
            let why = "has lost what was just written";
            return self
                .stored()
                .ok_or_else(|| Error::Store { path: self.dir.file("table"), why: why.into() });
        }
        let fetched = self.source.blob(&self.table.digest, Some(self.table.size)).await?;
        self.dir.save("table", &fetched)?;
        Ok(fetched.into())
    }

    /// Has the published windows here before they are wanted, if they are few.
    pub async fn fetch_windows(&self) -> Result<(), Error> {
        let Some(windows) = self.windows.as_ref().filter(|w| w.size <= FEW_WINDOWS && self.again.is_none())
        else {
            return Ok(());
        };
        let path = self.dir.file("windows");
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() >= windows.size) {
            return Ok(());
        }
        let fetched = self.source.blob(&windows.digest, Some(windows.size)).await?;
        self.dir.create()?;
        let kept = self.dir.open_sparse("windows", 0)?;
        kept.write_all_at(&fetched, 0).map_err(Error::io("write", path))
    }

    /// The table, checked; `data_size` is what the index's tree says of the data file.
    async fn decode(&self, data_size: u64, tables: &Tables) -> Result<Arc<Table>, Error> {
        // Its bytes are what the index names: the index itself is no good, now and ever.
        let bad = |why: String| {
            let error = Error::image("published index", self.index, why);
            if let Err(e) = self.store.distrust(&self.index, &error.to_string()) {
                tracing::warn!("remembering that an index is bad: {e}");
            }
            error
        };
        let bytes = self.bytes().await?;
        let table =
            tables.get(&self.table.digest, || Table::decode(&bytes).map_err(|e| bad(e.to_string())))?;
        let alike = |s: &SpanTable| {
            self.expected.as_ref().is_some_and(|e| s.blob_size == e.size && s.codec == e.codec)
        };
        if table.spans.linear().is_some_and(|spans| !alike(spans)) {
            return Err(bad("its table is of another blob: index the image again".into()));
        }
        // A file that reached beyond its data file would read as nothing that was ever verified.
        if table.extents.data_size != data_size {
            return Err(bad("its tree and its tables are not of one piece: index the image again".into()));
        }
        Ok(table)
    }
}

/// A layer that is filled as it is read, by however many mounts of this process.
pub(crate) struct LazyLayer {
    table: Arc<TableSource>,
    data: File,
    data_size: u64,
    names: Names,
    /// A descriptor whose writes raise no events, where `data`'s do.
    writer: OnceLock<Arc<File>>,
    known: Arc<Known>,
    meter: Arc<Meter>,
    slots: Arc<Semaphore>,
    fill: Filling,
    /// See [`Self::stored_lengths`].
    lengths: OnceLock<Vec<u64>>,
    /// What its readers asked for, in all mounts.
    pub counts: FillCounts,
    /// The reads that waited longest.
    pub slowest: Slowest,
    /// The reads that have just failed.
    pub failed: Failed,
    /// Until our own first read of it, before any mount.
    probing: AtomicBool,
    /// A loop device lies between it and its readers.
    looped: AtomicBool,
    /// True once all of it was found here.
    complete: watch::Sender<bool>,
    /// What its check against the image found: did it pass? One check for all mounts.
    pub judged: OnceCell<bool>,
    doubt: Arc<Doubt>,
    through: Arc<Through>,
}

impl LazyLayer {
    /// Opens the data file; nothing else is read yet. To be marked before anything is mounted.
    pub fn open(
        table: Arc<TableSource>,
        data_size: u64,
        names: Names,
        known: Arc<Known>,
        meter: Arc<Meter>,
        slots: Arc<Semaphore>,
    ) -> Result<Self, Error> {
        table.dir.create()?;
        let data = table.dir.open_data(data_size.max(BLOCK))?;
        Ok(Self {
            table,
            data,
            data_size,
            names,
            writer: OnceLock::new(),
            known,
            meter,
            slots,
            fill: Filling::default(),
            lengths: OnceLock::new(),
            counts: FillCounts::default(),
            slowest: Slowest::default(),
            failed: Failed::default(),
            probing: AtomicBool::new(true),
            looped: AtomicBool::new(false),
            complete: watch::Sender::new(false),
            judged: OnceCell::new(),
            doubt: Arc::default(),
            through: Arc::default(),
        })
    }

    /// The layer's folder.
    pub fn dir(&self) -> &LayerDir {
        &self.table.dir
    }
    /// What the layer must turn out to be.
    pub fn expected(&self) -> Option<&Expected> {
        self.table.expected.as_ref()
    }
    /// The sparse data file, opened before any mark was set on it.
    pub fn data(&self) -> &File {
        &self.data
    }
    /// Bytes of the data file that anything stands in.
    pub fn data_size(&self) -> u64 {
        self.data_size
    }
    /// Of its table, as the index has it.
    pub fn table_digest(&self) -> Digest {
        self.table.table.digest
    }
    /// Does its index fit it?
    pub fn doubt(&self) -> &Doubt {
        &self.doubt
    }
    /// Was it read through?
    pub fn through(&self) -> &Through {
        &self.through
    }
    /// What its files are called.
    pub fn names(&self) -> &Names {
        &self.names
    }
    /// Does it hold no file contents at all?
    pub fn is_empty(&self) -> bool {
        self.data_size == 0
    }
    /// There is something to tell of it.
    pub fn tell(&self) {
        self.meter.activity.send_replace(());
    }
    /// What is asked of registries for it.
    pub fn stats(&self) -> Option<&crate::registry::Stats> {
        self.table.source.stats().map(|stats| &**stats)
    }
    /// What the fill path of all layers did.
    pub fn counters(&self) -> &Counters {
        &self.meter.counters
    }
    /// The fill path, if it is in memory: it is not before the first read, nor when it was put away.
    pub fn filling(&self) -> Option<Arc<LayerFill>> {
        self.fill.now()
    }
    /// Bytes that are readable, and of how many; None if this process has not read the table yet.
    pub fn present_bytes(&self) -> Option<(u64, u64)> {
        self.fill.present_bytes()
    }
    /// The lengths of its extents by the table in the store, bytes, read once; None while none is there.
    pub fn stored_lengths(&self) -> Option<&[u64]> {
        if self.lengths.get().is_none() {
            let _ = self.lengths.set(stored_lengths(self.dir())?);
        }
        self.lengths.get().map(Vec::as_slice)
    }
    /// Forgets the table, if nobody has used it since this was last called.
    pub fn put_away(&self) -> Kept {
        self.fill.put_away(|| self.table.stored().is_some())
    }

    /// The fill path; where it is not in memory, the table is read.
    pub async fn fill(&self) -> Result<Arc<LayerFill>, FillError> {
        let mut fresh = false;
        let opened = self.fill.or_open(async {
            fresh = true;
            if let Some(why) = self.dir().state().lied {
                return Err(FillError::Lied(why));
            }
            let table = self.table.decode(self.data_size, &self.meter.tables).await.map_err(|e| match e {
                Error::Registry(e) => FillError::Fetch(Arc::new(e)),
                e => FillError::Index(e.to_string()),
            })?;
            let kept = |e: Error| {
                FillError::Store(Arc::new(match e {
                    Error::Io { source, .. } => source,
                    e => std::io::Error::other(e.to_string()),
                }))
            };
            let data = match self.writer.get() {
                Some(writer) => Arc::clone(writer),
                None => Arc::new(self.data.try_clone().map_err(|e| FillError::Store(Arc::new(e)))?),
            };
            let (windows, source) =
                ((self.table.windows.clone(), self.table.again.clone()), self.table.source.clone());
            let (known, line) = (Arc::clone(&self.known), (Arc::clone(&self.meter), Arc::clone(&self.slots)));
            // Its own table is new to those who look for what is here.
            known.stale();
            let dir = self.dir().clone();
            let shared = (known, Arc::clone(&self.doubt), Arc::clone(&self.through));
            let fill = LayerFill::open(dir, table, data, windows, source, shared, line).map_err(kept)?;
            // It is to be put away some time, whether or not anything comes of it.
            self.meter.chores.notify_one();
            Ok(fill)
        });
        let fill = opened.await?;
        if fresh {
            // What another process has said since it was opened.
            self.hear();
        }
        Ok(fill)
    }

    /// Out of service, if another process has found it to lie.
    pub fn hear(&self) {
        if let Some(fill) = self.filling().filter(|fill| fill.condemned().is_none())
            && let Some(why) = self.dir().state().lied
        {
            fill.condemn(&why);
        }
    }
    /// Looks whether all of it is here.
    pub fn notice_complete(&self) {
        if !*self.complete.borrow() && self.filling().is_some_and(|fill| fill.is_complete()) {
            self.complete.send_replace(true);
        }
    }
    /// Returns once that was so. Cancel safe.
    pub async fn completed(&self) {
        // It ends with the layer only.
        let _ = self.complete.subscribe().wait_for(|complete| *complete).await;
    }
    /// Notes whether a loop device lies between it and its readers.
    pub fn read_through_loop(&self, looped: bool) {
        self.looped.store(looped, Ordering::Relaxed);
    }
    /// Does one?
    pub fn is_read_through_loop(&self) -> bool {
        self.looped.load(Ordering::Relaxed)
    }

    /// Is this event our own first read (see `Server::probe_writer`)?
    pub fn is_probed_by(&self, thread: u32) -> bool {
        self.probing.load(Ordering::Acquire) && hoist_sys::process::process_of(thread) == std::process::id()
    }
    /// No event is our own from now on.
    pub fn end_probing(&self) {
        self.probing.store(false, Ordering::Release);
    }
    /// Writes through this descriptor of the data file, as it raises no events.
    pub fn adopt_writer(&self, event: BorrowedFd<'_>) {
        if self.writer.get().is_none()
            && let Ok(fd) = event.try_clone_to_owned()
        {
            let _ = self.writer.set(Arc::new(fd.into()));
        }
    }
}
