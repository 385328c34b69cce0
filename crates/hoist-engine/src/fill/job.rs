//! One job: fetch the blob range of some spans, decode as it arrives, verify, write, publish.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use hoist_format::codec::SpanDecoder;
use hoist_format::digest::Digest;
use hoist_format::extent::Extent;
use hoist_format::span::Spans;
use tokio::sync::mpsc;

use super::assemble::Assembler;
use super::{FillError, LayerFill};
use crate::registry::RegistryError;

/// Stands in a job's bytes where all has come that was asked for; nothing else there is empty.
const ALL_OF_IT: Bytes = Bytes::new();

/// Past all extents of a layer.
pub(super) const ALL: usize = usize::MAX;
/// To leave the rest of a span away that nobody wants must spare so many of its blob bytes: who comes to want it has to
/// ask once more.
const WORTH_SPARING: u64 = 128 << 10;

/// What of a job could not be had.
pub(super) struct Failure {
    pub spans: Range<usize>,
    pub error: FillError,
    /// Their bytes came, twice, and were wrong.
    pub is_damage: bool,
}

impl LayerFill {
    /// Publishes every extent that starts in `spans`, but none from `until` on that can be left away: from this store
    /// what it has, the rest from the registry. Gives what failed.
    pub(super) async fn run_job(self: &Arc<Self>, spans: Range<usize>, until: usize) -> Vec<Failure> {
        let runs = self.take_what_is_here(spans).await;
        let fetching = runs.into_iter().map(|run| self.fetch_run(run, until));
        let fetched = futures_util::future::join_all(fetching).await;
        fetched.into_iter().filter_map(Result::err).collect()
    }

    /// Fetches and publishes these extents.
    async fn fetch_run(self: &Arc<Self>, spans: Range<usize>, until: usize) -> Result<(), Failure> {
        let asked = Instant::now();
        let bytes = self.table.spans.stored_bytes(spans.clone());
        let _under_way = self.meter.begin(bytes);
        let _slot = self.slots.acquire().await;
        let queued = asked.elapsed();
        let attempted = self.attempt_patiently(spans.clone(), until).await;
        let took = asked.elapsed();
        tracing::debug!(layer = %self.dir.blob(), ?spans, bytes, ?queued, ?took, "a job ended");
        attempted
    }

    /// A digest that does not match is tried once more, as another connection may serve better bytes, and then as long as
    /// there is a mirror that was not asked yet. What is wrong still is the first of the spans of which something is
    /// missing: what comes after it in a stream was perhaps never reached.
    async fn attempt_patiently(
        self: &Arc<Self>,
        mut spans: Range<usize>,
        until: usize,
    ) -> Result<(), Failure> {
        let mut was_wrong = None;
        loop {
            let why = match self.attempt(spans.clone(), until).await {
                Ok(()) => return Ok(()),
                Err(FillError::Corrupt(why)) => why,
                Err(error) => return Err(Failure { spans, error, is_damage: false }),
            };
            let Some(wrong) = spans.clone().find(|&span| self.needs(span)) else { return Ok(()) };
            let is_another = self.source.lied(self.table.spans.blob(wrong, self.dir.blob()));
            if was_wrong == Some(wrong) && !is_another {
                self.doubt.raise();
                let (spans, error) = (wrong..wrong + 1, FillError::Corrupt(why));
                return Err(Failure { spans, error, is_damage: true });
            }
            tracing::warn!(layer = %self.dir.blob(), span = wrong, "fetching again: {why}");
            was_wrong = Some(wrong);
            spans.start = wrong;
        }
    }

    async fn attempt(self: &Arc<Self>, spans: Range<usize>, until: usize) -> Result<(), FillError> {
        match &self.table.spans {
            Spans::Linear(_) => self.attempt_linear(spans, until).await,
            Spans::Chunks(_) => self.attempt_chunks(spans).await,
        }
    }

