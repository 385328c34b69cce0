//! Once a lazily mounted layer was fetched whole, the published index is held against the image.

use std::sync::Arc;
use std::time::Duration;

use hoist_format::digest::Digest;

use super::layer::LazyLayer;
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::{FillError, LayerFill};
use crate::image::Image;
use crate::ingest::{Haste, Ingest};
use crate::publish::PublishedIndex;
use crate::store::Parts;

/// After a failure it is tried again no sooner than this, and then ever later.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// For the check of a layer so many bytes that nobody needs to read are fetched; beyond that it waits for a
/// pull, or what other layers had here would be fetched after all.
const CHECK_MOST: u64 = 1 << 20;

/// A layer that could not be fetched to settle a doubt is fetched again for another no sooner than this.
const DOUBT_AGAIN: Duration = Duration::from_secs(60);

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
    let mut pause = FIRST_PAUSE;
    while !left.is_empty() {
        if left.iter().all(|l| l.is_empty()) {
            // Nobody will ever read these: what is left of them is to be judged.
            for layer in &left {
                match Box::pin(layer.fill()).await {
                    Ok(_) => layer.notice_complete(),
                    Err(e) => tracing::warn!(layer = %layer.dir().blob(), "{e}"),
                }
            }
        }
        let completed = left.iter().map(|layer| Box::pin(layer.completed()));
        let ((), next, _) = futures_util::future::select_all(completed).await;
        let layer = left.swap_remove(next);
        // Every mount has this task, and few ever get here: what it takes then is not held before.
        match Box::pin(check(&pass_by, &engine, &image, &index, &layer)).await {
            Ok(checked) => all_checked &= checked,
            Err(Trouble::Fetching(e)) => {
                tracing::warn!(layer = %layer.dir().blob(), again_in = ?pause, "fetching the rest to check the layer: {e}");
                left.push(layer);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(Trouble::Checking(e)) => {
                tracing::error!(layer = %layer.dir().blob(), "checking the layer against the image: {e}");
            }
        }
    }
    // What was made here of another format's metadata has no trees of its layers to be held against.
    let is_of_layers = image.index.as_ref().is_some_and(|index| !index.converted && !index.of_image);
    // Layers may have been removed and be filled anew after the tree was judged; or all be whole already, by
    // other images or an earlier filler, before it was.
    if !is_of_layers || !all_checked || engine.store.image(&image.digest).is_judged(&index) {
        return;
    }
    let meter = Arc::clone(&engine.meter);
    let turn = meter.judging.acquire().await;
    let judged = tokio::task::spawn_blocking(move || engine.judge_tree(&image, &index)).await;
    drop(turn);
    if let Ok(Err(e)) = judged {
        tracing::error!("checking the published tree against the layers: {e}");
    }
}

/// Settles doubts about a mount's layers until it is dropped.
pub(super) async fn settle_doubts(layers: Vec<Arc<LazyLayer>>, engine: Engine, image: Image, index: Digest) {
    let settling = layers.iter().map(|layer| settle(&engine, &image, &index, layer));
    futures_util::future::join_all(settling).await;
}

/// What was fetched did not match the index, twice. One of the two is wrong: the layer as a whole tells which.
async fn settle(engine: &Engine, image: &Image, index: &Digest, layer: &LazyLayer) {
    let (blob, silent) = (layer.dir().blob(), &crate::progress::Silent);
    let Some(expected) = layer.expected() else {
        if image.index.as_ref().is_some_and(|index| !index.converted) {
            return settle_by_pull(engine, image, layer).await;
        }
        // Of chunks only their digests can tell; but the metadata that leads to them may have come wrong.
        layer.doubt().raised().await.settle();
        return engine.forget_conversion(image, index);
    };
    loop {
        let doubt = layer.doubt().raised().await;
        // Given up, it is raised anew by the next job whose bytes do not match: this does not spin.
        let Ok(fill) = Box::pin(layer.fill()).await else { continue };
        let from = (&image.source, &engine.store);
        let whole = Box::pin(crate::own::fetch_and_ingest(expected, from, None, None, None, silent)).await;
        let table = fill.table().encode();
        let settled = whole.and_then(|(done, _)| match crate::check::lie(&table, &done.table.encode()) {
            Some(why) => {
                fill.condemn(why);
                engine.judge(index, layer.dir(), Some(why))
            }
            None => {
                tracing::warn!(layer = %blob, "the index is right: other bytes came by mistake");
                Ok(())
            }
        });
        match settled {
            Ok(()) => doubt.settle(),
            Err(e) => {
                tracing::warn!(layer = %blob, "nothing was found out about the index: {e}");
                tokio::time::sleep(DOUBT_AGAIN).await;
            }
        }
    }
}

