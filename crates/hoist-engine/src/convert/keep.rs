//! What was converted, in the store: the tables in the layers' folders, the merged tree with the image, and last the
//! document that names them. It is written like the manifest of a published index, so that a layer's layout is named
//! by it and never mixed with another.

use std::collections::BTreeMap;

use bytes::Bytes;
use hoist_format::build::Described;
use hoist_format::digest::Digest;
use hoist_format::tree::Tree;
use hoist_format::{erofs, merge};

use super::ask::Part;
use super::{Conversion, Note, Notes, Parts};
use crate::config::Trust;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::oci::{Descriptor, Manifest, media};
use crate::progress::Progress;
use crate::publish::{self, PublishedIndex};
use crate::store::{LayerDir, Store, write_atomic};

/// The document's name in an image's folder.
const CONVERTED: &str = "converted.json";
/// Beside it, its digest: metadata and contents were held against blobs whose digests are the image's.
const PROVEN: &str = "converted.proven";
/// Annotations of the document: how much of it the manifest's digest holds right; and, with a layer's digest behind, its format, and why it is not lazy.
const PINNED: &str = "dev.hoist.pinned";
const FORMAT: &str = "dev.hoist.format.";
const REFUSED: &str = "dev.hoist.refused.";
/// The layers that are shown instead of the manifest's, lowest first: their digests, with commas between.
const INSTEAD: &str = "dev.hoist.instead";
/// Ranges of a layer's data file that are read first: pairs of numbers, as JSON.
pub(crate) const PREFETCH: &str = "prefetch";

/// What was described, each blob once.
type ByBlob = Vec<(Digest, Part)>;

impl PublishedIndex {
    /// What a document of a conversion says of the layers' formats.
    pub(crate) fn notes(&self) -> Notes {
        let manifest: Option<Manifest> = serde_json::from_slice(&self.bytes).ok();
        let annotations = manifest.map(|m| m.annotations).unwrap_or_default();
        let note = |(key, format): (&String, &String)| {
            let digest = key.strip_prefix(FORMAT)?;
            let refused = annotations.get(&format!("{REFUSED}{digest}")).cloned();
            Some((digest.parse().ok()?, Note { format: format.clone(), refused }))
        };
        Notes(annotations.iter().filter_map(note).collect())
    }

    /// Does the image's manifest hold all of it right? What others have published can say so, but is not known to be so.
    pub(crate) fn is_pinned(&self) -> bool {
        self.converted && self.annotation(PINNED).is_some_and(|pinned| pinned == "yes")
    }

    /// The layers that are shown instead of the manifest's, where the image's own metadata is of no use.
    pub(crate) fn instead(&self) -> Vec<Digest> {
        let told = self.annotation(INSTEAD).filter(|_| self.converted).unwrap_or_default();
        told.split(',').filter_map(|digest| digest.parse().ok()).collect()
    }

    fn annotation(&self, name: &str) -> Option<String> {
        let manifest: Manifest = serde_json::from_slice(&self.bytes).ok()?;
        manifest.annotations.get(name).cloned()
    }
}

impl Engine {
    /// A conversion that is here and whole, and may be used.
    pub(crate) fn kept_conversion(&self, manifest: &Digest, layers: &[Descriptor]) -> Option<PublishedIndex> {
        let index = self.noted_conversion(manifest)?;
        // What is shown instead was verified whole.
        let vouched = || self.is_noted_as_proven(manifest, &index) || !index.instead().is_empty();
        let trusted = match self.config.trust {
            Trust::Registry => true,
            Trust::Local => index.is_pinned() || vouched(),
            Trust::None => vouched(),
        };
        self.sound_conversion(manifest, layers, index).filter(|_| trusted)
    }

    /// A conversion of which all is here and was verified by the image's own digests: whatever is trusted, nothing else
    /// need be asked.
    pub(crate) fn complete_conversion(&self, manifest: &Digest) -> Option<PublishedIndex> {
        let index = self.noted_conversion(manifest)?;
        let (bytes, _) = self.store.image(manifest).load(manifest)?;
        let layers = serde_json::from_slice::<Manifest>(&bytes).ok()?.layers;
        if !index.is_pinned() && !self.is_noted_as_proven(manifest, &index) {
            return None;
        }
        let index = self.sound_conversion(manifest, &layers, index)?;
        let verified = |blob: &Digest| {
            let dir = self.store.layer(blob, Some(&index.digest));
            dir.state().verified && dir.is_whole()
        };
        index.layers.keys().all(verified).then_some(index)
    }

    /// What the document says that is here, whatever else is.
    pub(crate) fn noted_conversion(&self, manifest: &Digest) -> Option<PublishedIndex> {
        let bytes = std::fs::read(self.store.image(manifest).path().join(CONVERTED)).ok()?;
        PublishedIndex::parse_converted(bytes.into(), manifest).ok()
    }

    /// Is what is verified of a conversion verified by digests of its parts, and not of its blobs?
    pub(crate) fn rests_on_parts(&self, manifest: &Digest, index: &PublishedIndex) -> bool {
        index.converted && index.instead().is_empty() && !self.is_noted_as_proven(manifest, index)
    }

