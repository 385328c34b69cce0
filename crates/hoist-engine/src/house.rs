//! Looking at the store and cleaning it: images, inspect, remove, prune.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use hoist_format::digest::Digest;
use hoist_format::span::Codec;
use serde::Serialize;

use crate::config::Trust;
use crate::convert::{Noted, Notes};
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::Here;
use crate::image::Image;
use crate::oci::{self, Manifest, codec_of};
use crate::reference::Source;
use crate::store::{LayerDir, RefRecord};

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
            let manifest: Manifest = oci::parse("manifest", &known.manifest, &manifest)?;
            records.push(ImageRecord {
                name: known.name,
                digest: known.manifest,
                layer_bytes: manifest.layers.iter().map(|l| l.size).sum(),
                complete: self.is_all_here(&known.manifest),
                pinned: known.pinned,
            });
        }
        Ok(records)
    }

    /// Is every layer here, verified?
    pub fn is_all_here(&self, manifest: &Digest) -> bool {
        self.has_own_layout(manifest) || self.complete_conversion(manifest).is_some()
    }

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

    /// The layers that an image has in the store: its manifest's, and those that are shown instead.
    pub(crate) fn blobs_of(&self, digest: &Digest, manifest: &Manifest) -> Vec<String> {
        let instead = self.noted_conversion(digest).map(|index| index.instead()).unwrap_or_default();
        let own = manifest.layers.iter().map(|layer| layer.digest);
        own.chain(instead).map(|blob| blob.hex()).collect()
    }

    /// Forgets a name, in any of its spellings, or all names of the image that a digest or its beginning
    /// means; `prune` frees what no name needs any more. Gives the names.
    ///
    /// # Errors
    /// There is no such image, or the digest's beginning is that of several.
    pub fn remove(&self, name: &str) -> Result<Vec<String>, Error> {
        let names = match self.store.lookup(name) {
            Some(record) => vec![record.name],
            None => meant_by(name, self.store.refs()?)?,
        };
        let mut forgotten = Vec::new();
        for name in names {
            let path = self.store.ref_path(&name);
            match std::fs::remove_file(&path) {
                Ok(()) => forgotten.push(name),
                // Another process was faster.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("remove", &path)(e)),
            }
        }
        if forgotten.is_empty() { Err(unknown(name)) } else { Ok(forgotten) }
    }

    /// The name of an image here that a digest or its beginning means, as `hoist images` prints it; any other text as
    /// it is. Bare digits may be somebody's name: then that is what they are.
    ///
    /// # Errors
    /// There is no such image, or it is the beginning of several.
    pub(crate) fn spelled_out(&self, name: &str) -> Result<String, Error> {
        let is_digest = name.starts_with("sha256:");
        let may_be = name.len() >= SHOWN && name.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_digest && !may_be || self.store.lookup(name).is_some() {
            return Ok(name.to_owned());
        }
        match meant_by(name, self.store.refs()?) {
            Ok(mut names) => Ok(names.swap_remove(0)),
            Err(_) if !is_digest => Ok(name.to_owned()),
            Err(e) => Err(e),
        }
    }

    /// Frees images and layers that no name and no mount needs, and what a pull has replaced.
    pub fn prune(&self) -> Result<Pruned, Error> {
        let named: BTreeSet<Digest> = self.store.refs()?.iter().map(|r| r.manifest).collect();
        let mut kept = BTreeSet::new();
        let mut layouts = Layouts::default();
        let mut pruned = Pruned::default();
        let clearing = self.store.clearing()?;
        for digest in self.store.image_digests()? {
            let dir = self.store.image(&digest);
            if named.contains(&digest) || clearing.uses_image(&digest) {
                if let Some((manifest, _)) = dir.load(&digest) {
                    let manifest: Manifest = oci::parse("manifest", &digest, &manifest)?;
                    kept.extend(self.blobs_of(&digest, &manifest));
                    self.note_layouts(&digest, &manifest, &mut layouts);
                }
                continue;
            }
            pruned.images += usize::from(clearing.take_away(dir.path())?);
        }
        for name in self.store.layer_names()? {
            let folder = self.store.root().join("layers").join(&name);
            let Some(dir) = LayerDir::at(&folder) else { continue };
            // In the layout of an index, when it also stands here whole in our own, or in that of a complete conversion.
            let replaced = dir.is_published()
                && (self.store.layer(dir.blob(), None).is_whole() || layouts.are_past(&dir));
            if (replaced || !kept.contains(&dir.blob().hex())) && !clearing.uses_layer(&folder) {
                pruned.layers += usize::from(clearing.take_away(&folder)?);
            }
        }
        pruned.bytes = clearing.delete()?;
        Ok(pruned)
    }

    /// Notes in which layouts of an index the next mount of an image takes its layers.
    fn note_layouts(&self, digest: &Digest, manifest: &Manifest, layouts: &mut Layouts) {
        let complete = self.complete_conversion(digest);
        if complete.is_some() {
            layouts.settled.extend(manifest.layers.iter().map(|layer| layer.digest));
        }
        let others = || self.noted_index(digest).into_iter().chain(self.noted_conversion(digest));
        let wanted: Vec<_> = complete.map_or_else(|| others().collect(), |complete| vec![complete]);
        let folders = wanted.iter().flat_map(|index| index.layers.keys().map(|blob| (blob, index.digest)));
        layouts
            .wanted
            .extend(folders.map(|(blob, index)| self.store.layer(blob, Some(&index)).path().to_owned()));
    }
}

