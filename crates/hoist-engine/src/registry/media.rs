//! Media types and descriptors (OCI image-spec v1.1; Docker image manifest v2, schema 2).

use std::collections::BTreeMap;

use hoist_format::digest::Digest;
use serde::Deserialize;

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What the client takes as a manifest; `*/*` lets old servers answer at all.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, */*;q=0.1";

/// Longest manifest taken (OCI distribution-spec v1.1 asks registries for at least 4 MiB).
pub const MAX_MANIFEST: u64 = 4 << 20;

pub use crate::oci::Descriptor;

/// A manifest or index as it was fetched.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The exact bytes; `digest` is theirs.
    pub bytes: bytes::Bytes,
    /// The media type it declares.
    pub media_type: String,
    /// Digest of `bytes`.
    pub digest: Digest,
}

/// The media type of a manifest: what it says itself, since servers and layouts may differ.
pub(super) fn media_type_of(bytes: &[u8], told: Option<&str>) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        media_type: Option<String>,
    }
    let own = serde_json::from_slice::<Head>(bytes).ok().and_then(|head| head.media_type);
    let told = told.map(|told| told.split(';').next().unwrap_or(told).trim().to_owned());
    own.or(told).filter(|kind| !kind.is_empty()).unwrap_or_else(|| OCI_MANIFEST.to_owned())
}

/// Does it look like the manifest of something, readable by us or not? Login pages and proxies answer 200 too.
pub(super) fn is_manifest(bytes: &[u8]) -> bool {
    /// Of manifests, indexes, and those of the past (Docker's schema 1, OCI's artifacts).
    const PARTS: [&str; 4] = ["config", "manifests", "fsLayers", "blobs"];
    let object: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(bytes).ok();
    object.is_some_and(|object| {
        let is_schema = object.get("schemaVersion").is_some_and(serde_json::Value::is_u64);
        let is_artifact = object.contains_key("mediaType");
        (is_schema || is_artifact) && PARTS.iter().any(|part| object.contains_key(*part))
    })
}

/// The entries of an index; one that cannot be read (a digest of another algorithm) hides no other.
pub(super) fn entries(bytes: &[u8]) -> Result<Vec<Descriptor>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default)]
        manifests: Option<Vec<serde_json::Value>>,
    }
    let index: Index = serde_json::from_slice(bytes)?;
    let entries = index.manifests.unwrap_or_default();
    Ok(entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect())
}

/// The subject and the artifact type of a manifest (image-spec v1.1 "Guidelines for Artifact Usage":
/// without `artifactType` the config's media type stands in).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ArtifactHead {
    pub media_type: Option<String>,
    pub artifact_type: Option<String>,
    pub subject: Option<Descriptor>,
    pub config: Option<ConfigHead>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConfigHead {
    pub media_type: Option<String>,
}

impl ArtifactHead {
    pub(super) fn kind(&self) -> Option<String> {
        let named = self.artifact_type.clone().filter(|kind| !kind.is_empty());
        named.or_else(|| self.config.as_ref().and_then(|config| config.media_type.clone()))
    }
    /// What a list of referrers says of the manifest `bytes`, this being its head.
    pub(super) fn descriptor(&self, bytes: &[u8]) -> Descriptor {
        Descriptor {
            platform: None,
            media_type: self.media_type.clone().unwrap_or_else(|| OCI_MANIFEST.to_owned()),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            artifact_type: self.kind(),
            annotations: self.annotations.clone(),
        }
    }
}
