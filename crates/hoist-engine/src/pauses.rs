//! When what has failed is tried again: ever later, up to a limit, so that what is mended is used again soon.

use std::time::{Duration, Instant};

/// How long is waited.
pub(crate) struct Pauses {
    /// After the first failure; after each that follows, twice as long as before.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

/// The last attempt came to nothing.
pub(crate) struct Failed<E> {
    pub why: E,
    pause: Duration,
    next: Instant,
}

impl Pauses {
    /// What has failed now, and before.
    pub fn after<E>(&self, last: Option<Failed<E>>, why: E, now: Instant) -> Failed<E> {
        let pause = last.map_or(self.first, |last| (last.pause * 2).min(self.longest));
        Failed { why, pause, next: now + pause }
    }
}

impl<E> Failed<E> {
    /// How long nobody tries yet.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        Some(self.next.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

/// How it is said.
pub(crate) fn again_in(left: Duration) -> String {
    format!("it is tried again in {} s", left.as_secs() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest() {
        let pauses = Pauses { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
        let (mut failed, mut now) = (None, Instant::now());
        for pause in [1, 2, 4, 8, 16, 32, 60, 60].map(Duration::from_secs) {
            let next = pauses.after(failed.take(), "it is down", now);
            assert_eq!(next.left(now), Some(pause));
            now += pause;
            assert_eq!(next.left(now), None);
            failed = Some(next);
        }
    }
}
