//! From a name to an image: manifest, config, layers, and the published index if there is one.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use hoist_format::digest::Digest;
use hoist_format::formats;
use hoist_format::span::Codec;

use crate::config::Trust;
use crate::engine::Engine;
use crate::error::Error;
use crate::ingest::{Expected, Stream};
use crate::oci::{self, ImageConfig, Manifest, media};
use crate::publish::{self, PublishedIndex};
use crate::reference::Source;
use crate::registry::{Fetched, ImageSource, RegistryError};
use crate::store::{MountRecord, RefRecord};

/// An image whose manifest and config are known and verified.
#[derive(Clone)]
pub struct Image {
    /// The name as given.
    pub name: String,
    /// Digest of the image manifest (of one platform).
    pub digest: Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// Its exact bytes.
    pub manifest_bytes: Bytes,
    /// How to run it, and its diffIDs.
    pub config: ImageConfig,
    /// The index published beside it.
    pub index: Option<PublishedIndex>,
    /// Why none is used, where there is more to say than that there is none.
    pub no_index: Option<String>,
    /// Why the registry could not say whether the name still means this image; None where it did, or need
    /// not be asked.
    pub unchecked: Option<String>,
    /// Where its blobs come from.
    pub(crate) source: ImageSource,
}

/// How often an image is looked for that others have just taken away.
const TRIES_IF_TAKEN: usize = 3;

/// How long a registry may take to say what a name means that had a meaning here before.
const TAG_CHECK: Duration = Duration::from_secs(5);
/// The same where nothing is left to fetch: whoever starts what is here does so in any case, and is told.
const TAG_CHECK_IF_HERE: Duration = Duration::from_secs(3);

/// What is here of an image whose name is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Here {
    Nothing,
    Part,
    All,
}

/// Why the registry said nothing.
#[derive(Debug, thiserror::Error)]
enum Unasked {
    #[error(transparent)]
    Failed(RegistryError),
    #[error("it did not answer within {0:?}")]
    Late(Duration),
}

impl Engine {
    /// Finds out what `name` is, which may be the digest of an image here, or its beginning. Without a registry, what
    /// the store remembers of it.
    ///
    /// # Errors
    /// When the name is wrong, unknown, or the image's documents do not match their digests.
    pub async fn resolve(&self, name: &str) -> Result<Image, Error> {
        self.find_and_name(name, false).await
    }

    /// The same of a name whose digest is said to be that of one platform's manifest, for who is about to mount it: what is
    /// found by that digest is asked for beside the manifest, and the published tree beside the config.
    ///
    /// # Errors
    /// As there.
    pub async fn resolve_to_mount(&self, name: &str) -> Result<Image, Error> {
        self.find_and_name(name, true).await
    }

    async fn find_and_name(&self, name: &str, to_mount: bool) -> Result<Image, Error> {
        for _ in 0..TRIES_IF_TAKEN {
            // Boxed: who waits for this waits for it through many layers.
            let image = Box::pin(self.find(name, to_mount)).await?;
            if self.remember(&image)? {
                return Ok(image);
            }
        }
        let why = "others take it out of the store again and again: try again when they are done";
        Err(Error::Mount { image: name.to_owned(), why: why.into() })
    }

    /// Gives its name to an image; false if it was taken away meanwhile.
    fn remember(&self, image: &Image) -> Result<bool, Error> {
        // Who takes something away sees the name, or has done so before.
        let _choosing = self.store.choosing()?;
        if !self.store.image(&image.digest).has_manifest() {
            return Ok(false);
        }
        let known = self.store.lookup(&image.name);
        if known.as_ref().is_none_or(|record| record.manifest != image.digest) {
            let pinned = known.is_some_and(|record| record.pinned);
            self.store.remember(&RefRecord { name: image.name.clone(), manifest: image.digest, pinned })?;
        }
        Ok(true)
    }

    /// The same, but that the store does not list the name for it.
    ///
    /// # Errors
    /// As there.
    pub async fn look_up(&self, name: &str) -> Result<Image, Error> {
        self.find(name, false).await
    }

