//! overlaybd and TurboOCI images (accelerated-container-image `docs/`, `pkg/label`), told by their layers' annotations.
//!
//! They are block devices: only all layers together say anything. What they store has checksums but no digests, so
//! nothing of them is pinned by the manifest.

use std::ops::Range;

use super::{Covers, ImageFacts, LayerFacts, Original, Reader, Refusal, Step, Want, of_image};
use crate::digest::Digest;
use crate::overlaybd::{self, Image, MAX_TRACE, OverlaybdError, TurboLayer, recorded};

const BLOB_DIGEST: &str = "containerd.io/snapshot/overlaybd/blob-digest";
const VERSION: &str = "containerd.io/snapshot/overlaybd/version";
const FS_TYPE: &str = "containerd.io/snapshot/overlaybd/blob-fs-type";
/// A layer that only tells what is read first.
const ACCELERATION: &str = "containerd.io/snapshot/overlaybd/acceleration-layer";
const TARGETS: [&str; 2] = [
    "containerd.io/snapshot/overlaybd/turbo-oci/target-digest",
    "containerd.io/snapshot/overlaybd/fastoci/target-digest",
];
const TARGET_TYPES: [&str; 2] = [
    "containerd.io/snapshot/overlaybd/turbo-oci/target-media-type",
    "containerd.io/snapshot/overlaybd/fastoci/target-media-type",
];
/// What an original is where its media type is not told.
const USUAL: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn target(layer: &LayerFacts) -> Option<&String> {
    TARGETS.iter().find_map(|key| layer.annotations.get(*key))
}

/// The image's layers that are no trace of reads.
fn layers(image: &ImageFacts) -> Vec<LayerFacts> {
    image.layers.iter().filter(|l| !l.annotations.contains_key(ACCELERATION)).cloned().collect()
}

/// The layers that an image was made of.
pub(super) fn originals(image: &ImageFacts) -> Option<Vec<Original>> {
    let original = |layer: &LayerFacts| {
        let told = TARGET_TYPES.iter().find_map(|key| layer.annotations.get(*key));
        let media_type = told.map_or(USUAL, |told| told).to_owned();
        Some(Original { digest: target(layer)?.parse().ok()?, media_type })
    };
    let all: Vec<_> = layers(image).iter().map(original).collect::<Option<_>>()?;
    (!all.is_empty()).then_some(all)
}

/// Is such a layer's blob, read as the archive that its media type says, no part of the image?
fn is_device(layer: &LayerFacts) -> bool {
    layer.annotations.contains_key(BLOB_DIGEST) || target(layer).is_some()
}

/// The reader of an image, if it is one.
pub(super) fn reader(image: &ImageFacts) -> Option<Box<dyn Reader>> {
    let layers = layers(image);
    let trace = image.layers.iter().find(|l| l.annotations.contains_key(ACCELERATION));
    let trace =
        trace.filter(|layer| (1..=MAX_TRACE).contains(&layer.size)).map(|layer| (layer.digest, layer.size));
    let first = layers.first().filter(|layer| is_device(layer))?;
    let version = first.annotations.get(VERSION).map_or("", |v| v);
    let file_system = first.annotations.get(FS_TYPE).map_or("ext4", |fs| fs);
    let kind = if layers.iter().any(|l| target(l).is_some()) { "TurboOCI" } else { "overlaybd" };
    let format = format!("{kind} {version} ({file_system})");
    let unpinned = image.unpinned;
    Some(match kind {
        "TurboOCI" => Box::new(Turbo { layers, format, unpinned }),
        _ => Box::new(Overlaybd { layers, format, unpinned, trace, image: None, asked: Vec::new() }),
    })
}

impl From<OverlaybdError> for Refusal {
    fn from(e: OverlaybdError) -> Self {
        Self::Unusable(e.to_string())
    }
}

const UNPINNED: &str =
    "its blocks have no digests, only checksums, and what the manifest does not cover is not trusted";

