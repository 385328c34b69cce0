//! A second request beside one that hangs: whoever waits for a part of a blob, or a document, does not wait as long as a
//! server may be silent. The first goes on, and counts if it answers after all. Bounded: few at once, and few for one part.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::Client;
use super::error::RegistryError;
use super::limit::within;
use super::send::Endpoint;

/// Second requests under way at once, to whatever server.
const AT_ONCE: usize = 4;
/// Second requests for one part of a blob.
const MOST: u32 = 2;

/// Who may be under way, of all clients that share connections.
#[derive(Clone)]
pub(super) struct Seconds(Arc<Semaphore>);

impl Default for Seconds {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

/// What a part of a blob has cost so far.
#[derive(Default)]
pub(super) struct Patience {
    /// Second requests.
    made: AtomicU32,
    /// The number of the server that the first request is at.
    pub at: AtomicUsize,
    /// No other server is asked.
    pub stays: bool,
}

impl Patience {
    /// Of what has no second request, and stays with its server.
    pub fn staying() -> Self {
        Self { made: AtomicU32::new(MOST), at: AtomicUsize::default(), stays: true }
    }
}

/// Which of two has brought something.
pub(super) enum Came<A, B> {
    First(A),
    Second(B),
}

impl Client {
    /// What `first` brings; or what `second` does, which is begun only where `first` has been silent for long.
    ///
    /// # Errors
    /// Of the first, where neither brings anything.
    pub(super) async fn with_second<A, B>(
        &self,
        patience: &Patience,
        first: impl Future<Output = Result<A, RegistryError>>,
        second: impl Future<Output = Result<B, RegistryError>>,
    ) -> Result<Came<A, B>, RegistryError> {
        let mut first = pin!(first);
        if let (Some(came), _) = within(self.0.config.timeouts.second, &mut first).await {
            return came.map(Came::First);
        }
        if patience.made.load(Relaxed) >= MOST {
            return first.await.map(Came::First);
        }
        // Where many wait, their turn comes as others' second requests end.
        let _permit = tokio::select! {
            came = &mut first => return came.map(Came::First),
            permit = self.0.seconds.0.acquire() => permit,
        };
        patience.made.fetch_add(1, Relaxed);
        tracing::debug!("a server is silent: asking a second time beside it");
        self.0.wire.stats.retry();
        first_of(Duration::ZERO, first, second).await
    }

    /// What `others` give, or mirrors at rest (`spared`): these are asked where the others fail, or are silent for so long;
    /// or the other way round, if `spares_first`. A mirror that gives it beside silent ones is at rest no more, or all that
    /// comes after would wait for these first.
    ///
    /// # Errors
    /// Of those that are asked first, where neither gives anything.
    pub(super) async fn or_spared<T>(
        &self,
        (silent_for, spares_first): (Duration, bool),
        others: impl Future<Output = Result<T, RegistryError>>,
        spares: &[Arc<Endpoint>],
        spared: impl Future<Output = Result<T, RegistryError>>,
        at: &AtomicUsize,
    ) -> Result<T, RegistryError> {
        if spares.is_empty() {
            return others.await;
        }
        let failed = AtomicBool::new(false);
        let wake = || {
            if let Some(mirror) = spares.get(at.load(Relaxed)).filter(|_| !failed.load(Relaxed)) {
                mirror.rest_until(Instant::now());
            }
        };
        let others = async { others.await.inspect_err(|_| failed.store(true, Relaxed)) };
        let spared = async { spared.await.inspect(|_| wake()) };
        let came = match spares_first {
            true => first_of(silent_for, spared, others).await?,
            false => first_of(silent_for, others, spared).await?,
        };
        match came {
            Came::First(came) | Came::Second(came) => Ok(came),
        }
    }

    /// How long servers are waited for that come after the silent one of this number, before mirrors at rest are asked too.
    pub(super) fn patience_behind(&self, endpoints: &[Arc<Endpoint>], at: usize) -> Duration {
        match at + 1 < endpoints.len() {
            true => self.0.config.timeouts.second,
            // It is itself that is asked anew.
            false => Duration::ZERO,
        }
    }

    /// The server of this number was silent while another one answered: a mirror is given a rest.
    pub(super) fn leave_alone(&self, endpoints: &[Arc<Endpoint>], at: usize) {
        if at + 1 < endpoints.len() {
            endpoints[at].rest_until(Instant::now() + self.0.config.mirror_rest);
        }
    }
}

/// What `first` brings; or what `second` does, which is begun where the first has been silent for so long, or has failed.
async fn first_of<A, B>(
    silent_for: Duration,
    first: impl Future<Output = Result<A, RegistryError>>,
    second: impl Future<Output = Result<B, RegistryError>>,
) -> Result<Came<A, B>, RegistryError> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    match within(silent_for, &mut first).await.0 {
        Some(Ok(came)) => return Ok(Came::First(came)),
        Some(Err(error)) => return second.await.map(Came::Second).map_err(|_| error),
        None => {}
    }
    tokio::select! {
        came = &mut first => match came {
            Ok(came) => Ok(Came::First(came)),
            Err(error) => second.await.map(Came::Second).map_err(|_| error),
        },
        came = &mut second => match came {
            Ok(came) => Ok(Came::Second(came)),
            Err(_) => first.await.map(Came::First),
        },
    }
}
