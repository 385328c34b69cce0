//! What became of the layers that containerd wanted to have without unpacking them, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hoist_engine::counters::{Histogram, Waits};
use hoist_snapshotter::{How, Reason, Refusal};

/// Each outcome and, of those that were left to containerd, each reason.
const ALL: [(&str, &str); 9] = [
    ("lazy", "none"),
    ("full", "none"),
    ("fallback", "not_lazy"),
    ("fallback", "denied"),
    ("fallback", "registry"),
    ("fallback", "mismatch"),
    ("fallback", "pull"),
    ("fallback", "mount"),
    ("fallback", "internal"),
];

/// See the module.
#[derive(Debug, Default)]
pub struct Prepared {
    counts: [AtomicU64; ALL.len()],
    times: Histogram,
}

/// As in [`ALL`].
fn names(outcome: Result<How, &Refusal>) -> (&'static str, &'static str) {
    match outcome.map_err(|refusal| refusal.reason) {
        Ok(How::Lazy) => ("lazy", "none"),
        Ok(How::Full) => ("full", "none"),
        Err(Reason::NotLazy) => ("fallback", "not_lazy"),
        Err(Reason::Denied) => ("fallback", "denied"),
        Err(Reason::Registry) => ("fallback", "registry"),
        Err(Reason::Mismatch) => ("fallback", "mismatch"),
        Err(Reason::Pull) => ("fallback", "pull"),
        Err(Reason::Mount) => ("fallback", "mount"),
        Err(Reason::Internal) => ("fallback", "internal"),
    }
}

impl Prepared {
    /// One more, which took this long.
    pub fn add(&self, outcome: Result<How, &Refusal>, took: Duration) {
        let names = names(outcome);
        for (count, _) in self.counts.iter().zip(ALL).filter(|(_, of)| *of == names) {
            count.fetch_add(1, Relaxed);
        }
        self.times.add(took);
    }

    /// All outcomes and reasons, and how often each came.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.counts.iter().zip(ALL).map(|(count, (outcome, reason))| (outcome, reason, count.load(Relaxed)))
    }

    /// How long they took.
    pub fn times(&self) -> Waits {
        self.times.read()
    }
}

/// What the labels may be, for the documentation.
#[cfg(test)]
pub fn labels() -> String {
    let reasons: Vec<_> =
        ALL.iter().filter(|(_, reason)| *reason != "none").map(|(_, reason)| format!("`{reason}`")).collect();
    format!("`outcome`: `lazy`, `full`, `fallback`; and `reason`: `none`, {}", reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_count() {
        let prepared = Prepared::default();
        let reasons = [
            Reason::NotLazy,
            Reason::Denied,
            Reason::Registry,
            Reason::Mismatch,
            Reason::Pull,
            Reason::Mount,
            Reason::Internal,
        ];
        prepared.add(Ok(How::Lazy), Duration::ZERO);
        prepared.add(Ok(How::Full), Duration::ZERO);
        for reason in reasons {
            prepared.add(Err(&reason.because("why")), Duration::ZERO);
        }
        assert!(prepared.counts().all(|(_, _, count)| count == 1), "{prepared:?}");
        assert_eq!(prepared.times().counts.iter().sum::<u64>(), ALL.len() as u64);
    }
}
