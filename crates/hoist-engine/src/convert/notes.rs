//! What is found out of an image's formats, layer by layer, for people.

use std::collections::BTreeMap;

use hoist_format::digest::Digest;
use hoist_format::formats::{self, Covers};

use crate::error::Error;
use crate::image::Image;
use crate::publish::PublishedIndex;

/// What is known of a layer's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// Format and version.
    pub format: String,
    /// Why it is not read lazily; None where it is.
    pub refused: Option<String>,
}

/// What is known of the layers, by blob.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(pub BTreeMap<Digest, Note>);

/// What is known of an image's formats.
#[derive(Debug, Clone, Default)]
pub(crate) struct Noted {
    pub notes: Notes,
    /// Can any layer be read as it is?
    pub as_it_is: bool,
    /// Do the manifest's digests cover the metadata that it is read by?
    pub pinned: bool,
}

impl Noted {
    /// Of a conversion that is here.
    pub fn of(kept: &PublishedIndex) -> Self {
        Self { notes: kept.notes(), as_it_is: kept.instead().is_empty(), pinned: kept.is_pinned() }
    }
}

impl Notes {
    /// Of layers that are always fetched whole and verified before anything of them is read.
    pub fn whole_first(image: &Image) -> Self {
        let mut notes = Self::default();
        for (number, layer) in image.manifest.layers.iter().enumerate() {
            if let Some(format) = formats::image_format(&layer.media_type) {
                notes.add(image, Covers::Layer(number), format, Some("it has no digests but the blob's"));
            }
        }
        notes
    }

    /// How a layer is read counts more than how it is not; else who says it first.
    pub fn add(&mut self, image: &Image, covers: Covers, format: &str, refused: Option<&str>) {
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

    /// Nothing is read lazily after all.
    pub fn refuse(&mut self, why: &str) {
        for note in self.0.values_mut() {
            note.refused.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Why nothing of an image can be read whose layers say nothing each by itself.
    pub fn refusal(&self, image: &Image) -> Error {
        Error::image("image", image.digest, self.why(image))
    }

    /// The same, as a part of a sentence.
    pub fn why(&self, image: &Image) -> String {
        let read_whole = Self::whole_first(image);
        let told = self.0.iter().filter(|(layer, _)| !read_whole.0.contains_key(layer));
        let why = told.filter_map(|(_, note)| note.refused.clone()).next();
        // Or it is of no format at all.
        let why = why.or_else(|| image.expected().err().map(|e| e.to_string()));
        why.unwrap_or_else(|| "its layers are of no format that hoist reads".into())
    }
}
