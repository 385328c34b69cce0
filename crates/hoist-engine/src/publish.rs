//! The published form of an index: an OCI artifact that names the image as its subject
//! (`docs/FORMAT.md`, "Published index").
//!
//! One blob holds the merged tree of the whole image, and per layer there is one of tables and one
//! of gzip windows; so what a mount needs first comes alone, each part is verified by its OCI
//! digest, and windows by the digests in the table.

use std::collections::BTreeMap;

use bytes::Bytes;
use hoist_format::digest::Digest;

use crate::error::Error;
use crate::oci::{self, Descriptor, Manifest, media};
use crate::reference::Reference;
use crate::registry::{Client, ImageSource, RegistryError, date};

/// `artifactType` of a published index.
pub const ARTIFACT: &str = "application/vnd.hoist.index.v1";
/// `artifactType` of a conversion: an index that was made here of another format's metadata, and stays here.
pub(crate) const CONVERTED: &str = "application/vnd.hoist.converted.v1";
/// The merged tree: a zstd-compressed EROFS image without file contents.
pub const TREE: &str = "application/vnd.hoist.tree.v1+zstd";
/// A layer's table.
pub const TABLE: &str = "application/vnd.hoist.table.v1+zstd";
/// A layer's gzip windows, one after another.
pub const WINDOWS: &str = "application/vnd.hoist.windows.v1";
/// Annotation of tables and windows: the layer's blob digest.
pub const LAYER: &str = "dev.hoist.layer";

/// Annotation of an index whose tree has one data file for the whole image.
pub(crate) const OF_IMAGE: &str = "dev.hoist.of-image";

/// When an index was made (image-spec `annotations.md`): of several, the newest counts.
const CREATED: &str = "org.opencontainers.image.created";
/// Referrers that are looked at: whoever may push can list any number.
const MAX_TRIED: usize = 16;

/// An index found beside an image.
#[derive(Debug, Clone)]
pub struct PublishedIndex {
    /// Digest of the artifact's manifest.
    pub digest: Digest,
    /// Its exact bytes.
    pub bytes: Bytes,
    /// The merged tree.
    pub tree: Descriptor,
    /// Table and windows by layer.
    pub layers: BTreeMap<Digest, (Descriptor, Option<Descriptor>)>,
    /// It was made here, of another format's metadata.
    pub converted: bool,
    /// Its tree has one data file for the whole image.
    pub of_image: bool,
}

/// The tag under which an index is found in one request, without asking for referrers first.
pub fn tag(subject: &Digest) -> String {
    format!("sha256-{}.hoist", subject.hex())
}

impl PublishedIndex {
    /// Reads an artifact's manifest.
    ///
    /// # Errors
    /// When it is no index of ours, or of another image.
    pub fn parse(bytes: Bytes, subject: &Digest) -> Result<Self, Error> {
        Self::parse_as(ARTIFACT, bytes, subject)
    }

    /// Reads the document of a conversion.
    ///
    /// # Errors
    /// When it is none, or of another image.
    pub fn parse_converted(bytes: Bytes, subject: &Digest) -> Result<Self, Error> {
        Self::parse_as(CONVERTED, bytes, subject)
    }

    fn parse_as(artifact_type: &str, bytes: Bytes, subject: &Digest) -> Result<Self, Error> {
        let digest = Digest::of(&bytes);
        let bad = |why: &str| Error::image("published index", digest, why);
        let manifest: Manifest = oci::parse("published index", &digest, &bytes)?;
        if manifest.artifact_type.as_deref() != Some(artifact_type) {
            return Err(bad("its artifactType is another"));
        }
        if manifest.subject.as_ref().is_none_or(|s| s.digest != *subject) {
            return Err(bad("it is about another image"));
        }
        let mut tree = None;
        let mut layers: BTreeMap<Digest, (Option<Descriptor>, Option<Descriptor>)> = BTreeMap::new();
        for part in manifest.layers {
            let layer = part.annotations.get(LAYER).and_then(|l| l.parse().ok());
            match (part.media_type.as_str(), layer) {
                (TREE, _) => tree = Some(part),
                (TABLE, Some(layer)) => layers.entry(layer).or_default().0 = Some(part),
                (WINDOWS, Some(layer)) => layers.entry(layer).or_default().1 = Some(part),
                _ => {}
            }
        }
        let tree = tree.ok_or_else(|| bad("it has no tree"))?;
        let layers = layers.into_iter().filter_map(|(l, (t, w))| Some((l, (t?, w)))).collect();
        let of_image = manifest.annotations.contains_key(OF_IMAGE);
        Ok(Self { digest, bytes, tree, layers, converted: artifact_type == CONVERTED, of_image })
    }
}