    async fn find(&self, name: &str, to_mount: bool) -> Result<Image, Error> {
        let name = &*self.spelled_out(name)?;
        let source: Source = name.parse()?;
        let by_digest = match &source {
            Source::Registry(r) => r.digest,
            Source::Layout { .. } => None,
        };
        let source = ImageSource::open(&self.client, &source).await?;
        // A digest never changes its meaning: no need to ask anyone again.
        if let Some(known) = by_digest.or_else(|| self.store.lookup(name).map(|r| r.manifest))
            && by_digest.is_some()
            && let Some(mut image) = self.recall(name, known, &source)?
        {
            self.check_platform(name, &image.config)?;
            // Without an index the layers must come from the registry anyway.
            (image.index, image.no_index) = self.find_index(&known, Some(&image.manifest), &source).await;
            return Ok(image);
        }
        let known = match self.store.lookup(name) {
            Some(record) => self.recall(name, record.manifest, &source).ok().flatten(),
            None => None,
        };
        // Of an image that the store knows nothing of, the digest says all that it takes to look for an index.
        let new = by_digest.filter(|digest| to_mount && !self.store.image(digest).path().exists());
        let early = async {
            match new {
                Some(digest) => Some(self.find_index(&digest, None, &source).await),
                None => None,
            }
        };
        let here = match &known {
            None => Here::Nothing,
            Some(image) if self.is_all_here(&image.digest) => Here::All,
            Some(_) => Here::Part,
        };
        let (asked, early) = tokio::join!(ask(&source, here), early);
        let top = match (asked, known) {
            (Ok(top), _) => top,
            (Err(Unasked::Failed(e)), None) => return Err(e.into()),
            (Err(Unasked::Failed(e)), _) if e.is_not_found() || e.is_unauthorized() => return Err(e.into()),
            (Err(e), Some(mut image)) => {
                self.check_platform(name, &image.config)?;
                // Whoever asked says so in its own words.
                tracing::info!(
                    image = name,
                    "the registry cannot be asked or believed, using what is here: {e}"
                );
                image.unchecked = Some(e.to_string());
                return Ok(image);
            }
            (Err(e @ Unasked::Late(_)), None) => return Err(Error::Internal(e.to_string())),
        };
        let is_of_several = matches!(top.media_type.as_str(), media::INDEX | media::DOCKER_LIST);
        let (digest, bytes) = match is_of_several {
            true => {
                let index: oci::Index = oci::parse("index", &top.digest, &top.bytes)?;
                let chosen =
                    index.select(&self.config.platform, self.config.trust != Trust::None, name)?.digest;
                match self.store.image(&chosen).load(&chosen) {
                    Some((manifest, _)) => (chosen, manifest.into()),
                    None => (chosen, source.manifest_by_digest(&chosen).await?.bytes),
                }
            }
            false => (top.digest, top.bytes),
        };
        let manifest: Manifest = oci::parse("manifest", &digest, &bytes)?;
        let known = self.store.image(&digest).load(&digest);
        // It is on disk when the tree is fetched.
        let config = async {
            let config = match known {
                Some((_, config)) if Digest::of(&config) == manifest.config.digest => Bytes::from(config),
                _ => source.blob(&manifest.config.digest, Some(manifest.config.size)).await?,
            };
            if !is_of_several {
                // Else the list that it was chosen from has said for what it is.
                let parsed = oci::parse_config(&manifest.config.digest, &config)?;
                self.check_platform(name, &parsed)?;
            }
            self.save_documents(&digest, &bytes, &config).await?;
            Ok::<_, Error>(config)
        };
        let index = async {
            let Some(found) = early.filter(|_| !is_of_several) else {
                return self.find_index(&digest, Some(&manifest), &source).await;
            };
            if let Some(index) = &found.0
                && let Err(e) = self.keep_tree(&digest, &source, index).await
            {
                // Said again by who needs it.
                tracing::debug!("fetching a tree ahead: {e}");
            }
            found
        };
        let (config, (index, no_index)) = tokio::join!(config, index);
        Ok(Image { no_index, ..build(name, digest, bytes.clone(), &config?, index, source)? })
    }

    /// Keeps manifest and config, on a thread that may wait for the disk.
    async fn save_documents(&self, digest: &Digest, manifest: &Bytes, config: &Bytes) -> Result<(), Error> {
        let (dir, manifest, config) = (self.store.image(digest), manifest.clone(), config.clone());
        let saved = tokio::task::spawn_blocking(move || dir.save(&manifest, &config)).await;
        saved.map_err(|e| Error::Internal(e.to_string()))?
    }

