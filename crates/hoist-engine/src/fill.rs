//! The one fill path: a wanted range of a data file -> missing extents -> one fetch each -> decode
//! -> verify -> publish.
//!
//! A *job* fetches and decodes a run of neighbouring spans in one request. Every span is claimed by
//! at most one job at a time (single flight); whoever wants bytes of a claimed span waits for that
//! job's progress and goes on the moment its own extents are published, not when the job ends. Where bytes are wrong, only
//! the span that they belong to fails; what else the job was to bring is asked for again by whoever wants it.

mod anew;
mod assemble;
mod carried;
mod chunks;
mod counts;
mod doubt;
mod files;
mod finish;
mod held;
mod here;
mod job;
mod keep;
mod plan;
mod prove;
mod sweep;
mod tables;
mod through;
mod windows;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hoist_format::codec::CodecError;
use hoist_format::table::Table;
use hoist_sys::shm::SharedBits;
use tokio::sync::{Notify, Semaphore};

use crate::error::Error;
use crate::registry::{ImageSource, RegistryError};
use crate::store::{DIGESTS, Digests, Known, LayerDir, LayerState, Parts};

pub use anew::Anew;
pub use counts::{Counts, FillCounts};
pub use doubt::Doubt;
pub(crate) use here::Here;
pub use plan::Meter;
use plan::Pace;
pub use prove::Blobs;
pub(crate) use tables::Tables;
pub use through::Through;

/// Why bytes that were wanted are not there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FillError {
    /// The registry did not give them.
    #[error("fetching from the registry failed: {0}")]
    Fetch(Arc<RegistryError>),
    /// They came, but are not what the index says, or the index does not fit the blob.
    #[error("what was fetched does not match the index: {0}")]
    Corrupt(String),
    /// They came but could not be kept.
    #[error("writing to the store failed: {0}")]
    Store(Arc<std::io::Error>),
    /// The index's own parts do not fit each other or the image.
    #[error("the index cannot be used: {0}")]
    Index(String),
    /// The layer was taken out of service.
    #[error("the layer is out of service: {0}")]
    Lied(String),
    /// Nothing came in the time allowed.
    #[error("nothing came within {0:?}")]
    Timeout(std::time::Duration),
}

impl From<CodecError> for FillError {
    fn from(e: CodecError) -> Self {
        Self::Corrupt(e.to_string())
    }
}

impl FillError {
    /// What the reader's system call shall return.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Store(e) if e.kind() == std::io::ErrorKind::StorageFull => libc::ENOSPC,
            Self::Store(e) if e.kind() == std::io::ErrorKind::QuotaExceeded => libc::EDQUOT,
            _ => libc::EIO,
        }
    }
}

#[derive(Debug, Clone, Default)]
enum SpanState {
    #[default]
    Idle,
    Claimed,
    /// The last job over it failed in this way; the next want tries again.
    Failed(u64, FillError),
}

#[derive(Default)]
struct State {
    spans: Vec<SpanState>,
    held: held::Held,
    /// Counts failures, so that a waiter tells a new one from an old one.
    failures: u64,
    pace: Pace,
    ahead: sweep::Ahead,
    /// Reads that found something missing.
    demands: u32,
    /// Bytes that readers took.
    taken: u64,
}

/// The first open of a boot: where the data file has a hole, the file system has lost what was recorded, and
/// it is fetched again. (To find what is there and wrong takes reading it: see `carried`.)
fn forget_lost(dir: &LayerDir, table: &Table, data: &File, present: &mut [u8]) {
    let mut lost = 0;
    for (i, extent) in table.extents.extents.iter().enumerate() {
        let is_lost = present[i / 8] >> (i % 8) & 1 == 1
            && !hoist_sys::file::is_allocated(data, extent.data_offset, extent.len).unwrap_or(true);
        if is_lost {
            present[i / 8] &= !(1 << (i % 8));
            lost += 1;
        }
    }
    if lost > 0 {
        tracing::warn!(layer = %dir.blob(), extents = lost, "the disk has lost what was here: fetching it again");
    }
}

