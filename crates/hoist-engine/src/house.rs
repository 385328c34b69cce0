//! Looking at the store and cleaning it: images, inspect, remove, prune.

mod inspect;

use std::collections::BTreeSet;
use std::path::PathBuf;

use hoist_format::digest::Digest;
use serde::Serialize;

pub use inspect::{Inspection, LayerInspection};

use crate::engine::Engine;
use crate::error::Error;
use crate::oci::{self, Manifest};
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
                complete: self.is_complete(&known.manifest),
                pinned: known.pinned,
            });
        }
        Ok(records)
    }

    /// Is every layer here, verified?
    pub fn is_complete(&self, manifest: &Digest) -> bool {
        self.is_all_here(manifest) || self.is_complete_by_index(manifest)
    }

    /// The same, as a published index lays it out.
    fn is_complete_by_index(&self, manifest: &Digest) -> bool {
        let dir = self.store.image(manifest);
        let trusted =
            self.noted_index(manifest).filter(|index| self.store.distrusted(&index.digest).is_none());
        let (Some(index), Some((bytes, _))) = (trusted, dir.load(manifest)) else { return false };
        let Ok(parsed) = serde_json::from_slice::<Manifest>(&bytes) else { return false };
        let is_verified = |blob: &Digest| {
            let laid_out = self.store.layer(blob, Some(&index.digest));
            laid_out.state().verified && laid_out.is_whole() || self.store.layer(blob, None).is_whole()
        };
        parsed.layers.iter().all(|layer| is_verified(&layer.digest))
            && dir.sound_tree(Some(&index.digest)).is_some()
    }

    /// Is every layer here, verified, so that no index is needed?
    pub fn is_all_here(&self, manifest: &Digest) -> bool {
        self.has_own_layout(manifest) || self.complete_conversion(manifest).is_some()
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
        let mut kept = BTreeSet::new();
        let mut layouts = Layouts::default();
        let mut pruned = Pruned::default();
        let clearing = self.store.clearing()?;
        // From now on nobody gives a name to what is here.
        let named: BTreeSet<Digest> = self.store.refs()?.iter().map(|r| r.manifest).collect();
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
