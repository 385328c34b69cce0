//! Keeps what is known of a mount in the store while it lives and at its end (`store/history.rs`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Layers;
use super::layer::LazyLayer;
use super::status::LayerStatus;
use crate::engine::Engine;
use crate::fill::Counts;
use crate::store::MountRecord;
use crate::store::history::{History, SlowRead};

/// What is new is written at once, and what comes after it this much later: at least, and at most.
const REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Where looking and writing take long, as with many mounts or on a slow disk, the rest is so many times as long.
const REST_SHARE: u32 = 50;
/// Slow reads that are written of a mount.
const SLOWEST: usize = 20;

/// What the journal of a mount is made of.
pub(super) struct Journal {
    engine: Engine,
    lazy: Vec<Arc<LazyLayer>>,
    /// Counts of the layers before this mount, which may share them.
    before: Counts,
    /// What was known when this process began to serve it.
    base: History,
    /// Its end was written.
    ended: Mutex<bool>,
}

impl Journal {
    /// Of a mount that this process begins to serve. What a process before it has written is gone on with.
    pub fn new(engine: &Engine, record: &MountRecord, layers: &Layers, fresh: History) -> Self {
        let base = engine.store.history(&record.id).unwrap_or(fresh);
        let journal = Self {
            engine: engine.clone(),
            lazy: layers.lazy().map(Arc::clone).collect(),
            before: layers.counts(),
            base,
            ended: Mutex::new(false),
        };
        // Whoever is told that it is mounted may ask for it at once.
        journal.write(&journal.base);
        journal
    }

    /// All that is known by now.
    fn now(&self) -> History {
        let counts = self.lazy.iter().fold(Counts::default(), |sum, layer| sum.and(layer.counts.so_far()));
        let counts = counts - self.before;
        let (base, stats) = (&self.base, &self.engine.stats);
        let mut sources = base.sources.clone();
        for (host, counts) in stats.hosts() {
            sources.entry(host).or_default().add(&counts);
        }
        let since = base.since;
        let new = self.lazy.iter().flat_map(|layer| layer.slowest.all()).filter(|read| read.at >= since);
        let mut slowest: Vec<SlowRead> = base.slowest.iter().cloned().chain(new).collect();
        slowest.sort_by_key(|read| std::cmp::Reverse(read.rank()));
        slowest.truncate(SLOWEST);
        History {
            reads: base.reads + counts.reads,
            stalls: base.stalls + counts.stalls,
            demand_bytes: base.demand_bytes + counts.demand_bytes,
            failed: base.failed + counts.failed,
            waited_seconds: base.waited_seconds + Duration::from_micros(counts.waited_micros).as_secs_f64(),
            requests: base.requests + stats.requests(),
            wire_bytes: base.wire_bytes + stats.wire_bytes(),
            copied_bytes: base.copied_bytes + self.engine.known.copied_so_far(),
            sources,
            slowest,
            ..base.clone()
        }
    }

    fn write(&self, history: &History) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // The last word may have been written meanwhile.
        if *ended {
            return;
        }
        *ended = history.ended.is_some();
        // Nobody's reads depend on it.
        if let Err(e) = self.engine.store.save_history(history) {
            tracing::debug!("writing down what became of a mount: {e}");
        }
    }

    /// Writes what is new, until it is dropped. Sleeps while nothing is fetched and nobody waits.
    pub async fn keep(self: Arc<Self>) {
        let mut activity = self.engine.meter.activity.subscribe();
        let (mut last, mut rest) = (None, REST);
        loop {
            let begun = Instant::now();
            let now = self.now();
            let is_new = last.as_ref() != Some(&now);
            if is_new {
                let (this, new) = (Arc::clone(&self), now.clone());
                let _ = tokio::task::spawn_blocking(move || this.write(&new)).await;
                last = Some(now);
            }
            rest = next_rest(rest, begun.elapsed(), is_new);
            tokio::time::sleep(rest).await;
            if activity.changed().await.is_err() {
                return;
            }
        }
    }

    /// The mount is gone; so much of its layers is here.
    pub fn end(&self, layers: &[LayerStatus]) {
        let sum = layers.iter().fold((0, 0), |sum, l| (sum.0 + l.present_bytes, sum.1 + l.total_bytes));
        let now = self.now();
        self.write(&History { ended: Some(crate::registry::date::now()), present: Some(sum), ..now });
    }
}

/// How long to rest after a look that took so long. Where what happens is other mounts' business, ever longer.
fn next_rest(last: Duration, took: Duration, is_new: bool) -> Duration {
    let rest = if is_new { took * REST_SHARE } else { last * 2 };
    rest.clamp(REST, LONGEST_REST)
}

/// What is known of a mount before anybody has read of it.
pub(super) fn fresh(record: &MountRecord, driver: &str, lazy: bool, why: String, seconds: f64) -> History {
    History {
        id: record.id.clone(),
        target: record.target.clone(),
        image: record.image.clone(),
        digest: Some(record.manifest),
        driver: driver.to_owned(),
        lazy,
        why,
        index: record.index.as_ref().map(|text| hoist_format::digest::Digest::of(text.as_bytes())),
        since: record.since.unwrap_or_default(),
        seconds_to_mount: seconds,
        ..History::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_told_soon_where_that_costs_little() {
        let [quick, slow] = [50, 500_000].map(Duration::from_micros);
        assert_eq!(next_rest(LONGEST_REST, quick, true), REST);
        assert_eq!(next_rest(REST, slow, true), LONGEST_REST);
        assert_eq!(next_rest(REST, slow, false), 2 * REST);
        assert_eq!(next_rest(LONGEST_REST, quick, false), LONGEST_REST);
    }
}
