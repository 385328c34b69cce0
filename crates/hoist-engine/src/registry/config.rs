//! The client's settings, with defaults for production.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::credential_store::CredentialStore;
use super::error::RegistryError;
use super::health::DownPolicy;
use super::stats::Stats;

/// How long to wait for a server.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For the TCP and TLS handshakes.
    pub connect: Duration,
    /// From the request to the response's header (sending a body adds to it by its length).
    pub first_byte: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
    /// A part of a blob of which nothing has come for so long is asked for a second time, while the first request waits on.
    pub second: Duration,
    /// Over this long, of waiting alone, a server must send at `slowest`.
    pub window: Duration,
    /// Bytes a second: one that sends a byte now and then is never silent, and never done.
    pub slowest: u64,
}

impl Timeouts {
    /// The least that a server must send in a window, bytes.
    pub(super) fn least(&self) -> u64 {
        (u128::from(self.slowest) * self.window.as_millis() / 1000).try_into().unwrap_or(u64::MAX)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(20),
            idle: Duration::from_secs(15),
            second: Duration::from_secs(3),
            window: Duration::from_secs(60),
            slowest: 1 << 10,
        }
    }
}

/// How stubborn the client is: bounded in number and in time.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Tries of one request, the first included.
    pub attempts: u32,
    /// No try starts later than this after the first.
    pub total: Duration,
    /// Longest pause before the second try; doubled for each further one.
    pub base: Duration,
    /// Longest pause, also when a server's `Retry-After` asks for more.
    pub longest: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            total: Duration::from_secs(90),
            base: Duration::from_millis(100),
            longest: Duration::from_secs(20),
        }
    }
}

/// Tries of what was answered and is wrong: that seldom passes, and who waits for it should not wait long.
const TRIES_IF_WRONG: u32 = 3;

impl RetryPolicy {
    /// How often what failed like this is tried.
    pub(super) fn attempts(&self, error: &RegistryError) -> u32 {
        match error {
            RegistryError::BadAnswer { .. } | RegistryError::DigestMismatch { .. } => {
                self.attempts.min(TRIES_IF_WRONG)
            }
            _ => self.attempts,
        }
    }

    /// The pause before try number `attempt` + 1: the server's wish, else a random half to whole
    /// of the exponential step, so that clients which failed together come back apart.
    pub(super) fn pause(&self, attempt: u32, retry_after: Option<Duration>) -> Duration {
        let step = self.base.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(self.longest);
        let jittered = step.mul_f64(0.5 + 0.5 * rand::random::<f64>());
        retry_after.unwrap_or(jittered).min(self.longest)
    }
}

/// Settings of a [`Client`](super::Client).
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Counters to add to.
    pub stats: Arc<Stats>,
    /// Folders with `<host>/hosts.toml`, as containerd has them; the first that knows a host wins.
    pub certs_dirs: Vec<PathBuf>,
    /// `Some(true)`: plain HTTP wherever hosts.toml gives no scheme; `Some(false)`: never;
    /// `None`: for loopback only.
    pub plain_http: Option<bool>,
    /// Where user names and passwords are found.
    pub credentials: CredentialStore,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Limits of repetition.
    pub retry: RetryPolicy,
    /// When a server that does not answer is asked once only, or not at all.
    pub down: DownPolicy,
    /// How long the URL that a blob was redirected to is used without asking the registry again.
    pub redirect_life: Duration,
    /// How long a mirror that could not be reached is left alone.
    pub mirror_rest: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            stats: Arc::default(),
            certs_dirs: vec!["/etc/containerd/certs.d".into(), "/etc/docker/certs.d".into()],
            plain_http: None,
            credentials: CredentialStore::from_environment(),
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            down: DownPolicy::default(),
            redirect_life: Duration::from_secs(300),
            mirror_rest: Duration::from_secs(15),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_s_wish_is_obeyed_and_bounded() {
        let policy = RetryPolicy { longest: Duration::from_secs(7), ..RetryPolicy::default() };
        let pause = |attempt, seconds: Option<u64>| policy.pause(attempt, seconds.map(Duration::from_secs));
        assert_eq!(pause(1, Some(3)), Duration::from_secs(3));
        assert_eq!(pause(1, Some(0)), Duration::ZERO);
        assert_eq!(pause(1, Some(u64::MAX)), policy.longest);
        for attempt in [1, 2, 10, u32::MAX] {
            assert!(pause(attempt, None) <= policy.longest);
        }
    }
}
