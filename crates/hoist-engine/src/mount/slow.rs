//! Reads that made somebody wait: what each took, who served it, and what went wrong meanwhile. Every driver
//! watches its reads through this, so that all tell alike.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::layer::LazyLayer;
use crate::fill::FillError;
use crate::registry::HostCounts;
use crate::store::history::SlowRead;

/// A read that waited this long is told of.
const SLOW: Duration = Duration::from_millis(500);
/// How many of a layer's slowest reads are remembered.
const REMEMBERED: usize = 16;

/// The slowest reads of a layer.
#[derive(Debug, Default)]
pub(crate) struct Slowest(Mutex<Vec<SlowRead>>);

impl Slowest {
    fn note(&self, read: SlowRead) {
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = reads.partition_point(|other| other.rank() >= read.rank());
        if at < REMEMBERED {
            reads.insert(at, read);
            reads.truncate(REMEMBERED);
        }
    }

    /// They, the failed and the slowest first.
    pub fn all(&self) -> Vec<SlowRead> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A read that waits.
pub(super) struct Watch {
    since: Instant,
    offset: u64,
    bytes: u64,
    pid: u32,
    requests: u64,
    hosts: Vec<(String, HostCounts)>,
}

impl Watch {
    pub fn begin(layer: &LazyLayer, offset: u64, bytes: u64, thread: u32) -> Self {
        let stats = layer.stats();
        Self {
            since: Instant::now(),
            offset,
            bytes,
            pid: hoist_sys::process::process_of(thread),
            requests: stats.map_or(0, |stats| stats.requests()),
            hosts: stats.map_or(Vec::new(), |stats| stats.hosts()),
        }
    }

    /// Counts it and tells of it, if there is something to tell. The reader has its answer by now.
    pub fn end(self, layer: &LazyLayer, outcome: Result<(), &FillError>) {
        let waited = self.since.elapsed();
        layer.counters().waited(self.bytes, waited, outcome.is_err());
        layer.counts.waited(waited, outcome.is_err());
        let (stats, names) = (layer.stats(), layer.names());
        let requests = stats.map_or(0, |stats| stats.requests()).saturating_sub(self.requests);
        let hosts = stats.map_or(Vec::new(), |stats| stats.hosts());
        let read = SlowRead {
            at: crate::registry::date::now(),
            tree: names.tree.clone(),
            layer: names.layer,
            offset: self.offset,
            bytes: self.bytes,
            waited_ms: waited.as_millis() as u64,
            pid: self.pid,
            requests,
            from: served(&self.hosts, &hosts),
            trouble: stats.map_or(Vec::new(), |stats| stats.troubles_since(self.since)),
            failed: outcome.err().map(ToString::to_string),
        };
        let SlowRead { offset, bytes, pid, .. } = read;
        tracing::debug!(layer = %layer.dir().blob(), offset, bytes, pid, ?waited, "a read waited");
        if waited >= SLOW {
            layer.counters().slow();
        }
        if waited >= SLOW || outcome.is_err() {
            let (read, names, blob) = (read.clone(), names.clone(), *layer.dir().blob());
            // To find out what the file is called takes reading the tree.
            tokio::task::spawn_blocking(move || {
                let file = names.of(read.offset);
                let SlowRead { waited_ms, requests, bytes, pid, .. } = read;
                let (from, trouble) = (read.from.join(", "), read.trouble.join("; "));
                match read.failed {
                    None => {
                        tracing::warn!(
                            file,
                            waited_ms,
                            requests,
                            bytes,
                            pid,
                            from,
                            trouble,
                            "a read was slow"
                        );
                    }
                    Some(e) => {
                        tracing::error!(layer = %blob, file, waited_ms, bytes, pid, trouble, "a read failed: {e}");
                    }
                }
            });
        }
        layer.slowest.note(read);
        layer.tell();
    }
}

/// The servers that gave bytes between two moments.
fn served(before: &[(String, HostCounts)], after: &[(String, HostCounts)]) -> Vec<String> {
    let had =
        |host: &str| before.iter().find(|(other, _)| other == host).map_or(0, |(_, counts)| counts.bytes);
    let gave = after.iter().filter(|(host, counts)| counts.bytes > had(host));
    gave.map(|(host, _)| host.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_are_remembered_and_those_that_failed_before_them() {
        let slowest = Slowest::default();
        for waited_ms in (0..100).chain(50..60) {
            slowest.note(SlowRead { waited_ms, ..SlowRead::default() });
        }
        slowest.note(SlowRead { waited_ms: 3, failed: Some("no".into()), ..SlowRead::default() });
        let waits: Vec<_> = slowest.all().iter().map(|read| read.waited_ms).collect();
        assert_eq!(waits, [3, 99, 98, 97, 96, 95, 94, 93, 92, 91, 90, 89, 88, 87, 86, 85]);
    }

    #[test]
    fn who_served_is_whose_bytes_grew() {
        let counts = |bytes| HostCounts { bytes, ..HostCounts::default() };
        let before = [("a".to_owned(), counts(5)), ("b".to_owned(), counts(7))];
        let after = [("a".to_owned(), counts(5)), ("b".to_owned(), counts(9)), ("c".to_owned(), counts(1))];
        assert_eq!(served(&before, &after), ["b", "c"]);
    }
}