struct Overlaybd {
    layers: Vec<LayerFacts>,
    format: String,
    unpinned: bool,
    /// The layer that tells what is read first, to be asked for with the first of the others.
    trace: Option<(Digest, u64)>,
    image: Option<Image>,
    asked: Vec<(usize, Range<u64>)>,
}

impl Reader for Overlaybd {
    fn covers(&self) -> Covers {
        Covers::Image
    }

    fn format(&self) -> &str {
        &self.format
    }

    fn is_certain(&self) -> bool {
        true
    }

    fn step(&mut self, mut answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        if !self.unpinned {
            return Err(Refusal::because(UNPINNED));
        }
        // It was asked for last. A hint, so that nothing comes of another's bytes.
        let told = self.trace.filter(|_| answers.len() > self.asked.len()).and_then(|(digest, _)| {
            let archive = answers.pop().flatten()?;
            (Digest::of(&archive) == digest).then(|| recorded(&archive))
        });
        let is_first = self.image.is_none();
        let image = match &mut self.image {
            Some(image) => image,
            none => {
                if let Some(layer) = self.layers.iter().find(|l| !is_device(l)) {
                    return Err(Refusal::because(format!("layer {} is no block device", layer.digest)));
                }
                none.insert(Image::new(self.layers.iter().map(|l| (l.digest, l.size)).collect())?)
            }
        };
        told.into_iter().for_each(|told| image.read_first(told));
        for ((layer, range), answer) in self.asked.drain(..).zip(answers) {
            let bytes = answer.filter(|bytes| bytes.len() as u64 == range.end - range.start);
            let bytes =
                bytes.ok_or_else(|| Refusal::because(format!("layer {layer} cannot be read in ranges")))?;
            image.put(layer, range.start, bytes);
        }
        match image.step()? {
            overlaybd::Step::Done(described) => of_image(self.format.clone(), false, *described),
            overlaybd::Step::Fetch(ranges) => {
                let want = |(layer, range): &(usize, Range<u64>)| Want::Range {
                    blob: self.layers[*layer].digest,
                    range: range.clone(),
                };
                let mut wants: Vec<_> = ranges.iter().map(want).collect();
                if let Some((blob, size)) = self.trace.filter(|_| is_first) {
                    wants.push(Want::Range { blob, range: 0..size });
                }
                self.asked = ranges;
                Ok(Step::Fetch(wants))
            }
        }
    }
}

struct Turbo {
    layers: Vec<LayerFacts>,
    format: String,
    unpinned: bool,
}

impl Reader for Turbo {
    fn covers(&self) -> Covers {
        Covers::Image
    }

    fn format(&self) -> &str {
        &self.format
    }

    fn is_certain(&self) -> bool {
        true
    }

    fn step(&mut self, answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        if !self.unpinned {
            return Err(Refusal::because(UNPINNED));
        }
        let mut targets = Vec::new();
        for layer in &self.layers {
            let original = target(layer).and_then(|digest| digest.parse::<Digest>().ok());
            targets.push(
                original
                    .ok_or_else(|| Refusal::because(format!("layer {} names no original", layer.digest)))?,
            );
        }
        if answers.is_empty() {
            let meta = |layer: &LayerFacts| Want::Blob { blob: layer.digest, size: layer.size };
            let wants = self.layers.iter().map(meta).chain(targets.into_iter().map(Want::Size));
            return Ok(Step::Fetch(wants.collect()));
        }
        let mut answers = answers.into_iter();
        let metas: Vec<_> = answers.by_ref().take(self.layers.len()).collect();
        let mut layers = Vec::new();
        for (((layer, meta), target), size) in self.layers.iter().zip(metas).zip(targets).zip(answers) {
            let meta = meta.ok_or_else(|| Refusal::because(format!("there is no layer {}", layer.digest)))?;
            let size = size.and_then(|size| Some(u64::from_le_bytes(size.try_into().ok()?)));
            let size =
                size.ok_or_else(|| Refusal::because(format!("there is no original layer {target}")))?;
            layers.push(TurboLayer { meta, target, size });
        }
        of_image(self.format.clone(), false, overlaybd::describe_turbo(&layers)?)
    }
}
