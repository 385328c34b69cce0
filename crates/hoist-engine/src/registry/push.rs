//! Writing to a registry: blobs in one piece, manifests, referrers with their tag fallback.

use std::time::Instant;

use bytes::Bytes;
use hoist_format::digest::Digest;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

use super::Client;
use super::error::RegistryError;
use super::media::{self, ArtifactHead, MAX_MANIFEST};
use super::read::fallback_tag;
use super::send::{Ask, Endpoint, Need, Target, location};
use crate::reference::Repo;

/// Times the fallback index is written again because somebody else wrote it meanwhile.
const FALLBACK_TRIES: u32 = 16;

/// What a registry made of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest.
    pub digest: Digest,
    /// The registry has taken note of the subject (`OCI-Subject`): it has the referrers API.
    pub subject_seen: bool,
}

impl Client {
    /// Stores `bytes` as a blob of `repo`, unless it is there.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn push_blob(&self, repo: &Repo, bytes: Bytes) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        let doing = format!("pushing blob {digest} to {repo}");
        let endpoints = self.endpoints(repo, Need::Push)?;
        let mut head = Ask::get(doing, repo, Need::Push, format!("blobs/{digest}"));
        head.method = Method::HEAD;
        let start = Self::upload_of(&digest, repo);
        let mut turn = self.turn(&endpoints);
        loop {
            let endpoint = turn.endpoint();
            let done = match self.ask(endpoint, &head, turn.last()).await {
                Ok(_) => return Ok(digest),
                Err(error) if error.is_not_found() => {
                    self.upload(endpoint, &start, &digest, &bytes, turn.last()).await
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => return Ok(digest),
                Err(error) => turn.next(error)?,
            }
        }
    }

