//! The documents beside an image: the list of its indexes, an index, and what of a layer is fetched first.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use serde::Deserialize;

use super::super::Refusal;
use crate::chunk::Blob;
use crate::digest::Digest;

/// What a layer of an index is.
const ZTOC: &str = "application/octet-stream";
const PREFETCH: &str = "application/vnd.amazon.soci.prefetch.v1+json";
/// On a layer of an index: of which of the image's layers it is. (What else stands there, spans' size and that there are
/// no extended attributes, its zTOC says too.)
const LAYER: &str = "com.amazon.soci.image-layer-digest";

/// The versions of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// Refers to the image.
    V1,
    /// The image's manifest names it.
    V2,
}

impl Version {
    pub(super) const ALL: [Self; 2] = [Self::V1, Self::V2];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V1 => "SOCI index v1",
            Self::V2 => "SOCI index v2",
        }
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::V1 => "application/vnd.amazon.soci.index.v1+json",
            Self::V2 => "application/vnd.amazon.soci.index.v2+json",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
    subject: Option<Descriptor>,
}

fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|e| Refusal::because(format!("{what} cannot be read: {e}")))
}

/// The first manifest of a list.
pub(super) fn first_of(list: &[u8]) -> Result<Option<Digest>, Refusal> {
    #[derive(Deserialize)]
    struct List {
        manifests: Vec<Descriptor>,
    }
    let list: List = parse("the list of its SOCI indexes", list)?;
    Ok(list.manifests.first().map(|first| first.digest))
}

/// What an index has of one layer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Beside {
    pub ztoc: Option<Blob>,
    pub prefetch: Option<Blob>,
}

/// An index.
pub(super) struct Index(HashMap<Digest, Beside>);

impl Index {
    /// `image`: digest of the manifest that it must be about, where it says of which it is.
    pub(super) fn read(bytes: &[u8], version: Version, image: &Digest) -> Result<Self, Refusal> {
        let manifest: Manifest = parse("its SOCI index", bytes)?;
        if manifest.config.media_type != version.media_type() {
            let kind: String = manifest.config.media_type.chars().take(100).collect();
            return Err(Refusal::because(format!(
                "what should be its {} is of type {kind:?}",
                version.name()
            )));
        }
        let subject = manifest.subject.map(|subject| subject.digest);
        if subject.is_some_and(|subject| subject != *image) || version == Version::V1 && subject.is_none() {
            return Err(Refusal::because("its SOCI index is about another image"));
        }
        let mut all: HashMap<Digest, Beside> = HashMap::new();
        for part in manifest.layers {
            let Some(layer) = part.annotations.get(LAYER).and_then(|layer| layer.parse().ok()) else {
                continue;
            };
            let beside = all.entry(layer).or_default();
            let place = match &*part.media_type {
                ZTOC => &mut beside.ztoc,
                PREFETCH => &mut beside.prefetch,
                _ => continue,
            };
            // The first counts.
            place.get_or_insert(Blob { digest: part.digest, size: part.size });
        }
        Ok(Self(all))
    }

    pub(super) fn beside(&self, layer: &Digest) -> Beside {
        self.0.get(layer).copied().unwrap_or_default()
    }
}

/// Ranges of spans that are fetched first (soci-snapshotter `docs/prefetch.md`; their priorities are for later, there too).
/// It is a hint: one that cannot be read is none.
pub(super) fn prefetch(bytes: &[u8]) -> Vec<RangeInclusive<u64>> {
    #[derive(Deserialize)]
    struct Spans {
        start_span: u64,
        end_span: u64,
    }
    #[derive(Deserialize)]
    struct List {
        version: String,
        prefetch_spans: Vec<Spans>,
    }
    let list: Option<List> = serde_json::from_slice(bytes).ok();
    let spans = list.filter(|list| list.version == "1.0").map(|list| list.prefetch_spans);
    spans.into_iter().flatten().map(|spans| spans.start_span..=spans.end_span).collect()
}
