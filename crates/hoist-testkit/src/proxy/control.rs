//! The proxy's own paths, for shell scripts: neither counted nor passed on.
//!
//! `GET /_testkit/stats` tells the counts, `POST /_testkit/reset` clears them, and
//! `POST /_testkit/set?delay_ms=N&rate=BYTES` changes the speed (a rate of 0 is unlimited).

use std::time::Duration;

use super::{ProxyOptions, ProxyStats, Shared};

/// The JSON answer to one of the proxy's own paths.
pub(super) fn answer(shared: &Shared, path: &str) -> Option<String> {
    let (path, query) = path.strip_prefix("/_testkit/").map(|p| p.split_once('?').unwrap_or((p, "")))?;
    match path {
        "reset" => {
            let mut state = shared.state();
            state.stats = ProxyStats::default();
            state.log.clear();
        }
        "set" => set(shared, query),
        _ => {}
    }
    let stats = shared.state().stats;
    serde_json::to_string(&stats).ok()
}

fn set(shared: &Shared, query: &str) {
    let mut options: ProxyOptions = shared.state().options;
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match (name, value.parse::<u64>()) {
            ("delay_ms", Ok(n)) => options.delay = Duration::from_millis(n),
            ("rate", Ok(n)) => options.rate = (n > 0).then_some(n),
            _ => {}
        }
    }
    shared.set_options(options);
}