    /// An image of one platform alone is taken as it is, unless another was asked for: it may be for an
    /// emulator, or only to be looked at. Then that is said.
    fn check_platform(&self, name: &str, config: &ImageConfig) -> Result<(), Error> {
        let wanted = &self.config.platform;
        if wanted.takes(&config.os, &config.architecture, config.variant.as_deref()) {
            return Ok(());
        }
        let mut is = format!("{}/{}", config.os, config.architecture);
        config.variant.iter().for_each(|variant| is.push_str(&format!("/{variant}")));
        if self.config.platform_asked {
            return Err(Error::NotFound(format!(
                "{name} is for {is} alone, not for {wanted}; leave out --platform to take it as it is"
            )));
        }
        tracing::warn!(image = name, "it is for {is}, not for {wanted}");
        Ok(())
    }

    /// The index to use: the one kept here, else one that is found beside the image now; or why there is none,
    /// if more than that can be said. Without the manifest, what the store has made of the image does not count.
    async fn find_index(
        &self,
        digest: &Digest,
        manifest: Option<&Manifest>,
        source: &ImageSource,
    ) -> (Option<PublishedIndex>, Option<String>) {
        if self.config.trust != Trust::Registry || self.is_all_here(digest) {
            return (None, None);
        }
        if let Some(kept) = self.kept_index(digest) {
            return (Some(kept), None);
        }
        if manifest.is_some_and(|manifest| self.kept_conversion(digest, &manifest.layers).is_some()) {
            return (None, None);
        }
        let refused = std::sync::Mutex::new(Vec::new());
        let refuse = |index: &Digest| {
            let why = self.store.distrusted(index)?;
            refused.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{index}: {why}"));
            Some(why)
        };
        match publish::find(source, digest, refuse).await {
            Ok(Some(index)) => {
                let dir = self.store.image(digest);
                let _ = std::fs::create_dir_all(dir.path());
                let _ = crate::store::write_atomic(&dir.path().join("index.json"), &index.bytes);
                (Some(index), None)
            }
            Ok(None) => {
                let refused = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
                let why = format!("the published index is not used: {}", refused.join("; "));
                (None, (!refused.is_empty()).then_some(why))
            }
            Err(e) => {
                tracing::warn!("looking for a published index failed, going on without: {e}");
                (None, Some(format!("looking for a published index failed: {e}")))
            }
        }
    }

    /// The published index that the store remembers of an image, unless it has lied or is not needed any more.
    fn kept_index(&self, digest: &Digest) -> Option<PublishedIndex> {
        if self.complete_conversion(digest).is_some() {
            return None;
        }
        let index = self.noted_index(digest)?;
        (self.config.trust == Trust::Registry && self.store.distrusted(&index.digest).is_none())
            .then_some(index)
    }

    /// The published index that the store remembers of an image, of use or not.
    pub(crate) fn noted_index(&self, digest: &Digest) -> Option<PublishedIndex> {
        let bytes = std::fs::read(self.store.image(digest).path().join("index.json")).ok()?;
        PublishedIndex::parse(bytes.into(), digest).ok()
    }

    /// The image `digest`, which `name` once meant, as it is here; None if it is not. Nobody is asked.
    ///
    /// # Errors
    /// When the name is wrong, or what is here of it is damaged.
    pub async fn known(&self, name: &str, digest: Digest) -> Result<Option<Image>, Error> {
        let source = ImageSource::open(&self.client, &name.parse()?).await?;
        self.recall(name, digest, &source)
    }

    /// The image as the store knows it, without asking anyone.
    fn recall(&self, name: &str, digest: Digest, source: &ImageSource) -> Result<Option<Image>, Error> {
        let Some((manifest, config)) = self.store.image(&digest).load(&digest) else { return Ok(None) };
        let parsed: Manifest = oci::parse("manifest", &digest, &manifest)?;
        if Digest::of(&config) != parsed.config.digest {
            return Ok(None);
        }
        let index = self.kept_index(&digest);
        build(name, digest, manifest.into(), &config, index, source.clone()).map(Some)
    }
}