    fn is_noted_as_proven(&self, manifest: &Digest, index: &PublishedIndex) -> bool {
        let noted = std::fs::read(self.store.image(manifest).path().join(PROVEN));
        noted.is_ok_and(|noted| noted == index.digest.to_string().as_bytes())
    }

    /// The same, if all that it needs is here.
    fn sound_conversion(
        &self,
        manifest: &Digest,
        layers: &[Descriptor],
        index: PublishedIndex,
    ) -> Option<PublishedIndex> {
        let dir = self.store.image(manifest);
        if self.store.distrusted(&index.digest).is_some() || dir.sound_tree(Some(&index.digest)).is_none() {
            return None;
        }
        let here = |(blob, (table, windows)): (&Digest, &(Descriptor, Option<Descriptor>))| {
            let dir = self.store.layer(blob, Some(&index.digest));
            let has =
                |d: &Descriptor, name| std::fs::metadata(dir.file(name)).is_ok_and(|m| m.len() == d.size);
            dir.state().lied.is_none()
                && dir.table_bytes().is_some_and(|bytes| Digest::of(&bytes) == table.digest)
                && windows.as_ref().is_none_or(|w| has(w, "windows"))
        };
        let whole =
            |layer: &Digest| index.layers.contains_key(layer) || self.store.layer(layer, None).is_whole();
        let instead = index.instead();
        let rest = match instead.is_empty() {
            true => index.of_image || layers.iter().all(|layer| whole(&layer.digest)),
            false => instead.iter().all(whole),
        };
        let all = rest && index.layers.iter().all(here);
        all.then_some(index)
    }

    /// All of a conversion was held against the image's own digests.
    pub(super) fn keep_proven(&self, image: &Image, index: &Digest) -> Result<(), Error> {
        // Of an image that somebody has removed meanwhile there is nothing to say.
        let Some(_held) = self.store.image(&image.digest).hold()? else { return Ok(()) };
        let path = self.store.image(&image.digest).path().join(PROVEN);
        write_atomic(&path, index.to_string().as_bytes())
    }

    /// The next mount converts the image anew. What is here of it stays in use, and is found again if its metadata is the
    /// same.
    pub(crate) fn forget_conversion(&self, image: &Image, index: &Digest) {
        let path = self.store.image(&image.digest).path().join(CONVERTED);
        let is_it = std::fs::read(&path).is_ok_and(|bytes| Digest::of(&bytes) == *index);
        if is_it && std::fs::remove_file(&path).is_ok() {
            tracing::warn!(
                image = image.name,
                "what came does not match its metadata: the next mount fetches that anew"
            );
        }
    }

    /// Fetches a layer whole, if it is not here so.
    pub(super) async fn whole_layer(
        &self,
        image: &Image,
        blob: &Digest,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        if self.store.layer(blob, None).is_whole() {
            return Ok(());
        }
        let expected = image.expected()?.into_iter().find(|e| e.blob == *blob);
        let expected =
            expected.ok_or_else(|| Error::Internal(format!("layer {blob} is not in its image")))?;
        progress.note(&format!("layer {} cannot be read lazily: fetching all of it first", blob.short()));
        self.pull_layer(&expected, &image.source, progress).await.map(drop)
    }

    /// Keeps that an image is shown as these layers, which are here whole; `notes` say why.
    pub(super) fn keep_instead(
        &self,
        image: &Image,
        layers: &[Digest],
        notes: &Notes,
    ) -> Result<PublishedIndex, Error> {
        let tree = self.merged(layers, &image.digest, |blob| self.store.layer(blob, None))?;
        let mut manifest = document(image, &tree, notes, true);
        let digests: Vec<_> = layers.iter().map(Digest::to_string).collect();
        manifest.annotations.insert(INSTEAD.into(), digests.join(","));
        let index = parsed(&manifest, image)?;
        keep_document(&self.store, image, &index, &tree)?;
        Ok(index)
    }
}

/// Keeps a conversion; where `wanted` says which it must be, no other.
pub(super) async fn keep(
    store: &Store,
    image: &Image,
    conversion: Conversion,
    wanted: Option<Digest>,
) -> Result<PublishedIndex, Error> {
    let (store, image) = (store.clone(), image.clone());
    let kept = tokio::task::spawn_blocking(move || keep_blocking(&store, &image, conversion, wanted));
    kept.await.map_err(|e| Error::Internal(e.to_string()))?
}

