//! Who has read through a third of an image will come to the rest of it: that is fetched before he does, layer after
//! layer, as little hindering what is demanded meanwhile as all that is fetched ahead.

use std::sync::Arc;

use super::layer::LazyLayer;

/// Layers that were read through must be one in so many of the bytes of all.
const SHARE: u64 = 3;

/// Waits until enough of `layers` were read through, then has all that is missing fetched, lowest first.
pub(super) async fn follow(layers: Vec<Arc<LazyLayer>>) {
    let all: u64 = layers.iter().map(|layer| layer.data_size()).sum();
    if all == 0 {
        return;
    }
    let (mut left, mut through) = (layers.clone(), 0);
    while through * SHARE < all {
        // Every mount has this task, and few ever get here.
        let next = left.iter().map(|layer| Box::pin(layer.through().wait()));
        let ((), next, _) = futures_util::future::select_all(next).await;
        through += left.swap_remove(next).data_size();
    }
    for layer in left {
        tracing::debug!(layer = %layer.dir().blob(), "others were read through: it will be wanted");
        match layer.fill().await {
            Ok(fill) => fill.fetch_rest().await,
            // Whoever reads it hears of it.
            Err(e) => tracing::debug!(layer = %layer.dir().blob(), "fetching ahead: {e}"),
        }
    }
}
