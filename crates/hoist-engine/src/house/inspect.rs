//! What is known of an image: whether a mount would be lazy, what vouches for its contents, what is here of it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use hoist_format::digest::Digest;
use hoist_format::span::Codec;
use hoist_format::table::Table;
use serde::Serialize;

use crate::config::Trust;
use crate::convert::{Noted, Notes};
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::Here;
use crate::image::Image;
use crate::oci::{Descriptor, codec_of};
use crate::publish::PublishedIndex;
use crate::store::LayerDir;

/// Tables that are asked for side by side.
const TABLES: usize = 8;

/// What is known of an image.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Its name.
    pub image: String,
    /// Its manifest.
    pub digest: Digest,
    /// The published index in use.
    pub index: Option<Digest>,
    /// Whether a mount will be lazy.
    pub lazy: bool,
    /// All of it is here, verified: a mount fetches nothing.
    pub complete: bool,
    /// Why, or why not.
    pub why: String,
    /// What tells that its contents are right, when they are read now.
    pub vouched: String,
    /// Bytes of file contents that are here, of how many, of an image whose layers say nothing each by itself: None
    /// inside before anything is. Of others the layers tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub present: Option<Option<(u64, u64)>>,
    /// Why the registry could not say whether the name still means this image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unchecked: Option<String>,
    /// Lowest first.
    pub layers: Vec<LayerInspection>,
}

/// What is known of a layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerInspection {
    /// Its blob.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// tar, tar+gzip or tar+zstd; or the format, and its version, in which it can be read as it is.
    pub format: String,
    /// Bytes as stored in the registry.
    pub size: u64,
    /// Bytes of file contents that are here, of how many: None inside without an index, and outside where the image as a
    /// whole tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub present: Option<Option<(u64, u64)>>,
    /// All of it was checked here: by blob digest and diffID, or by digests of its parts that the image's own digests
    /// cover. `vouched` tells by which.
    pub verified: bool,
    /// Anything that a user should know.
    pub note: Option<String>,
}
impl Engine {
    /// Whether a mount of the image would be lazy, and why, or why not.
    pub(crate) fn would_be_lazy(&self, image: &Image) -> (bool, String) {
        match (self.is_complete(&image.digest), self.config.trust, image.index.as_ref()) {
            (true, _, _) => (false, "all of it is here, verified: nothing is left to fetch".to_owned()),
            (_, Trust::Registry, Some(_)) => {
                (true, "a published index is trusted (--trust-index=registry)".into())
            }
            (_, Trust::Registry, None) => {
                let none = "no index is published beside it: make one with `hoist index --push`";
                (false, image.no_index.clone().unwrap_or_else(|| none.into()))
            }
            (_, Trust::Local, _) => (
                false,
                "--trust-index=local allows no published index: everything is fetched and verified first".into(),
            ),
            (_, Trust::None, _) => (
                false,
                "--trust-index=none trusts nothing but whole layers: everything is fetched and verified first".into(),
            ),
        }
    }

    /// The same of one that is read by its own format's metadata.
    pub(crate) fn lazy_as_it_is(&self, image: &Image, notes: &Notes) -> String {
        let lazy = notes.0.values().filter(|note| note.refused.is_none()).count();
        if let Some(why) = notes.0.values().find_map(|note| note.refused.as_ref()).filter(|_| lazy == 0) {
            return format!("its original layers are here instead of its own, whole and verified: {why}");
        }
        if self.is_all_here(&image.digest) {
            return self.would_be_lazy(image).1;
        }
        let all = image.manifest.layers.len();
        format!("{lazy} of {all} layers are read as they are, by their own format's metadata")
    }

    /// What a mount of the image would do, and what is here of it.
    ///
    /// # Errors
    /// When what is here of it is damaged.
    pub async fn inspect(&self, image: &Image) -> Result<Inspection, Error> {
        let own = self.has_own_layout(&image.digest);
        let asking = self.noted(image, !own && image.index.is_none());
        let (noted, of_one_frame) = tokio::join!(asking, self.of_one_frame(image));
        let (engine, image) = (self.clone(), image.clone());
        let look = tokio::task::spawn_blocking(move || engine.look(&image, &noted, &of_one_frame));
        look.await.map_err(|e| Error::Internal(e.to_string()))?
    }

