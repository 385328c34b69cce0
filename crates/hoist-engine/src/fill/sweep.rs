//! What nobody has asked for yet: the rest of a layer that is read densely, and in the background the rest
//! of any layer. Both step aside for whatever somebody waits for.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{FillError, LayerFill, SpanState, State};

/// A layer is fetched to its end once this many reads had to wait and one in [`SWEEP_SHARE`] of its
/// spans is here; at most [`SWEEP_SPANS`] spans are under way then.
const SWEEP_DEMANDS: u32 = 12;
const SWEEP_SHARE: usize = 4;
const SWEEP_SPANS: usize = 6;
/// Spans of one request: few, so that it is over soon.
const STEP: usize = 2;

impl LayerFill {
    /// Once readers have taken a good part of the layer, they will want the rest: fetches it in
    /// order, a few jobs at a time, behind what is demanded.
    pub(super) fn sweep_if_dense(self: &Arc<Self>, state: &mut State) {
        state.demands += 1;
        let spans = state.spans.len();
        if state.demands < SWEEP_DEMANDS || spans < 4 || self.sweeping.load(Ordering::Relaxed) {
            return;
        }
        // Of many small chunks the extents are counted, which takes no time.
        let (here, all) = match self.table.spans.linear() {
            Some(_) => ((0..spans).filter(|&s| !self.needs(s)).count(), spans),
            None => (self.live.count_set() as usize, self.table.extents.extents.len()),
        };
        if here * SWEEP_SHARE < all || self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::clone(self);
        self.runtime.spawn(async move { this.sweep().await });
    }

    async fn sweep(self: Arc<Self>) {
        loop {
            // Whatever somebody waits for comes first.
            self.meter.idle().await;
            let published = self.progress.notified();
            tokio::pin!(published);
            published.as_mut().enable();
            match self.sweep_step() {
                Sweep::Started => {}
                Sweep::Busy => published.await,
                Sweep::Over => return,
            }
        }
    }

    /// Starts the next job of a sweep, if one may start now.
    fn sweep_step(self: &Arc<Self>) -> Sweep {
        let mut state = self.lock();
        let claimed = state.spans.iter().filter(|s| matches!(s, SpanState::Claimed)).count();
        let failed = state.spans.iter().any(|s| matches!(s, SpanState::Failed(..)));
        let next = (0..state.spans.len())
            .find(|&s| matches!(state.spans[s], SpanState::Idle) && self.needs(s))
            .filter(|_| !failed && self.condemned().is_none());
        match next {
            Some(_) if claimed >= SWEEP_SPANS => Sweep::Busy,
            Some(next) => {
                self.start_jobs(&mut state, next, next + STEP);
                Sweep::Started
            }
            // Over, or not now: later demands may set it off again.
            None => {
                self.sweeping.store(false, Ordering::Release);
                Sweep::Over
            }
        }
    }

    /// Fetches the next spans that are missing; gives their bytes in the blob, None when nothing is.
    ///
    /// # Errors
    /// As [`LayerFill::fill`].
    pub async fn fetch_next(self: &Arc<Self>) -> Result<Option<u64>, FillError> {
        let (span, bytes) = {
            let mut state = self.lock();
            let missing = |s: &usize| !matches!(state.spans[*s], SpanState::Claimed) && self.needs(*s);
            let Some(span) = (0..state.spans.len()).find(missing) else { return Ok(None) };
            let last = (span + STEP).min(state.spans.len()) - 1;
            self.start_jobs(&mut state, span, last + 1);
            (span, self.table.spans.stored_bytes(span..last + 1))
        };
        loop {
            let published = self.progress.notified();
            tokio::pin!(published);
            published.as_mut().enable();
            if let Some(why) = self.condemned() {
                return Err(FillError::Lied(why));
            }
            match &self.lock().spans[span] {
                SpanState::Claimed => {}
                SpanState::Failed(_, e) => return Err(e.clone()),
                SpanState::Idle => return Ok(Some(bytes)),
            }
            published.await;
        }
    }
}

enum Sweep {
    Started,
    Busy,
    Over,
}