/// In which layouts of an index layers are wanted.
#[derive(Default)]
struct Layouts {
    /// Layers of images of which a conversion is here, whole and verified.
    settled: BTreeSet<Digest>,
    /// Their folders, and those of other images.
    wanted: BTreeSet<PathBuf>,
}

impl Layouts {
    /// Does nobody want this folder any more?
    fn are_past(&self, dir: &LayerDir) -> bool {
        self.settled.contains(dir.blob()) && !self.wanted.contains(dir.path())
    }
}

/// Digits of a digest that name an image.
const SHORTEST: usize = 6;
/// Digits of it that are shown.
const SHOWN: usize = 12;

fn unknown(text: &str) -> Error {
    let text = crate::reference::told(text);
    Error::NotFound(format!("no image or container {text:?} here; `hoist images` and `hoist ps` list them"))
}

/// The names of the one image that `text` means, though it is none of them.
fn meant_by(text: &str, refs: Vec<RefRecord>) -> Result<Vec<String>, Error> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_digest = digits.len() >= SHORTEST && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let source: Option<Source> = text.parse().ok();
    let is_meant = |record: &RefRecord| {
        let by_digest = is_digest && record.manifest.hex().starts_with(digits);
        by_digest || source.as_ref().is_some_and(|source| is_same(source, record))
    };
    let meant: Vec<RefRecord> = refs.into_iter().filter(is_meant).collect();
    let images: BTreeSet<Digest> = meant.iter().map(|record| record.manifest).collect();
    if meant.is_empty() {
        return Err(unknown(text));
    }
    if images.len() > 1 {
        let images: Vec<_> = images.iter().map(Digest::to_string).collect();
        let several = images.join(", ");
        return Err(Error::NotFound(format!("{text:?} is the beginning of several images: {several}")));
    }
    Ok(meant.into_iter().map(|record| record.name).collect())
}

/// Another spelling of the record's name, or its repository with its digest.
fn is_same(source: &Source, record: &RefRecord) -> bool {
    let Ok(known) = record.name.parse::<Source>() else { return false };
    match (source, &known) {
        (Source::Registry(asked), Source::Registry(known)) => {
            asked == known || asked.repo == known.repo && asked.digest == Some(record.manifest)
        }
        _ => *source == known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_second_to_remove_a_name_hears_that_it_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(crate::Config::new(dir.path())).unwrap();
        let record = RefRecord { name: "a".into(), manifest: Digest::of(b"a"), pinned: false };
        engine.store.remember(&record).unwrap();
        // As it is between looking and removing, if another was faster.
        std::fs::rename(engine.store.ref_path("a"), engine.store.ref_path("b")).unwrap();
        let said = engine.remove("b").unwrap_err();
        assert!(matches!(said, Error::NotFound(_)) && said.to_string().contains("no image"), "{said}");
    }

    #[test]
    fn images_are_meant_by_digests_and_other_spellings() {
        let digests = [Digest::of(b"a"), Digest::of(b"b")];
        let named =
            |name: &str, at: usize| RefRecord { name: name.into(), manifest: digests[at], pinned: false };
        let refs = || vec![named("debian", 0), named("q.io/x:1", 1), named("q.io/x:2", 1)];
        let hex = digests[1].hex();
        for (text, names) in [
            ("docker.io/library/debian:latest", vec!["debian"]),
            (&hex[..6], vec!["q.io/x:1", "q.io/x:2"]),
            (&format!("sha256:{hex}"), vec!["q.io/x:1", "q.io/x:2"]),
            (&format!("q.io/x@sha256:{hex}"), vec!["q.io/x:1", "q.io/x:2"]),
        ] {
            assert_eq!(meant_by(text, refs()).unwrap(), names, "{text}");
        }
        let elsewhere = format!("q.io/y@sha256:{hex}");
        for text in [&hex[..5], &elsewhere, "debian:12", "q.io/x", "", "oci:"] {
            let said = meant_by(text, refs()).unwrap_err().to_string();
            assert!(said.contains("hoist ps"), "{text}: {said}");
        }
        let alike = vec![named("a", 0), RefRecord { name: "c".into(), manifest: digests[0], pinned: false }];
        assert_eq!(meant_by(&digests[0].hex(), alike).unwrap().len(), 2);
    }
}
