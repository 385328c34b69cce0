//! The full pull: every layer whole, verified, on disk, and indexed in the same pass.

use std::fs::File;
use std::io::Seek as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use hoist_format::chunk::Blob;
use hoist_format::digest::Digest;
use hoist_format::table::Table;
use hoist_format::tree::Tree;
use hoist_format::{erofs, merge};
use serde::Serialize;

use crate::convert::Brought;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::ingest::{Expected, Haste, Ingest, Ingested};
use crate::progress::Progress;
use crate::publish;
use crate::registry::ImageSource;
use crate::stats::Stats;
use crate::store::{Begun, Kept, LayerDir, LayerState, Parts, Store};

/// What a pull did.
#[derive(Debug, Clone, Serialize)]
pub struct Pulled {
    /// The image's name.
    pub image: String,
    /// Its manifest.
    pub digest: Digest,
    /// Layers that had to be fetched.
    pub fetched_layers: usize,
    /// All layers that it is shown by.
    pub layers: usize,
    /// Why the registry could not say whether the name still means this image: all of it was here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unchecked: Option<String>,
    /// What it cost.
    pub stats: Stats,
}

/// What an indexing did.
#[derive(Debug, Clone, Serialize)]
pub struct Indexed {
    /// The image's name.
    pub image: String,
    /// Its manifest.
    pub digest: Digest,
    /// Bytes of the merged tree, compressed.
    pub tree_bytes: u64,
    /// Bytes of all tables.
    pub table_bytes: u64,
    /// Bytes of all gzip windows.
    pub window_bytes: u64,
    /// Bytes of all layers.
    pub layer_bytes: u64,
    /// The published artifact.
    pub pushed: Option<Digest>,
}

/// Blob bytes asked for in one request of a pull, and how many such requests run at once.
const PART: u64 = 4 << 20;
const PARALLEL: usize = 4;
/// Layers that are decoded at once: each takes two threads.
pub(crate) const LAYERS: usize = 2;

impl Engine {
    /// Fetches everything of an image; done only when all of it is verified and on disk.
    ///
    /// # Errors
    /// When a layer cannot be fetched, kept or decoded, or has wrong digests; nothing of such a
    /// layer is kept.
    pub async fn pull(&self, image: &Image, progress: &dyn Progress) -> Result<Pulled, Error> {
        self.pull_as(image, false, progress).await
    }

    /// `to_index`: with the layers' windows and spans as only an own pass finds them.
    async fn pull_as(&self, image: &Image, to_index: bool, progress: &dyn Progress) -> Result<Pulled, Error> {
        self.pull_again(image, to_index, false, progress).await
    }

    /// `again`: as what was here of the layers turned out to be damaged.
    async fn pull_again(
        &self,
        image: &Image,
        to_index: bool,
        again: bool,
        progress: &dyn Progress,
    ) -> Result<Pulled, Error> {
        let started = Instant::now();
        if !image.is_of_layers() {
            let Brought { fetched: fetched_layers, of: layers } =
                self.pull_converted(image, progress).await?;
            let stats = Stats::of_client(&self.stats, started.elapsed());
            return Ok(Pulled {
                image: image.name.clone(),
                digest: image.digest,
                fetched_layers,
                layers,
                unchecked: image.unchecked.clone(),
                stats,
            });
        }
        let expected = image.expected()?;
        let mut todo: Vec<&Expected> = Vec::new();
        // Until all of them are one image: others may remove images meanwhile.
        let mut held = Vec::new();
        for e in &expected {
            let own = self.store.layer(&e.blob, None);
            held.extend(own.hold_what_is_here()?);
            let complete = match to_index {
                true => own.is_whole() && own.file("windows").exists(),
                false => own.is_whole() || self.adopt(&own)?,
            };
            if !complete && todo.iter().all(|t| t.blob != e.blob) {
                todo.push(e);
            }
        }
        let fetched: Vec<Digest> = todo.iter().map(|e| e.blob).collect();
        if !todo.is_empty() {
            progress.begin(&format!("pulling {}", image.name), todo.iter().map(|e| e.size).sum());
            let source = &image.source;
            // Collected, for a closure with borrows could not be sent to another thread while it runs.
            let work: Vec<_> = todo.into_iter().map(|e| self.pull_layer(e, source, progress)).collect();
            let mut running = futures_util::stream::iter(work).buffer_unordered(LAYERS);
            while let Some(done) = running.next().await {
                held.push(done?);
            }
            progress.end();
        }
        if let Err(e) = self.own_tree(image) {
            if again || self.has_own_layout(&image.digest) {
                drop(held);
                self.discard_refused(image, &e, &fetched);
                return Err(e);
            }
            tracing::warn!("{e}");
            return Box::pin(self.pull_again(image, to_index, true, progress)).await;
        }
        self.check_published(image, &expected)?;
        for e in &expected {
            self.store.layer(&e.blob, None).touch();
        }
        drop(held);
        // What was just fetched is about to be used.
        let spared = expected.iter().map(|e| e.blob.hex()).collect();
        crate::evict::keep_limit(self, spared).await;
        let mut stats = Stats::of_client(&self.stats, started.elapsed());
        stats.copied_bytes = self.known.copied_so_far();
        let layers = expected.len();
        let (name, unchecked) = (image.name.clone(), image.unchecked.clone());
        let fetched_layers = fetched.len();
        Ok(Pulled { image: name, digest: image.digest, fetched_layers, layers, unchecked, stats })
    }

