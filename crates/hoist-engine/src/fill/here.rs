//! Bytes that another layer of this store has are taken from there and not from the registry.
//!
//! Where they may stand is only a hint ([`crate::store::Known`]): they are read, hashed, and published as
//! what is fetched is. A copy that cannot be had is no failure; the registry has the bytes too.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hoist_format::extent::{BLOCK, Extent};
use hoist_sys::file::share_range;
use hoist_sys::shm::SharedBits;

use super::LayerFill;
use crate::store::{LayerDir, LayerState, Place};

/// A layer that another process serves is read through that process's answers: if it hangs, a reader of
/// ours shall not.
const PATIENCE: Duration = Duration::from_secs(5);
/// Layers that one job copies from, at most, are held open.
const HELD: usize = 16;
/// Bytes so near to each other are fetched in one request, though what is between them is here.
const BRIDGE: u64 = 64 << 10;

impl LayerFill {
    /// Publishes what starts in `spans` and stands elsewhere in the store; gives the runs of spans of
    /// which something is still missing.
    pub(super) async fn take_what_is_here(self: &Arc<Self>, spans: Range<usize>) -> Vec<Range<usize>> {
        let over = Arc::new(AtomicBool::new(false));
        let (this, wanted, stop) = (Arc::clone(self), spans.clone(), Arc::clone(&over));
        let taking = tokio::task::spawn_blocking(move || this.take_all(wanted, &stop));
        if tokio::time::timeout(PATIENCE, taking).await.is_err() {
            over.store(true, Ordering::Release);
            tracing::warn!(layer = %self.dir.blob(), ?spans, "copying from another layer took too long: fetching");
        }
        self.missing_runs(spans)
    }

    fn take_all(&self, spans: Range<usize>, over: &AtomicBool) {
        let known = match self.known.look() {
            Ok(known) => known,
            Err(e) => return tracing::warn!("looking for what is here: {e}"),
        };
        let mut holders = HashMap::new();
        for i in self.starting_in(spans) {
            if over.load(Ordering::Acquire) {
                return;
            }
            if self.live.get(i as u64) {
                continue;
            }
            let extent = &self.table.extents.extents[i];
            if extent.digest == crate::store::NAMELESS {
                continue;
            }
            for place in known.places(&extent.digest) {
                if place.layer == self.dir.path() && place.extent as usize == i {
                    continue;
                }
                let named = self.digests.are_recorded();
                let Some((bytes, data)) = read(&mut holders, &place, extent.len as usize, named) else {
                    continue;
                };
                // Checked there like any other bytes: a stale hint or a damaged copy publishes nothing.
                let share = || self.share(extent, &bytes, (data, place.data_offset));
                if self.publish_by(i, extent, &bytes, share).is_ok() {
                    self.known.copied(extent.len);
                    self.progress.notify_waiters();
                    break;
                }
            }
        }
    }

    /// Has an extent share its blocks with the place that its verified bytes were read from, where the file system can. Gives
    /// how many bytes now stand there, whole blocks alone: behind them nothing was verified. What the disk has there is read
    /// once more, since those bytes may have been in memory only.
    fn share(&self, extent: &Extent, bytes: &[u8], (from, at): (&File, u64)) -> usize {
        let whole = extent.len / BLOCK * BLOCK;
        if whole == 0 || !self.shares.load(Ordering::Relaxed) {
            return 0;
        }
        if let Err(e) = share_range(from, at, whole, &self.data, extent.data_offset) {
            tracing::debug!(layer = %self.dir.blob(), "copies share no blocks with what they are of: {e}");
            self.shares.store(false, Ordering::Relaxed);
            return 0;
        }
        let mut found = vec![0; whole as usize];
        let read = self.data.read_exact_at(&mut found, extent.data_offset);
        if read.is_ok() && found == bytes[..found.len()] { found.len() } else { 0 }
    }

    /// The spans of which something is missing, neighbours together.
    fn missing_runs(&self, spans: Range<usize>) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for span in spans.filter(|&s| self.needs(s)) {
            let all = &self.table.spans;
            let is_near = |run: &Range<usize>| {
                let gap = all.blob_range(span).start.saturating_sub(all.blob_range(run.end - 1).end);
                (run.end - 1..span).all(|s| all.is_followed(s)) && gap <= BRIDGE
            };
            match runs.last_mut() {
                Some(run) if is_near(run) => run.end = span + 1,
                _ => runs.push(span..span + 1),
            }
        }
        runs
    }
}

/// Another layer, as far as it can be copied from.
struct Holder {
    data: File,
    here: Here,
    /// Where the digests of its extents are recorded, if they are not in its table.
    digests: Option<File>,
}

/// Which of a layer's extents are readable.
pub(crate) enum Here {
    All,
    /// What this boot's processes share.
    Live(SharedBits),
    /// What is on disk for good.
    Durable(Vec<u8>),
}

impl Holder {
    fn open(layer: &Path, extents: u32) -> Option<Holder> {
        let dir = LayerDir::at(layer)?;
        let state = dir.state();
        if state.lied.is_some() {
            return None;
        }
        let data = File::open(dir.file("data")).ok()?;
        let digests = File::open(dir.file(crate::store::DIGESTS)).ok();
        Some(Holder { data, here: Here::of(&dir, &state, extents), digests })
    }

    fn has(&self, extent: u32) -> bool {
        self.here.has(extent)
    }
}

impl Here {
    /// What a layer of so many extents has.
    pub fn of(dir: &LayerDir, state: &LayerState, extents: u32) -> Here {
        match SharedBits::open_existing(&dir.file("live"), u64::from(extents)) {
            _ if state.complete => Here::All,
            Ok(Some(live)) => Here::Live(live),
            _ => Here::Durable(dir.load_presence(extents as usize)),
        }
    }

    /// Is this extent readable?
    pub fn has(&self, extent: u32) -> bool {
        match self {
            Here::All => true,
            Here::Live(bits) => bits.get(u64::from(extent)),
            Here::Durable(bits) => bits.get(extent as usize / 8).is_some_and(|b| b >> (extent % 8) & 1 == 1),
        }
    }
}

/// The bytes at a place, and the file that it is in. Where an extent has only a name (`named`), what that layer recorded when it verified them
/// says whether they are still the same; else whoever publishes them finds out.
fn read<'h>(
    holders: &'h mut HashMap<PathBuf, Option<Holder>>,
    place: &Place,
    len: usize,
    named: bool,
) -> Option<(Vec<u8>, &'h File)> {
    if place.extent >= place.extents {
        return None;
    }
    if holders.len() >= HELD && !holders.contains_key(&place.layer) {
        holders.clear();
    }
    let holder = holders.entry(place.layer.clone());
    let holder = holder.or_insert_with(|| Holder::open(&place.layer, place.extents)).as_ref()?;
    if !holder.has(place.extent) {
        return None;
    }
    let mut bytes = vec![0; len];
    holder.data.read_exact_at(&mut bytes, place.data_offset).ok()?;
    if named {
        let recorded = crate::store::recorded(holder.digests.as_ref()?, place.extent as usize)?;
        if *blake3::hash(&bytes).as_bytes() != recorded {
            return None;
        }
    }
    Some((bytes, &holder.data))
}