impl Engine {
    /// The image of a mount, as it was when it was mounted; nobody is asked.
    pub(crate) async fn recall_mounted(&self, record: &MountRecord) -> Result<Image, Error> {
        let source: Source = record.image.parse()?;
        let source = ImageSource::open(&self.client, &source).await?;
        let known = self.store.image(&record.manifest).load(&record.manifest);
        let (manifest, config) = known.ok_or_else(|| Error::Store {
            path: self.store.image(&record.manifest).path().to_owned(),
            why: format!("has nothing of {}, which is mounted on {}", record.image, record.target.display()),
        })?;
        // The store may have another by now, or distrust this one: that is a matter of its layers.
        let index = record.index.clone().map(|text| {
            let converted = PublishedIndex::parse_converted(text.clone().into(), &record.manifest);
            converted.or_else(|_| PublishedIndex::parse(text.into(), &record.manifest))
        });
        let index = index.transpose()?;
        build(&record.image, record.manifest, manifest.into(), &config, index, source)
    }
}

/// The name of an image that means the same in another folder.
pub(crate) fn absolute_name(name: &str) -> String {
    let path = name.strip_prefix("oci:").and_then(|path| std::path::absolute(path).ok());
    path.map_or_else(|| name.to_owned(), |path| format!("oci:{}", path.display()))
}

/// What the registry has under the name. Who has something to fall back on does not wait long.
async fn ask(source: &ImageSource, here: Here) -> Result<Fetched, Unasked> {
    let limit = match here {
        Here::Nothing => return source.manifest().await.map_err(Unasked::Failed),
        Here::Part => TAG_CHECK,
        Here::All => TAG_CHECK_IF_HERE,
    };
    let asking = source.manifest_within(limit, here == Here::All);
    let asked = tokio::time::timeout(limit, asking).await;
    asked.map_err(|_| Unasked::Late(limit))?.map_err(Unasked::Failed)
}

fn build(
    name: &str,
    digest: Digest,
    manifest_bytes: Bytes,
    config: &[u8],
    index: Option<PublishedIndex>,
    source: ImageSource,
) -> Result<Image, Error> {
    let manifest: Manifest = oci::parse("manifest", &digest, &manifest_bytes)?;
    let config = oci::parse_config(&manifest.config.digest, config)?;
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        let why = format!(
            "it has {} layers, but its config has {} diffIDs: it is no container image, or damaged",
            manifest.layers.len(),
            config.rootfs.diff_ids.len()
        );
        return Err(Error::image("manifest", digest, why));
    }
    let (name, unchecked) = (name.to_owned(), None);
    Ok(Image { name, digest, manifest, manifest_bytes, config, index, no_index: None, unchecked, source })
}

/// How a layer is stored, and what its stream is; None where it cannot be unpacked by itself.
pub(crate) fn stream_of(media_type: &str) -> Option<(Codec, Stream)> {
    let archive = oci::codec_of(media_type).map(|codec| (codec, Stream::Archive));
    archive.or_else(|| formats::image_codec(media_type).map(|codec| (codec, Stream::Image)))
}

impl Image {
    /// What the manifest's annotations and the configuration's labels say under a name.
    pub fn labels(&self, name: &str) -> impl Iterator<Item = &str> {
        let config = self.config.config.as_ref().and_then(|config| config.labels.as_ref()?.get(name));
        self.manifest.annotations.get(name).into_iter().chain(config).map(String::as_str)
    }

    /// Is every layer a tar, which any engine can unpack?
    pub fn is_of_tars(&self) -> bool {
        self.manifest.layers.iter().all(|layer| oci::codec_of(&layer.media_type).is_some())
    }

    /// What each layer must turn out to be, lowest first.
    ///
    /// # Errors
    /// When a layer is of a media type that hoist cannot read.
    pub fn expected(&self) -> Result<Vec<Expected>, Error> {
        let layers = self.manifest.layers.iter().zip(&self.config.rootfs.diff_ids);
        layers
            .map(|(layer, diff_id)| {
                let (codec, stream) = stream_of(&layer.media_type).ok_or_else(|| {
                    let why = format!("its media type {:?} is no layer that hoist reads", layer.media_type);
                    Error::image("layer", layer.digest, why)
                })?;
                Ok(Expected { blob: layer.digest, size: layer.size, diff_id: Some(*diff_id), codec, stream })
            })
            .collect()
    }
}