/// One layer that is being filled.
pub struct LayerFill {
    dir: LayerDir,
    table: Arc<Table>,
    /// The data file, through a descriptor whose writes raise no events.
    data: Arc<File>,
    /// One bit per extent: published.
    live: SharedBits,
    keep: keep::Keep,
    digests: Digests,
    windows: windows::Windows,
    known: Arc<Known>,
    source: ImageSource,
    meter: Arc<Meter>,
    state: Mutex<State>,
    progress: Notify,
    slots: Arc<Semaphore>,
    runtime: tokio::runtime::Handle,
    dirty: AtomicBool,
    /// Ranges that readers took, whose pages here are now a second copy.
    read: Mutex<Vec<Range<u64>>>,
    /// A job ended.
    ended: Notify,
    /// Somebody has wanted something since [`LayerFill::was_used`] was last asked.
    used: AtomicBool,
    native: AtomicBool,
    /// Can what is copied share its blocks with what it is copied from? Until it is found out.
    shares: AtomicBool,
    lied: Mutex<Option<String>>,
    /// Does its index fit it?
    doubt: Arc<Doubt>,
    /// Was it read through?
    through: Arc<Through>,
    /// Bytes of all extents.
    size: u64,
}

impl LayerFill {
    /// Opens a layer's files but for the data file. `windows`: the published windows blob, None if it
    /// stands in the store; `again`: who makes that blob, where no registry has it.
    pub(crate) fn open(
        dir: LayerDir,
        table: Arc<Table>,
        data: Arc<File>,
        (windows, again): (Option<crate::oci::Descriptor>, Option<Arc<dyn Anew>>),
        source: ImageSource,
        (known, doubt, through): (Arc<Known>, Arc<Doubt>, Arc<Through>),
        (meter, slots): (Arc<Meter>, Arc<Semaphore>),
    ) -> Result<Arc<Self>, Error> {
        let n = table.extents.extents.len();
        let live =
            SharedBits::open(&dir.file("live"), n as u64).map_err(Error::io("map", dir.file("live")))?;
        let keep = keep::Keep::of(&dir, &table.spans)?;
        let digests = Digests::open(&dir, &table)?;
        let mut durable = dir.load_presence(n);
        if live.count_set() == 0 {
            forget_lost(&dir, &table, &data, &mut durable);
        }
        let carried = (!dir.is_checked()).then(|| durable.clone());
        if carried.as_ref().is_some_and(|bits| bits.iter().all(|byte| *byte == 0)) {
            dir.note_checked();
        }
        for (i, byte) in durable.iter().enumerate() {
            (0..8).filter(|b| byte >> b & 1 == 1 && i * 8 + b < n).for_each(|b| {
                live.set((i * 8 + b) as u64);
            });
        }
        let carried = carried.filter(|bits| bits.iter().any(|byte| *byte != 0));
        let durable: u64 = durable.iter().map(|b| u64::from(b.count_ones())).sum();
        let unsynced = live.count_set() > durable;
        let windows = windows::Windows::new(&dir, windows, again, source.clone());
        meter.counters.tables.fetch_add(1, Ordering::Relaxed);
        let state = State { spans: vec![SpanState::Idle; table.spans.len()], ..State::default() };
        if unsynced {
            meter.chores.notify_one();
        }
        let size = table.extents.extents.iter().map(|extent| extent.len).sum();
        let this = Arc::new(Self {
            dir,
            table,
            data,
            live,
            keep,
            digests,
            windows,
            known,
            source,
            meter,
            state: Mutex::new(state),
            progress: Notify::new(),
            slots,
            runtime: tokio::runtime::Handle::current(),
            // What an earlier process published and did not wait to sync is synced by this one.
            dirty: AtomicBool::new(unsynced),
            read: Mutex::default(),
            ended: Notify::new(),
            used: AtomicBool::new(true),
            native: AtomicBool::new(false),
            shares: AtomicBool::new(true),
            lied: Mutex::new(None),
            doubt,
            through,
            size,
        });
        if let Some(carried) = carried {
            this.check_later(carried);
        }
        Ok(this)
    }

    /// The layer's folder.
    pub fn dir(&self) -> &LayerDir {
        &self.dir
    }
    /// The layer's table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// True when every byte of `start..end` of the data file may be read.
    pub fn is_present(&self, start: u64, end: u64) -> bool {
        self.table.extents.touching(start, end).all(|i| self.live.get(i as u64))
    }
    /// Bytes of extents that are readable, and of all.
    pub fn present_bytes(&self) -> (u64, u64) {
        let all = &self.table.extents.extents;
        let here = all.iter().enumerate().filter(|(i, _)| self.live.get(*i as u64));
        (here.map(|(_, extent)| extent.len).sum(), all.iter().map(|extent| extent.len).sum())
    }
    /// True when every extent is published.
    pub fn is_complete(&self) -> bool {
        self.live.count_set() as usize == self.table.extents.extents.len()
    }

