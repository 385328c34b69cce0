//! Images of other formats, as they are: their metadata is converted here, once, into what a published index of our own
//! has: a merged tree, and a table for each layer. The document that names these stands in the store like an index, and
//! everything behind it goes on as with one. A layer that cannot be read so is fetched whole and stands in our own
//! layout beside the others.

mod ask;
mod keep;
mod whole;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use keep::PREFETCH;

use futures_util::StreamExt;
use hoist_format::build::Described;
use hoist_format::digest::Digest;
use hoist_format::formats::{self, Covers, ImageFacts, LayerFacts, Left, Refusal};

use crate::config::Trust;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::progress::Progress;
use crate::publish::PublishedIndex;
use crate::pull::LAYERS;

/// What is known of a layer's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// Format and version.
    pub format: String,
    /// Why it is not read lazily; None where it is.
    pub refused: Option<String>,
}

/// An image of which at least one layer can be read as it is.
pub(crate) struct Conversion {
    parts: Parts,
    /// By layer.
    notes: BTreeMap<Digest, Note>,
    pinned: bool,
}

enum Parts {
    /// By the number of the layer in the manifest.
    Layers(BTreeMap<usize, Described>),
    Image(Box<Described>),
}

impl Image {
    fn facts(&self, unpinned: bool) -> ImageFacts {
        let layers = self.manifest.layers.iter().map(|layer| LayerFacts {
            media_type: layer.media_type.clone(),
            digest: layer.digest,
            size: layer.size,
            annotations: layer.annotations.clone(),
        });
        let annotations = self.manifest.annotations.clone();
        ImageFacts { digest: self.digest, annotations, layers: layers.collect(), unpinned }
    }
}

impl Engine {
    /// The image in the layout of its own format: as it was converted before, or now. None where nothing of it can
    /// be read lazily. Layers that cannot are fetched whole.
    pub(crate) async fn converted(
        &self,
        image: &Image,
        progress: &dyn Progress,
    ) -> Result<Option<PublishedIndex>, Error> {
        if let Some(kept) = self.kept_conversion(image) {
            return Ok(Some(kept));
        }
        let (conversion, _) = self.convert(image).await;
        let Some(conversion) = conversion else { return Ok(None) };
        if let Parts::Layers(described) = &conversion.parts {
            let all = image.manifest.layers.iter().enumerate();
            let left = all.filter(|(number, _)| !described.contains_key(number));
            let left: BTreeSet<Digest> = left.map(|(_, layer)| layer.digest).collect();
            let work: Vec<_> = left.iter().map(|blob| self.whole_layer(image, blob, progress)).collect();
            let mut running = futures_util::stream::iter(work).buffer_unordered(LAYERS);
            while let Some(done) = running.next().await {
                done?;
            }
        }
        self.keep_conversion(image, conversion).await.map(Some)
    }

    /// What is known of the layers' formats, by layer, and whether any can be read as it is. The registry is asked where
    /// that is what a mount would do.
    pub(crate) async fn notes(&self, image: &Image, asked: bool) -> (BTreeMap<Digest, Note>, bool) {
        if let Some(kept) = self.kept_conversion(image) {
            return (kept.notes(), true);
        }
        if asked && self.config.trust != Trust::None {
            let (conversion, notes) = self.convert(image).await;
            return (notes, conversion.is_some());
        }
        let mut notes = Notes::default();
        for reader in formats::readers(&image.facts(false)) {
            // Which of several layers it reads is known when it has.
            if reader.covers() != Covers::Layers {
                notes.add(image, reader.covers(), reader.format(), None);
            }
        }
        (notes.0, false)
    }

    /// Asks each format that the image may be of. A layer is of the first that can read it.
    async fn convert(&self, image: &Image) -> (Option<Conversion>, BTreeMap<Digest, Note>) {
        let mut notes = Notes::default();
        let unpinned = match self.config.trust {
            Trust::Registry => true,
            Trust::Local => false,
            Trust::None => return (None, notes.0),
        };
        let readers = formats::readers(&image.facts(unpinned));
        let asking = readers.into_iter().map(|reader| ask::ask(reader, image));
        let mut layers = BTreeMap::new();
        let (mut whole, mut pinned) = (None, true);
        for (covers, format, outcome) in futures_util::future::join_all(asking).await {
            let found = match outcome {
                Ok(found) => found,
                Err(Refusal::Other) => continue,
                Err(Refusal::Unusable(why)) => {
                    tracing::warn!(image = image.name, ?covers, "not read as {format}: {why}");
                    notes.add(image, covers, &format, Some(&why));
                    continue;
                }
            };
            for (covers, described) in found.parts {
                match covers {
                    Covers::Layer(number) if layers.contains_key(&number) => continue,
                    Covers::Layer(number) => drop(layers.insert(number, described)),
                    Covers::Image => whole = Some(Box::new(described)),
                    Covers::Layers => continue,
                }
                pinned &= found.pinned;
                notes.add(image, covers, &found.format, None);
            }
            for Left { layer, why, usual } in found.left {
                if !usual {
                    tracing::warn!(image = image.name, layer, "not read as {format}: {why}");
                }
                notes.add(image, Covers::Layer(layer), &found.format, Some(&why));
            }
        }
        let parts = match whole {
            Some(described) => Parts::Image(described),
            None if layers.is_empty() => return (None, notes.0),
            None => Parts::Layers(layers),
        };
        (Some(Conversion { parts, notes: notes.0.clone(), pinned }), notes.0)
    }
}

/// What was found out of the layers' formats.
#[derive(Default)]
struct Notes(BTreeMap<Digest, Note>);

impl Notes {
    /// How a layer is read counts more than how it is not; else who says it first.
    fn add(&mut self, image: &Image, covers: Covers, format: &str, refused: Option<&str>) {
        let layers = match covers {
            Covers::Layer(number) => image.manifest.layers.get(number..=number).unwrap_or_default(),
            Covers::Layers | Covers::Image => &image.manifest.layers,
        };
        for layer in layers {
            let known = self.0.get(&layer.digest);
            if known.is_none_or(|known| known.refused.is_some() && refused.is_none()) {
                let note = Note { format: format.to_owned(), refused: refused.map(str::to_owned) };
                self.0.insert(layer.digest, note);
            }
        }
    }
}
