//! How much to ask for at once: what the line carries in a round trip and nothing else waits for, more
//! while a reader goes straight ahead.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hoist_format::span::Spans;
use tokio::sync::{Notify, Semaphore, watch};

use super::Tables;
use crate::counters::Counters;

/// Largest request of one job, blob bytes, while not all that is read was fetched ahead: more run side by side, so that
/// nobody waits long for a span at a job's end.
pub const JOB_MAX: u64 = 4 << 20;
/// Farthest that a straight-ahead reader is preceded, blob bytes, while not all of the layer is fetched.
const AHEAD_MAX: u64 = 32 << 20;
/// A reader who is preceded by so much goes straight ahead, blob bytes.
const STRAIGHT: u64 = 8 << 20;
/// The least that a straight-ahead reader is preceded, blob bytes.
const AHEAD_LEAST: u64 = 512 << 10;
/// Assumed until measured, bytes.
const FIRST_GUESS: u64 = 1 << 20;
/// What is fetched ahead is asked for in so many requests side by side, which take this long to come beyond
/// the round trip, seconds: the line never rests, and who demands something else does not wait much longer.
const SIDE_BY_SIDE: u64 = 2;
const QUEUE: f64 = 0.05;
/// The same while a reader goes straight ahead, and so demands nothing else. Each request costs the registry some
/// milliseconds, and a job's end decodes a part of what the next one decodes too: larger ones are fewer.
const QUEUE_STRAIGHT: f64 = 0.1;
/// The least and the most of them all, blob bytes.
const QUEUE_LEAST: u64 = 1 << 20;
const QUEUE_MOST: u64 = 16 << 20;
/// What is measured of a smaller answer says little of the line.
const TELLING: u64 = 64 << 10;

/// What the line does, and what is under way on it; shared by all layers.
#[derive(Debug)]
pub struct Meter {
    line: Mutex<Option<Line>>,
    under_way: AtomicU64,
    /// Requests ever begun.
    begun: AtomicU64,
    less: Notify,
    /// Rung when something was published or read: there is upkeep to do.
    pub chores: Notify,
    /// Whose turn it is to look at what an earlier boot has left.
    pub checks: Semaphore,
    /// Whose turn it is to hold a whole layer, or an image's tree, against the image: it takes some megabytes.
    pub judging: Semaphore,
    /// Changed when something was fetched or somebody has waited: there is something to tell of.
    pub activity: watch::Sender<()>,
    /// What the fill path did.
    pub counters: Counters,
    /// Where what stands, of the layers in use.
    pub(crate) tables: Tables,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    /// The shortest time to a first byte lately, seconds: longer ones stood in a queue.
    round_trip: f64,
    /// Bytes per second, a moving average.
    rate: f64,
}

/// Bytes that are asked for and not here yet, while it lives.
#[derive(Debug)]
pub struct UnderWay<'a>(&'a Meter, u64);

impl Default for Meter {
    fn default() -> Self {
        Self {
            line: Mutex::default(),
            under_way: AtomicU64::default(),
            begun: AtomicU64::default(),
            less: Notify::default(),
            chores: Notify::default(),
            checks: Semaphore::new(1),
            judging: Semaphore::new(1),
            activity: watch::Sender::default(),
            counters: Counters::default(),
            tables: Tables::default(),
        }
    }
}

impl Meter {
    /// One request: time to its first byte, then `bytes` in `rest`.
    pub fn observe(&self, first_byte: Duration, bytes: u64, rest: Duration) {
        if bytes < TELLING {
            return;
        }
        let mut line = self.line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let first_byte = first_byte.as_secs_f64();
        // It may have grown: an old shortest time is forgotten by and by.
        let round_trip = line.map_or(first_byte, |l| (l.round_trip * 1.05).min(first_byte));
        let rate = bytes as f64 / (first_byte - round_trip + rest.as_secs_f64()).max(1e-4);
        let rate = line.map_or(rate, |l| l.rate * 0.75 + rate * 0.25);
        *line = Some(Line { round_trip, rate });
    }

    /// Bytes that one round trip is worth.
    fn bandwidth_delay(&self) -> u64 {
        let line = self.line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        line.map_or(FIRST_GUESS, |l| (l.round_trip * l.rate) as u64)
    }

    /// Bytes that may be asked for on a guess, without making others wait: half of a round trip's worth,
    /// less what is under way.
    fn spare(&self) -> u64 {
        (self.bandwidth_delay() / 2).min(JOB_MAX).saturating_sub(self.under_way.load(Ordering::Relaxed))
    }

