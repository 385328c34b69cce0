//! What readers of a layer asked for, and how long they waited.

use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counts of what readers asked for.
#[derive(Debug, Default)]
pub struct FillCounts {
    reads: AtomicU64,
    demand_bytes: AtomicU64,
    demand_stalls: AtomicU64,
    failed: AtomicU64,
    waited_micros: AtomicU64,
}

/// The same at one moment, or between two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads that this process was asked about: those of the page cache are not among them.
    pub reads: u64,
    /// Bytes that readers wanted and that were absent.
    pub demand_bytes: u64,
    /// Reads that had to wait.
    pub stalls: u64,
    /// Reads that failed.
    pub failed: u64,
    /// How long reads have waited, all together.
    pub waited_micros: u64,
}

impl FillCounts {
    /// Notes a read, be it of what is here.
    pub fn asked(&self) {
        self.reads.fetch_add(1, Relaxed);
    }
    /// Notes one read that has to wait.
    pub fn stalled(&self, bytes: u64) {
        self.demand_stalls.fetch_add(1, Relaxed);
        self.demand_bytes.fetch_add(bytes, Relaxed);
    }
    /// Notes the end of a wait.
    pub fn waited(&self, time: Duration, failed: bool) {
        self.failed.fetch_add(u64::from(failed), Relaxed);
        self.waited_micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }
    /// All of them so far.
    pub fn so_far(&self) -> Counts {
        Counts {
            reads: self.reads.load(Relaxed),
            demand_bytes: self.demand_bytes.load(Relaxed),
            stalls: self.demand_stalls.load(Relaxed),
            failed: self.failed.load(Relaxed),
            waited_micros: self.waited_micros.load(Relaxed),
        }
    }
}

impl Counts {
    /// Both together.
    pub fn and(self, other: Counts) -> Counts {
        Counts {
            reads: self.reads + other.reads,
            demand_bytes: self.demand_bytes + other.demand_bytes,
            stalls: self.stalls + other.stalls,
            failed: self.failed + other.failed,
            waited_micros: self.waited_micros + other.waited_micros,
        }
    }
}

impl Sub for Counts {
    type Output = Counts;
    /// What came since `earlier`.
    fn sub(self, earlier: Counts) -> Counts {
        Counts {
            reads: self.reads.saturating_sub(earlier.reads),
            demand_bytes: self.demand_bytes.saturating_sub(earlier.demand_bytes),
            stalls: self.stalls.saturating_sub(earlier.stalls),
            failed: self.failed.saturating_sub(earlier.failed),
            waited_micros: self.waited_micros.saturating_sub(earlier.waited_micros),
        }
    }
}
