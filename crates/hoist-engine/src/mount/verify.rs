//! Once a lazily mounted layer was fetched whole, the published index is held against the image.

use std::sync::Arc;
use std::time::Duration;

use hoist_format::digest::Digest;

use super::layer::LazyLayer;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::ingest::Ingest;

/// How often to look whether a layer is complete.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// For the check of a layer so many bytes that nobody needs to read are fetched; beyond that it waits for a
/// pull, or what other layers had here would be fetched after all.
const CHECK_MOST: u64 = 1 << 20;

/// Watches the layers of a mount until all are complete and judged, then judges the tree. `pass_by` lets the
/// readers of a layer that passed go past us.
pub(super) async fn when_whole(
    pass_by: impl Fn(&LazyLayer) + Send + Sync,
    layers: Vec<Arc<LazyLayer>>,
    engine: Engine,
    image: Image,
    index: Digest,
) {
    let mut left = layers;
    let mut all_checked = true;
    let mut tick = tokio::time::interval(LOOK_EVERY);
    while !left.is_empty() {
        tick.tick().await;
        if left.iter().all(|l| l.is_empty()) {
            // Nobody will ever read these: what is left of them is to be judged.
            for layer in &left {
                if let Err(e) = layer.fill().await {
                    tracing::warn!(layer = %layer.dir().blob(), "{e}");
                }
            }
        }
        let mut still = Vec::new();
        for layer in left {
            let Some(fill) = layer.filling().filter(|f| f.is_complete()) else {
                still.push(layer);
                continue;
            };
            if fill.never_kept() > CHECK_MOST {
                tracing::info!(layer = %layer.dir().blob(), "complete; `hoist pull` checks it against the image");
                all_checked = false;
                continue;
            }
            if let Err(e) = fill.keep_rest().await {
                tracing::warn!(layer = %layer.dir().blob(), "fetching the rest to check the layer: {e}");
                still.push(layer);
                continue;
            }
            if let Err(e) = judge(&pass_by, &engine, &image, &index, &layer).await {
                tracing::error!(layer = %layer.dir().blob(), "checking the layer against the image: {e}");
            }
        }
        left = still;
    }
    // Layers may have been removed and be filled anew after the tree was judged; or all be whole already, by
    // other images or an earlier filler, before it was.
    if !all_checked || engine.store.image(&image.digest).is_judged(&index) {
        return;
    }
    let judged = tokio::task::spawn_blocking(move || engine.judge_tree(&image, &index)).await;
    if let Ok(Err(e)) = judged {
        tracing::error!("checking the published tree against the layers: {e}");
    }
}

async fn judge(
    pass_by: &(impl Fn(&LazyLayer) + Sync),
    engine: &Engine,
    image: &Image,
    index: &Digest,
    layer: &LazyLayer,
) -> Result<(), Error> {
    let expected = layer.expected().clone();
    let Some(fill) = layer.filling().map(Arc::clone) else { return Ok(()) };
    let (this, dir, wanted) = (Arc::clone(&fill), layer.dir().clone(), expected.clone());
    let passed = tokio::task::spawn_blocking(move || -> Result<_, Error> {
        let ingest = Ingest::start(wanted, None)?;
        let mut at = 0;
        while let Some(bytes) = this.kept_bytes(at).map_err(Error::io("read", dir.file("blob")))? {
            at += bytes.len() as u64;
            ingest.feed(bytes);
        }
        Ok(ingest.finish())
    });
    let mut passed = passed.await.map_err(|e| Error::Internal(e.to_string()))??;
    if matches!(passed, Err(Error::Digest { .. } | Error::Layer { .. })) {
        // What was kept may have been damaged here: only the registry's own bytes accuse.
        let silent = &crate::progress::Silent;
        let again = crate::pull::fetch_and_ingest(&expected, &image.source, None, None, silent).await;
        passed = again.map(|(done, _)| done);
    }
    if let Ok(done) = &passed {
        crate::pull::keep_tree(layer.dir(), done)?;
    }
    let table = fill.table().encode();
    let lie = Engine::verdict(&table, passed)?;
    if let Some(why) = &lie {
        fill.condemn(why);
    }
    engine.judge(index, layer.dir(), lie.as_deref())?;
    if lie.is_none() {
        // The verdict was on the blob: what readers get is what stands in the data file.
        fill.mend().await.map_err(|e| Error::Store {
            path: layer.dir().file("data"),
            why: format!("has not what was verified, and it can't be fetched again: {e}"),
        })?;
        let native = tokio::task::spawn_blocking(move || fill.become_native()).await;
        native.map_err(|e| Error::Internal(e.to_string()))??;
        pass_by(layer);
        tracing::info!(layer = %layer.dir().blob(), "complete, and all of it is what the image says");
    }
    Ok(())
}
