//! Images of other formats, as they are: their metadata is converted here, once, into what a published index of our own
//! has: a merged tree, and a table for each layer. The document that names these stands in the store like an index, and
//! everything behind it goes on as with one. A layer that cannot be read so is fetched whole and stands in our own
//! layout beside the others.

mod again;
mod ask;
mod held;
mod indexed;
mod instead;
mod keep;
mod notes;
mod unvouched;
mod verified;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) use again::Again;
pub(crate) use keep::PREFETCH;
pub(crate) use notes::{Note, Noted, Notes};
pub(crate) use whole::Brought;

use futures_util::StreamExt;
use hoist_format::digest::Digest;
use hoist_format::formats::{self, Covers, ImageFacts, LayerFacts, Left, Refusal};

use crate::config::Trust;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::own::LAYERS;
use crate::progress::Progress;
use crate::publish::PublishedIndex;
use crate::store::usage::Choosing;
use verified::Verified;

/// Why an image is not read that has no others.
const WHOLE_LAYERS_ONLY: &str = "--trust-index=none trusts no metadata, only whole layers";
/// Readers that are asked side by side.
const READERS: usize = 8;

/// An image of which at least one layer can be read as it is.
pub(crate) struct Conversion {
    parts: Parts,
    notes: Notes,
    pinned: bool,
}

enum Parts {
    /// By the number of the layer in the manifest.
    Layers(BTreeMap<usize, ask::Part>),
    Image(Box<ask::Part>),
}

/// What became of an image that may be of another format.
pub(crate) enum Converted {
    /// Its conversion is here. Nothing of it is taken out of the store until `choosing` is dropped.
    Kept { index: Box<PublishedIndex>, choosing: Choosing },
    /// Nothing of it can be read lazily; why, where it is of another format.
    Plain(Notes),
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

    /// Does nothing less than all of its blobs vouch for what is in them?
    pub(crate) fn is_unvouched(&self) -> bool {
        formats::is_unvouched(&self.facts(true))
    }
}

impl Engine {
    /// The image in the layout of its own format: as it was converted before, or now. Layers that cannot be read lazily
    /// are fetched whole, where others can.
    pub(crate) async fn converted(&self, image: &Image, progress: &dyn Progress) -> Result<Converted, Error> {
        let whole_first = self.config.trust != Trust::Registry && image.is_unvouched();
        if whole_first {
            self.pull_unvouched(image, progress).await?;
        }
        let choosing = self.store.choosing()?;
        if let Some(kept) = self.kept_conversion(&image.digest, &image.manifest.layers) {
            return Ok(Converted::Kept { index: Box::new(kept), choosing });
        }
        if whole_first {
            let why = "it was taken out of the store just when it was fetched: try again";
            return Err(Error::NotFound(why.into()));
        }
        // Long, and nothing of it is in the store yet.
        drop(choosing);
        let (conversion, mut notes) = self.convert(image, None).await;
        let Some(conversion) = conversion else { return self.instead(image, notes, progress).await };
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
        let choosing = self.store.choosing()?;
        if let Parts::Layers(described) = &conversion.parts
            && let Some((_, gone)) = image.manifest.layers.iter().enumerate().find(|(number, layer)| {
                !described.contains_key(number) && !self.store.layer(&layer.digest, None).is_whole()
            })
        {
            let why = format!("layer {} was taken out of the store just when it was fetched", gone.digest);
            return Err(Error::NotFound(format!("{why}: try again")));
        }
        let why = match keep::keep(&self.store, image, conversion, None).await {
            Ok(index) => match self.store.distrusted(&index.digest) {
                None => return Ok(Converted::Kept { index: Box::new(index), choosing }),
                Some(why) => why,
            },
            Err(e @ Error::Image { .. }) => e.to_string(),
            Err(e) => return Err(e),
        };
        tracing::warn!(image = image.name, "it is not read as it is: {why}");
        notes.refuse(&why);
        Ok(Converted::Plain(notes))
    }

