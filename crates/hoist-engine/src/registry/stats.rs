//! What the client did, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters shared by everything that talks to registries.
#[derive(Debug, Default)]
pub struct Stats {
    requests: AtomicU64,
    wire_bytes: AtomicU64,
    retries: AtomicU64,
}

impl Stats {
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
        self.requests.fetch_add(1, Relaxed);
    }
    pub(super) fn received(&self, bytes: usize) {
        self.wire_bytes.fetch_add(bytes as u64, Relaxed);
    }
    pub(super) fn retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }
}
