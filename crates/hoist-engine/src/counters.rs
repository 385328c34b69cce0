//! What the fill path did, counted over an engine's whole life, for those who watch it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the classes that waiting times are counted in, seconds; longer ones are the last class.
pub const WAIT_BOUNDS: [f64; 13] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Counters that only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes that readers asked for and that were not here yet.
    pub demand_bytes: AtomicU64,
    /// Reads that waited so long that they were told of, half a second or longer.
    pub slow_reads: AtomicU64,
    /// Reads that got an error.
    pub failed_reads: AtomicU64,
    /// Extents that were verified and became readable, and their bytes.
    pub published_extents: AtomicU64,
    /// See `published_extents`.
    pub published_bytes: AtomicU64,
    /// Tables that are in memory now: the one of these that does not only grow.
    pub tables: AtomicU64,
    /// Extents that came with another digest than the index has.
    pub digest_failures: AtomicU64,
    waits: Histogram,
}

/// Times, counted by how long they were.
#[derive(Debug, Default)]
pub struct Histogram {
    classes: [AtomicU64; WAIT_BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// A histogram as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Waits {
    /// Times in each class of [`WAIT_BOUNDS`], and beyond the last.
    pub counts: [u64; WAIT_BOUNDS.len() + 1],
    /// All of them together, seconds.
    pub sum: f64,
}

impl Histogram {
    /// One more.
    pub fn add(&self, time: Duration) {
        let class = WAIT_BOUNDS.partition_point(|bound| *bound < time.as_secs_f64());
        self.classes[class].fetch_add(1, Relaxed);
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// All so far.
    pub fn read(&self) -> Waits {
        let counts = std::array::from_fn(|class| self.classes[class].load(Relaxed));
        Waits { counts, sum: Duration::from_micros(self.micros.load(Relaxed)).as_secs_f64() }
    }
}

impl Counters {
    /// A read of `bytes` absent bytes waited this long, and got them or failed.
    pub(crate) fn waited(&self, bytes: u64, time: Duration, failed: bool) {
        self.demand_bytes.fetch_add(bytes, Relaxed);
        self.failed_reads.fetch_add(u64::from(failed), Relaxed);
        self.waits.add(time);
    }

    /// One of these reads was slow.
    pub(crate) fn slow(&self) {
        self.slow_reads.fetch_add(1, Relaxed);
    }

    pub(crate) fn published(&self, bytes: u64) {
        self.published_extents.fetch_add(1, Relaxed);
        self.published_bytes.fetch_add(bytes, Relaxed);
    }

    /// How long reads have waited so far.
    pub fn waits(&self) -> Waits {
        self.waits.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_counted_in_the_class_whose_bound_it_does_not_exceed() {
        let counters = Counters::default();
        for (millis, failed) in [(0, false), (1, false), (2, false), (30_000, true), (30_001, true)] {
            counters.waited(10, Duration::from_millis(millis), failed);
        }
        let waits = counters.waits();
        assert_eq!((waits.counts[0], waits.counts[1], waits.counts[12], waits.counts[13]), (2, 1, 1, 1));
        assert!((waits.sum - 60.004).abs() < 1e-6);
        assert_eq!(counters.demand_bytes.load(Relaxed), 50);
        assert_eq!(counters.failed_reads.load(Relaxed), 2);
    }
}
