//! What the client did, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters shared by everything that talks to registries.
#[derive(Debug, Default)]
pub struct Stats {
    /// What is counted here counts there too.
    total: Option<Arc<Stats>>,
    requests: AtomicU64,
    wire_bytes: AtomicU64,
    retries: AtomicU64,
}

impl Stats {
    /// New counters, of a part of what `total` counts.
    pub fn part_of(total: &Arc<Stats>) -> Self {
        Self { total: Some(Arc::clone(total)), ..Self::default() }
    }
    /// These counters, then those they are a part of.
    fn all(&self) -> impl Iterator<Item = &Stats> {
        std::iter::successors(Some(self), |stats| stats.total.as_deref())
    }
    /// HTTP requests sent: redirect hops, token requests and repeats count one each.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }
    /// Bytes of response bodies received.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes.load(Relaxed)
    }
    /// Requests that were repeated because the one before failed.
    pub fn retries(&self) -> u64 {
        self.retries.load(Relaxed)
    }
    pub(super) fn request(&self) {
        self.all().for_each(|stats| {
            stats.requests.fetch_add(1, Relaxed);
        });
    }
    pub(super) fn received(&self, bytes: usize) {
        self.all().for_each(|stats| {
            stats.wire_bytes.fetch_add(bytes as u64, Relaxed);
        });
    }
    pub(super) fn retry(&self) {
        self.all().for_each(|stats| {
            stats.retries.fetch_add(1, Relaxed);
        });
    }
}