/// Looks for an index of `subject` that `refused` gives no reason against: by its tag first, then
/// among the referrers, newest first. One that cannot be used hides no other.
///
/// # Errors
/// When none was found and there is one that could not be fetched.
pub async fn find(
    source: &ImageSource,
    subject: &Digest,
    refused: impl Fn(&Digest) -> Option<String>,
) -> Result<Option<PublishedIndex>, Error> {
    let judge = |bytes: Bytes| {
        let digest = Digest::of(&bytes);
        if let Some(why) = refused(&digest) {
            tracing::warn!(index = %digest, "a published index is not used: {why}");
            return None;
        }
        let parsed = PublishedIndex::parse(bytes, subject);
        parsed.inspect_err(|e| tracing::warn!("a published index is not used: {e}")).ok()
    };
    let (mut tried, mut missed) = (Vec::new(), None);
    if let ImageSource::Registry { client, reference } = source {
        let mut tagged = reference.clone();
        (tagged.tag, tagged.digest) = (Some(tag(subject)), None);
        match client.manifest(&tagged).await {
            Ok(found) => {
                tried.push(found.digest);
                if let Some(index) = judge(found.bytes) {
                    return Ok(Some(index));
                }
            }
            Err(e) if e.is_not_found() => {}
            // A server that is down is not asked more.
            Err(e) if e.server_down() => return Err(e.into()),
            Err(e) => missed = Some(e),
        }
    }
    let mut referrers = source.referrers(subject, Some(ARTIFACT)).await?;
    // Lists are written at their ends, if their order means anything; the time that is told counts more.
    referrers.reverse();
    let created = |d: &Descriptor| d.annotations.get(CREATED).and_then(|at| date::rfc3339(at));
    referrers.sort_by_key(|d| std::cmp::Reverse(created(d)));
    referrers.retain(|d| !tried.contains(&d.digest));
    for found in referrers.iter().take(MAX_TRIED) {
        if let Some(why) = refused(&found.digest) {
            tracing::warn!(index = %found.digest, "a published index is not used: {why}");
            continue;
        }
        match source.manifest_by_digest(&found.digest).await {
            Ok(fetched) => {
                if let Some(index) = judge(fetched.bytes) {
                    return Ok(Some(index));
                }
            }
            // A list may name what has been deleted.
            Err(e) if e.is_not_found() => {}
            Err(e) => missed = Some(e),
        }
    }
    missed.map_or(Ok(None), |e| Err(e.into()))
}

/// A part of an index that is about to be pushed.
pub struct Part {
    /// Its media type.
    pub media_type: &'static str,
    /// Which layer it is of.
    pub layer: Option<Digest>,
    /// The bytes.
    pub bytes: Bytes,
}

impl Part {
    /// A merged tree, compressed.
    pub(crate) fn tree(erofs: &[u8]) -> std::io::Result<Self> {
        let bytes = zstd::bulk::compress(erofs, 15)?.into();
        Ok(Self { media_type: TREE, layer: None, bytes })
    }
}

/// The empty config of an artifact (image-spec `manifest.md`).
const EMPTY: Bytes = Bytes::from_static(b"{}");

/// Finds out whether an index can be pushed there, by pushing a part that every index has.
pub async fn may_push(source: &ImageSource) -> Result<(), Error> {
    let (client, reference) = registry_of(source)?;
    client.upload_blob(&reference.repo, EMPTY).await?;
    Ok(())
}

fn registry_of(source: &ImageSource) -> Result<(&Client, &Reference), Error> {
    match source {
        ImageSource::Registry { client, reference } => Ok((client, reference)),
        ImageSource::Layout { .. } => Err(Error::NotFound(
            "an image layout takes no referrers from hoist; push the image to a registry first".into(),
        )),
    }
}

/// Pushes the parts and the artifact that names them. Returns its digest. `of_image`: its tree has one data file for the
/// whole image.
pub async fn push(
    source: &ImageSource,
    subject: &Descriptor,
    parts: Vec<Part>,
    of_image: bool,
) -> Result<Digest, Error> {
    let (client, reference) = registry_of(source)?;
    let repo = &reference.repo;
    let mut layers = Vec::new();
    for part in parts {
        let size = part.bytes.len() as u64;
        let digest = client.push_blob(repo, part.bytes).await?;
        let annotations = part.layer.iter().map(|l| (LAYER.to_owned(), l.to_string())).collect();
        let media_type = part.media_type.to_owned();
        layers.push(Descriptor {
            media_type,
            digest,
            size,
            annotations,
            platform: None,
            artifact_type: None,
        });
    }
    client.push_blob(repo, EMPTY).await?;
    let config = Descriptor {
        media_type: media::EMPTY.into(),
        digest: Digest::of(&EMPTY),
        size: 2,
        annotations: BTreeMap::new(),
        platform: None,
        artifact_type: None,
    };
    let mut manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::MANIFEST.into()),
        artifact_type: Some(ARTIFACT.into()),
        config,
        layers,
        subject: Some(subject.clone()),
        annotations: BTreeMap::new(),
    };
    // The same index published again is the same artifact, made when it was first.
    let created = match published(client, reference, &subject.digest).await {
        Some(known) if known.layers == manifest.layers && known.subject == manifest.subject => {
            known.annotations.get(CREATED).cloned()
        }
        _ => None,
    };
    let created = created.unwrap_or_else(|| date::to_rfc3339(date::now()));
    manifest.annotations.insert(CREATED.to_owned(), created);
    if of_image {
        manifest.annotations.insert(OF_IMAGE.to_owned(), "yes".to_owned());
    }
    let bytes = Bytes::from(serde_json::to_vec(&manifest).map_err(|e| Error::Internal(e.to_string()))?);
    client.push_referrer(repo, bytes.clone()).await?;
    let pushed: Result<_, RegistryError> =
        client.push_manifest(repo, Some(&tag(&subject.digest)), media::MANIFEST, bytes).await;
    Ok(pushed?.digest)
}

/// The manifest that stands under the tag of an index, if it can be read.
async fn published(client: &Client, reference: &Reference, subject: &Digest) -> Option<Manifest> {
    let tagged = Reference { tag: Some(tag(subject)), digest: None, ..reference.clone() };
    serde_json::from_slice(&client.manifest(&tagged).await.ok()?.bytes).ok()
}
