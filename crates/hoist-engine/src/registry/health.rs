//! Whether a server answers at all, so that a dead one does not cost each read the whole patience of a request.
//!
//! After failures in a row, over some time, it counts as *down*. From then on a request is tried once and not
//! repeated; and where that try was one that waited in vain, all others fail at once for a few seconds, until
//! one of them may be the next try. The first answer that comes whole, whatever it says, and it is up again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::RegistryError;

/// When a server counts as down.
#[derive(Debug, Clone)]
pub struct DownPolicy {
    /// After so many failures in a row; one that came of waiting in vain counts twice, and others beside it do not.
    pub failures: u32,
    /// And not before this long after the first of them: a server that is started anew is waited for.
    pub after: Duration,
    /// How long nobody waits for it again after somebody has in vain.
    pub rest: Duration,
}

impl Default for DownPolicy {
    fn default() -> Self {
        Self { failures: 4, after: Duration::from_secs(2), rest: Duration::from_secs(3) }
    }
}

/// What is known of one server.
pub(super) struct Health {
    policy: DownPolicy,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    /// When the first of these failures began.
    since: Option<Instant>,
    /// When the last failure was counted.
    counted: Option<Instant>,
    rests_until: Option<Instant>,
    /// A request is under way that will tell.
    probing: bool,
    last: String,
}

impl State {
    fn is_down(&self, policy: &DownPolicy) -> bool {
        self.failures >= policy.failures && self.since.is_some_and(|since| since.elapsed() >= policy.after)
    }
}

/// A request that may be sent.
pub(super) struct Admission<'a> {
    health: &'a Health,
    began: Instant,
    probe: bool,
}

impl Health {
    pub fn new(policy: DownPolicy) -> Self {
        Self { policy, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a request to be sent. The error is the last failure's text: it would fail as that one did.
    pub fn admit(&self) -> Result<Admission<'_>, String> {
        let mut state = self.lock();
        let mut probe = false;
        if state.is_down(&self.policy)
            && let Some(until) = state.rests_until
        {
            if state.probing || Instant::now() < until {
                return Err(state.last.clone());
            }
            (state.probing, probe) = (true, true);
        }
        Ok(Admission { health: self, began: Instant::now(), probe })
    }

    /// It has given something: it is up.
    pub fn alive(&self) {
        *self.lock() = State::default();
    }

    /// It has failed a request that began then.
    pub fn failed(&self, error: &RegistryError, began: Instant) {
        let mut state = self.lock();
        let waited = matches!(error, RegistryError::TimedOut { .. });
        // Who waited in vain beside one that is counted was not the next in a row.
        if !(waited && state.counted.is_some_and(|counted| began < counted)) {
            state.failures = state.failures.saturating_add(1 + u32::from(waited));
            state.counted = Some(Instant::now());
        }
        state.since.get_or_insert(began);
        state.rests_until = waited.then(|| Instant::now() + self.policy.rest);
        state.last = error.cause();
    }

    /// Is it known not to answer, so that trying again at once is of no use?
    pub fn is_down(&self) -> bool {
        self.lock().is_down(&self.policy)
    }
}

impl Admission<'_> {
    /// Says what became of the request. Of an answer whose body is still to come that is not yet known.
    pub fn report<T>(self, outcome: &Result<T, RegistryError>, body_comes: bool) {
        match outcome {
            Err(error) if error.server_down() => self.health.failed(error, self.began),
            Ok(_) if body_comes => {}
            _ => self.health.alive(),
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.probe {
            // Also where nobody waited for its end.
            self.health.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(after: Duration) -> Health {
        Health::new(DownPolicy { failures: 4, after, rest: Duration::from_secs(1000) })
    }

    fn unreachable() -> Result<(), RegistryError> {
        let text = |text: &str| text.to_owned();
        let (doing, host, detail) = (text("x"), text("h"), text("refused"));
        Err(RegistryError::Unreachable { doing, host, detail, nobody: true })
    }

    fn late() -> Result<(), RegistryError> {
        let limit = Duration::from_secs(1);
        Err(RegistryError::TimedOut { doing: "x".into(), host: "h".into(), what: "answer", limit })
    }

    #[test]
    fn down_after_failures_in_a_row_and_up_with_an_answer() {
        let health = health(Duration::ZERO);
        for round in 0..2 {
            for _ in 0..4 {
                assert!(!health.is_down(), "{round}");
                health.admit().map(|a| a.report(&unreachable(), false)).unwrap();
            }
            assert!(health.is_down());
            // Refusing costs nothing: it is tried each time.
            health.admit().map(|a| a.report(&unreachable(), false)).unwrap();
            let gone = RegistryError::NotFound { doing: "x".into(), host: "h".into() };
            health.admit().map(|a| a.report(&Err::<(), _>(gone), false)).unwrap();
        }
        assert!(!health.is_down());
    }

    #[test]
    fn a_header_without_its_body_is_no_answer() {
        let health = health(Duration::ZERO);
        let broken = unreachable().unwrap_err();
        for _ in 0..4 {
            assert!(!health.is_down());
            health.admit().map(|a| a.report(&Ok(()), true)).unwrap();
            health.failed(&broken, Instant::now());
        }
        assert!(health.is_down());
        health.alive();
        assert!(!health.is_down());
    }

    #[test]
    fn a_restart_is_waited_for() {
        let health = health(Duration::from_secs(1000));
        (0..100).for_each(|_| health.admit().map(|a| a.report(&late(), false)).unwrap());
        assert!(!health.is_down());
    }

    #[test]
    fn who_waits_in_vain_side_by_side_counts_once() {
        let health = health(Duration::ZERO);
        for round in 0..2 {
            assert!(!health.is_down(), "{round}");
            let beside: Vec<_> =
                (0..8).map(|_| health.admit().unwrap_or_else(|why| panic!("{why}"))).collect();
            beside.into_iter().for_each(|asked| asked.report(&late(), false));
        }
        assert!(health.is_down());
    }

    #[test]
    fn who_would_wait_in_vain_fails_at_once_and_one_probes() {
        let health = health(Duration::ZERO);
        (0..2).for_each(|_| health.admit().map(|a| a.report(&late(), false)).unwrap());
        assert!(health.admit().err().unwrap().contains("did not answer"));
        health.lock().rests_until = Some(Instant::now());
        let probe = health.admit().unwrap_or_else(|why| panic!("{why}"));
        assert!(health.admit().is_err());
        drop(probe);
        let probe = health.admit().unwrap_or_else(|why| panic!("{why}"));
        probe.report(&late(), false);
        assert!(health.admit().is_err() && health.is_down());
        health.lock().rests_until = Some(Instant::now());
        health.admit().map(|a| a.report(&Ok(()), false)).unwrap();
        assert!(health.admit().is_ok() && !health.is_down());
    }
}
