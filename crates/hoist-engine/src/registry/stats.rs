//! What the client did, counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::error::RegistryError;

/// Hosts that are told apart; what more there are is counted under [`OTHERS`].
const MAX_HOSTS: usize = 16;
/// Failures that are remembered.
const MAX_TROUBLES: usize = 64;
const OTHERS: &str = "others";

/// What one host did: a registry, a mirror, or where they redirect to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostCounts {
    /// Requests sent to it.
    pub requests: u64,
    /// Bytes of bodies it sent.
    pub bytes: u64,
    /// Requests that failed, and bodies that broke.
    pub failures: u64,
    /// How the last of them failed.
    pub last_failure: Option<String>,
}

impl HostCounts {
    /// Counts those of a later time too.
    pub fn add(&mut self, later: &HostCounts) {
        self.requests += later.requests;
        self.bytes += later.bytes;
        self.failures += later.failures;
        if later.last_failure.is_some() {
            self.last_failure.clone_from(&later.last_failure);
        }
    }
}

/// Something that went wrong at a host.
#[derive(Debug)]
struct Trouble {
    at: Instant,
    host: String,
    what: String,
}

/// Counters shared by everything that talks to registries.
#[derive(Debug, Default)]
pub struct Stats {
    /// What is counted here counts there too.
    total: Option<Arc<Stats>>,
    requests: AtomicU64,
    wire_bytes: AtomicU64,
    retries: AtomicU64,
    hosts: Mutex<BTreeMap<String, HostCounts>>,
    troubles: Mutex<VecDeque<Trouble>>,
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
    /// What each host did so far, by name.
    pub fn hosts(&self) -> Vec<(String, HostCounts)> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.iter().map(|(host, counts)| (host.clone(), counts.clone())).collect()
    }
    /// What has gone wrong since, oldest first, each with its host.
    pub fn troubles_since(&self, since: Instant) -> Vec<String> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told: Vec<String> = Vec::new();
        for Trouble { host, what, .. } in troubles.iter().filter(|trouble| trouble.at >= since) {
            let text = format!("{host}: {what}");
            if !told.contains(&text) {
                told.push(text);
            }
        }
        told
    }
    fn count(&self, host: &str, count: impl FnOnce(&mut HostCounts)) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = hosts.get_mut(host) {
            return count(counts);
        }
        let name = if hosts.len() < MAX_HOSTS { host } else { OTHERS };
        count(hosts.entry(name.to_owned()).or_default());
    }
    pub(super) fn request(&self, host: &str) {
        self.all().for_each(|stats| {
            stats.requests.fetch_add(1, Relaxed);
            stats.count(host, |counts| counts.requests += 1);
        });
    }
    /// Bytes of a body came, of content that `host` serves if it is named.
    pub(super) fn received(&self, host: Option<&str>, bytes: usize) {
        self.all().for_each(|stats| {
            stats.wire_bytes.fetch_add(bytes as u64, Relaxed);
            host.iter().for_each(|host| stats.count(host, |counts| counts.bytes += bytes as u64));
        });
    }
    /// A request failed, or a body broke. That something is not there is no failure.
    pub(super) fn trouble(&self, error: &RegistryError) {
        if error.is_not_found() {
            return;
        }
        let Some(host) = error.host() else { return };
        self.all().for_each(|stats| {
            stats.count(host, |counts| {
                counts.failures += 1;
                counts.last_failure = Some(error.cause());
            });
            let mut troubles = stats.troubles.lock().unwrap_or_else(PoisonError::into_inner);
            if troubles.len() >= MAX_TROUBLES {
                troubles.pop_front();
            }
            troubles.push_back(Trouble { at: Instant::now(), host: host.to_owned(), what: error.cause() });
        });
    }
    pub(super) fn retry(&self) {
        self.all().for_each(|stats| {
            stats.retries.fetch_add(1, Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart_and_bounded() {
        let total: Arc<Stats> = Arc::default();
        let stats = Stats::part_of(&total);
        for i in 0..100 {
            stats.received(Some(&format!("host-{i:02}")), 1);
        }
        let hosts = stats.hosts();
        assert_eq!(hosts.len(), MAX_HOSTS + 1);
        assert_eq!(hosts.iter().map(|(_, counts)| counts.bytes).sum::<u64>(), 100);
        assert_eq!(total.hosts(), hosts);
        let since = Instant::now();
        let gone = RegistryError::NotFound { doing: "x".into(), host: "h".into() };
        let late = RegistryError::Unreachable {
            doing: "x".into(),
            host: "host-03".into(),
            detail: "connection refused".into(),
            nobody: true,
        };
        [&gone, &late, &late].into_iter().for_each(|error| stats.trouble(error));
        assert_eq!(stats.troubles_since(since), ["host-03: connection refused"]);
        let counts = stats.hosts().into_iter().find(|(host, _)| host == "host-03").unwrap().1;
        assert_eq!((counts.failures, counts.last_failure.as_deref()), (2, Some("connection refused")));
        assert_eq!(stats.troubles_since(Instant::now()), [""; 0]);
    }
}
