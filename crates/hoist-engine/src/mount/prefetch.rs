//! What an image says will be read first is fetched first, in its order, for a program that is about to run.

use std::sync::Arc;
use std::time::Duration;

use super::layer::LazyLayer;
use crate::convert::PREFETCH;
use crate::fill::Meter;

/// Data bytes that are asked for at once: what is demanded meanwhile comes soon.
const STEP: u64 = 4 << 20;
/// A program that reads without a pause shall not keep it from going on.
const STAND_BACK: Duration = Duration::from_millis(50);

/// Fetches the ranges that the layers have been told of.
pub(super) async fn follow(layers: Vec<Arc<LazyLayer>>, meter: Arc<Meter>) {
    for layer in layers {
        let told = std::fs::read(layer.dir().file(PREFETCH)).ok();
        let told: Option<Vec<[u64; 2]>> = told.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        for [start, end] in told.into_iter().flatten() {
            let mut at = start;
            while at < end {
                let to = end.min(at.saturating_add(STEP));
                let _ = tokio::time::timeout(STAND_BACK, meter.idle()).await;
                let filled = match layer.fill().await {
                    Ok(fill) => fill.fill(at, to).await,
                    Err(e) => Err(e),
                };
                if let Err(e) = filled {
                    // Whoever reads it hears of it.
                    return tracing::warn!(layer = %layer.dir().blob(), "fetching ahead what the image names: {e}");
                }
                at = to;
            }
        }
    }
}