    /// The same, of what is here alone: nobody is asked.
    ///
    /// # Errors
    /// When what is here of it is damaged.
    pub fn inspect_here(&self, image: &Image) -> Result<Inspection, Error> {
        let kept = self.kept_conversion(&image.digest, &image.manifest.layers);
        self.look(image, &kept.as_ref().map(Noted::of).unwrap_or_default(), &BTreeSet::new())
    }

    fn look(
        &self,
        image: &Image,
        noted: &Noted,
        of_one_frame: &BTreeSet<Digest>,
    ) -> Result<Inspection, Error> {
        let look = Look::at(self, image, noted, of_one_frame);
        let (lazy, mut why) = look.lazy();
        let (mut layers, mut vouching, mut whole_at_once) = (Vec::new(), BTreeMap::<_, usize>::new(), 0);
        for layer in &image.manifest.layers {
            let told = look.layer(layer)?;
            *vouching.entry(told.vouched).or_insert(0) += 1;
            whole_at_once += usize::from(told.is_whole_at_once && lazy);
            layers.push(told.layer);
        }
        if whole_at_once > 0 {
            let of = format!("{whole_at_once} of {} layers", layers.len());
            why = format!(
                "{why}; {of} can be read from no place but the start, and come whole at their first read"
            );
        }
        let one = vouching.len() == 1;
        let told = vouching.into_iter().map(|(what, of)| match one {
            true => what.to_owned(),
            false => format!("of {of} layers {what}"),
        });
        Ok(Inspection {
            image: image.name.clone(),
            digest: image.digest,
            index: image.index.as_ref().map(|index| index.digest),
            lazy,
            complete: look.complete,
            why,
            vouched: told.collect::<Vec<_>>().join("; "),
            present: (!look.of_layers).then(|| look.present()).transpose()?,
            unchecked: image.unchecked.clone(),
            layers,
        })
    }

    /// Layers that can be read from their start alone, as a published index tells whose tables are not here yet.
    /// What of it can't be had is for a mount to say.
    async fn of_one_frame(&self, image: &Image) -> BTreeSet<Digest> {
        let Some(index) = image.index.as_ref().filter(|_| !self.is_complete(&image.digest)) else {
            return BTreeSet::new();
        };
        let zstd = |layer: &&Descriptor| codec_of(&layer.media_type) == Some(Codec::Zstd);
        let unknown = |layer: &&Descriptor| {
            let dir = self.store.layer(&layer.digest, Some(&index.digest));
            dir.table_bytes().is_none()
        };
        let layers = image.manifest.layers.iter().filter(zstd).filter(unknown);
        let tables =
            layers.filter_map(|layer| Some((layer.digest, index.layers.get(&layer.digest)?.0.clone())));
        let asking = tables.map(|(layer, table)| async move {
            let bytes = image.source.blob(&table.digest, Some(table.size)).await.ok()?;
            Table::decode(&bytes).is_ok_and(|table| is_one_frame(&table)).then_some(layer)
        });
        // Collected, for a closure with borrows could not be sent to another thread while it runs.
        let asking: Vec<_> = asking.collect();
        futures_util::stream::iter(asking)
            .buffer_unordered(TABLES)
            .filter_map(std::future::ready)
            .collect()
            .await
    }
}

/// Has it no place to begin but its start?
fn is_one_frame(table: &Table) -> bool {
    table.spans.linear().is_some_and(|spans| spans.codec == Codec::Zstd && spans.spans.len() == 1)
}

/// Bytes of file contents that are here, of how many.
fn present(dir: &LayerDir, table: &Table) -> (u64, u64) {
    let extents = &table.extents.extents;
    // A table has fewer extents than 2^32.
    let here = Here::of(dir, &dir.state(), extents.len() as u32);
    let sum = extents.iter().enumerate().filter(|(i, _)| here.has(*i as u32)).map(|(_, e)| e.len).sum();
    (sum, extents.iter().map(|e| e.len).sum())
}

