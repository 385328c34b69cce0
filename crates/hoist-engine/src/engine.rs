//! The engine as its callers see it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::config::Config;
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
        if let Err(e) = crate::mount::retire_lost(&store) {
            tracing::error!("looking for mounts that nobody serves: {e}");
        }
        let stats: Arc<registry::Stats> = Arc::default();
        let mut client = ClientConfig { stats: Arc::clone(&stats), ..ClientConfig::default() };
        client.plain_http = config.plain_http;
        if !config.certs_dirs.is_empty() {
            client.certs_dirs.clone_from(&config.certs_dirs);
        }
        Ok(Self {
            known: Arc::new(Known::of(store.root())),
            store,
            client: Client::new(client),
            stats,
            meter: Arc::default(),
            slots: Arc::new(Semaphore::new(SLOTS)),
            config: Arc::new(config),
            started: Instant::now(),
            serving: Arc::default(),
        })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }
}