    /// A layer that was just `fetched` and for which the image is refused takes no room, unless another image here has it.
    fn discard_refused(&self, image: &Image, why: &Error, fetched: &[Digest]) {
        let Error::Merge { source, .. } = why else { return };
        let at_fault = source.layer().and_then(|layer| image.manifest.layers.get(layer));
        let Some(layer) = at_fault.map(|layer| layer.digest).filter(|layer| fetched.contains(layer)) else {
            return;
        };
        let discard = || {
            let clearing = self.store.clearing()?;
            let others = self.store.image_digests()?.into_iter().filter(|other| *other != image.digest);
            let wanted =
                others.filter_map(|other| self.store.image(&other).load(&other)).any(|(bytes, _)| {
                    serde_json::from_slice::<crate::oci::Manifest>(&bytes)
                        .is_ok_and(|other| other.layers.iter().any(|of| of.digest == layer))
                });
            let dir = self.store.layer(&layer, None);
            if !wanted && !clearing.uses_layer(dir.path()) {
                clearing.take_away(dir.path())?;
            }
            clearing.delete().map(drop)
        };
        if let Err(e) = discard() {
            tracing::warn!(%layer, "it is of no use, and can't be removed: {e}");
        }
    }

    /// Gives what keeps the layer from being taken away.
    pub(crate) async fn pull_layer(
        &self,
        expected: &Expected,
        source: &ImageSource,
        progress: &dyn Progress,
    ) -> Result<File, Error> {
        let dir = self.store.layer(&expected.blob, None);
        let held = dir.hold()?;
        let aside = self.store.aside()?;
        let path = aside.path().to_owned();
        let file = aside.reopen().map_err(Error::io("open", &path))?;
        let kept = self.store.kept(&expected.blob, expected.size).map(Arc::new);
        let begun = (expected.size > PART).then(|| Begun::open(&dir)).transpose()?.map(Arc::new);
        let data = Some((file, path));
        let pulled =
            fetch_and_ingest(expected, (source, &self.store), kept, begun.clone(), data, progress).await;
        if let (Err(Error::Io { .. }), Some(begun)) = (&pulled, &begun) {
            // It may have been for want of room.
            begun.forget();
        }
        let (done, reused) = pulled?;
        self.known.copied(reused);
        let parts = keep(&dir, done)?;
        aside.persist(dir.file("data")).map_err(|e| Error::io("rename to", dir.file("data"))(e.error))?;
        // A complete layer without its data would be the worst to find after a power cut.
        crate::store::sync_dir(dir.path())?;
        dir.save_state(&LayerState::whole(parts))?;
        begun.iter().for_each(|begun| begun.forget());
        Ok(held)
    }

    /// Takes over a layer that was completed and verified in the layout of a published index: the same
    /// pass has found its data and its tree right. Spans and windows are the index's, so none are kept.
    fn adopt(&self, own: &LayerDir) -> Result<bool, Error> {
        for theirs in self.store.published_layouts(own.blob()) {
            let state = theirs.state();
            // A conversion has no tree of the layer alone.
            if !(state.verified && theirs.is_whole() && theirs.file("tree").exists()) {
                continue;
            }
            let parts = (theirs.sound_part("table", |p| &p.table), theirs.sound_part("tree", |p| &p.tree));
            let (Some(table), Some(tree)) = parts else { continue };
            let parts = state.parts.unwrap_or_else(|| Parts {
                data_size: 0,
                table: Digest::of(&table),
                tree: Digest::of(&tree),
            });
            let _held = own.hold()?;
            let _ = std::fs::remove_file(own.file("windows"));
            own.save("tree", &tree)?;
            own.save("table", &table)?;
            let _ = std::fs::remove_file(own.file("data"));
            let data = own.file("data");
            std::fs::hard_link(theirs.file("data"), &data).map_err(Error::io("link to", &data))?;
            crate::store::sync_dir(own.path())?;
            own.save_state(&LayerState::whole(parts))?;
            return Ok(true);
        }
        Ok(false)
    }