    /// Takes the layer out of service: every wait and every later fill fails.
    pub fn condemn(&self, why: &str) {
        *self.lied.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
        self.progress.notify_waiters();
    }
    /// Why the layer is out of service.
    pub fn condemned(&self) -> Option<String> {
        self.lied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns once `start..end` of the data file may be read.
    pub async fn fill(self: &Arc<Self>, start: u64, end: u64) -> Result<(), FillError> {
        self.used.store(true, Ordering::Release);
        let wanted = self.table.extents.touching(start, end);
        let before = self.lock().failures;
        let mut counted = false;
        let look = || {
            let missing: Vec<_> = wanted.clone().filter(|&i| !self.live.get(i as u64)).collect();
            let (Some(&first), Some(&last)) = (missing.first(), missing.last()) else {
                return Ok(Some(()));
            };
            if !std::mem::replace(&mut counted, true) {
                let mut state = self.lock();
                state.demands += 1;
                self.sweep_if_dense(&mut state);
            }
            self.claim_for(first, last, before).map(|()| None)
        };
        self.until(look).await
    }

    /// Looks at each publication, and once before, until that finds what is waited for.
    ///
    /// # Errors
    /// Those of looking, and that the layer is out of service.
    async fn until<T>(&self, mut look: impl FnMut() -> Result<Option<T>, FillError>) -> Result<T, FillError> {
        loop {
            let published = self.progress.notified();
            tokio::pin!(published);
            // Enabled before looking, or a publication in between would be missed.
            published.as_mut().enable();
            if let Some(why) = self.condemned() {
                return Err(FillError::Lied(why));
            }
            if let Some(found) = look()? {
                return Ok(found);
            }
            published.await;
        }
    }

    /// Sees to it that a job is under way for every span that extents `first..=last` need.
    fn claim_for(self: &Arc<Self>, first: usize, last: usize, before: u64) -> Result<(), FillError> {
        let (from, to) = (self.span_of(first), self.span_of(last));
        let mut state = self.lock();
        state.ahead.reader = to;
        for span in from..=to {
            if !self.is_to_be_fetched(&state, span, before)? {
                continue;
            }
            let end = state.pace.reach(span, to, &self.table.spans, &self.meter);
            let most = if state.ahead.all { to + 1 } else { end };
            let now = self.within(span, to + 1, most, plan::JOB_MAX);
            let started = self.start_jobs(&mut state, (span, now, job::ALL), plan::JOB_MAX);
            state.ahead.wanted = started..end;
            if started == now && now < end {
                self.go_ahead(&mut state);
            }
        }
        Ok(())
    }

    /// Does this span lack something that no job is under way for? Fails where it is held back, or has failed after the
    /// failures up to `before`.
    fn is_to_be_fetched(&self, state: &State, span: usize, before: u64) -> Result<bool, FillError> {
        if let Some(why) = state.held.why(span)
            && self.needs(span)
        {
            return Err(why);
        }
        match &state.spans[span] {
            SpanState::Failed(when, e) if *when > before => Err(e.clone()),
            SpanState::Claimed => Ok(false),
            _ => Ok(self.needs(span)),
        }
    }

    /// Where spans of so many bytes end that begin with `first`: between `least` and `most`.
    fn within(&self, first: usize, least: usize, most: usize, bytes: u64) -> usize {
        let spans = &self.table.spans;
        let mut sum = spans.stored_bytes(first..least);
        let fits = |s: &usize| {
            sum += spans.stored_bytes(*s..*s + 1);
            sum <= bytes
        };
        (least..most).take_while(fits).last().map_or(least, |s| s + 1)
    }

    /// Claims unclaimed spans from `span` up to `end` and starts jobs of at most so many bytes over them, for the extents
    /// before `until`. Gives the first that it did not claim: `end`, or one that is here or claimed already.
    fn start_jobs(
        self: &Arc<Self>,
        state: &mut State,
        (span, end, until): (usize, usize, usize),
        largest: u64,
    ) -> usize {
        let mut at = span;
        while at < end.max(span + 1) && at < state.spans.len() {
            let may_be = |at: usize| {
                !matches!(state.spans[at], SpanState::Claimed)
                    && self.needs(at)
                    && state.held.why(at).is_none()
            };
            if !may_be(at) {
                break;
            }
            let first = at;
            let mut bytes = 0;
            while at < end.max(span + 1)
                && at < state.spans.len()
                && (at == first || (self.table.spans.is_followed(at - 1) && may_be(at)))
            {
                bytes += self.table.spans.stored_bytes(at..at + 1);
                if at > first && bytes > largest {
                    break;
                }
                at += 1;
            }
            state.spans[first..at].fill(SpanState::Claimed);
            let this = Arc::clone(self);
            let job = first..at;
            // Also called by the thread that answers events, which is none of the runtime's.
            self.runtime.spawn(async move {
                let failures = this.run_job(job.clone(), until).await;
                this.release(job, &failures);
            });
        }
        at
    }

    /// The extents whose first byte `spans` decode to. An extent that reaches into the next span
    /// belongs to the span it starts in: that one's job reads on until it is whole.
    fn starting_in(&self, spans: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let table = &self.table.extents;
        let from = self.table.spans.stream_range(spans.start).start;
        let to = self.table.spans.stream_range(spans.end - 1).end;
        let start_of = |e: &hoist_format::extent::Extent| table.pieces[e.first_piece as usize].stream_offset;
        table.extents.partition_point(|e| start_of(e) < from)
            ..table.extents.partition_point(|e| start_of(e) < to)
    }

    /// Does any extent that starts in `span` miss?
    fn needs(&self, span: usize) -> bool {
        self.starting_in(span..span + 1).any(|i| !self.live.get(i as u64))
    }

    fn release(self: &Arc<Self>, job: std::ops::Range<usize>, failures: &[job::Failure]) {
        let mut state = self.lock();
        for span in job {
            state.spans[span] = SpanState::Idle;
            if !self.needs(span) {
                state.held.free(span);
            }
        }
        for job::Failure { spans, error, is_damage } in failures {
            tracing::warn!(layer = %self.dir.blob(), ?spans, "{error}");
            state.failures += 1;
            state.ahead.swept = false;
            let failed = SpanState::Failed(state.failures, error.clone());
            state.spans[spans.clone()].fill(failed);
            if let (true, FillError::Corrupt(why)) = (is_damage, error) {
                spans.clone().for_each(|span| state.held.hold(span, why.clone()));
            }
        }
        if state.pace.is_straight() {
            self.sweep_if_dense(&mut state);
        }
        self.look_whether_through(&state);
        drop(state);
        self.progress.notify_waiters();
        self.ended.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what was published so far outlive a power cut: the data first, then the map of it.
    pub fn sync(&self) -> Result<(), Error> {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        // The bits are taken before the sync: what is set later may not be on disk yet.
        let n = self.table.extents.extents.len();
        let mut bits = vec![0; n.div_ceil(8)];
        (0..n).filter(|&i| self.live.get(i as u64)).for_each(|i| bits[i / 8] |= 1 << (i % 8));
        let synced = self.data.sync_data().map_err(Error::io("sync", self.dir.file("data")));
        let synced =
            synced.and_then(|()| self.digests.sync().map_err(Error::io("sync", self.dir.file(DIGESTS))));
        let saved = synced.and_then(|()| self.is_ours()).and_then(|()| self.dir.save_presence(&bits));
        if saved.is_err() {
            self.dirty.store(true, Ordering::Release);
        }
        saved
    }

    /// What is recorded speaks of the file that has the data file's name: that must be the one we fill.
    fn is_ours(&self) -> Result<(), Error> {
        let path = self.dir.file("data");
        let ours = hoist_sys::file::identity(&*self.data).map_err(Error::io("look at", &path))?;
        let named = std::fs::metadata(&path).map(|named| (named.dev(), named.ino()));
        if named.is_ok_and(|named| named == ours) || self.condemned().is_some() {
            return Ok(());
        }
        Err(Error::Store {
            path,
            why: "was replaced while it was being filled: what is fetched is not recorded any more".into(),
        })
    }

    /// The next bytes of the kept blob from `at`; None at its end.
    pub fn kept_bytes(&self, at: u64) -> std::io::Result<Option<bytes::Bytes>> {
        self.keep.read(at)
    }

    /// Notes that a reader took a range: the mount now has its own copy in the page cache, and what
    /// follows may be wanted next.
    pub fn note_read(self: &Arc<Self>, start: u64, end: u64) {
        self.used.store(true, Ordering::Release);
        let extent = self.table.extents.touching(start, end).end;
        if extent > 0 {
            let span = self.table.spans.containing(self.table.extents.stream_range(extent - 1).start);
            let mut state = self.lock();
            state.ahead.reader = span;
            state.taken += end.min(self.table.extents.data_size).saturating_sub(start);
            self.look_whether_through(&state);
            self.sweep_if_taken(&mut state);
            if let Some(more) = state.pace.passed(span, &self.table.spans) {
                let is_next = state.ahead.wanted.end == more.start;
                let from = if is_next { state.ahead.wanted.start } else { more.start };
                state.ahead.wanted = from..more.end;
                self.sweep_if_dense(&mut state);
                self.go_ahead(&mut state);
            }
        }
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match read.last_mut() {
            Some(last) if last.end == start => last.end = end,
            Some(_) => read.push(start..end),
            None => {
                read.push(start..end);
                self.meter.chores.notify_one();
            }
        }
    }

    /// Has anybody wanted anything since this was last asked?
    pub fn was_used(&self) -> bool {
        self.used.swap(false, Ordering::AcqRel)
    }
    /// Has nobody since then?
    pub fn is_unused(&self) -> bool {
        !self.used.load(Ordering::Acquire)
    }

    /// Is there something to be made durable, or cached twice?
    pub fn has_chores(&self) -> bool {
        let read = || !self.read.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        self.dirty.load(Ordering::Acquire) || read()
    }

    /// Gives back the second copy of what was read. What was fetched ahead stays until it is read.
    /// Pages that wait to be written stay too, on their way to the disk; `forget` ends the trying, after a
    /// sync.
    pub fn trim_read(&self, forget: bool) {
        self.keep.trim();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for range in read.iter() {
            let _ = hoist_sys::file::sync_range(&self.data, range.start, range.end - range.start);
            let _ = hoist_sys::file::fadvise_dontneed(&self.data, range.start, range.end - range.start);
        }
        if forget {
            read.clear();
        }
    }
    /// Do its readers go past us?
    pub fn is_native(&self) -> bool {
        self.native.load(Ordering::Acquire)
    }

    /// Holds every extent that stands in the data file against the table. What is not what it should be is
    /// not readable from then on, and fetched again.
    ///
    /// # Errors
    /// As [`LayerFill::fill`].
    pub async fn mend(self: &Arc<Self>) -> Result<(), FillError> {
        let this = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || this.find_bad()).await;
        let bad = looked.unwrap_or_else(|e| Err(std::io::Error::other(e.to_string())));
        let bad = bad.map_err(|e| FillError::Store(Arc::new(e)))?;
        if !bad.is_empty() {
            tracing::error!(
                layer = %self.dir.blob(),
                extents = bad.len(),
                "the data file had not what was verified when it was written: fetching it again"
            );
        }
        bad.iter().for_each(|&i| self.live.clear(i as u64));
        for i in bad {
            let extent = &self.table.extents.extents[i];
            self.fill(extent.data_offset, extent.data_offset + extent.len).await?;
        }
        Ok(())
    }

    fn find_bad(&self) -> std::io::Result<Vec<usize>> {
        use std::os::unix::fs::FileExt;
        let mut bad = Vec::new();
        let mut bytes = Vec::new();
        for (i, extent) in self.table.extents.extents.iter().enumerate() {
            if !self.live.get(i as u64) {
                continue;
            }
            bytes.resize(extent.len as usize, 0);
            self.data.read_exact_at(&mut bytes, extent.data_offset)?;
            if self.digests.wanted(i, extent) != Some(*blake3::hash(&bytes).as_bytes()) {
                bad.push(i);
            }
        }
        Ok(bad)
    }

    /// The layer is complete and verified: the kept blob is not needed any more, and its readers
    /// go past us from now on.
    pub fn become_native(&self, parts: Parts) -> Result<(), Error> {
        self.data.sync_data().map_err(Error::io("sync", self.dir.file("data")))?;
        self.sync()?;
        self.is_ours()?;
        self.native.store(true, Ordering::Release);
        self.keep.empty();
        let state = self.dir.state();
        self.dir.save_state(&LayerState { complete: true, parts: Some(parts), ..state })
    }
}

impl Drop for LayerFill {
    fn drop(&mut self) {
        self.meter.counters.tables.fetch_sub(1, Ordering::Relaxed);
    }
}
