//! Images that were converted for other systems: what each format's metadata becomes in ours.
//!
//! A [`Reader`] is asked step by step: it says what to fetch, is given the bytes, and in the end says what it found,
//! or why the image cannot be read lazily. So nothing here does I/O, and nobody outside needs to know a format's name.

mod erofs;
mod nydus;
mod overlaybd;
pub(crate) mod rfc3339;
mod soci;
mod stargz;
mod toc;
mod zstd_chunked;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

pub use erofs::{ImageError, ImageLayer, image_codec, image_format};

use crate::build::{BuildError, Described};
use crate::digest::Digest;

/// Most bytes of one answer.
pub const MAX_ANSWER: u64 = 256 << 20;

/// What an image's manifest says of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFacts {
    /// Media type.
    pub media_type: String,
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What an image's manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Lowest layer first.
    pub layers: Vec<LayerFacts>,
    /// May metadata be used that the manifest's digest does not cover?
    pub unpinned: bool,
}

/// Something to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// A range of a blob, at most [`MAX_ANSWER`]; the bytes are not verified.
    Range {
        /// Which blob.
        blob: Digest,
        /// Byte range.
        range: Range<u64>,
    },
    /// A whole blob of this size; the bytes have its digest.
    Blob {
        /// Which blob.
        blob: Digest,
        /// Bytes, at most [`MAX_ANSWER`].
        size: u64,
    },
    /// How many bytes a blob has that no manifest tells it of, as a little-endian u64.
    Size(Digest),
    /// A manifest; the bytes have its digest.
    Manifest(Digest),
    /// What stands in the image's repository under its tag with this behind it.
    Beside(&'static str),
    /// The image index that lists the referrers of the image with this artifact type.
    Referrers(&'static str),
}

/// What a reader asks for or has found. An answer to a [`Want`] is None where there is no such thing.
#[derive(Debug)]
pub enum Step {
    /// Fetch these side by side, and step on with the answers in this order.
    Fetch(Vec<Want>),
    /// Done.
    Done(Found),
}

/// What a reader has found.
#[derive(Debug)]
pub struct Found {
    /// Format and version, for people.
    pub format: String,
    /// Is all of it held right by the manifest's digest?
    pub pinned: bool,
    /// The image's layers by number, or the image as a whole.
    pub parts: Vec<(Covers, Described)>,
    /// Of several layers those that nothing can be said of.
    pub left: Vec<Left>,
}

impl Found {
    fn one(format: String, pinned: bool, covers: Covers, described: Described) -> Self {
        Self { format, pinned, parts: vec![(covers, described)], left: Vec::new() }
    }
}

/// A layer that is fetched whole, beside others of its image that are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its number in the manifest.
    pub layer: usize,
    /// Why.
    pub why: String,
    /// Is nothing wrong with that?
    pub usual: bool,
}

/// What something describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Covers {
    /// This layer of the manifest.
    Layer(usize),
    /// Of a reader: several layers; what it finds says which.
    Layers,
    /// All of the image: what its tree names is all there is.
    Image,
}

/// Why a layer or an image is not read lazily in this format.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not of this format at all: nothing is wrong.
    #[error("it is of another format")]
    Other,
    /// It is, or says so, and cannot be used.
    #[error("{0}")]
    Unusable(String),
}

impl Refusal {
    pub(crate) fn because(why: impl Into<String>) -> Self {
        Self::Unusable(why.into())
    }
}

impl From<BuildError> for Refusal {
    fn from(e: BuildError) -> Self {
        Self::Unusable(e.to_string())
    }
}

/// What is described is all of an image.
fn of_image(format: String, pinned: bool, mut described: Described) -> Result<Step, Refusal> {
    described.tree.settle().map_err(Refusal::because)?;
    Ok(Step::Done(Found::one(format, pinned, Covers::Image, described)))
}

/// Reads the metadata of one layer, or of the image.
pub trait Reader: Send {
    /// What it may describe.
    fn covers(&self) -> Covers;
    /// The format, for people; more is known when it is done.
    fn format(&self) -> &str;
    /// Is it known to be of this format? If not, that it could not be looked at says nothing.
    fn is_certain(&self) -> bool;
    /// The next step; `answers` are those to the step before, none at first.
    ///
    /// # Errors
    /// [`Refusal`]: it is over.
    fn step(&mut self, answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal>;
}

/// The readers for an image: one alone for the whole image; or at most one for each layer, and at the end one for those
/// that have no format of their own. What the first has found of a layer counts.
pub fn readers(image: &ImageFacts) -> Vec<Box<dyn Reader>> {
    if let Some(whole) = nydus::reader(image).or_else(|| overlaybd::reader(image)) {
        return vec![whole];
    }
    let mut readers: Vec<Box<dyn Reader>> = Vec::new();
    for (number, layer) in image.layers.iter().enumerate() {
        let reader = zstd_chunked::reader(number, layer, image.unpinned)
            .or_else(|| stargz::reader(number, layer, image.unpinned));
        readers.extend(reader);
    }
    let certain = readers.iter().filter(|reader| reader.is_certain());
    let taken: HashSet<Covers> = certain.map(|reader| reader.covers()).collect();
    readers.extend(soci::reader(image, |number| taken.contains(&Covers::Layer(number))));
    readers
}

/// Does nothing less than all of an image's blobs vouch for what is in them? What is read of one by parts is taken on
/// trust.
pub fn is_unvouched(image: &ImageFacts) -> bool {
    nydus::reader(image).is_none() && overlaybd::reader(image).is_some()
}

/// A layer of the image that another was made of, which still has its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// Digest of its blob.
    pub digest: Digest,
    /// Media type.
    pub media_type: String,
}

/// The layers that an image was made of, lowest first, where its manifest names all of them: with them the image can be
/// shown without its own metadata.
pub fn originals(image: &ImageFacts) -> Option<Vec<Original>> {
    nydus::originals(image).or_else(|| overlaybd::originals(image))
}

/// What a manifest in an image index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// An image.
    Plain,
    /// An image that was converted, beside the plain one.
    Converted,
    /// No image, but about one.
    About,
}

impl Listed {
    /// As the index says.
    pub fn of(
        os_features: &[String],
        artifact_type: Option<&str>,
        annotations: &BTreeMap<String, String>,
    ) -> Self {
        match artifact_type {
            _ if nydus::is_marked(os_features, artifact_type) => Self::Converted,
            _ if soci::is_marked(artifact_type, annotations) => Self::About,
            _ => Self::Plain,
        }
    }
}

/// Files in the root of a layer that its format put there and no reader of the image shall see. `tail`: its blob's
/// last bytes, [`TAIL`] of them or all.
pub fn hidden(tail: &[u8]) -> &'static [&'static [u8]] {
    if stargz::has_footer(tail) || zstd_chunked::has_footer(tail) { &toc::OWN_FILES } else { &[] }
}

/// How much of a blob's end [`hidden`] looks at, bytes.
pub const TAIL: usize = 80;

#[cfg(test)]
mod tests;
