//! One way to read an image, wherever it is.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hoist_format::digest::Digest;

use super::Client;
use super::error::RegistryError;
use super::layout::Layout;
use super::media::{Descriptor, Fetched};
use super::range::RangeBody;
use super::stats::Stats;
use crate::reference::{Reference, Source};

/// An image in a registry or in a layout. Cheap to clone.
#[derive(Clone)]
pub enum ImageSource {
    /// In a registry.
    Registry {
        /// Who asks.
        client: Client,
        /// What the user named.
        reference: Reference,
    },
    /// In an OCI layout.
    Layout {
        /// The folder or tar file.
        layout: Arc<Layout>,
        /// What the user named.
        tag: Option<String>,
    },
}

impl ImageSource {
    /// The source that `source` names; opens a layout, asks no registry yet.
    ///
    /// # Errors
    /// `Layout` when there is none.
    pub async fn open(client: &Client, source: &Source) -> Result<Self, RegistryError> {
        match source {
            Source::Registry(reference) => {
                Ok(Self::Registry { client: client.clone(), reference: reference.clone() })
            }
            Source::Layout { path, tag } => {
                let shown = path.display().to_string();
                // Whoever serves a mount goes to another folder.
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let (path, tag) = (absolute, tag.clone());
                let opened = tokio::task::spawn_blocking(move || Layout::open(&path)).await;
                let layout = opened
                    .map_err(|failure| RegistryError::Layout { path: shown, what: failure.to_string() })??;
                Ok(Self::Layout { layout: Arc::new(layout), tag })
            }
        }
    }

    /// The manifest or index the user named.
    ///
    /// # Errors
    /// See [`Client::manifest`] and [`Layout::manifest`].
    pub async fn manifest(&self) -> Result<Fetched, RegistryError> {
        match self {
            Self::Registry { client, reference } => client.manifest(reference).await,
            Self::Layout { layout, tag } => layout.manifest(tag.as_deref()).await,
        }
    }

    /// The same, for who has something to fall back on and waits no longer than this. If `brief`, a registry that is not
    /// there is asked once.
    ///
    /// # Errors
    /// As there.
    pub async fn manifest_within(&self, limit: Duration, brief: bool) -> Result<Fetched, RegistryError> {
        match self {
            Self::Registry { client, reference } => client.manifest_within(reference, limit, brief).await,
            Self::Layout { .. } => self.manifest().await,
        }
    }

    /// Another manifest beside it, by digest.
    ///
    /// # Errors
    /// See [`Client::manifest`] and [`Layout::manifest_by_digest`].
    pub async fn manifest_by_digest(&self, digest: &Digest) -> Result<Fetched, RegistryError> {
        match self {
            Self::Registry { client, reference } => {
                client.manifest_by(&reference.repo, &digest.to_string(), Some(*digest)).await
            }
            Self::Layout { layout, .. } => layout.manifest_by_digest(digest).await,
        }
    }

    /// A small blob, verified; nothing longer than `size_hint` is taken.
    ///
    /// # Errors
    /// See [`Client::blob`] and [`Layout::blob`].
    pub async fn blob(&self, digest: &Digest, size_hint: Option<u64>) -> Result<Bytes, RegistryError> {
        match self {
            // Boxed here and below: who waits for a registry waits for it through many layers.
            Self::Registry { client, reference } => {
                Box::pin(client.blob(&reference.repo, digest, size_hint)).await
            }
            Self::Layout { layout, .. } => layout.blob(digest, size_hint).await,
        }
    }

    /// A part of a blob, not verified.
    ///
    /// # Errors
    /// See [`Client::blob_range`] and [`Layout::blob_range`].
    pub async fn blob_range(&self, digest: &Digest, range: Range<u64>) -> Result<RangeBody, RegistryError> {
        match self {
            Self::Registry { client, reference } => {
                Box::pin(client.blob_range(&reference.repo, digest, range)).await
            }
            Self::Layout { layout, .. } => layout.blob_range(digest, range).await,
        }
    }

    /// How many bytes a blob has.
    ///
    /// # Errors
    /// See [`Client::blob_size`] and [`Layout::blob_size`].
    pub async fn blob_size(&self, digest: &Digest) -> Result<u64, RegistryError> {
        match self {
            Self::Registry { client, reference } => client.blob_size(&reference.repo, digest).await,
            Self::Layout { layout, .. } => layout.blob_size(digest).await,
        }
    }

    /// Says that parts of a blob were not what they should be: true if asking again may bring them
    /// from another server.
    pub fn lied(&self, digest: &Digest) -> bool {
        match self {
            Self::Registry { client, reference } => client.lied(&reference.repo, digest),
            Self::Layout { .. } => false,
        }
    }

    /// What refers to the manifest `digest`, of `artifact_type` only if given.
    ///
    /// # Errors
    /// See [`Client::referrers`] and [`Layout::referrers`].
    pub async fn referrers(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        match self {
            Self::Registry { client, reference } => {
                client.referrers(&reference.repo, digest, artifact_type).await
            }
            Self::Layout { layout, .. } => layout.referrers(digest, artifact_type).await,
        }
    }

    /// What was asked of registries for it; None of a layout.
    pub fn stats(&self) -> Option<&Arc<Stats>> {
        match self {
            Self::Registry { client, .. } => Some(client.stats()),
            Self::Layout { .. } => None,
        }
    }

    /// Whether parts of blobs are known not to be had, so that blobs must be read from the start.
    pub fn ranges_ignored(&self) -> bool {
        match self {
            Self::Registry { client, reference } => client.ranges_ignored(&reference.repo),
            Self::Layout { .. } => false,
        }
    }
}
