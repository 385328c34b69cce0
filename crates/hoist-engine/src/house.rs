//! Looking at the store and cleaning it: images, inspect, remove, prune.

use std::collections::BTreeSet;

use hoist_format::digest::Digest;
use hoist_format::span::Codec;
use serde::Serialize;

use crate::config::Trust;
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::Here;
use crate::image::Image;
use crate::oci::{Manifest, codec_of};
use crate::store::LayerDir;

/// An image that is here, wholly or in part.
#[derive(Debug, Clone, Serialize)]
pub struct ImageRecord {
    /// The name that was resolved to it.
    pub name: String,
    /// Its manifest.
    pub digest: Digest,
    /// Bytes of its layers as stored in the registry.
    pub layer_bytes: u64,
    /// Every layer is here, verified.
    pub complete: bool,
    /// Its data stays, whatever the store's limit.
    pub pinned: bool,
}

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
    /// tar, tar+gzip or tar+zstd.
    pub format: &'static str,
    /// Bytes as stored in the registry.
    pub size: u64,
    /// Bytes of file contents that are here, of how many; None without an index.
    pub present: Option<(u64, u64)>,
    /// Blob digest and diffID were checked here.
    pub verified: bool,
    /// Anything that a user should know.
    pub note: Option<String>,
}

/// What pruning freed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Pruned {
    /// Images without a name.
    pub images: usize,
    /// Layers without an image.
    pub layers: usize,
    /// Bytes freed on disk.
    pub bytes: u64,
}

impl Engine {
    /// Every image that a name stands for.
    pub fn images(&self) -> Result<Vec<ImageRecord>, Error> {
        let mut records = Vec::new();
        for known in self.store.refs()? {
            let Some((manifest, _)) = self.store.image(&known.manifest).load(&known.manifest) else {
                continue;
            };
            let manifest: Manifest = crate::image::parse("manifest", &known.manifest, &manifest)?;
            records.push(ImageRecord {
                name: known.name,
                digest: known.manifest,
                layer_bytes: manifest.layers.iter().map(|l| l.size).sum(),
                complete: self.has_own_layout(&known.manifest),
                pinned: known.pinned,
            });
        }
        Ok(records)
    }

    /// What a mount of the image would do, and what is here of it.
    pub fn inspect(&self, image: &Image) -> Result<Inspection, Error> {
        let own = self.has_own_layout(&image.digest);
        let index = image.index.as_ref();
        let (lazy, why) = match (own, self.config.trust, index) {
            (true, _, _) => (false, "every layer is here, verified: nothing is left to fetch".to_owned()),
            (_, Trust::Registry, Some(_)) => {
                (true, "a published index is trusted (--trust-index=registry)".into())
            }
            (_, Trust::Registry, None) => {
                (false, "no index is published beside it: make one with `hoist index --push`".into())
            }
            (_, Trust::Local | Trust::None, _) => (
                false,
                "--trust-index allows no published index: everything is fetched and verified first".into(),
            ),
        };
        let mut layers = Vec::new();
        for layer in &image.manifest.layers {
            let own = self.store.layer(&layer.digest, None);
            let dir = match index {
                Some(index) if !own.state().complete => self.store.layer(&layer.digest, Some(&index.digest)),
                _ => own,
            };
            let state = dir.state();
            let table = dir.table()?;
            let codec = codec_of(&layer.media_type);
            let whole_first = table
                .as_ref()
                .and_then(|t| t.spans.linear())
                .is_some_and(|s| s.codec == Codec::Zstd && s.spans.len() == 1);
            let note = match (&state.lied, codec, whole_first) {
                (Some(lied), _, _) => Some(format!("out of service: {lied}")),
                (_, None, _) => Some("no tar layer that hoist reads".into()),
                (_, _, true) => Some("a single zstd frame: fetched whole at its first read".into()),
                _ => None,
            };
            let present = table.map(|t| {
                // A table has fewer extents than 2^32.
                let here = Here::of(&dir, &state, t.extents.extents.len() as u32);
                let all = t.extents.extents.iter();
                let sum =
                    all.clone().enumerate().filter(|(i, _)| here.has(*i as u32)).map(|(_, e)| e.len).sum();
                (sum, all.map(|e| e.len).sum())
            });
            layers.push(LayerInspection {
                digest: layer.digest,
                media_type: layer.media_type.clone(),
                format: match codec {
                    Some(Codec::Plain) => "tar",
                    Some(Codec::Gzip) => "tar+gzip",
                    Some(Codec::Zstd) => "tar+zstd",
                    None => "unknown",
                },
                size: layer.size,
                present,
                verified: state.verified,
                note,
            });
        }
        let index = index.map(|i| i.digest);
        Ok(Inspection { image: image.name.clone(), digest: image.digest, index, lazy, why, layers })
    }

    /// Forgets a name; `prune` frees what no name needs any more.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        if self.store.lookup(name).is_none() {
            return Err(Error::NotFound(format!(
                "no image or container {name:?} here; `hoist images` lists them"
            )));
        }
        let path = self.store.ref_path(name);
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))
    }

    /// Frees images and layers that no name and no mount needs, and what a pull has replaced.
    pub fn prune(&self) -> Result<Pruned, Error> {
        let named: BTreeSet<Digest> = self.store.refs()?.iter().map(|r| r.manifest).collect();
        let mut kept = BTreeSet::new();
        let mut pruned = Pruned::default();
        let clearing = self.store.clearing()?;
        for digest in self.store.image_digests()? {
            let dir = self.store.image(&digest);
            if named.contains(&digest) || clearing.uses_image(&digest) {
                if let Some((manifest, _)) = dir.load(&digest) {
                    let manifest: Manifest = crate::image::parse("manifest", &digest, &manifest)?;
                    kept.extend(manifest.layers.iter().map(|l| l.digest.hex()));
                }
                continue;
            }
            pruned.images += 1;
            clearing.take_away(dir.path())?;
        }
        for name in self.store.layer_names()? {
            let folder = self.store.root().join("layers").join(&name);
            let Some(dir) = LayerDir::at(&folder) else { continue };
            // In the layout of an index, when it also stands here whole in our own.
            let replaced = name.contains('.') && self.store.layer(dir.blob(), None).state().complete;
            if (replaced || !kept.contains(&dir.blob().hex())) && !clearing.uses_layer(&folder) {
                pruned.layers += 1;
                clearing.take_away(&folder)?;
            }
        }
        pruned.bytes = clearing.delete()?;
        Ok(pruned)
    }
}
