//! How much to ask for at once: at least what the network carries during one round trip, more
//! while a reader goes straight ahead.

use std::sync::Mutex;
use std::time::Duration;

use hoist_format::span::SpanTable;

/// Largest request of one job, blob bytes: more run side by side, so that nobody waits long for
/// a span at a job's end.
pub const JOB_MAX: u64 = 4 << 20;
/// Farthest that a straight-ahead reader is preceded, blob bytes.
const AHEAD_MAX: u64 = 24 << 20;
/// Smallest request that is worth its round trip, blob bytes.
const LEAST: u64 = 256 << 10;
/// Assumed until measured, bytes.
const FIRST_GUESS: u64 = 1 << 20;

/// Measures what the network does: round trip and rate, each a moving average.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Option<(f64, f64)>>);

impl Meter {
    /// One request: time to its first byte, then `bytes` in `rest`.
    pub fn observe(&self, first_byte: Duration, bytes: u64, rest: Duration) {
        if bytes < 64 << 10 {
            return;
        }
        let now = (first_byte.as_secs_f64(), bytes as f64 / rest.as_secs_f64().max(1e-4));
        let mut average = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (rtt, rate) = average.unwrap_or(now);
        *average = Some((rtt * 0.75 + now.0 * 0.25, rate * 0.75 + now.1 * 0.25));
    }

    /// Bytes that one round trip is worth.
    pub fn bandwidth_delay(&self) -> u64 {
        let average = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        average.map_or(FIRST_GUESS, |(rtt, rate)| (rtt * rate) as u64)
    }
}

/// What one layer's readers did lately.
#[derive(Debug, Default)]
pub struct Pace {
    /// Where the last request ended, span index.
    next: usize,
    /// Blob bytes asked for ahead last time.
    ahead: u64,
}

impl Pace {
    /// The end (exclusive) of the spans to fetch for a want of `first..=last`.
    pub fn reach(&mut self, first: usize, last: usize, spans: &SpanTable, meter: &Meter) -> usize {
        // Half of it: the reader of a lone page is served first, and what follows it on the line
        // delays the next one.
        let least = (meter.bandwidth_delay() / 2).clamp(LEAST, JOB_MAX);
        let straight = first >= self.next && first <= self.next + 1 && self.next > 0;
        self.ahead = if straight { (self.ahead * 2).clamp(least, AHEAD_MAX) } else { least };
        let start = spans.blob_range(first).start;
        let mut end = last + 1;
        while end < spans.spans.len() && spans.blob_range(end).end - start <= self.ahead {
            end += 1;
        }
        self.next = end;
        end
    }
}
