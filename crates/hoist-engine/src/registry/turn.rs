//! Who is asked next and when to stop: servers in their order, and tries of one server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Client;
use super::config::RetryPolicy;
use super::error::RegistryError;
use super::send::{Ask, Endpoint};
use super::stats::Stats;
use super::wire::authority;

/// One pass over the servers of a registry, best first. There is at least one.
pub(super) struct Turn<'a> {
    endpoints: &'a [Arc<Endpoint>],
    at: usize,
    rest: Duration,
}

impl<'a> Turn<'a> {
    pub(super) fn endpoint(&self) -> &'a Endpoint {
        &self.endpoints[self.at]
    }
    /// The same, shared.
    pub(super) fn shared(&self) -> Arc<Endpoint> {
        Arc::clone(&self.endpoints[self.at])
    }
    /// Its number.
    pub(super) fn at(&self) -> usize {
        self.at
    }
    /// Only the last hope is asked again and again.
    pub(super) fn last(&self) -> bool {
        self.at + 1 == self.endpoints.len()
    }
    /// On to the next server, or out with the last one's error.
    pub(super) fn next(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if self.last() {
            return Err(error);
        }
        let endpoint = self.endpoint();
        tracing::debug!(server = %authority(&endpoint.base), %error, "asking the next server");
        if error.server_down() {
            endpoint.rest_until(Instant::now() + self.rest);
        }
        self.at += 1;
        Ok(())
    }
}

/// The tries of one request at one server.
pub(super) struct Tries<'a> {
    policy: &'a RetryPolicy,
    endpoint: &'a Endpoint,
    stats: &'a Stats,
    patient: bool,
    brief: bool,
    within: Duration,
    start: Instant,
    made: u32,
}

impl Tries<'_> {
    /// Those of a question: where whoever asks can do without, a server that is not there is asked once, and one that is
    /// in trouble once more.
    pub(super) fn of(self, ask: &Ask<'_>) -> Self {
        Self { brief: ask.brief, within: ask.within.min(self.within), ..self }
    }
    /// Waits for the next try if `error` is worth one, else gives it back.
    pub(super) async fn again(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.made += 1;
        let pause = self.policy.pause(self.made, error.retry_after());
        let late = self.start.elapsed() + pause > self.within;
        let enough = self.made >= self.policy.attempts(&error) || self.endpoint.health.is_down();
        let ill = error.server_down() || matches!(error, RegistryError::BadAnswer { .. });
        let done_without = self.brief && (error.is_nobody() || (ill && self.made > 1));
        if !self.patient || !error.retryable() || enough || late || done_without {
            return Err(error);
        }
        tracing::debug!(%error, ?pause, "trying again");
        self.stats.retry();
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Client {
    pub(super) fn turn<'a>(&self, endpoints: &'a [Arc<Endpoint>]) -> Turn<'a> {
        self.turn_from(endpoints, 0)
    }
    /// The same without the first `at` of them; the last is never left out.
    pub(super) fn turn_from<'a>(&self, endpoints: &'a [Arc<Endpoint>], at: usize) -> Turn<'a> {
        Turn { endpoints, at: at.min(endpoints.len() - 1), rest: self.0.config.mirror_rest }
    }
    pub(super) fn tries<'a>(&'a self, endpoint: &'a Endpoint, patient: bool) -> Tries<'a> {
        let (policy, stats) = (&self.0.config.retry, &*self.0.wire.stats);
        Tries {
            policy,
            endpoint,
            stats,
            patient,
            brief: false,
            within: policy.total,
            start: Instant::now(),
            made: 0,
        }
    }
}
