//! A job over chunks, each decoded alone: one request for those that stand next to each other.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hoist_format::chunk::ChunkTable;
use hoist_format::codec::decode_chunk;
use tokio::sync::mpsc;

use super::assemble::Assembler;
use super::{FillError, LayerFill};

impl LayerFill {
    /// Fetches and publishes every extent that starts in `chunks`.
    pub(super) async fn attempt_chunks(self: &Arc<Self>, chunks: Range<usize>) -> Result<(), FillError> {
        let extents = self.starting_in(chunks.clone());
        if extents.is_empty() {
            return Ok(());
        }
        // The last extent may need bytes of chunks that follow.
        let end = self.table.extents.stream_range(extents.end - 1).end;
        let last = self.table.spans.containing(end - 1);
        let from = self.table.spans.containing(self.table.extents.stream_range(extents.start).start);
        let runs = self.runs(from..last + 1);
        let mut states = Vec::new();
        for chunk in from..=last {
            states.push(self.windows.get(&self.table.spans, chunk).await?);
        }
        let (to, fed) = mpsc::channel::<Bytes>(64);
        let asked = runs.clone();
        let fetching = async {
            for run in asked {
                let blob = self.table.spans.blob(run.start, self.dir.blob());
                let range = self.blob_range_of(&run);
                let reached = self.fetch(blob, range.clone(), &to).await;
                if reached.map_err(|e| FillError::Fetch(Arc::new(e)))? < range.end {
                    break;
                }
            }
            drop(to);
            Ok(())
        };
        let this = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || this.decode_chunks(&runs, &states, fed));
        let decoding =
            async { task.await.unwrap_or_else(|_| Err(FillError::Corrupt("the decoder panicked".into()))) };
        let (fetched, decoded) = tokio::join!(fetching, decoding);
        // Where fetching failed, that is the cause and the decoder's complaint the consequence.
        fetched.and(decoded)
    }

    /// Chunks that stand next to each other, together.
    fn runs(&self, chunks: Range<usize>) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for chunk in chunks {
            match runs.last_mut() {
                Some(run) if self.table.spans.is_followed(chunk - 1) => run.end = chunk + 1,
                _ => runs.push(chunk..chunk + 1),
            }
        }
        runs
    }

    fn blob_range_of(&self, run: &Range<usize>) -> Range<u64> {
        self.table.spans.blob_range(run.start).start..self.table.spans.blob_range(run.end - 1).end
    }

    /// Runs on a blocking thread until all chunks of the runs are decoded or input ends.
    fn decode_chunks(
        &self,
        runs: &[Range<usize>],
        states: &[Option<Bytes>],
        mut input: mpsc::Receiver<Bytes>,
    ) -> Result<(), FillError> {
        let (Some(table), Some(first)) = (self.table.spans.chunks(), runs.first()) else { return Ok(()) };
        let mut assembler = Assembler::new(&self.table.extents, table.stream_range(first.start).start);
        let mut failed = None;
        for run in runs {
            let whole = self.blob_range_of(run);
            let mut held = BytesMut::new();
            // Where in the blob what is held starts.
            let mut at = whole.start;
            for chunk in run.clone() {
                let range = table.stored_range(chunk);
                // The chunk before, and what stands between.
                let passed = range.start - at;
                at = range.start;
                while (held.len() as u64) < passed + (range.end - range.start) {
                    let came = input.blocking_recv();
                    let came = came.ok_or_else(|| FillError::Corrupt(format!("chunk {chunk} came short")))?;
                    held.extend_from_slice(&came);
                }
                let _ = held.split_to(passed as usize);
                let stored = &held[..(range.end - range.start) as usize];
                let state = states.get(chunk - first.start).and_then(Option::as_deref);
                match self.take_chunk(table, chunk, stored, state, &mut assembler) {
                    Err(e @ FillError::Corrupt(_)) => {
                        // Those who wait for others of these chunks have done nothing wrong.
                        failed.get_or_insert(e);
                        assembler = Assembler::new(&self.table.extents, table.stream_range(chunk).end);
                    }
                    taken => taken?,
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn take_chunk(
        &self,
        table: &ChunkTable,
        chunk: usize,
        stored: &[u8],
        state: Option<&[u8]>,
        assembler: &mut Assembler<'_>,
    ) -> Result<(), FillError> {
        let decoded = decode_chunk(table, chunk, stored, state).map_err(|e| {
            self.meter.counters.digest_failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            FillError::Corrupt(e.to_string())
        })?;
        let mut published = false;
        let fed = assembler.feed(&decoded, &|i| self.live.get(i as u64), &mut |i, extent, bytes| {
            published = true;
            self.publish(i, extent, bytes)
        });
        if published {
            self.progress.notify_waiters();
        }
        fed
    }
}
