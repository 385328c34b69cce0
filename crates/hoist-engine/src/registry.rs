//! The registry client (OCI distribution-spec v1.1) and its counterpart for layouts on disk.
//!
//! Assumptions: servers and networks fail, lie and stall, so every wait and every body is bounded;
//! content is named by digest, so whole bodies are verified here and parts by who knows their
//! digests; a round trip is what costs, so connections, tokens and redirects are kept.

mod auth;
mod certificate;
mod challenge;
mod config;
mod content_range;
mod credential_store;
mod credentials;
pub(crate) mod date;
mod docker_config;
mod error;
mod health;
mod helper;
mod honest;
mod hosts;
mod layout;
mod limit;
mod media;
mod pattern;
mod program;
mod provider;
mod pull_secrets;
mod push;
mod range;
mod read;
mod remembered;
mod second;
mod secret;
mod send;
mod size;
mod source;
mod stats;
mod tls;
mod turn;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

pub use config::{ClientConfig, RetryPolicy, Timeouts};
pub use credential_store::CredentialStore;
pub use credentials::{CredentialSource, Credentials};
pub use date::to_rfc3339;
pub use docker_config::Login;
pub use error::RegistryError;
pub use health::DownPolicy;
pub use layout::Layout;
pub use media::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Fetched, MAX_MANIFEST, OCI_INDEX, OCI_MANIFEST};
pub use pattern::Pattern;
pub use provider::Providers;
pub use pull_secrets::{Cluster, PullSecrets};
pub use push::Pushed;
pub use range::RangeBody;
pub use read::MAX_BLOB;
pub use remembered::Remembered;
pub use secret::Secret;
pub use source::ImageSource;
pub use stats::{HostCounts, Stats};

pub use crate::reference::{Reference, Repo, Source};

/// A client of all registries. Clones share connections, tokens and knowledge of servers.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

/// The servers of each host that was asked for.
type Hosts = HashMap<String, Arc<[Arc<send::Endpoint>]>>;

struct Inner {
    config: ClientConfig,
    wire: wire::Wire,
    auth: Arc<auth::Auth>,
    hosts: Arc<Mutex<Hosts>>,
    seconds: second::Seconds,
}

impl Client {
    /// A client with these settings; reads and connects to nothing yet.
    pub fn new(config: ClientConfig) -> Self {
        Self(Arc::new(Inner {
            wire: wire::Wire { stats: config.stats.clone(), timeouts: config.timeouts.clone() },
            auth: Arc::new(auth::Auth::new(config.credentials.clone())),
            hosts: Arc::default(),
            seconds: second::Seconds::default(),
            config,
        }))
    }

    /// The same client, adding to these counters instead.
    pub fn counting(&self, stats: Arc<Stats>) -> Self {
        let config = ClientConfig { stats: Arc::clone(&stats), ..self.0.config.clone() };
        Self(Arc::new(Inner {
            wire: wire::Wire { stats, timeouts: config.timeouts.clone() },
            auth: Arc::clone(&self.0.auth),
            hosts: Arc::clone(&self.0.hosts),
            seconds: self.0.seconds.clone(),
            config,
        }))
    }

    /// The counters it adds to.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.0.config.stats
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("config", &self.0.config).finish_non_exhaustive()
    }
}