fn keep_blocking(
    store: &Store,
    image: &Image,
    conversion: Conversion,
    wanted: Option<Digest>,
) -> Result<PublishedIndex, Error> {
    let Conversion { parts, notes, pinned } = conversion;
    let bad = |e: &dyn std::fmt::Display| Error::image("image", image.digest, e.to_string());
    let of_image = matches!(parts, Parts::Image(_));
    let (parts, tree) = match parts {
        Parts::Image(part) => {
            let Part { described, table } = *part;
            // Its folder bears the name of the last layer, with which it comes and goes.
            let Some(last) = image.manifest.layers.last() else { return Err(bad(&"it has no layers")) };
            let device = erofs::Device { tag: last.digest.hex(), size: described.table.extents.data_size };
            let merged = merge::merge(&[&described.tree]).map_err(|e| bad(&e))?;
            let tree = erofs::encode(&merged, &[device]).map_err(|e| bad(&e))?;
            (vec![(last.digest, Part { described, table })], tree)
        }
        Parts::Layers(layers) => merge_described(store, image, layers)?,
    };
    let mut manifest = document(image, &tree, &notes, pinned);
    if of_image {
        manifest.annotations.insert(publish::OF_IMAGE.into(), "yes".into());
    }
    for (blob, Part { described, table }) in &parts {
        manifest.layers.push(descriptor(publish::TABLE, table, Some(blob)));
        if !described.windows.is_empty() {
            manifest.layers.push(descriptor(publish::WINDOWS, &described.windows, Some(blob)));
        }
    }
    let index = parsed(&manifest, image)?;
    if wanted.is_some_and(|wanted| wanted != index.digest) {
        return Err(bad(
            &"what its metadata makes now is not what is mounted: unmount it, and mount it again",
        ));
    }
    for (blob, Part { described, table }) in &parts {
        keep_layer(&store.layer(blob, Some(&index.digest)), described, table)?;
    }
    keep_document(store, image, &index, &tree)?;
    Ok(index)
}

fn keep_document(store: &Store, image: &Image, index: &PublishedIndex, tree: &[u8]) -> Result<(), Error> {
    let dir = store.image(&image.digest);
    dir.save_tree(Some(&index.digest), tree)?;
    write_atomic(&dir.path().join(CONVERTED), &index.bytes)
}

fn keep_layer(dir: &LayerDir, described: &Described, table: &[u8]) -> Result<(), Error> {
    dir.save("windows", &described.windows)?;
    if described.prefetch.is_empty() {
        dir.remove(PREFETCH)?;
    } else {
        let ranges: Vec<[u64; 2]> = described.prefetch.iter().map(|r| [r.start, r.end]).collect();
        let bytes = serde_json::to_vec(&ranges).map_err(|e| Error::Internal(e.to_string()))?;
        dir.save(PREFETCH, &bytes)?;
    }
    // The same document names the same table: a data file that is here is of it.
    dir.save("table", table)
}

/// The image's tree of layers that were described and layers that are here whole.
fn merge_described(
    store: &Store,
    image: &Image,
    mut layers: BTreeMap<usize, Part>,
) -> Result<(ByBlob, Vec<u8>), Error> {
    let mut trees: Vec<Tree> = Vec::new();
    let mut devices = Vec::new();
    for (number, layer) in image.manifest.layers.iter().enumerate() {
        let (tree, size) = match layers.get_mut(&number) {
            Some(Part { described, .. }) => {
                let tree = std::mem::take(&mut described.tree);
                (tree, described.table.extents.data_size)
            }
            None => crate::own::layer_tree(&store.layer(&layer.digest, None))?,
        };
        trees.push(tree);
        devices.push(erofs::Device { tag: layer.digest.hex(), size });
    }
    let refs: Vec<_> = trees.iter().collect();
    let merged = merge::merge(&refs).map_err(|e| Error::image("image", image.digest, e))?;
    let tree = erofs::encode(&merged, &devices).map_err(|e| Error::image("image", image.digest, e))?;
    let mut parts = ByBlob::new();
    for (number, part) in layers {
        let blob = image.manifest.layers[number].digest;
        // A layer may stand in an image twice.
        if parts.iter().all(|(known, _)| *known != blob) {
            parts.push((blob, part));
        }
    }
    Ok((parts, tree))
}

/// A conversion's document, but for its tables.
fn document(image: &Image, tree: &[u8], notes: &Notes, pinned: bool) -> Manifest {
    let mut annotations = BTreeMap::new();
    annotations.insert(PINNED.into(), if pinned { "yes" } else { "no" }.into());
    for (blob, note) in &notes.0 {
        annotations.insert(format!("{FORMAT}{blob}"), note.format.clone());
        annotations.extend(note.refused.iter().map(|why| (format!("{REFUSED}{blob}"), why.clone())));
    }
    Manifest {
        schema_version: 2,
        media_type: Some(media::MANIFEST.into()),
        artifact_type: Some(publish::CONVERTED.into()),
        config: descriptor(media::EMPTY, b"{}", None),
        layers: vec![descriptor(publish::TREE, tree, None)],
        subject: Some(descriptor(media::MANIFEST, &image.manifest_bytes, None)),
        annotations,
    }
}

fn parsed(document: &Manifest, image: &Image) -> Result<PublishedIndex, Error> {
    let bytes = serde_json::to_vec(document).map_err(|e| Error::Internal(e.to_string()))?;
    PublishedIndex::parse_converted(Bytes::from(bytes), &image.digest)
}

fn descriptor(media_type: &str, bytes: &[u8], layer: Option<&Digest>) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        annotations: layer.iter().map(|l| (publish::LAYER.to_owned(), l.to_string())).collect(),
        platform: None,
        artifact_type: None,
    }
}