    async fn attempt_linear(self: &Arc<Self>, spans: Range<usize>, until: usize) -> Result<(), FillError> {
        let mut extents = self.starting_in(spans.clone());
        let spared = self.spared_from(spans.end - 1, until);
        if spared.is_some() {
            extents.end = extents.end.min(until);
        }
        if extents.is_empty() {
            return Ok(());
        }
        let last = self.table.extents.stream_range(extents.end - 1);
        let own_end = self.table.spans.stream_range(spans.end - 1).end;
        let stream_end = if spared.is_some() { last.end } else { own_end.max(last.end) };
        let mut blob = self.table.spans.blob_range(spans.start);
        blob.end = self.table.spans.blob_range(spans.end - 1).end;
        let tail_end = self.estimate_tail(spans.end, own_end, stream_end);
        let whole_end = self.table.spans.blob_range(self.table.spans.containing(stream_end - 1)).end;

        // Windows and data are asked for side by side: one round trip.
        let (bytes, fed) = mpsc::channel::<Bytes>(64);
        let (more, mut wanted) = mpsc::channel::<()>(1);
        let window = self.windows.get(&self.table.spans, spans.start);
        let this = Arc::clone(self);
        let claimed = spans.clone();
        let fetching = async move {
            // Any tail beyond the job's own spans is a guess; more is asked for until it is enough.
            let mut at = blob.start;
            let mut end = spared.unwrap_or(blob.end.max(tail_end));
            loop {
                let fetched = this.fetch(this.dir.blob(), at..end, &bytes).await;
                at = fetched.map_err(|e| FillError::Fetch(Arc::new(e)))?;
                let came = |s: &usize| this.table.spans.blob_range(*s).end <= at;
                claimed.clone().filter(came).for_each(|s| this.keep.note(s));
                if at < end || at >= whole_end {
                    return Ok(());
                }
                end = whole_end.min(end + (256 << 10));
                // Only the decoder knows whether that was enough, once it has decoded all of it.
                if bytes.send(ALL_OF_IT).await.is_err() || wanted.recv().await.is_none() {
                    return Ok(());
                }
            }
        };
        let decoding = async {
            let window = window.await?;
            let this = Arc::clone(self);
            let decode = move || this.decode(spans.start, stream_end, window, (fed, more));
            let task = tokio::task::spawn_blocking(decode);
            task.await.unwrap_or_else(|_| Err(FillError::Corrupt("the decoder panicked".into())))
        };
        let (fetched, decoded) = tokio::join!(fetching, decoding);
        // Where fetching failed, that is the cause and the decoder's complaint the consequence.
        fetched.and(decoded)
    }

    /// Blob bytes of spans whose extents are all here, yet not by this boot's fetching: copied from another
    /// layer, or fetched before a restart.
    pub fn never_kept(&self) -> u64 {
        let spans = 0..self.table.spans.len();
        let not_kept = spans.filter(|&s| !self.keep.has(s) && !self.starting_in(s..s + 1).is_empty());
        not_kept.map(|s| self.table.spans.blob_range(s)).map(|blob| blob.end - blob.start).sum()
    }

    /// Fetches the parts of the blob that no extent needed, as the check of the whole layer does.
    pub async fn keep_rest(&self) -> Result<(), FillError> {
        let spans = self.table.spans.len();
        let (to, mut nowhere) = mpsc::channel::<Bytes>(64);
        let drain = async { while nowhere.recv().await.is_some() {} };
        let work = async move {
            for span in (0..spans).filter(|&s| !self.keep.has(s)) {
                let blob = self.table.spans.blob(span, self.dir.blob());
                let range = self.table.spans.blob_range(span);
                let reached = self.fetch(blob, range.clone(), &to).await;
                if reached.map_err(|e| FillError::Fetch(Arc::new(e)))? == range.end {
                    self.keep.note(span);
                }
            }
            Ok(())
        };
        tokio::join!(work, drain).0
    }

    /// Where in the blob the extents before `until` probably end, if that spares much of this span.
    fn spared_from(&self, span: usize, until: usize) -> Option<u64> {
        let extents = self.starting_in(span..span + 1);
        let last = until.checked_sub(1).filter(|last| extents.contains(last) && until < extents.end)?;
        let stream = self.table.spans.stream_range(span);
        let blob = self.table.spans.blob_range(span);
        let end = self.estimate_tail(span, stream.start, self.table.extents.stream_range(last).end);
        // To have asked for too little costs a round trip.
        let end = end + (end - blob.start) / 4;
        (end + WORTH_SPARING <= blob.end).then_some(end)
    }

    /// Where in the blob the extent that reaches beyond a job's own spans probably ends.
    fn estimate_tail(&self, next: usize, own_end: u64, stream_end: u64) -> u64 {
        if stream_end <= own_end || next >= self.table.spans.len() {
            return 0;
        }
        let (stream, blob) = (self.table.spans.stream_range(next), self.table.spans.blob_range(next));
        let (stream_len, blob_len) = (stream.end - stream.start, blob.end - blob.start);
        let share = u128::from(stream_end - own_end) * u128::from(blob_len) / u128::from(stream_len.max(1));
        blob.end.min(blob.start + share as u64 * 5 / 4 + (32 << 10))
    }

