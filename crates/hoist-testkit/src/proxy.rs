//! An HTTP/1.1 reverse proxy that makes the network slow or hostile on demand, and counts what passes.
//!
//! It must be cheap enough not to show in a bench: connections are kept alive on both sides, bodies are copied
//! through large buffers and never held.

mod control;
mod fault;
mod limit;
mod login;
mod message;
mod serve;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

pub use fault::{Fault, FaultKind, When};

/// How slow the network is.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProxyOptions {
    /// Added to every request before it is passed on: a round trip.
    pub delay: Duration,
    /// Response bytes per second, over all connections together.
    pub rate: Option<u64>,
}

/// What has passed since the start or the last reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStats {
    /// Requests received.
    pub requests: u64,
    /// Bytes of response bodies passed to clients.
    pub body_bytes: u64,
    /// Bytes of request bodies passed to the registry.
    pub request_body_bytes: u64,
    /// Connections accepted.
    pub connections: u64,
}

/// One request as it passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
}

/// How many requests the log keeps; later ones are counted only.
const LOG_LIMIT: usize = 100_000;

#[derive(Debug, Default)]
struct State {
    options: ProxyOptions,
    stats: ProxyStats,
    faults: Vec<fault::Armed>,
    log: Vec<Logged>,
    login: Option<login::Login>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    limit: limit::Limit,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_options(&self, options: ProxyOptions) {
        self.state().options = options;
        self.limit.set_rate(options.rate);
    }
}

/// A running proxy; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    // Dropped without waiting: a connection that hangs on purpose must not hang the test.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Proxy {
    /// Starts a proxy in front of `upstream` on a free loopback port.
    pub fn start(upstream: SocketAddr, options: ProxyOptions) -> Result<Self> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), upstream, options)
    }

    /// The same, on a given address.
    pub fn start_on(listen: SocketAddr, upstream: SocketAddr, options: ProxyOptions) -> Result<Self> {
        let shared = Arc::new(Shared { upstream, limit: limit::Limit::default(), state: Mutex::default() });
        shared.set_options(options);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(listen))
            .with_context(|| format!("listening on {listen}"))?;
        let address = listener.local_addr()?;
        runtime.spawn(serve::accept(listener, Arc::clone(&shared)));
        Ok(Self { shared, address, runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `127.0.0.1:port`, as it stands in an image's name.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Changes how slow the network is, from now on.
    pub fn set_options(&self, options: ProxyOptions) {
        self.shared.set_options(options);
    }

    /// Arms a fault.
    pub fn inject(&self, fault: Fault) {
        self.shared.state().faults.push(fault.into());
    }

    /// Disarms all faults.
    pub fn clear_faults(&self) {
        self.shared.state().faults.clear();
    }

    /// From now on only those come in who show a token that its own service gave to this user. Tokens given before
    /// are good no more.
    pub fn require_login(&self, user: &str, password: &str) {
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let mut state = self.shared.state();
        let login = state.login.get_or_insert_default();
        login.basic = basic;
        login.expire();
    }

    /// All tokens that were given have expired.
    pub fn expire_tokens(&self) {
        self.shared.state().login.iter_mut().for_each(login::Login::expire);
    }

    /// What has passed since the start or the last reset.
    pub fn stats(&self) -> ProxyStats {
        self.shared.state().stats
    }

    /// Returns the counts and the log to nothing.
    pub fn reset(&self) {
        let mut state = self.shared.state();
        state.stats = ProxyStats::default();
        state.log.clear();
    }

    /// The requests since the start or the last reset, in order.
    pub fn log(&self) -> Vec<Logged> {
        self.shared.state().log.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
