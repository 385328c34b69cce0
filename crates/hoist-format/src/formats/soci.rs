//! SOCI (soci-snapshotter `soci/soci_index.go`): beside an image stands an index, which has a zTOC ([`crate::soci`]) for
//! each layer of it that was large enough. The layers stay as they are.

mod index;

use std::collections::BTreeMap;

use super::{Covers, Found, ImageFacts, LayerFacts, Left, MAX_ANSWER, Reader, Refusal, Step, Want};
use crate::chunk::Blob;
use crate::digest::Digest;
use crate::soci;
use crate::span::Codec;

use index::{Beside, Index, Version};

/// On an image's manifest: the digest of its index, of version 2.
const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
/// On an index of version 2 in the image index: which manifest there it is about.
const IMAGE_DIGEST: &str = "com.amazon.soci.image-manifest-digest";

/// Longest list of what is fetched first, bytes.
const MAX_PREFETCH: u64 = 1 << 20;

/// Does an image index say of a manifest that it is no image, but about one?
pub(super) fn is_marked(artifact_type: Option<&str>, annotations: &BTreeMap<String, String>) -> bool {
    let is_index = |kind| Version::ALL.iter().any(|version| version.media_type() == kind);
    artifact_type.is_some_and(is_index) || annotations.contains_key(IMAGE_DIGEST)
}

/// The reader of an image's layers but those that are `taken`. Whether there is an index of version 1 only a registry
/// knows, and nothing holds it right.
pub(super) fn reader(image: &ImageFacts, taken: impl Fn(usize) -> bool) -> Option<Box<dyn Reader>> {
    let layer = |(number, layer): (usize, &LayerFacts)| {
        let codec = codec(&layer.media_type).filter(|_| !taken(number))?;
        let blob = Blob { digest: layer.digest, size: layer.size };
        Some(Layer { number, blob, codec, beside: Beside::default() })
    };
    let layers: Vec<Layer> = image.layers.iter().enumerate().filter_map(layer).collect();
    let named = image.annotations.get(INDEX_DIGEST).cloned();
    if layers.is_empty() || named.is_none() && !image.unpinned {
        return None;
    }
    let version = if named.is_some() { Version::V2 } else { Version::V1 };
    Some(Box::new(Soci { image: image.digest, named, version, layers, at: At::Start }))
}

fn codec(media_type: &str) -> Option<Codec> {
    let is = |ends: &[&str]| ends.iter().any(|end| media_type.ends_with(end));
    match media_type {
        _ if is(&["tar+gzip", "tar.gzip"]) => Some(Codec::Gzip),
        _ if is(&[".tar"]) => Some(Codec::Plain),
        _ => None,
    }
}

struct Soci {
    image: Digest,
    /// What the manifest says.
    named: Option<String>,
    version: Version,
    layers: Vec<Layer>,
    at: At,
}

struct Layer {
    number: usize,
    blob: Blob,
    codec: Codec,
    /// What its index has of it.
    beside: Beside,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    /// The indexes of version 1 were asked for.
    List,
    /// The index.
    Index,
    /// Of each layer what its index has.
    Layers,
}

impl Reader for Soci {
    fn covers(&self) -> Covers {
        Covers::Layers
    }

    fn format(&self) -> &'static str {
        self.version.name()
    }

    fn is_certain(&self) -> bool {
        self.named.is_some() || matches!(self.at, At::Index | At::Layers)
    }

    fn step(&mut self, answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        let mut answers = answers.into_iter();
        match (self.at, &self.named) {
            (At::Start, Some(named)) => {
                let index = named.parse().map_err(|e| {
                    Refusal::because(format!("its manifest names no index that can be fetched: {e}"))
                })?;
                Ok(self.fetch(At::Index, vec![Want::Manifest(index)]))
            }
            (At::Start, None) => Ok(self.fetch(At::List, vec![Want::Referrers(Version::V1.media_type())])),
            (At::List, _) => {
                let list = answers.next().flatten().ok_or(Refusal::Other)?;
                // soci-snapshotter takes the first too.
                let first = index::first_of(&list)?.ok_or(Refusal::Other)?;
                Ok(self.fetch(At::Index, vec![Want::Manifest(first)]))
            }
            (At::Index, _) => {
                let index = answers.next().flatten();
                let index = index.ok_or_else(|| Refusal::because("its SOCI index is not there"))?;
                self.with_index(&Index::read(&index, self.version, &self.image)?)
            }
            (At::Layers, _) => Ok(self.with_ztocs(answers)),
        }
    }
}

impl Soci {
    fn fetch(&mut self, at: At, wants: Vec<Want>) -> Step {
        self.at = at;
        Step::Fetch(wants)
    }

    fn with_index(&mut self, index: &Index) -> Result<Step, Refusal> {
        let mut wants = Vec::new();
        for layer in &mut self.layers {
            layer.beside = index.beside(&layer.blob.digest);
            let Beside { ztoc, prefetch } = &mut layer.beside;
            *ztoc = ztoc.filter(|ztoc| ztoc.size <= MAX_ANSWER);
            *prefetch = prefetch.filter(|list| ztoc.is_some() && list.size <= MAX_PREFETCH);
            let want = |blob: &Blob| Want::Blob { blob: blob.digest, size: blob.size };
            wants.extend(ztoc.iter().chain(&*prefetch).map(want));
        }
        if wants.is_empty() {
            return Err(Refusal::because("its SOCI index has no zTOC of any of its layers"));
        }
        Ok(self.fetch(At::Layers, wants))
    }

    fn with_ztocs(&self, mut answers: impl Iterator<Item = Option<Vec<u8>>>) -> Step {
        let mut found = Found {
            format: format!("{}, zTOC version 0.9", self.version.name()),
            pinned: self.named.is_some(),
            parts: Vec::new(),
            left: Vec::new(),
        };
        for layer in &self.layers {
            let mut leave = |why: String, usual| found.left.push(Left { layer: layer.number, why, usual });
            if layer.beside.ztoc.is_none() {
                let why = "the SOCI index of its image has no zTOC of it, as is usual for a small layer";
                leave(why.into(), true);
                continue;
            }
            let ztoc = answers.next().flatten();
            let prefetch = layer.beside.prefetch.and_then(|_| answers.next().flatten());
            let Some(ztoc) = ztoc else {
                leave("its zTOC is not there".into(), false);
                continue;
            };
            let prefetch = prefetch.map(|list| index::prefetch(&list)).unwrap_or_default();
            match soci::describe(&ztoc, layer.blob, layer.codec, &prefetch) {
                Ok(described) => found.parts.push((Covers::Layer(layer.number), described)),
                Err(e) => leave(e.to_string(), false),
            }
        }
        Step::Done(found)
    }
}