    /// True when every layer is here in our own, verified layout.
    pub(crate) fn has_own_layout(&self, manifest: &Digest) -> bool {
        let Some((bytes, _)) = self.store.image(manifest).load(manifest) else { return false };
        let Ok(parsed) = serde_json::from_slice::<crate::oci::Manifest>(&bytes) else { return false };
        parsed.layers.iter().all(|l| self.store.layer(&l.digest, None).is_whole())
    }

    /// The merged tree of our own layouts, made if it is not there.
    pub(crate) fn own_tree(&self, image: &Image) -> Result<PathBuf, Error> {
        let dir = self.store.image(&image.digest);
        if let Some(path) = dir.sound_tree(None) {
            return Ok(path);
        }
        let layers: Vec<_> = image.manifest.layers.iter().map(|layer| layer.digest).collect();
        dir.save_tree(None, &self.merged(&layers, &image.digest, |blob| self.store.layer(blob, None))?)
    }

    /// The tree of these layers, lowest first, merged anew from their own trees in the folders that `layout` names.
    /// `image`: the manifest that they are of.
    pub(crate) fn merged(
        &self,
        layers: &[Digest],
        image: &Digest,
        layout: impl Fn(&Digest) -> LayerDir,
    ) -> Result<Vec<u8>, Error> {
        let mut trees = Vec::new();
        let mut devices = Vec::new();
        for layer in layers {
            let (tree, size) = layer_tree(&layout(layer))?;
            trees.push(tree);
            devices.push(erofs::Device { tag: layer.hex(), size });
        }
        let refs: Vec<_> = trees.iter().collect();
        let merged = merge::merge(&refs).map_err(|source| Error::Merge { image: *image, source })?;
        erofs::encode(&merged, &devices).map_err(|e| Error::image("image", image, e))
    }

    /// Builds the index of an image, and publishes it if asked.
    ///
    /// # Errors
    /// As [`Engine::pull`]; and when the registry does not take it.
    pub async fn index(&self, image: &Image, push: bool, progress: &dyn Progress) -> Result<Indexed, Error> {
        if push {
            // Before the work, not after it.
            publish::may_push(&image.source).await?;
        }
        let of_layers = image.is_of_layers();
        let parts = match of_layers {
            true => self.parts_of_layers(image, progress).await?,
            false => self.parts_of_image(image, progress).await?,
        };
        let bytes = |of: &str| {
            parts.iter().filter(|part| part.media_type == of).map(|part| part.bytes.len() as u64).sum()
        };
        let (tree, tables, windows) = (bytes(publish::TREE), bytes(publish::TABLE), bytes(publish::WINDOWS));
        let layer_bytes = image.manifest.layers.iter().map(|layer| layer.size).sum();
        let mut pushed = None;
        if push {
            let subject = crate::oci::Descriptor {
                media_type: image
                    .manifest
                    .media_type
                    .clone()
                    .unwrap_or_else(|| crate::oci::media::MANIFEST.into()),
                digest: image.digest,
                size: image.manifest_bytes.len() as u64,
                annotations: Default::default(),
                platform: None,
                artifact_type: None,
            };
            progress.begin(&format!("publishing the index of {}", image.name), tables + windows);
            pushed = Some(publish::push(&image.source, &subject, parts, !of_layers).await?);
            progress.end();
        }
        Ok(Indexed {
            image: image.name.clone(),
            digest: image.digest,
            tree_bytes: tree,
            table_bytes: tables,
            window_bytes: windows,
            layer_bytes,
            pushed,
        })
    }
    /// The parts of the index of an image whose layers are unpacked each by itself.
    async fn parts_of_layers(
        &self,
        image: &Image,
        progress: &dyn Progress,
    ) -> Result<Vec<publish::Part>, Error> {
        self.pull_as(image, true, progress).await?;
        let tree_path = self.own_tree(image)?;
        let tree = std::fs::read(&tree_path).map_err(Error::io("read", &tree_path))?;
        let mut parts = vec![publish::Part::tree(&tree).map_err(Error::io("compress", &tree_path))?];
        for layer in &image.manifest.layers {
            if parts.iter().any(|p| p.layer == Some(layer.digest)) {
                continue;
            }
            let dir = self.store.layer(&layer.digest, None);
            for (name, media_type) in [("table", publish::TABLE), ("windows", publish::WINDOWS)] {
                // The table was held against its digest when the tree was merged; a window names its own.
                let bytes = std::fs::read(dir.file(name)).map_err(Error::io("read", dir.file(name)))?;
                if name == "table" {
                    fetchable(image, &layer.digest, &bytes)?;
                }
                if !bytes.is_empty() {
                    parts.push(publish::Part { media_type, layer: Some(layer.digest), bytes: bytes.into() });
                }
            }
        }
        Ok(parts)
    }
}

