//! What a command cost, as `--stats` writes it.

use std::time::Duration;

use serde::Serialize;

use crate::registry;

/// Counts and times of one command.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stats {
    /// HTTP requests sent.
    pub requests: u64,
    /// Body bytes received.
    pub wire_bytes: u64,
    /// Bytes that were taken from elsewhere in the store instead.
    pub copied_bytes: u64,
    /// Bytes that readers asked for and that were not here yet.
    pub demand_bytes: u64,
    /// Reads that had to wait for the network.
    pub demand_stalls: u64,
    /// What showed the image (`erofs`, `erofs-fuse` or `fuse`); nothing for a pull.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<&'static str>,
    /// Until the mount was there; 0 for a pull.
    pub seconds_to_mount: f64,
    /// From start to end.
    pub seconds_total: f64,
}

impl Stats {
    /// What a client has done in `took`.
    pub fn of_client(client: &registry::Stats, took: Duration) -> Self {
        Self {
            requests: client.requests(),
            wire_bytes: client.wire_bytes(),
            seconds_total: took.as_secs_f64(),
            ..Self::default()
        }
    }
}