    /// Counts `bytes` as under way.
    pub fn begin(&self, bytes: u64) -> UnderWay<'_> {
        self.under_way.fetch_add(bytes, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        UnderWay(self, bytes)
    }

    /// How many requests were ever begun: when it stands still, nobody asks.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Is anything under way?
    pub fn is_busy(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) > 0
    }

    /// Returns when nothing is under way.
    pub async fn idle(&self) {
        self.less_than(1).await;
    }

    /// Returns when fewer bytes than this are under way.
    pub async fn less_than(&self, bytes: u64) {
        loop {
            let less = self.less.notified();
            tokio::pin!(less);
            less.as_mut().enable();
            if self.under_way.load(Ordering::Relaxed) < bytes {
                return;
            }
            less.await;
        }
    }

    /// Bytes that fetching ahead keeps under way, and those of one of its requests. `straight`: ahead of a reader who
    /// goes straight.
    pub fn ahead(&self, straight: bool) -> (u64, u64) {
        let line = *self.line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (queue, largest) = if straight { (QUEUE_STRAIGHT, QUEUE_MOST) } else { (QUEUE, JOB_MAX) };
        // The rate is that of one request among several.
        let worth = |l: Line| (SIDE_BY_SIDE as f64 * l.rate * (l.round_trip + queue)) as u64;
        let all = line.map_or(FIRST_GUESS, worth).clamp(QUEUE_LEAST, QUEUE_MOST);
        (all, (all / SIDE_BY_SIDE).min(largest))
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(self.1, Ordering::Relaxed);
        self.0.less.notify_waiters();
        self.0.activity.send_replace(());
    }
}

/// What one layer's readers did lately: how far ahead of them was asked for.
#[derive(Debug, Default)]
pub struct Pace {
    /// Where the last request ended, span index.
    next: usize,
    /// A reader who gets here will want what follows `next`.
    marker: usize,
    /// Blob bytes asked for ahead last time.
    ahead: u64,
}

impl Pace {
    /// The end (exclusive) of the spans to fetch for a want of `first..=last`.
    pub fn reach(&mut self, first: usize, last: usize, spans: &Spans, meter: &Meter) -> usize {
        let straight = self.next > 0 && (self.next..=self.next + 1).contains(&first);
        self.ahead = if straight { self.doubled() } else { meter.spare() };
        self.extend(first, last + 1, spans)
    }

    /// A reader took something of `span`: the spans to fetch ahead of it now, if any.
    pub fn passed(&mut self, span: usize, spans: &Spans) -> Option<std::ops::Range<usize>> {
        if !self.is_marked(span) || self.next >= spans.len() {
            return None;
        }
        let first = self.next;
        self.ahead = self.doubled();
        Some(first..self.extend(first, first + 1, spans))
    }

    /// Has a reader gone straight ahead for long?
    pub fn is_straight(&self) -> bool {
        self.ahead == AHEAD_MAX
    }

    /// Does one go straight ahead?
    pub fn goes_straight(&self) -> bool {
        self.ahead >= STRAIGHT
    }

    /// May [`Pace::passed`] have an answer for this span?
    fn is_marked(&self, span: usize) -> bool {
        span >= self.marker && span < self.next
    }

    fn doubled(&self) -> u64 {
        (self.ahead * 2).clamp(AHEAD_LEAST, AHEAD_MAX)
    }

    fn extend(&mut self, first: usize, least: usize, spans: &Spans) -> usize {
        let mut end = least;
        let mut bytes = spans.stored_bytes(first..least);
        while end < spans.len() {
            bytes += spans.stored_bytes(end..end + 1);
            if bytes > self.ahead {
                break;
            }
            end += 1;
        }
        self.marker = first + (end - first) / 2;
        self.next = end;
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_straight_is_preceded_by_fewer_and_larger_requests() {
        let meter = Meter::default();
        // 40 MB/s each, 20 ms away.
        meter.observe(Duration::from_millis(20), 4_000_000, Duration::from_millis(100));
        let (all, each) = meter.ahead(false);
        assert!((5_500_000..5_700_000).contains(&all) && each == all / 2, "{all} {each}");
        let (all, each) = meter.ahead(true);
        assert!((9_500_000..9_700_000).contains(&all) && each == all / 2 && each > JOB_MAX, "{all} {each}");
    }

    #[test]
    fn on_a_fast_line_nothing_is_asked_for_without_bounds() {
        let meter = Meter::default();
        meter.observe(Duration::from_millis(20), 4_000_000, Duration::from_millis(1));
        assert_eq!(meter.ahead(false), (QUEUE_MOST, JOB_MAX));
        assert_eq!(meter.ahead(true), (QUEUE_MOST, QUEUE_MOST / 2));
    }
}
