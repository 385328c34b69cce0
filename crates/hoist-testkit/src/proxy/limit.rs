//! A bandwidth limit shared by all connections: each piece is given the next free slot on one time line.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Timers wake late by about a millisecond; a line that was idle for less than this still counts as busy, so
/// that lateness costs no bandwidth.
const SLACK: Duration = Duration::from_millis(4);

#[derive(Debug, Default)]
pub(super) struct Limit {
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    rate: Option<u64>,
    busy_until: Option<Instant>,
}

impl Limit {
    pub(super) fn set_rate(&self, rate: Option<u64>) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        *line = Line { rate: rate.filter(|rate| *rate > 0), busy_until: None };
    }

    /// Waits until `bytes` have had their time on the line.
    pub(super) async fn pass(&self, bytes: usize) {
        let Some(until) = self.book(bytes) else { return };
        if until > Instant::now() + Duration::from_millis(1) {
            tokio::time::sleep_until(until.into()).await;
        }
    }

    fn book(&self, bytes: usize) -> Option<Instant> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = line.rate?;
        let now = Instant::now();
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        let start = line.busy_until.map_or(now, |busy| busy.max(earliest));
        let until = start + Duration::from_nanos((bytes as u128 * 1_000_000_000 / u128::from(rate)) as u64);
        line.busy_until = Some(until);
        Some(until)
    }
}