/// Can others fetch a layer's parts by its table?
fn fetchable(image: &Image, layer: &Digest, table: &[u8]) -> Result<(), Error> {
    let table = Table::decode(table).map_err(|e| Error::Layer { blob: *layer, why: e.to_string() })?;
    let known = |blob: &Blob| image.manifest.layers.iter().any(|layer| layer.digest == blob.digest);
    if table.spans.blobs().iter().all(known) {
        return Ok(());
    }
    let why = "it is compressed as a whole, so no index can tell where its parts are: mount it without one";
    Err(Error::image("layer", layer, why))
}

/// The tree of a layer alone, and the size of its data file.
pub(crate) fn layer_tree(folder: &LayerDir) -> Result<(Tree, u64), Error> {
    let bad = |name: &str, e: &dyn std::fmt::Display| {
        // Nothing is made of it any more, and the next pull brings it again.
        let disowned = folder.disown();
        let path = folder.file(name);
        disowned.err().unwrap_or(Error::Store { path, why: format!("is damaged: {e}; pull the image again") })
    };
    let part = |name: &str, digest: fn(&Parts) -> &Digest| {
        folder.sound_part(name, digest).ok_or_else(|| bad(name, &"it is not what was written"))
    };
    let tree = part("tree", |parts| &parts.tree)?;
    let tree = erofs::decode(&tree).map_err(|e| bad("tree", &e))?;
    let table = part("table", |parts| &parts.table)?;
    let table = Table::decode(&table).map_err(|e| bad("table", &e))?;
    Ok((tree, table.extents.data_size))
}

/// Keeps what a pass found, except the data file.
fn keep(dir: &LayerDir, done: Ingested) -> Result<Parts, Error> {
    let tree = keep_tree(dir, &done)?;
    dir.save("windows", &done.windows)?;
    let table = done.table.encode();
    dir.save("table", &table)?;
    Ok(Parts { data_size: done.table.extents.data_size, table: Digest::of(&table), tree })
}

/// Keeps the layer's own tree; gives the digest of what was written.
pub(crate) fn keep_tree(dir: &LayerDir, done: &Ingested) -> Result<Digest, Error> {
    let device = erofs::Device { tag: dir.blob().hex(), size: done.table.extents.data_size };
    let tree = erofs::encode(&done.layer.tree, &[device])
        .map_err(|e| Error::Layer { blob: *dir.blob(), why: e.to_string() })?;
    dir.save("tree", &tree)?;
    Ok(Digest::of(&tree))
}

/// A pass over a blob, from the first server that has it right: a mirror that has not is found out
/// only at the end. What was `kept` is not fetched; how much of it was used stands beside the outcome.
pub(crate) async fn fetch_and_ingest(
    expected: &Expected,
    (source, store): (&ImageSource, &Store),
    mut kept: Option<Arc<Kept>>,
    mut begun: Option<Arc<Begun>>,
    data: Option<(std::fs::File, PathBuf)>,
    progress: &dyn Progress,
) -> Result<(Ingested, u64), Error> {
    loop {
        let anew = |(file, path): &(std::fs::File, PathBuf)| {
            let mut again = file.try_clone().map_err(Error::io("open", path))?;
            again.set_len(0).and_then(|()| again.rewind()).map_err(Error::io("empty", path))?;
            Ok::<_, Error>((again, path.clone()))
        };
        let data = data.as_ref().map(anew).transpose()?;
        let fetched =
            fetch_once(expected, (source, store), kept.as_ref(), begun.as_ref(), data, progress).await;
        if let Err(Error::Digest { .. } | Error::Layer { .. }) = fetched {
            begun.take().iter().for_each(|begun| begun.forget());
        }
        match fetched {
            Err(e @ (Error::Digest { .. } | Error::Layer { .. })) if kept.is_some() => {
                tracing::warn!("{e}; fetching all of it, without what was kept here");
                kept = None;
            }
            Err(e @ (Error::Digest { .. } | Error::Layer { .. })) if source.lied(&expected.blob) => {
                tracing::warn!("{e}; fetching it from another server");
            }
            done => return done.map(|done| (done, kept.map_or(0, |kept| kept.bytes()))),
        }
    }
}