    /// The same though it may be there: who may not write is told so.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn upload_blob(&self, repo: &Repo, bytes: Bytes) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        let endpoints = self.endpoints(repo, Need::Push)?;
        let start = Self::upload_of(&digest, repo);
        let mut turn = self.turn(&endpoints);
        loop {
            match self.upload(turn.endpoint(), &start, &digest, &bytes, turn.last()).await {
                Ok(()) => return Ok(digest),
                Err(error) => turn.next(error)?,
            }
        }
    }

    /// The question that opens an upload.
    fn upload_of<'a>(digest: &Digest, repo: &'a Repo) -> Ask<'a> {
        let doing = format!("pushing blob {digest} to {repo}");
        let mut start = Ask::get(doing, repo, Need::Push, "blobs/uploads/".to_owned());
        start.method = Method::POST;
        start.body = Some(Bytes::new());
        start
    }

    /// A broken upload leaves its session in doubt: each try opens a new one.
    async fn upload(
        &self,
        endpoint: &Endpoint,
        start: &Ask<'_>,
        digest: &Digest,
        bytes: &Bytes,
        last: bool,
    ) -> Result<(), RegistryError> {
        let mut tries = self.tries(endpoint, last);
        loop {
            match self.upload_once(endpoint, start, digest, bytes).await {
                Ok(()) => return Ok(()),
                Err(error) => tries.again(error).await?,
            }
        }
    }

    async fn upload_once(
        &self,
        endpoint: &Endpoint,
        start: &Ask<'_>,
        digest: &Digest,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let session = self.ask(endpoint, start, false).await?;
        let mut url = location(&session, &start.doing)?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut put = Ask { method: Method::PUT, path: Target::Url(url), ..start.clone() };
        put.body = Some(bytes.clone());
        put.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        self.ask(endpoint, &put, false).await.map(drop)
    }

    /// Stores a manifest or index under `tag`, or by its digest alone.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn push_manifest(
        &self,
        repo: &Repo,
        tag: Option<&str>,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Pushed, RegistryError> {
        let digest = Digest::of(&bytes);
        let target = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let doing = format!("pushing manifest {target} to {repo}");
        let mut ask = Ask::get(doing, repo, Need::Push, format!("manifests/{target}"));
        ask.method = Method::PUT;
        ask.body = Some(bytes);
        let kind = HeaderValue::from_str(media_type).map_err(|_| RegistryError::Config {
            doing: ask.doing.clone(),
            what: format!("{media_type:?} is no media type"),
        })?;
        ask.headers.insert(CONTENT_TYPE, kind);
        let endpoints = self.endpoints(repo, Need::Push)?;
        let mut turn = self.turn(&endpoints);
        let response = loop {
            match self.ask(turn.endpoint(), &ask, turn.last()).await {
                Ok(response) => break response,
                Err(error) => turn.next(error)?,
            }
        };
        Ok(Pushed { digest, subject_seen: response.headers().contains_key("oci-subject") })
    }

    /// Stores a manifest that has a `subject`, so that [`Client::referrers`] finds it: where the
    /// registry has no referrers API, it is added to the index under the tag `sha256-<subject>`
    /// (distribution-spec v1.1 "Pushing Manifests with Subject"), which keeps its other entries.
    ///
    /// # Errors
    /// `Config` when the manifest has no subject; else see [`RegistryError`].
    pub async fn push_referrer(&self, repo: &Repo, bytes: Bytes) -> Result<Pushed, RegistryError> {
        let head = serde_json::from_slice::<ArtifactHead>(&bytes);
        let subject = head.as_ref().ok().and_then(|head| head.subject.as_ref()).map(|subject| subject.digest);
        let (Ok(head), Some(subject)) = (&head, subject) else {
            return Err(RegistryError::Config {
                doing: format!("pushing a referrer to {repo}"),
                what: "the manifest names no subject".to_owned(),
            });
        };
        let entry = head.descriptor(&bytes);
        let pushed = self.push_manifest(repo, None, &entry.media_type.clone(), bytes).await?;
        if pushed.subject_seen {
            return Ok(pushed);
        }
        self.add_to_fallback(repo, &fallback_tag(&subject), json!(entry)).await?;
        Ok(pushed)
    }

    /// Registries write a tag without asking what was there, so two who add at the same time may
    /// lose each other's entry: whoever reads before we write may write after us. So what we wrote
    /// is looked at again once those had the time, and what is missing of all that was seen there
    /// is added again.
    async fn add_to_fallback(&self, repo: &Repo, tag: &str, entry: Value) -> Result<(), RegistryError> {
        let doing = || format!("adding a referrer to the tag {tag} of {repo}");
        let mut wanted = vec![entry];
        let (mut written, mut stood) = (false, false);
        let mut slowest = self.0.config.retry.base;
        for attempt in 0..FALLBACK_TRIES {
            let start = Instant::now();
            let index = match self.manifest_by(repo, tag, None).await {
                Ok(index) => Some(index.bytes),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
            match with_entries(index.as_deref(), &mut wanted) {
                None if stood || !written => return Ok(()),
                None => stood = true,
                Some(index) if index.len() as u64 > MAX_MANIFEST => {
                    let what = "the list of referrers is over 4 MiB; delete old ones".to_owned();
                    return Err(RegistryError::Config { doing: doing(), what });
                }
                Some(index) => {
                    self.push_manifest(repo, Some(tag), media::OCI_INDEX, index.into()).await?;
                    (written, stood) = (true, false);
                    slowest = slowest.max(start.elapsed());
                    continue;
                }
            }
            // Others need about as long as we ever did to read and write; and who collide must part.
            slowest = slowest.max(start.elapsed());
            let spread = 2.0 + f64::from(attempt) * rand::random::<f64>();
            tokio::time::sleep(slowest.mul_f64(spread).min(self.0.config.retry.longest)).await;
        }
        Err(RegistryError::Contended { doing: doing(), host: repo.host.clone() })
    }
}

/// `index` with the `wanted` entries that it lacks, others as they were; none if it lacks none. What
/// else stands in it is wanted from now on. What is no index is replaced.
fn with_entries(index: Option<&[u8]>, wanted: &mut Vec<Value>) -> Option<Vec<u8>> {
    let parsed = index.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let mut index = parsed
        .filter(|value| value["manifests"].is_array())
        .unwrap_or_else(|| json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": []}));
    let entries = index["manifests"].as_array_mut()?;
    let is_in = |entry: &Value, list: &[Value]| list.iter().any(|other| other["digest"] == entry["digest"]);
    let missing: Vec<_> = wanted.iter().filter(|entry| !is_in(entry, entries)).cloned().collect();
    let others: Vec<_> = entries.iter().filter(|entry| !is_in(entry, wanted)).cloned().collect();
    wanted.extend(others);
    if missing.is_empty() {
        return None;
    }
    entries.extend(missing);
    serde_json::to_vec(&index).ok()
}