/// An image as it is looked at.
struct Look<'a> {
    engine: &'a Engine,
    image: &'a Image,
    noted: &'a Noted,
    of_one_frame: &'a BTreeSet<Digest>,
    /// The layout that the next mount has its layers in, unless that is our own.
    layout: Option<PublishedIndex>,
    complete: bool,
    /// All of it is here, held to digests of its parts alone: none was made of its blobs.
    by_parts: bool,
    /// Does each layer say something by itself?
    of_layers: bool,
    /// Are the layers named that it was made of?
    of_originals: bool,
}

/// What is told of a layer.
struct Told {
    layer: LayerInspection,
    vouched: &'static str,
    /// Its first read brings all of it.
    is_whole_at_once: bool,
}

impl<'a> Look<'a> {
    fn at(
        engine: &'a Engine,
        image: &'a Image,
        noted: &'a Noted,
        of_one_frame: &'a BTreeSet<Digest>,
    ) -> Self {
        let (digest, layers) = (&image.digest, &image.manifest.layers);
        let converted =
            || engine.complete_conversion(digest).or_else(|| engine.kept_conversion(digest, layers));
        let layout = image.index.clone().or_else(converted);
        let complete = engine.is_complete(digest);
        let by_parts = complete && layout.as_ref().is_some_and(|index| engine.rests_on_parts(digest, index));
        let (of_layers, of_originals) = (image.is_of_layers(), image.originals().is_some());
        Self { engine, image, noted, of_one_frame, layout, complete, by_parts, of_layers, of_originals }
    }

    /// Whether a mount would be lazy, and why, or why not.
    fn lazy(&self) -> (bool, String) {
        let (notes, image) = (&self.noted.notes, self.image);
        let is_refused = !notes.0.is_empty() && notes.0.values().all(|note| note.refused.is_some());
        let whole_blobs = self.engine.config.trust != Trust::Registry && image.is_unvouched();
        let why = match image.index.is_none() && !self.complete {
            true if self.noted.as_it_is => return (true, self.engine.lazy_as_it_is(image, notes)),
            true if self.of_originals && is_refused => {
                "its own metadata is not used: its original layers are fetched whole, and verified first"
            }
            true if whole_blobs => {
                "nothing but the digests of its whole blobs vouches for what is in it, and --trust-index trusts nothing less: all of it is fetched and verified first"
            }
            true if !self.of_layers && is_refused => {
                "its own metadata is not used, and nothing else tells what is in it: it can't be mounted"
            }
            _ => return self.engine.would_be_lazy(image),
        };
        (false, why.to_owned())
    }

    fn layer(&self, layer: &Descriptor) -> Result<Told, Error> {
        let own = self.engine.store.layer(&layer.digest, None);
        let is_in = |index: &&PublishedIndex| index.layers.contains_key(&layer.digest);
        let dir = match self.layout.as_ref().filter(is_in).filter(|_| !own.state().complete) {
            Some(index) => self.engine.store.layer(&layer.digest, Some(&index.digest)),
            None => own.clone(),
        };
        let state = dir.state();
        // Where the next mount goes by another layout, it takes over what stands here in our own.
        let (dir, table) = match dir.table()? {
            None => (own.clone(), own.table()?),
            table => (dir, table),
        };
        let codec = codec_of(&layer.media_type);
        let present = table.as_ref().map(|table| present(&dir, table));
        let is_here = present.is_some_and(|(here, all)| here == all);
        let one_frame = table.as_ref().map_or(self.of_one_frame.contains(&layer.digest), is_one_frame);
        let is_whole_at_once = one_frame && !is_here;
        let note = self.noted.notes.0.get(&layer.digest);
        let format = note.map_or_else(|| tar(codec).to_owned(), |note| note.format.clone());
        let refused = note.and_then(|note| note.refused.as_ref()).filter(|_| !self.is_settled(layer));
        let note = match (&state.lied, refused) {
            (Some(lied), _) => Some(format!("out of service: {lied}")),
            (_, Some(why)) => Some(match self.of_layers {
                true => format!("fetched whole first: {why}"),
                false if self.of_originals => format!("its original layers are fetched whole instead: {why}"),
                // There is no other way to read it.
                false => why.clone(),
            }),
            _ if codec.is_none() && note.is_none() => Some("no layer that hoist reads".into()),
            _ if is_whole_at_once => Some("a single zstd frame: fetched whole at its first read".into()),
            _ => None,
        };
        let verified = match self.of_layers {
            true => state.verified || self.complete,
            false => self.complete,
        };
        let is_verified_by_parts = self.by_parts && !own.state().complete;
        let vouched = match (verified, is_verified_by_parts) {
            (true, false) => "the image's own digests: all of it was held against them",
            (true, true) => {
                "digests of its parts in metadata that the image's own digests cover: all of it was held against them"
            }
            (false, _) => self.vouched(layer, refused.is_some()),
        };
        let present = self.of_layers.then_some(present);
        let (digest, media_type, size) = (layer.digest, layer.media_type.clone(), layer.size);
        let layer = LayerInspection { digest, media_type, format, size, present, verified, note };
        Ok(Told { layer, vouched, is_whole_at_once })
    }

