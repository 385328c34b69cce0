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

enum At {
    Start,
    /// The indexes of version 1 were asked for.
    List,
    /// The index.
    Index,
    /// Of each layer what its index has.
    Layers,
    /// The starts of the layers that the zTOCs only guess the header of.
    Starts(Found, Vec<usize>),
}

impl Reader for Soci {
    fn covers(&self) -> Covers {
        Covers::Layers
    }

    fn format(&self) -> &'static str {
        self.version.name()
    }

    fn is_certain(&self) -> bool {
        self.named.is_some() || !matches!(self.at, At::Start | At::List)
    }

    fn step(&mut self, answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        let mut answers = answers.into_iter();
        match (std::mem::replace(&mut self.at, At::Start), &self.named) {
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
            (At::Starts(found, unsure), _) => Ok(Step::Done(with_starts(found, &unsure, answers))),
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
            let ztoc = ztoc.filter(|ztoc| ztoc.size <= MAX_ANSWER);
            *prefetch = prefetch.filter(|list| ztoc.is_some() && list.size <= MAX_PREFETCH);
            let want = |blob: &Blob| Want::Blob { blob: blob.digest, size: blob.size };
            wants.extend(ztoc.iter().chain(&*prefetch).map(want));
        }
        if wants.is_empty() {
            return Err(Refusal::because("its SOCI index has no zTOC of any of its layers"));
        }
        Ok(self.fetch(At::Layers, wants))
    }

    fn with_ztocs(&mut self, mut answers: impl Iterator<Item = Option<Vec<u8>>>) -> Step {
        let mut found = Found {
            format: format!("{}, zTOC version 0.9", self.version.name()),
            pinned: self.named.is_some(),
            parts: Vec::new(),
            left: Vec::new(),
        };
        let (mut unsure, mut starts) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let mut leave = |why: String, usual| found.left.push(Left { layer: layer.number, why, usual });
            let Some(known) = layer.beside.ztoc else {
                let why = "the SOCI index of its image has no zTOC of it, as is usual for a small layer";
                leave(why.into(), true);
                continue;
            };
            if known.size > MAX_ANSWER {
                leave("its zTOC has more than 256 MiB".into(), false);
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
                Ok(told) => {
                    if told.start_is_guessed {
                        unsure.push(layer.number);
                        let range = 0..layer.blob.size.min(soci::HEADER);
                        starts.push(Want::Range { blob: layer.blob.digest, range });
                    }
                    found.parts.push((Covers::Layer(layer.number), told.described));
                }
                Err(e) => leave(e.to_string(), false),
            }
        }
        match unsure.is_empty() {
            true => Step::Done(found),
            false => self.fetch(At::Starts(found, unsure), starts),
        }
    }
}

/// Leaves those of the layers that do not start as their zTOCs say.
fn with_starts(mut found: Found, unsure: &[usize], starts: impl Iterator<Item = Option<Vec<u8>>>) -> Found {
    for (&layer, start) in unsure.iter().zip(starts) {
        if !start.is_some_and(|start| soci::is_plain_header(&start)) {
            found.parts.retain(|(covers, _)| *covers != Covers::Layer(layer));
            let why = "its zTOC says that it has another gzip header than it has".into();
            found.left.push(Left { layer, why, usual: false });
        }
    }
    found
}
