//! What is known of an image: whether a mount would be lazy, what vouches for its contents, what is here of it.

use std::collections::BTreeMap;

use hoist_format::digest::Digest;
use hoist_format::span::Codec;
use serde::Serialize;

use crate::config::Trust;
use crate::convert::{Noted, Notes};
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::Here;
use crate::image::Image;
use crate::oci::codec_of;

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
    /// Why, or why not.
    pub why: String,
    /// What tells that its contents are right, when they are read now.
    pub vouched: String,
    /// Bytes of file contents that are here, of how many, of an image whose layers say nothing each by itself. Of others
    /// the layers tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub present: Option<(u64, u64)>,
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
    /// Blob digest and diffID were checked here.
    pub verified: bool,
    /// Anything that a user should know.
    pub note: Option<String>,
}
impl Engine {
    /// Whether a mount of the image would be lazy, and why, or why not.
    pub(crate) fn would_be_lazy(&self, image: &Image) -> (bool, String) {
        match (self.is_all_here(&image.digest), self.config.trust, image.index.as_ref()) {
            (true, _, _) => (false, "every layer is here, verified: nothing is left to fetch".to_owned()),
            (_, Trust::Registry, Some(_)) => {
                (true, "a published index is trusted (--trust-index=registry)".into())
            }
            (_, Trust::Registry, None) => {
                let none = "no index is published beside it: make one with `hoist index --push`";
                (false, image.no_index.clone().unwrap_or_else(|| none.into()))
            }
            (_, Trust::Local | Trust::None, _) => (
                false,
                "--trust-index allows no published index: everything is fetched and verified first".into(),
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
        let noted = self.noted(image, !own && image.index.is_none()).await;
        let (engine, image) = (self.clone(), image.clone());
        let look = tokio::task::spawn_blocking(move || engine.look(&image, &noted));
        look.await.map_err(|e| Error::Internal(e.to_string()))?
    }

    /// The same, of what is here alone: nobody is asked.
    ///
    /// # Errors
    /// When what is here of it is damaged.
    pub fn inspect_here(&self, image: &Image) -> Result<Inspection, Error> {
        let kept = self.kept_conversion(&image.digest, &image.manifest.layers);
        self.look(image, &kept.as_ref().map(Noted::of).unwrap_or_default())
    }

    fn look(&self, image: &Image, noted: &Noted) -> Result<Inspection, Error> {
        let Noted { notes, as_it_is, .. } = noted;
        let index = image.index.as_ref();
        let all_here = self.is_all_here(&image.digest);
        let converted =
            self.kept_conversion(&image.digest, &image.manifest.layers).filter(|_| index.is_none());
        let (of_layers, of_originals) = (image.is_of_layers(), image.originals().is_some());
        let is_refused = !notes.0.is_empty() && notes.0.values().all(|note| note.refused.is_some());
        let is_indexed = |layer: &Digest| index.is_some_and(|index| index.layers.contains_key(layer));
        let whole_blobs = self.config.trust != Trust::Registry && image.is_unvouched();
        let (lazy, mut why) = match index.is_none() && !all_here {
            true if *as_it_is => (true, self.lazy_as_it_is(image, notes)),
            true if of_originals && is_refused => (
                false,
                "its own metadata is not used: its original layers are fetched whole, and verified first"
                    .into(),
            ),
            true if whole_blobs => (
                false,
                "nothing but the digests of its whole blobs vouches for what is in it, and --trust-index trusts nothing less: all of it is fetched and verified first".into(),
            ),
            true if !of_layers && is_refused => {
                (false, "its own metadata is not used, and nothing else tells what is in it".into())
            }
            _ => self.would_be_lazy(image),
        };
        // The folder of one layer speaks for all, or others do in their place.
        let one_for_all = all_here && converted.is_some() && !of_layers;
        let one_volume = !of_layers && index.or(converted.as_ref()).is_some_and(|index| index.of_image);
        let (mut whole_first_reads, mut whole_present, mut vouching) = (0, None, BTreeMap::<_, usize>::new());
        let mut layers = Vec::new();
        for layer in &image.manifest.layers {
            let own = self.store.layer(&layer.digest, None);
            let dir = match index.or(converted.as_ref()) {
                Some(index) if !own.state().complete && index.layers.contains_key(&layer.digest) => {
                    self.store.layer(&layer.digest, Some(&index.digest))
                }
                _ => own.clone(),
            };
            let state = dir.state();
            // Where the next mount goes by another layout, it takes over what stands here in our own.
            let (dir, table) = match dir.table()? {
                None => (own.clone(), own.table()?),
                table => (dir, table),
            };
            let codec = codec_of(&layer.media_type);
            let whole_first = table
                .as_ref()
                .and_then(|t| t.spans.linear())
                .is_some_and(|s| s.codec == Codec::Zstd && s.spans.len() == 1);
            let note = notes.0.get(&layer.digest);
            // How it would be read without the index says nothing of how it is with it.
            let refused = note.and_then(|note| note.refused.as_ref()).filter(|_| !is_indexed(&layer.digest));
            let known = note.map(|note| note.format.clone());
            let by_its_own = *as_it_is && note.is_some() && refused.is_none();
            let note = match (&state.lied, codec, whole_first) {
                (Some(lied), _, _) => Some(format!("out of service: {lied}")),
                _ if refused.is_some() => refused.map(|why| match of_layers {
                    true => format!("fetched whole first: {why}"),
                    false if of_originals => format!("its original layers are fetched whole instead: {why}"),
                    // There is no other way to read it.
                    false => why.clone(),
                }),
                (_, None, _) if note.is_none() => Some("no layer that hoist reads".into()),
                (_, _, true) => Some("a single zstd frame: fetched whole at its first read".into()),
                _ => None,
            };
            let present = table.map(|t| {
                // A table has fewer extents than 2^32.
                let here = Here::of(&dir, &dir.state(), t.extents.extents.len() as u32);
                let all = t.extents.extents.iter();
                let sum =
                    all.clone().enumerate().filter(|(i, _)| here.has(*i as u32)).map(|(_, e)| e.len).sum();
                (sum, all.map(|e| e.len).sum())
            });
            whole_first_reads += usize::from(whole_first && !all_here && lazy);
            let verified = state.verified || one_for_all;
            let vouched = if all_here || verified {
                "the image's own digests: all of it was held against them"
            } else if is_indexed(&layer.digest) || index.is_some() && one_volume {
                "the published index's digests of its parts, and the image's once all of it is here"
            } else if refused.is_some() && !of_layers && !of_originals {
                "nothing that can be read"
            } else if !by_its_own {
                "the image's own digests: it is verified whole before it is read"
            } else if image.is_unvouched() && of_originals {
                "nothing when it is first fetched, until a pull has held all of it against the image's own digests"
            } else if image.is_unvouched() {
                "checksums alone, until a pull has held all of it against the image's own digests"
            } else if noted.pinned {
                "digests of its parts in metadata that the image's own digests cover"
            } else {
                "digests of its parts in metadata that the image's own digests do not cover (--trust-index=registry)"
            };
            *vouching.entry(vouched).or_insert(0) += 1;
            if one_volume {
                whole_present = whole_present.or(present);
            }
            layers.push(LayerInspection {
                digest: layer.digest,
                media_type: layer.media_type.clone(),
                format: known.unwrap_or_else(|| {
                    let name = match codec {
                        Some(Codec::Plain) => "tar",
                        Some(Codec::Gzip) => "tar+gzip",
                        Some(Codec::Zstd) => "tar+zstd",
                        None => "unknown",
                    };
                    name.to_owned()
                }),
                size: layer.size,
                present: (!one_volume).then_some(present),
                verified,
                note,
            });
        }
        if whole_first_reads > 0 {
            let of = format!("{whole_first_reads} of {} layers", layers.len());
            why = format!(
                "{why}; {of} can be read from no place but the start, and come whole at their first read"
            );
        }
        let index = index.map(|i| i.digest);
        let one = vouching.len() == 1;
        let told = vouching.into_iter().map(|(what, of)| match one {
            true => what.to_owned(),
            false => format!("of {of} layers {what}"),
        });
        let vouched = told.collect::<Vec<_>>().join("; ");
        let (image, digest) = (image.name.clone(), image.digest);
        Ok(Inspection { image, digest, index, lazy, why, vouched, present: whole_present, layers })
    }
}