/// The same of an image that is one file system: all of it, read by its own format, tells.
async fn settle_by_pull(engine: &Engine, image: &Image, layer: &LazyLayer) {
    loop {
        let doubt = layer.doubt().raised().await;
        match Box::pin(engine.pull_converted(image, &crate::progress::Silent)).await {
            Ok(_) => {
                layer.hear();
                return doubt.settle();
            }
            Err(e) => {
                tracing::warn!(layer = %layer.dir().blob(), "nothing was found out about the index: {e}");
                tokio::time::sleep(DOUBT_AGAIN).await;
            }
        }
    }
}

/// Why a layer could not be checked.
enum Trouble {
    /// Not now.
    Fetching(FillError),
    Checking(Error),
}

/// Checks a complete layer, once for all mounts; false where that is left to a pull.
async fn check(
    pass_by: &(impl Fn(&LazyLayer) + Sync),
    engine: &Engine,
    image: &Image,
    index: &Digest,
    layer: &LazyLayer,
) -> Result<bool, Trouble> {
    let fill = layer.fill().await.map_err(Trouble::Fetching)?;
    if layer.expected().is_none() {
        if !image.index.as_ref().is_some_and(PublishedIndex::is_pinned) {
            tracing::info!(layer = %layer.dir().blob(), "complete; `hoist pull` checks it against the image");
            return Ok(false);
        }
        // Every chunk was held to its digest when it came.
        let passed = layer.judged.get_or_try_init(|| async {
            fill.finish(true).await.map_err(Trouble::Checking)?;
            tracing::info!(layer = %layer.dir().blob(), "complete, and all of it is what its metadata says");
            Ok(true)
        });
        if *passed.await? {
            pass_by(layer);
        }
        return Ok(false);
    }
    if fill.never_kept() > CHECK_MOST {
        tracing::info!(layer = %layer.dir().blob(), "complete; `hoist pull` checks it against the image");
        return Ok(false);
    }
    let passed = layer.judged.get_or_try_init(|| async {
        fill.keep_rest().await.map_err(Trouble::Fetching)?;
        judge(engine, image, index, (layer, &fill)).await.map_err(Trouble::Checking)
    });
    if *passed.await? {
        pass_by(layer);
    }
    Ok(true)
}

/// Did it pass?
async fn judge(
    engine: &Engine,
    image: &Image,
    index: &Digest,
    (layer, fill): (&LazyLayer, &Arc<LayerFill>),
) -> Result<bool, Error> {
    let Some(expected) = layer.expected().cloned() else { return Ok(false) };
    let (this, dir, wanted) = (Arc::clone(fill), layer.dir().clone(), expected.clone());
    let aside = engine.store.aside_folder();
    let turn = engine.meter.judging.acquire().await;
    let passed = tokio::task::spawn_blocking(move || -> Result<_, Error> {
        let ingest = Ingest::start(wanted, None, &aside, Haste::Whenever)?;
        let mut at = 0;
        while let Some(bytes) = this.kept_bytes(at).map_err(Error::io("read", dir.file("blob")))? {
            at += bytes.len() as u64;
            ingest.feed(bytes);
        }
        Ok(ingest.finish())
    });
    let mut passed = passed.await.map_err(|e| Error::Internal(e.to_string()))??;
    drop(turn);
    if matches!(passed, Err(Error::Digest { .. } | Error::Layer { .. })) {
        // What was kept may have been damaged here: only the registry's own bytes accuse.
        let silent = &crate::progress::Silent;
        let from = (&image.source, &engine.store);
        let again = crate::own::fetch_and_ingest(&expected, from, None, None, None, silent).await;
        passed = again.map(|(done, _)| done);
    }
    let tree = passed.as_ref().ok().map(|done| crate::own::keep_tree(layer.dir(), done)).transpose()?;
    let table = fill.table().encode();
    if let Some(why) = Engine::verdict(&table, passed)? {
        fill.condemn(&why);
        engine.judge(index, layer.dir(), Some(&why))?;
        return Ok(false);
    }
    // The verdict was on the blob: what readers get is what stands in the data file.
    fill.mend().await.map_err(|e| Error::Store {
        path: layer.dir().file("data"),
        why: format!("has not what was verified, and it can't be fetched again: {e}"),
    })?;
    engine.judge(index, layer.dir(), None)?;
    let Some(tree) = tree else { return Ok(false) };
    let data_size = fill.table().extents.data_size;
    let parts = Parts { data_size, table: layer.table_digest(), tree };
    let this = Arc::clone(fill);
    let native = tokio::task::spawn_blocking(move || {
        // What the pass took is scattered over the heap.
        hoist_sys::memory::give_back();
        this.become_native(parts)
    });
    native.await.map_err(|e| Error::Internal(e.to_string()))??;
    tracing::info!(layer = %layer.dir().blob(), "complete, and all of it is what the image says");
    Ok(true)
}
