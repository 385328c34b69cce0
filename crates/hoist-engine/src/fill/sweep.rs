//! What nobody has asked for yet: what comes after a reader that goes straight ahead, the rest of a layer that
//! is read densely, and in the background the rest of any layer. It is asked for in order and by little, so
//! that whatever somebody waits for comes soon.

use std::ops::Range;
use std::sync::Arc;

use super::{FillError, LayerFill, SpanState, State, job, plan};

/// A layer is fetched to its end once this many reads had to wait and one in [`DENSE_SHARE`] of its spans is
/// here, or a reader went far straight ahead and one in [`STRAIGHT_SHARE`] is.
const DENSE_DEMANDS: u32 = 32;
const DENSE_SHARE: usize = 4;
const STRAIGHT_SHARE: usize = 8;
/// It is too while a reader goes straight ahead, once readers have taken one in so many of its bytes, and so many.
const TAKEN_SHARE: u64 = 16;
const TAKEN_LEAST: u64 = 32 << 20;
/// Spans of one request in the background: few, so that it is over soon.
const BY: usize = 2;

/// What is to be fetched ahead, in one layer.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Where a reader was last, span index.
    pub reader: usize,
    /// The spans that it will probably want.
    pub wanted: Range<usize>,
    /// It will probably want everything.
    pub all: bool,
    /// Everything was asked for.
    pub swept: bool,
    /// Somebody is at it.
    running: bool,
}

impl LayerFill {
    /// Once readers have taken a good part of the layer, they will want the rest.
    pub(super) fn sweep_if_dense(self: &Arc<Self>, state: &mut State) {
        let spans = state.spans.len();
        let share = match state.demands {
            _ if state.pace.is_straight() => STRAIGHT_SHARE,
            DENSE_DEMANDS.. => DENSE_SHARE,
            _ => return,
        };
        if spans < 4 || state.ahead.all || state.ahead.swept {
            return;
        }
        // Of many small chunks the extents are counted, which takes no time.
        let (here, all) = match self.table.spans.linear() {
            Some(_) => ((0..spans).filter(|&s| !self.needs(s)).count(), spans),
            None => (self.live.count_set() as usize, self.table.extents.extents.len()),
        };
        if here * share >= all {
            state.ahead.all = true;
            tracing::debug!(layer = %self.dir.blob(), here, all, "all of the layer will be wanted");
            self.go_ahead(state);
        }
    }

    /// Who is slower than the line, as with many small files, shall not make it rest.
    pub(super) fn sweep_if_taken(self: &Arc<Self>, state: &mut State) {
        if is_much(state.taken, self.size)
            && state.pace.goes_straight()
            && !state.ahead.all
            && !state.ahead.swept
        {
            state.ahead.all = true;
            tracing::debug!(layer = %self.dir.blob(), state.taken, "all of the layer will be wanted");
            self.go_ahead(state);
        }
    }

    /// Sees to it that what is wanted ahead is fetched.
    pub(super) fn go_ahead(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.ahead.running, true) {
            let this = Arc::clone(self);
            // Also called by the thread that answers events, which is none of the runtime's.
            self.runtime.spawn(async move { this.fetch_ahead().await });
        }
    }

    async fn fetch_ahead(self: Arc<Self>) {
        loop {
            let (most, _) = self.meter.ahead(self.lock().pace.goes_straight());
            self.meter.less_than(most).await;
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            match self.step_ahead() {
                Step::Started => {}
                Step::Busy => ended.await,
                Step::Over => return self.ended.notify_waiters(),
            }
        }
    }

    /// Has all that is missing fetched; returns once it is asked for, or that has failed.
    pub async fn fetch_rest(self: &Arc<Self>) {
        self.used.store(true, std::sync::atomic::Ordering::Release);
        {
            let mut state = self.lock();
            state.ahead.all = true;
            self.go_ahead(&mut state);
        }
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if !self.lock().ahead.all {
                return;
            }
            ended.await;
        }
    }

    /// Starts the next job, if one may start now.
    fn step_ahead(self: &Arc<Self>) -> Step {
        let mut state = self.lock();
        let (spans, ahead) = (state.spans.len(), &state.ahead);
        let bytes = |s: usize| self.table.spans.stored_bytes(s..s + 1);
        let missing = |s: &usize| matches!(state.spans[*s], SpanState::Idle) && self.needs(*s);
        let (next, limit) = match ahead.all {
            true => ((ahead.reader..spans).chain(0..ahead.reader).find(missing), spans),
            // Who went straight ahead and comes to what is here will not miss what is behind it.
            false => (ahead.wanted.clone().next().filter(missing), ahead.wanted.end),
        };
        // Damage in one place tells nothing of the others.
        let tells =
            |s: &SpanState| matches!(s, SpanState::Failed(_, e) if !matches!(e, FillError::Corrupt(_)));
        let failed = state.held.are_many() || state.spans.iter().any(tells);
        let Some(next) = next.filter(|_| !failed && self.condemned().is_none()) else {
            state.ahead.swept |= state.ahead.all && !failed;
            self.look_whether_through(&state);
            // Over, or not now: later demands may set it off again.
            (state.ahead.running, state.ahead.all) = (false, false);
            state.ahead.wanted = 0..0;
            return Step::Over;
        };
        let claimed = (0..spans).filter(|&s| matches!(state.spans[s], SpanState::Claimed));
        let (most, each) = self.meter.ahead(state.pace.goes_straight());
        if claimed.map(bytes).sum::<u64>() >= most {
            return Step::Busy;
        }
        let end = self.within(next, next + 1, limit, each);
        let started = self.start_jobs(&mut state, (next, end, job::ALL), each);
        if !state.ahead.all {
            state.ahead.wanted.start = started;
        }
        Step::Started
    }

    /// Fetches the next spans that are missing; gives their bytes in the blob, None when nothing is.
    ///
    /// # Errors
    /// As [`LayerFill::fill`].
    pub async fn fetch_next(self: &Arc<Self>) -> Result<Option<u64>, FillError> {
        self.used.store(true, std::sync::atomic::Ordering::Release);
        let (span, bytes) = {
            let mut state = self.lock();
            let missing = |s: &usize| !matches!(state.spans[*s], SpanState::Claimed) && self.needs(*s);
            let is_held = |s: &usize| state.held.why(*s);
            let mut all = (0..state.spans.len()).filter(missing);
            let Some(span) = all.find(|span| is_held(span).is_none()) else {
                let held = (0..state.spans.len()).filter(missing).find_map(|span| is_held(&span));
                return held.map_or(Ok(None), Err);
            };
            let last = (span + BY).min(state.spans.len()) - 1;
            self.start_jobs(&mut state, (span, last + 1, job::ALL), plan::JOB_MAX);
            (span, self.table.spans.stored_bytes(span..last + 1))
        };
        let look = || match &self.lock().spans[span] {
            SpanState::Claimed => Ok(None),
            SpanState::Failed(_, e) => Err(e.clone()),
            SpanState::Idle => Ok(Some(bytes)),
        };
        self.until(look).await.map(Some)
    }
}

enum Step {
    Started,
    Busy,
    Over,
}

/// Will somebody who has read so many of a layer's bytes straight ahead want the rest?
fn is_much(taken: u64, size: u64) -> bool {
    taken >= TAKEN_LEAST.max(size / TAKEN_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixteenth_is_much_and_of_small_layers_32_mib_are() {
        assert!(is_much(64 << 20, 1 << 30) && !is_much((64 << 20) - 1, 1 << 30));
        assert!(is_much(32 << 20, 100 << 20) && !is_much(31 << 20, 100 << 20));
    }
}
