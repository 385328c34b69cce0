//! Manifests, small blobs and lists of referrers: whole bodies, verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use hoist_format::digest::Digest;
use reqwest::Url;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, LINK};

use super::Client;
use super::error::RegistryError;
use super::media::{self, Descriptor, Fetched, MAX_MANIFEST};
use super::second::{Came, Patience};
use super::send::{Ask, Endpoint, Need, Target};
use super::wire::{authority, beginning};
use crate::reference::{Reference, Repo};

/// Largest blob taken into memory as a whole: configs and indexes are far smaller.
pub const MAX_BLOB: u64 = 256 << 20;
/// A blob of this size or more is asked for as a range, which goes on where a connection has broken.
const RESUMED: u64 = 64 << 10;
/// Pages of a list of referrers that are read.
const MAX_PAGES: usize = 16;

const HAS_API: u8 = 1;
const NO_API: u8 = 2;

impl Client {
    /// The manifest or index that `reference` names, by digest if it has one.
    ///
    /// # Errors
    /// See [`RegistryError`]; content with another digest than asked for or than the server's
    /// `Docker-Content-Digest` claims is refused, as is anything over 4 MiB, and under a tag what is no manifest: a
    /// proxy or a network's login page may answer for the registry.
    pub async fn manifest(&self, reference: &Reference) -> Result<Fetched, RegistryError> {
        self.manifest_by(&reference.repo, &reference.target(), reference.digest).await
    }

    /// The same, for who has something to fall back on and waits no longer than this: no pause is made that would end
    /// later. If `brief`, servers that are not there are asked once.
    ///
    /// # Errors
    /// As there.
    pub async fn manifest_within(
        &self,
        reference: &Reference,
        limit: Duration,
        brief: bool,
    ) -> Result<Fetched, RegistryError> {
        self.manifest_asked(&reference.repo, &reference.target(), reference.digest, (limit, brief)).await
    }

    pub(super) async fn manifest_by(
        &self,
        repo: &Repo,
        target: &str,
        digest: Option<Digest>,
    ) -> Result<Fetched, RegistryError> {
        self.manifest_asked(repo, target, digest, (Duration::MAX, false)).await
    }

    async fn manifest_asked(
        &self,
        repo: &Repo,
        target: &str,
        digest: Option<Digest>,
        (limit, brief): (Duration, bool),
    ) -> Result<Fetched, RegistryError> {
        let need = if digest.is_some() { Need::Pull } else { Need::Resolve };
        let doing = format!("reading manifest {target} of {repo}");
        let mut ask = Ask::get(doing, repo, need, format!("manifests/{target}"));
        ask.headers.insert(ACCEPT, HeaderValue::from_static(media::ACCEPT));
        (ask.within, ask.brief, ask.named) = (limit, brief, digest.is_none());
        let endpoints = self.endpoints(repo, need)?;
        let (headers, bytes) = self.whole(&endpoints, &ask, MAX_MANIFEST, digest).await?;
        let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media::media_type_of(&bytes, media_type);
        Ok(Fetched { digest: Digest::of(&bytes), media_type, bytes })
    }