/// Streams a blob in order, by several ranged requests side by side, through a pass.
async fn fetch_once(
    expected: &Expected,
    (source, store): (&ImageSource, &Store),
    kept: Option<&Arc<Kept>>,
    begun: Option<&Arc<Begun>>,
    data: Option<(std::fs::File, PathBuf)>,
    progress: &dyn Progress,
) -> Result<Ingested, Error> {
    // Without a data file it is a check, which readers need not wait for.
    let haste = if data.is_some() { Haste::Now } else { Haste::Whenever };
    let ingest = Arc::new(Ingest::start(expected.clone(), data, &store.aside_folder(), haste)?);
    let parts: Vec<_> = if source.ranges_ignored() {
        vec![(0..expected.size, false)]
    } else {
        let ranges = (0..expected.size).step_by(PART as usize).map(|at| at..expected.size.min(at + PART));
        ranges
            .flat_map(|range| kept.map_or_else(|| vec![(range.clone(), false)], |k| k.cut(range.clone())))
            .collect()
    };
    let mut fetches = futures_util::stream::iter(parts.into_iter().map(|(range, is_kept)| {
        let kept = kept.filter(|_| is_kept).cloned();
        let (source, blob) = (source.clone(), expected.blob);
        let fetching = async move {
            if let Some(kept) = kept {
                let (to, from) = tokio::sync::mpsc::channel(4);
                // What cannot be read comes short, and so the digest finds it wrong.
                tokio::task::spawn_blocking(move || kept.read(range, |b| to.blocking_send(Ok(b)).is_ok()));
                return Ok(from);
            }
            let mut body = source.blob_range(&blob, range.clone()).await?;
            // The first part streams at once; later ones are gathered while they wait their turn.
            let (to, from) = tokio::sync::mpsc::channel(1024);
            tokio::spawn(async move {
                loop {
                    let next = body.next().await.transpose();
                    let Some(next) = next else { return };
                    let last = next.is_err();
                    if to.send(next).await.is_err() || last {
                        return;
                    }
                }
            });
            Ok::<_, crate::registry::RegistryError>(from)
        };
        // A task of its own: it goes on while an earlier part is being fed.
        let task = tokio::spawn(fetching);
        async move { task.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())) }
    }))
    .buffered(PARALLEL);
    let mut ignored = false;
    let mut fed = 0;
    let mut failure = None;
    'parts: while let Some(part) = fetches.next().await {
        let mut part = match part {
            Ok(part) => part,
            Err(e) => {
                ignored = e.is_ranges_ignored();
                failure = Some(e);
                break;
            }
        };
        while let Some(next) = part.recv().await {
            match next {
                Ok(bytes) => {
                    let at = fed;
                    fed += bytes.len() as u64;
                    progress.advance(bytes.len() as u64);
                    feed(&ingest, begun, bytes, at).await;
                }
                Err(e) => {
                    failure = Some(e);
                    break 'parts;
                }
            }
        }
    }
    drop(fetches);
    if ignored {
        // This server sends whole blobs only: the rest comes in one stream from the start.
        failure = None;
        let mut body = source.blob_range(&expected.blob, 0..expected.size).await?;
        let mut skip = fed;
        while let Some(mut bytes) = body.next().await? {
            let cut = skip.min(bytes.len() as u64);
            skip -= cut;
            let bytes = bytes.split_off(cut as usize);
            let length = bytes.len() as u64;
            progress.advance(bytes.len() as u64);
            feed(&ingest, begun, bytes, fed).await;
            fed += length;
        }
    }
    let ingest = Arc::into_inner(ingest).ok_or_else(|| Error::Internal("a pass has two owners".into()))?;
    let result = tokio::task::spawn_blocking(move || ingest.finish()).await;
    let result = result.map_err(|e| Error::Internal(e.to_string()))?;
    match failure {
        Some(e) => Err(e.into()),
        None => result,
    }
}

/// Feeding blocks while the pass is behind, so it may not be done on an async worker's time.
async fn feed(ingest: &Arc<Ingest>, begun: Option<&Arc<Begun>>, bytes: bytes::Bytes, at: u64) {
    let (ingest, begun) = (Arc::clone(ingest), begun.cloned());
    let feeding = tokio::task::spawn_blocking(move || {
        begun.iter().for_each(|begun| begun.keep(&bytes, at));
        ingest.feed(bytes);
    });
    let _ = feeding.await;
}