    /// Streams a blob range to the decoder and keeps a copy. Gives where in the blob it came to: not the range's end where
    /// the decoder wants no more.
    pub(super) async fn fetch(
        &self,
        digest: &Digest,
        range: Range<u64>,
        to: &mpsc::Sender<Bytes>,
    ) -> Result<u64, RegistryError> {
        let started = Instant::now();
        let mut skip = 0;
        let mut stream = match self.source.blob_range(digest, range.clone()).await {
            Err(e) if e.is_ranges_ignored() => {
                // Slow but right: from the start, without the part before.
                skip = range.start;
                self.source.blob_range(digest, 0..range.end).await?
            }
            other => other?,
        };
        let first_byte = started.elapsed();
        let mut at = range.start;
        while let Some(mut bytes) = stream.next().await? {
            let cut = skip.min(bytes.len() as u64);
            skip -= cut;
            let bytes = bytes.split_off(cut as usize);
            if bytes.is_empty() {
                continue;
            }
            // Only a convenience for the check of the whole layer: a failure here loses nothing.
            self.keep.write(&bytes, at);
            at += bytes.len() as u64;
            if to.send(bytes).await.is_err() {
                return Ok(at);
            }
        }
        self.meter.observe(first_byte, range.end - range.start, started.elapsed() - first_byte);
        Ok(at)
    }

    /// Runs on a blocking thread until the stream has reached `stream_end` or input ends. Asks for more where that has
    /// come to [`ALL_OF_IT`].
    fn decode(
        &self,
        span: usize,
        stream_end: u64,
        window: Option<Bytes>,
        (mut input, more): (mpsc::Receiver<Bytes>, mpsc::Sender<()>),
    ) -> Result<(), FillError> {
        let corrupt = |e: &dyn std::fmt::Display| FillError::Corrupt(e.to_string());
        let Some(spans) = self.table.spans.linear() else {
            return Err(FillError::Index("its chunks are no stream".into()));
        };
        let mut decoder = SpanDecoder::new(spans, span, window.as_deref()).map_err(|e| corrupt(&e))?;
        let mut assembler = Assembler::new(&self.table.extents, spans.stream_range(span).start);
        let mut wrong = None;
        while let Some(bytes) = input.blocking_recv() {
            if bytes == ALL_OF_IT {
                // Who has gone away sends nothing more either.
                let _ = more.blocking_send(());
                continue;
            }
            let mut published = false;
            let fed = decoder.feed(&bytes, &mut |decoded: &[u8]| {
                let skip = |i: usize| self.live.get(i as u64);
                assembler.feed(decoded, &skip, &mut |i, extent, bytes| match self.publish(i, extent, bytes) {
                    // The damage may be in this extent alone.
                    Err(e @ FillError::Corrupt(_)) => {
                        wrong.get_or_insert(e);
                        Ok(())
                    }
                    outcome => {
                        published = true;
                        outcome
                    }
                })
            });
            if published {
                self.progress.notify_waiters();
            }
            fed?;
            if decoder.position() >= stream_end {
                return wrong.map_or(Ok(()), Err);
            }
        }
        Err(FillError::Corrupt(format!(
            "the blob's bytes decode to {} of {stream_end} bytes only",
            decoder.position()
        )))
    }

    /// Verifies, writes, and only then makes readable.
    pub(super) fn publish(&self, i: usize, extent: &Extent, bytes: &[u8]) -> Result<(), FillError> {
        self.publish_by(i, extent, bytes, || 0)
    }

    /// The same; `share` has put so many of the bytes there already, in another way than by writing them.
    pub(super) fn publish_by(
        &self,
        i: usize,
        extent: &Extent,
        bytes: &[u8],
        share: impl FnOnce() -> usize,
    ) -> Result<(), FillError> {
        let digest = *blake3::hash(bytes).as_bytes();
        let _turn = self.digests.turn(i).map_err(|e| FillError::Store(Arc::new(e)))?;
        let noted = self.digests.is_right(i, extent, digest).map_err(|e| FillError::Store(Arc::new(e)))?;
        if !noted {
            self.meter.counters.digest_failures.fetch_add(1, Ordering::Relaxed);
            return Err(FillError::Corrupt(format!(
                "extent {i} (data bytes {} + {}) has another digest",
                extent.data_offset, extent.len
            )));
        }
        if let Some(why) = self.condemned() {
            return Err(FillError::Lied(why));
        }
        let shared = share();
        let rest = self.data.write_all_at(&bytes[shared..], extent.data_offset + shared as u64);
        rest.map_err(|e| FillError::Store(Arc::new(e)))?;
        self.live.set(i as u64);
        self.meter.counters.published(extent.len);
        if !self.dirty.swap(true, Ordering::AcqRel) {
            self.meter.chores.notify_one();
        }
        Ok(())
    }
}
