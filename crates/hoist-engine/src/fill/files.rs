//! Ranges that somebody knows will be read: asked for together, with nothing beyond them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{FillError, LayerFill, plan};

impl LayerFill {
    /// Returns once these ranges of the data file may be read, or one of them can't be had. Nobody waits for them yet: they
    /// tell nothing of how the layer is read.
    ///
    /// # Errors
    /// Those of fetching; who reads tries again.
    pub async fn fill_ahead(self: &Arc<Self>, ranges: &[Range<u64>]) -> Result<(), FillError> {
        self.used.store(true, Ordering::Release);
        let wanted = |range: &Range<u64>| self.table.extents.touching(range.start, range.end);
        let wanted: BTreeSet<usize> = ranges.iter().flat_map(wanted).collect();
        let before = self.lock().failures;
        let look = || {
            let missing = wanted.iter().filter(|&&i| !self.live.get(i as u64));
            let spans: BTreeSet<usize> = missing.map(|&i| self.span_of(i)).collect();
            if spans.is_empty() {
                return Ok(Some(()));
            }
            self.claim_ahead(&spans, &wanted, before).map(|()| None)
        };
        self.until(look).await
    }

    /// Sees to it that jobs are under way for these spans, as far as extents are wanted of them. Again and again: another's
    /// job over a span may leave out what is wanted here.
    fn claim_ahead(
        self: &Arc<Self>,
        spans: &BTreeSet<usize>,
        wanted: &BTreeSet<usize>,
        before: u64,
    ) -> Result<(), FillError> {
        let mut state = self.lock();
        let mut done = 0;
        for &span in spans {
            if !self.is_to_be_fetched(&state, span, before)? || span < done {
                continue;
            }
            let end = (span + 1..).find(|next| !spans.contains(next)).unwrap_or(span + 1);
            let until = self.starting_in(span..end).end;
            let until = wanted.range(..until).next_back().map_or(until, |last| last + 1);
            done = self.start_jobs(&mut state, (span, end, until), plan::JOB_MAX);
        }
        Ok(())
    }

    /// The span that an extent starts in.
    pub(super) fn span_of(&self, extent: usize) -> usize {
        self.table.spans.containing(self.table.extents.stream_range(extent).start)
    }
}
