//! The full pull: every layer whole, verified, on disk, and indexed in the same pass.

use std::time::Instant;

use futures_util::StreamExt;
use hoist_format::chunk::Blob;
use hoist_format::digest::Digest;
use hoist_format::table::Table;
use serde::Serialize;

use crate::convert::Brought;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::ingest::Expected;
use crate::own::LAYERS;
use crate::progress::Progress;
use crate::publish;
use crate::stats::Stats;

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
    /// They have one file system between them: all of them were fetched, or none.
    pub one_file_system: bool,
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
            let Brought { fetched: fetched_layers, of: layers, one: one_file_system } =
                self.pull_converted(image, progress).await?;
            let stats = Stats::of_client(&self.stats, started.elapsed());
            return Ok(Pulled {
                image: image.name.clone(),
                digest: image.digest,
                fetched_layers,
                layers,
                one_file_system,
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
            self.has_room(image, &todo)?;
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
        let (fetched_layers, one_file_system) = (fetched.len(), false);
        let digest = image.digest;
        Ok(Pulled { image: name, digest, fetched_layers, layers, one_file_system, unchecked, stats })
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