    /// A small blob as a whole, verified. `size_hint` is its length by its descriptor, if known:
    /// nothing longer is taken.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn blob(
        &self,
        repo: &Repo,
        digest: &Digest,
        size_hint: Option<u64>,
    ) -> Result<Bytes, RegistryError> {
        if let Some(size) = size_hint.filter(|size| (RESUMED..=MAX_BLOB).contains(size))
            && let Some(bytes) = self.resumed(repo, digest, size).await?
        {
            return Ok(bytes);
        }
        let doing = format!("reading blob {digest} of {repo}");
        let mut ask = Ask::get(doing, repo, Need::Pull, format!("blobs/{digest}"));
        ask.blob = Some(*digest);
        let limit = size_hint.unwrap_or(MAX_BLOB).min(MAX_BLOB);
        let endpoints = self.endpoints(repo, Need::Pull)?;
        Ok(self.whole(&endpoints, &ask, limit, Some(*digest)).await?.1)
    }

    /// A blob by its range; None where what comes so is not what it should be.
    async fn resumed(&self, repo: &Repo, digest: &Digest, size: u64) -> Result<Option<Bytes>, RegistryError> {
        let read = async {
            let mut body = self.blob_range(repo, digest, 0..size).await?;
            let mut all = BytesMut::new();
            while let Some(piece) = body.next().await? {
                all.extend_from_slice(&piece);
            }
            Ok(all.freeze())
        };
        match read.await {
            Ok(bytes) if Digest::of(&bytes) == *digest => Ok(Some(bytes)),
            Ok(_) => {
                self.lied(repo, digest);
                Ok(None)
            }
            Err(error @ RegistryError::BadAnswer { .. }) => {
                tracing::debug!(%error, "reading it whole");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A whole body from the first server that has it right.
    async fn whole(
        &self,
        endpoints: &[Arc<Endpoint>],
        ask: &Ask<'_>,
        limit: u64,
        digest: Option<Digest>,
    ) -> Result<(HeaderMap, Bytes), RegistryError> {
        let patience = Patience::default();
        let mut turn = self.turn(endpoints);
        loop {
            // Boxed: who waits for this waits for it through many layers.
            match Box::pin(self.body(endpoints, turn.at(), ask, limit, digest, &patience)).await {
                Ok(found) => return Ok(found),
                Err(error) => turn.next(error)?,
            }
        }
    }

    /// A whole body from the server of this number, repeated when it breaks or is not what it should be; or, where that
    /// one is silent, from the next.
    async fn body(
        &self,
        endpoints: &[Arc<Endpoint>],
        at: usize,
        ask: &Ask<'_>,
        limit: u64,
        digest: Option<Digest>,
        patience: &Patience,
    ) -> Result<(HeaderMap, Bytes), RegistryError> {
        let last = at + 1 == endpoints.len();
        let mut tries = self.tries(&endpoints[at], last).of(ask);
        let mut may_spare = last && !ask.brief && !patience.stays;
        loop {
            let first = self.body_once(&endpoints[at], ask, limit, digest);
            let came = match ask.brief {
                true => first.await.map(Came::First),
                false => {
                    let second = self.body_beside(endpoints, at, ask, limit, digest);
                    self.with_second(patience, first, second).await
                }
            };
            match came {
                Ok(Came::First(found)) => return Ok(found),
                Ok(Came::Second(found)) => {
                    self.leave_alone(endpoints, at);
                    return Ok(found);
                }
                Err(error) => {
                    if std::mem::take(&mut may_spare) && !is_no_tag(digest, &error) {
                        let spared = self.body_spared(endpoints, ask, limit, digest, patience);
                        if let Some(found) = Box::pin(spared).await {
                            return Ok(found);
                        }
                    }
                    tries.again(error).await?;
                }
            }
        }
    }

    /// The same beside the silent server of this number: from those after it, the last in any case, or from mirrors at rest.
    async fn body_beside(
        &self,
        endpoints: &[Arc<Endpoint>],
        at: usize,
        ask: &Ask<'_>,
        limit: u64,
        digest: Option<Digest>,
    ) -> Result<(HeaderMap, Bytes), RegistryError> {
        let (spares, tried) = (self.spares(ask.repo, ask.need, endpoints), AtomicUsize::new(0));
        let one = AtomicUsize::new(0);
        let others = async {
            match self.body_elsewhere((endpoints, at + 1), ask, limit, digest, &one).await {
                Err(error) if is_no_tag(digest, &error) => Ok(Err(error)),
                other => other.map(Ok),
            }
        };
        let spared = async { self.body_elsewhere((&spares, 0), ask, limit, digest, &tried).await.map(Ok) };
        let silent_for = self.patience_behind(endpoints, at);
        Box::pin(self.or_spared((silent_for, false), others, &spares, spared, &tried)).await?
    }

    /// The same from mirrors at rest, after the others have failed; the last of these is asked anew beside one that hangs.
    async fn body_spared(
        &self,
        asked: &[Arc<Endpoint>],
        ask: &Ask<'_>,
        limit: u64,
        digest: Option<Digest>,
        patience: &Patience,
    ) -> Option<(HeaderMap, Bytes)> {
        let spares = self.spares(ask.repo, ask.need, asked);
        if spares.is_empty() {
            return None;
        }
        let (one, other) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let first = self.body_elsewhere((&spares, 0), ask, limit, digest, &one);
        let second = self.body_elsewhere((asked, asked.len()), ask, limit, digest, &other);
        match self.with_second(patience, first, second).await.ok()? {
            Came::First(found) | Came::Second(found) => Some(found),
        }
    }

    /// The same from the servers from number `from` on, the last in any case, each asked once; `at`: which of them it is at.
    async fn body_elsewhere(
        &self,
        (endpoints, from): (&[Arc<Endpoint>], usize),
        ask: &Ask<'_>,
        limit: u64,
        digest: Option<Digest>,
        at: &AtomicUsize,
    ) -> Result<(HeaderMap, Bytes), RegistryError> {
        let mut turn = self.turn_from(endpoints, from);
        loop {
            at.store(turn.at(), Relaxed);
            match self.body_once(turn.endpoint(), ask, limit, digest).await {
                Ok(found) => return Ok(found),
                Err(error) => turn.next(error)?,
            }
        }
    }

    async fn body_once(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        limit: u64,
        digest: Option<Digest>,
    ) -> Result<(HeaderMap, Bytes), RegistryError> {
        let mut response = self.ask(endpoint, ask, false).await?;
        let since = std::time::Instant::now();
        let read = self.0.wire.read(&mut response, limit, &ask.doing).await;
        match &read {
            Err(error) if error.server_down() => endpoint.health.failed(error, since),
            _ => endpoint.health.alive(),
        }
        let bytes = read?;
        let claimed = response.headers().get("docker-content-digest");
        let claimed = claimed.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        let found = Digest::of(&bytes);
        let (doing, host) = (ask.doing.clone(), authority(response.url()));
        match digest.into_iter().chain(claimed).find(|expected| *expected != found) {
            Some(expected) => Err(RegistryError::DigestMismatch { doing, host, expected, found }),
            None if ask.named && !media::is_manifest(&bytes) => {
                let what = format!("what is no manifest ({})", beginning(&bytes));
                Err(RegistryError::BadAnswer { doing, host, what })
            }
            None => Ok((std::mem::take(response.headers_mut()), bytes)),
        }
    }

    /// What refers to the manifest `digest` (OCI distribution-spec v1.1 "Listing Referrers"), of
    /// `artifact_type` only if given. Where the registry is not known to have the API, the tag
    /// fallback is asked at the same time: one round trip, not two.
    ///
    /// # Errors
    /// See [`RegistryError`]; having no referrers is none.
    pub async fn referrers(
        &self,
        repo: &Repo,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let endpoints = self.endpoints(repo, Need::Pull)?;
        let known = |state| endpoints.iter().all(|endpoint| endpoint.referrers_api.load(Relaxed) == state);
        let api = self.referrers_by_api(&endpoints, repo, digest, artifact_type);
        let tag = self.referrers_by_tag(repo, digest);
        let found = if known(NO_API) {
            tag.await?
        } else if known(HAS_API) {
            api.await?.unwrap_or_default()
        } else {
            let (api, tag) = (std::pin::pin!(api), std::pin::pin!(tag));
            match select(api, tag).await {
                Either::Left((Ok(Some(found)), _)) => found,
                Either::Left((_, tag)) => tag.await?,
                Either::Right((by_tag, api)) => match api.await {
                    Ok(Some(found)) => found,
                    _ => by_tag?,
                },
            }
        };
        let wanted =
            |entry: &Descriptor| artifact_type.is_none_or(|t| entry.artifact_type.as_deref() == Some(t));
        Ok(found.into_iter().filter(wanted).collect())
    }

    /// None when no server has the API.
    async fn referrers_by_api(
        &self,
        endpoints: &[Arc<Endpoint>],
        repo: &Repo,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let doing = format!("listing what refers to {digest} in {repo}");
        let filter = artifact_type.map(|kind| format!("?artifactType={}", escape(kind))).unwrap_or_default();
        let ask = Ask::get(doing, repo, Need::Pull, format!("referrers/{digest}{filter}"));
        let mut turn = self.turn(endpoints);
        loop {
            let endpoint = turn.endpoint();
            let error = match self.pages(endpoints, turn.at(), ask.clone()).await {
                Ok(found) => {
                    endpoint.referrers_api.store(HAS_API, Relaxed);
                    return Ok(Some(found));
                }
                Err(error) => error,
            };
            if lacks_api(&error) {
                endpoint.referrers_api.store(NO_API, Relaxed);
                if turn.last() {
                    return Ok(None);
                }
            }
            turn.next(error)?;
        }
    }

    async fn pages(
        &self,
        endpoints: &[Arc<Endpoint>],
        at: usize,
        mut ask: Ask<'_>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let endpoint = &endpoints[at];
        // A list goes on where it began.
        let patience = Patience::staying();
        let mut all = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = self.body(endpoints, at, &ask, MAX_MANIFEST, None, &patience);
            let (headers, bytes) = Box::pin(page).await?;
            let page = media::entries(&bytes).map_err(|error| RegistryError::BadAnswer {
                doing: ask.doing.clone(),
                host: authority(&endpoint.base),
                what: format!("a list that cannot be read ({error})"),
            })?;
            all.extend(page);
            match next_page(&headers, &endpoint.url(&ask)?, &endpoint.base) {
                Some(next) => ask.path = Target::Url(next),
                None => break,
            }
        }
        Ok(all)
    }

    async fn referrers_by_tag(&self, repo: &Repo, digest: &Digest) -> Result<Vec<Descriptor>, RegistryError> {
        match self.manifest_by(repo, &fallback_tag(digest), None).await {
            Ok(index) => media::entries(&index.bytes).map_err(|error| RegistryError::BadAnswer {
                doing: format!("reading the tag {} of {repo}", fallback_tag(digest)),
                host: repo.host.clone(),
                what: format!("an index that cannot be read ({error})"),
            }),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// That there is no such tag is for those servers to tell that are not at rest.
fn is_no_tag(digest: Option<Digest>, error: &RegistryError) -> bool {
    digest.is_none() && error.is_not_found()
}

/// The tag under which referrers stand where there is no API (distribution-spec v1.1).
pub(super) fn fallback_tag(digest: &Digest) -> String {
    format!("sha256-{}", digest.hex())
}

/// Registries without the API say so in several ways.
fn lacks_api(error: &RegistryError) -> bool {
    matches!(error, RegistryError::NotFound { .. } | RegistryError::Status { status: 400 | 405 | 501, .. })
        || matches!(error, RegistryError::BadAnswer { .. })
}

fn escape(text: &str) -> String {
    let keep = |c: u8| c.is_ascii_alphanumeric() || b"-._~/".contains(&c);
    text.bytes().map(|c| if keep(c) { (c as char).to_string() } else { format!("%{c:02X}") }).collect()
}

/// The `Link: <...>; rel="next"` of a list (RFC 8288), which must not lead to another server.
fn next_page(headers: &HeaderMap, here: &Url, base: &Url) -> Option<Url> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let mut links = links.flat_map(|value| value.split(",<").flat_map(|part| part.split(", <")));
    let next = links.find_map(|link| {
        let (target, relation) = link.trim().trim_start_matches('<').split_once('>')?;
        let mut words = relation.split(';').map(|word| word.trim().replace('"', "").to_ascii_lowercase());
        words.any(|word| word == "rel=next").then(|| here.join(target).ok())?
    })?;
    (next.origin() == base.origin()).then_some(next)
}