    /// How a layer would be read without an index says nothing of how it is with it; nor of one that is here.
    fn is_settled(&self, layer: &Descriptor) -> bool {
        let is_indexed = |index: &PublishedIndex| index.layers.contains_key(&layer.digest);
        self.image.index.as_ref().is_some_and(is_indexed) || self.complete && self.is_shown_by_its_own()
    }

    /// Is it not by other layers, in place of its own, that it is shown?
    fn is_shown_by_its_own(&self) -> bool {
        self.layout.as_ref().is_none_or(|index| index.instead().is_empty())
    }

    /// What tells that a layer is right that was not verified yet.
    fn vouched(&self, layer: &Descriptor, is_refused: bool) -> &'static str {
        let index = self.image.index.as_ref();
        let is_read = self.noted.notes.0.contains_key(&layer.digest) && !is_refused;
        let is_indexed = |index: &PublishedIndex| {
            index.layers.contains_key(&layer.digest) || index.of_image && !self.of_layers
        };
        if index.is_some_and(is_indexed) {
            "the published index's digests of its parts, and the image's once all of it is here"
        } else if is_refused && !self.of_layers && !self.of_originals {
            "nothing that can be read"
        } else if !(self.noted.as_it_is && is_read) {
            "the image's own digests: it is verified whole before it is read"
        } else if self.image.is_unvouched() && self.of_originals {
            "nothing when it is first fetched, until a pull has held all of it against the image's own digests"
        } else if self.image.is_unvouched() {
            "checksums alone, until a pull has held all of it against the image's own digests"
        } else if self.noted.pinned {
            "digests of its parts in metadata that the image's own digests cover"
        } else {
            "digests of its parts in metadata that the image's own digests do not cover (--trust-index=registry)"
        }
    }

    /// Of an image whose layers say nothing each by itself.
    fn present(&self) -> Result<Option<(u64, u64)>, Error> {
        let Some(index) = &self.layout else { return Ok(None) };
        let instead = index.instead();
        let instead = instead.iter().map(|layer| self.engine.store.layer(layer, None));
        let laid_out = index.layers.keys().map(|layer| self.engine.store.layer(layer, Some(&index.digest)));
        let mut all = None;
        for dir in laid_out.chain(instead) {
            let Some(table) = dir.table()? else { continue };
            let ((here, of), (sum, total)) = (present(&dir, &table), all.unwrap_or_default());
            all = Some((sum + here, total + of));
        }
        Ok(all)
    }
}

/// The format of a layer that has none of its own.
fn tar(codec: Option<Codec>) -> &'static str {
    match codec {
        Some(Codec::Plain) => "tar",
        Some(Codec::Gzip) => "tar+gzip",
        Some(Codec::Zstd) => "tar+zstd",
        None => "unknown",
    }
}