    /// What is known of the layers' formats. The registry is asked where that is what a mount would do.
    pub(crate) async fn noted(&self, image: &Image, asked: bool) -> Noted {
        let kept = || self.kept_conversion(&image.digest, &image.manifest.layers);
        if let Some(kept) = self.complete_conversion(&image.digest).or_else(kept) {
            return Noted::of(&kept);
        }
        let whole_first = self.config.trust != Trust::Registry && image.is_unvouched();
        if asked && !whole_first && (self.config.trust != Trust::None || image.originals().is_some()) {
            let (conversion, notes) = self.convert(image, None).await;
            let pinned = conversion.as_ref().is_some_and(|conversion| conversion.pinned);
            return Noted { notes, as_it_is: conversion.is_some(), pinned };
        }
        let mut notes = Notes::whole_first(image);
        let refused =
            (asked && !whole_first && self.config.trust == Trust::None).then_some(WHOLE_LAYERS_ONLY);
        for reader in formats::readers(&image.facts(false)) {
            let covers = reader.covers();
            // Which of several layers it reads is known when it has.
            if covers != Covers::Layers {
                notes.add(image, covers, reader.format(), refused.filter(|_| covers == Covers::Image));
            }
        }
        Noted { notes, ..Noted::default() }
    }

    /// Can any of its layers be read as it is, or by nobody else? What was found out is kept for the mount that follows.
    pub(crate) async fn reads_as_it_is(&self, image: &Image) -> bool {
        let whole_first = self.config.trust != Trust::Registry && image.is_unvouched();
        if whole_first || self.kept_conversion(&image.digest, &image.manifest.layers).is_some() {
            return true;
        }
        let Some(conversion) = self.convert(image, None).await.0 else { return image.originals().is_some() };
        let all = match &conversion.parts {
            Parts::Layers(described) => described.len() == image.manifest.layers.len(),
            Parts::Image(_) => true,
        };
        if !all {
            return true;
        }
        let Ok(_choosing) = self.store.choosing() else { return true };
        let kept = keep::keep(&self.store, image, conversion, None).await;
        kept.inspect_err(|e| tracing::warn!(image = image.name, "{e}")).is_ok()
    }

    async fn convert(&self, image: &Image, verified: Option<Arc<Verified>>) -> (Option<Conversion>, Notes) {
        convert(image, self.config.trust, verified).await
    }
}

/// Asks each format that the image may be of. A layer is of the first that can read it.
/// `verified`: all its blobs, whose word alone counts then.
async fn convert(
    image: &Image,
    trust: Trust,
    verified: Option<Arc<Verified>>,
) -> (Option<Conversion>, Notes) {
    let mut notes = Notes::whole_first(image);
    let facts = image.facts(trust == Trust::Registry || verified.is_some());
    let readers = formats::readers(&facts);
    if trust == Trust::None && verified.is_none() {
        for reader in readers.iter().filter(|reader| reader.covers() == Covers::Image) {
            notes.add(image, Covers::Image, reader.format(), Some(WHOLE_LAYERS_ONLY));
        }
        return (None, notes);
    }
    let limits = ask::Limits::new(verified);
    let readers = readers.into_iter().zip(formats::readers(&facts));
    // Collected, for a closure with borrows could not be sent to another thread while it runs.
    let asking: Vec<_> = readers.map(|reader| ask::ask(reader, image, &limits)).collect();
    let mut asked = futures_util::stream::iter(asking).buffered(READERS);
    let mut layers = BTreeMap::new();
    let (mut whole, mut pinned) = (None, true);
    while let Some((covers, format, outcome)) = asked.next().await {
        let found = match outcome {
            Ok(found) => found,
            Err(Refusal::Other) => continue,
            Err(Refusal::Unusable(why)) => {
                tracing::warn!(image = image.name, ?covers, "not read as {format}: {why}");
                notes.add(image, covers, &format, Some(&why));
                continue;
            }
        };
        for (covers, part) in found.parts {
            match covers {
                Covers::Layer(number) if layers.contains_key(&number) => continue,
                Covers::Layer(number) => drop(layers.insert(number, part)),
                Covers::Image => whole = Some(Box::new(part)),
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
        Some(part) => Parts::Image(part),
        None if layers.is_empty() => return (None, notes),
        None => Parts::Layers(layers),
    };
    (Some(Conversion { parts, notes: notes.clone(), pinned }), notes)
}
