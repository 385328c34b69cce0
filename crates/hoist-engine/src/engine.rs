//! The engine as its callers see it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::config::Config;
use crate::counters::Counters;
use crate::error::Error;
use crate::fill::Meter;
use crate::mount::Serving;
use crate::registry::{self, Client, ClientConfig};
use crate::store::{Known, Store};

/// Opens images, pulls, indexes and mounts them. Clones share everything.
#[derive(Clone)]
pub struct Engine {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Store,
    pub(crate) client: Client,
    pub(crate) stats: Arc<registry::Stats>,
    pub(crate) known: Arc<Known>,
    pub(crate) total: Arc<registry::Stats>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) started: Instant,
    pub(crate) serving: Arc<Serving>,
}

/// Requests of the fill path that run at once.
const SLOTS: usize = 12;

impl Engine {
    /// Opens the store and prepares a client; connects to nothing yet.
    ///
    /// # Errors
    /// When the store cannot be opened or made.
    pub fn open(config: Config) -> Result<Self, Error> {
        let store = Store::open(&config.root)?;
        Self::of(store, config)
    }

    /// The same for who mends or lets go: a store whose `version` is damaged will do.
    ///
    /// # Errors
    /// When the store cannot be opened or made.
    pub fn open_damaged(config: Config) -> Result<Self, Error> {
        let (store, _) = Store::open_damaged(&config.root)?;
        Self::of(store, config)
    }

    fn of(store: Store, config: Config) -> Result<Self, Error> {
        if let Err(e) = crate::mount::retire_lost(&store) {
            tracing::error!("looking for mounts that nobody serves: {e}");
        }
        let total: Arc<registry::Stats> = Arc::default();
        let stats = Arc::new(registry::Stats::part_of(&total));
        Ok(Self {
            known: Arc::new(Known::of(store.root())),
            store,
            client: client(&config, &stats),
            stats,
            total,
            meter: Arc::default(),
            slots: Arc::new(Semaphore::new(SLOTS)),
            config: Arc::new(config),
            started: Instant::now(),
            serving: Arc::default(),
        })
    }

    /// The same store, mounts and pace under other settings. What it costs is counted from zero, and in
    /// [`Engine::totals`] too. The store's place and the reads' timeout stay as they are.
    #[must_use]
    pub fn with(&self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = (*self.config).clone();
        change(&mut config);
        config.root.clone_from(&self.config.root);
        let stats = Arc::new(registry::Stats::part_of(&self.total));
        let alike = has_the_same_client(&config, &self.config);
        Self {
            client: if alike { self.client.counting(Arc::clone(&stats)) } else { client(&config, &stats) },
            stats,
            started: Instant::now(),
            config: Arc::new(config),
            ..self.clone()
        }
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the fill path of all its mounts did.
    pub fn counters(&self) -> &Counters {
        &self.meter.counters
    }

    /// What this engine and all that were made [`with`](Engine::with) other settings asked of registries.
    pub fn totals(&self) -> &registry::Stats {
        &self.total
    }

    /// Bytes that its mounts and pulls took from other layers of the store instead of a registry.
    pub fn copied_bytes(&self) -> u64 {
        self.known.copied_so_far()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

fn has_the_same_client(a: &Config, b: &Config) -> bool {
    let credentials = || a.credentials.iter().zip(&b.credentials);
    a.plain_http == b.plain_http
        && a.certs_dirs == b.certs_dirs
        && a.credentials.len() == b.credentials.len()
        && credentials().all(|(a, b)| Arc::ptr_eq(a, b))
}

fn client(config: &Config, stats: &Arc<registry::Stats>) -> Client {
    let mut client = ClientConfig { stats: Arc::clone(stats), ..ClientConfig::default() };
    client.plain_http = config.plain_http;
    client.timeouts.slowest = config.min_rate;
    client.credentials.sources.clone_from(&config.credentials);
    if !config.certs_dirs.is_empty() {
        client.certs_dirs.clone_from(&config.certs_dirs);
    }
    Client::new(client)
}
