//! How large a blob is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use hoist_format::digest::Digest;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};

use super::error::RegistryError;
use super::send::{Ask, Endpoint, Need};
use super::wire::authority;
use super::{Client, content_range};
use crate::reference::Repo;

impl Client {
    /// How many bytes a blob has. Asked for with its first byte: where a registry sends its readers elsewhere for blobs,
    /// what it gives them is good for reading alone.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn blob_size(&self, repo: &Repo, digest: &Digest) -> Result<u64, RegistryError> {
        let doing = format!("asking for the size of blob {digest} of {repo}");
        let mut ask = Ask::get(doing, repo, Need::Pull, format!("blobs/{digest}"));
        ask.blob = Some(*digest);
        ask.headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let endpoints = self.honest(repo, digest)?;
        let (spares, at) = (self.honest_spares(repo, digest, &endpoints), AtomicUsize::new(0));
        let (one, patience) = (AtomicUsize::new(0), self.0.config.timeouts.second);
        let asking = self.size_of(&endpoints, &ask, true, &one);
        let spared = self.size_of(&spares, &ask, false, &at);
        self.or_spared((patience, false), asking, &spares, spared, &at).await
    }

    /// As the first of these says that knows it, the last asked stubbornly; `at`: which of them it is at.
    async fn size_of(
        &self,
        endpoints: &[Arc<Endpoint>],
        ask: &Ask<'_>,
        stubborn: bool,
        at: &AtomicUsize,
    ) -> Result<u64, RegistryError> {
        let mut turn = self.turn(endpoints);
        loop {
            at.store(turn.at(), Relaxed);
            match self.size_at(turn.endpoint(), ask, stubborn && turn.last()).await {
                Ok(size) => return Ok(size),
                Err(error) => turn.next(error)?,
            }
        }
    }

    async fn size_at(&self, endpoint: &Endpoint, ask: &Ask<'_>, last: bool) -> Result<u64, RegistryError> {
        let response = self.ask(endpoint, ask, last).await?;
        let header = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let size = match response.status() {
            StatusCode::PARTIAL_CONTENT => header.and_then(content_range::total),
            _ => response.content_length(),
        };
        size.ok_or_else(|| RegistryError::BadAnswer {
            doing: ask.doing.clone(),
            host: authority(response.url()),
            what: "an answer that does not tell the blob's size".to_owned(),
        })
    }
}
