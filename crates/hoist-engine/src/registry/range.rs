//! A part of a blob, exactly: what a server sends short, long, elsewhere or not at all is cut,
//! asked for again from where it stopped, or refused.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use hoist_format::digest::Digest;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};

use super::Client;
use super::error::RegistryError;
use super::layout::LayoutRange;
use super::second::{Came, Patience};
use super::send::{Ask, Endpoint, Need};
use super::wire::{Pace, TRICKLES, authority};
use crate::reference::Repo;

/// A part that starts before this is cut out of a whole blob when the server ignores ranges.
const CHEAP_SKIP: u64 = 4 << 20;
/// Failures in a row, without a byte in between, after each of which mirrors at rest are asked; not after more.
const SPARED: u32 = 4;
/// Windows of time in which too little came, after which a server is given up.
const SLOW_WINDOWS: u32 = 2;

/// The bytes of a range, in order, in pieces of any length. Not verified: that is for who knows
/// the digests of the parts.
pub struct RangeBody(pub(super) Kind);

pub(super) enum Kind {
    Http(Box<HttpRange>),
    Layout(LayoutRange),
}

impl RangeBody {
    /// The next piece; `None` when every byte of the range has come.
    ///
    /// # Errors
    /// See [`RegistryError`]; the body is of no use after one.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        match &mut self.0 {
            Kind::Http(range) => range.next().await,
            Kind::Layout(range) => range.next().await,
        }
    }

    /// The same as a stream that ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send {
        futures_util::stream::unfold(Some(self), |body| async {
            let mut body = body?;
            match body.next().await {
                Ok(piece) => piece.map(|piece| (Ok(piece), Some(body))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

pub(super) struct HttpRange {
    client: Client,
    repo: Repo,
    digest: Digest,
    doing: String,
    endpoints: Vec<Arc<Endpoint>>,
    /// The first of them that is still asked.
    from: usize,
    /// The next byte to deliver, and the end.
    position: u64,
    end: u64,
    open: Option<Open>,
    /// Over all responses.
    pace: Pace,
    slow: u32,
    /// In a row, without a byte in between.
    failures: u32,
    /// Where the first of these failures was, and when.
    failed_at: (u64, Instant),
    patience: Patience,
}

struct Open {
    response: Response,
    endpoint: Arc<Endpoint>,
    since: Instant,
    /// Bytes of the body that come before `position`.
    skip: u64,
    /// Bytes of the body after those that belong to the range.
    promised: u64,
}

impl Client {
    /// The bytes `range` of a blob. The first request goes out here.
    ///
    /// # Errors
    /// `RangesIgnored` when the server sends whole blobs and the range starts far inside: then
    /// read the blob from its start. Else see [`RegistryError`].
    pub async fn blob_range(
        &self,
        repo: &Repo,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<RangeBody, RegistryError> {
        let mut body = HttpRange {
            client: self.clone(),
            repo: repo.clone(),
            digest: *digest,
            doing: format!("reading bytes {}-{} of blob {digest} of {repo}", range.start, range.end),
            endpoints: self.honest(repo, digest)?,
            from: 0,
            position: range.start,
            end: range.end,
            open: None,
            pace: Pace::default(),
            slow: 0,
            failures: 0,
            failed_at: (range.start, Instant::now()),
            patience: Patience::default(),
        };
        if body.position < body.end {
            body.reopen().await?;
        }
        Ok(RangeBody(Kind::Http(Box::new(body))))
    }

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
        let asking = async {
            let mut turn = self.turn(&endpoints);
            loop {
                match self.size_at(turn.endpoint(), &ask, turn.last()).await {
                    Ok(size) => return Ok(size),
                    Err(error) => turn.next(error)?,
                }
            }
        };
        let (spares, tried) = (self.honest_spares(repo, digest, &endpoints), AtomicUsize::new(0));
        let spared = async {
            let mut turn = self.turn(&spares);
            loop {
                tried.store(turn.at(), Relaxed);
                match self.size_at(turn.endpoint(), &ask, false).await {
                    Ok(size) => return Ok(size),
                    Err(error) => turn.next(error)?,
                }
            }
        };
        self.or_spared((self.0.config.timeouts.second, false), asking, &spares, spared, &tried).await
    }

    async fn size_at(&self, endpoint: &Endpoint, ask: &Ask<'_>, last: bool) -> Result<u64, RegistryError> {
        let response = self.ask(endpoint, ask, last).await?;
        let header = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let size = match response.status() {
            StatusCode::PARTIAL_CONTENT => header.and_then(total),
            _ => response.content_length(),
        };
        size.ok_or_else(|| RegistryError::BadAnswer {
            doing: ask.doing.clone(),
            host: authority(response.url()),
            what: "an answer that does not tell the blob's size".to_owned(),
        })
    }

    /// Says that parts of a blob were not what they should be. True if another server may have them
    /// right: those that served any are not asked for this blob again, except the registry itself.
    pub fn lied(&self, repo: &Repo, digest: &Digest) -> bool {
        let Ok(all) = self.honest(repo, digest) else { return false };
        let (last, mirrors) = all.split_last().map_or((None, &[][..]), |(last, rest)| (Some(last), rest));
        if let Some(last) = last {
            last.forget(&repo.name, digest);
        }
        let mut another = false;
        // One that rests may have served some as well.
        for mirror in mirrors.iter().chain(&self.honest_spares(repo, digest, &all)) {
            another |= mirror.condemn(digest);
        }
        another
    }

    /// The servers of a blob, without those that sent wrong parts of it.
    fn honest(&self, repo: &Repo, digest: &Digest) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let mut all = self.endpoints(repo, Need::Pull)?;
        if let Some(last) = all.pop() {
            all.retain(|endpoint| !endpoint.is_condemned(digest));
            all.push(last);
        }
        Ok(all)
    }

    /// Those at rest, without those that sent wrong parts of it.
    fn honest_spares(&self, repo: &Repo, digest: &Digest, asked: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
        let mut spares = self.spares(repo, Need::Pull, asked);
        spares.retain(|endpoint| !endpoint.is_condemned(digest));
        spares
    }

    /// Whether every server of `repo` is known to send whole blobs only.
    pub fn ranges_ignored(&self, repo: &Repo) -> bool {
        let endpoints = self.endpoints(repo, Need::Pull);
        endpoints.is_ok_and(|all| all.iter().all(|endpoint| endpoint.ignores_ranges()))
    }
}

impl HttpRange {
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while self.position < self.end {
            let Some(open) = self.open.take() else {
                // Boxed, as below: seldom, and who waits for this waits for it through many layers.
                Box::pin(self.reopen()).await?;
                continue;
            };
            let (endpoint, since) = (Arc::clone(&open.endpoint), open.since);
            match self.piece(open).await {
                Ok((open, piece)) => {
                    self.open = (open.promised > 0).then_some(open);
                    if let Some(piece) = piece {
                        self.position += piece.len() as u64;
                        return Ok(Some(piece));
                    }
                }
                Err(error) => {
                    endpoint.health.failed(&error, since);
                    self.client.0.wire.stats.trouble(&error);
                    if !self.is_passed_by(&endpoint, &error) {
                        self.failed(error).await?;
                    }
                }
            }
        }
        self.open = None;
        Ok(None)
    }

    /// The next bytes of an open body. If it is silent for long, another one that was asked for meanwhile takes its place:
    /// then there are none yet.
    async fn piece(&mut self, mut open: Open) -> Result<(Open, Option<Bytes>), RegistryError> {
        let client = self.client.clone();
        let mut pace = std::mem::take(&mut self.pace);
        let at = self.number_of(&open.endpoint);
        let chunk = client.0.wire.chunk(&mut open.response, &mut pace, &self.doing);
        let second = async { Box::pin(self.beside(at, true)).await };
        let came = client.with_second(&self.patience, chunk, second).await;
        self.pace = pace;
        match came? {
            Came::First(Some(chunk)) => {
                open.endpoint.health.alive();
                let piece = open.cut(chunk);
                Ok((open, piece))
            }
            Came::First(None) => Err(RegistryError::BadAnswer {
                doing: self.doing.clone(),
                host: authority(open.response.url()),
                what: format!("a body that ends {} bytes early", open.promised),
            }),
            Came::Second(other) => {
                self.client.leave_alone(&self.endpoints, at);
                Ok((other, None))
            }
        }
    }

    /// Past the last for one that was at rest when this began.
    fn number_of(&self, endpoint: &Arc<Endpoint>) -> usize {
        let all = &self.endpoints;
        all.iter().position(|one| Arc::ptr_eq(one, endpoint)).unwrap_or(all.len())
    }

    /// A mirror whose body broke is not asked for the rest of it: the next server is. False of the last one, and of
    /// one that is asked once more after it was passed by.
    fn is_passed_by(&mut self, endpoint: &Arc<Endpoint>, error: &RegistryError) -> bool {
        let at = self.number_of(endpoint);
        if at < self.from || at + 1 >= self.endpoints.len() {
            return false;
        }
        tracing::debug!(server = %authority(&endpoint.base), %error, "asking the next server for the rest");
        if error.server_down() {
            self.client.leave_alone(&self.endpoints, at);
        }
        (self.from, self.failures, self.pace) = (at + 1, 0, Pace::default());
        self.client.0.wire.stats.retry();
        true
    }

    /// Counts a failure and asks the mirrors at rest; where they do not have it either, waits, or gives up. A try that brought something is none in a row: how long such
    /// ones may go on is a matter of the pace.
    async fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let client = self.client.clone();
        let policy = &client.0.config.retry;
        self.open = None;
        let (position, since) = self.failed_at;
        let mut late = false;
        if self.failures == 0 || self.position > position {
            self.failures = 0;
            self.failed_at = (self.position, Instant::now());
        } else {
            late = since.elapsed() > policy.total;
        }
        self.failures += 1;
        self.slow += u32::from(matches!(error, RegistryError::TimedOut { what: TRICKLES, .. }));
        // Before any pause: they may be well again.
        if self.slow < SLOW_WINDOWS && self.failures <= SPARED {
            self.open = Box::pin(self.spared(&error)).await;
            if self.open.is_some() {
                return Ok(());
            }
        }
        let down = self.endpoints.iter().all(|endpoint| endpoint.health.is_down());
        let enough = self.failures >= policy.attempts(&error) || self.slow >= SLOW_WINDOWS || down || late;
        if !error.retryable() || enough {
            return Err(error);
        }
        let pause = policy.pause(self.failures, error.retry_after());
        client.0.wire.stats.retry();
        tokio::time::sleep(pause).await;
        self.waited(pause)
    }

    /// What mirrors at rest give where all others have failed. The registry is asked anew beside one that hangs.
    async fn spared(&self, error: &RegistryError) -> Option<Open> {
        if matches!(error, RegistryError::RangesIgnored { .. }) {
            return None;
        }
        let asked = self.endpoints.get(self.from..).unwrap_or_default();
        let spares = self.client.honest_spares(&self.repo, &self.digest, asked);
        if spares.is_empty() {
            return None;
        }
        let (at, beside) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let first = self.ask_of(&spares, 0, &at);
        let second = self.ask(self.endpoints.len(), &beside);
        match self.client.with_second(&self.patience, first, second).await.ok()? {
            Came::First(open) => Some(open),
            Came::Second(open) => {
                if let Some(silent) = spares.get(at.load(Relaxed)) {
                    silent.rest_until(Instant::now() + self.client.0.config.mirror_rest);
                }
                Some(open)
            }
        }
    }

    /// Counts time in which nothing came.
    fn waited(&mut self, time: Duration) -> Result<(), RegistryError> {
        let limits = &self.client.0.config.timeouts;
        if !self.pace.is_trickle(time, 0, limits) {
            return Ok(());
        }
        self.slow += 1;
        let (doing, host, limit) = (self.doing.clone(), self.repo.host.clone(), limits.window);
        match self.slow < SLOW_WINDOWS {
            true => Ok(()),
            false => Err(RegistryError::TimedOut { doing, host, what: TRICKLES, limit }),
        }
    }

    /// Asks for what is missing, of each server in turn, until one promises some of it.
    async fn reopen(&mut self) -> Result<(), RegistryError> {
        loop {
            let since = Instant::now();
            let at = &self.patience.at;
            // It begins later, and goes on behind where the first one hangs.
            let second = async { Box::pin(self.beside(at.load(Relaxed), false)).await };
            match self.client.with_second(&self.patience, self.ask(self.from, at), second).await {
                Ok(came) => {
                    self.open = Some(match came {
                        Came::First(open) => open,
                        Came::Second(open) => {
                            self.client.leave_alone(&self.endpoints, at.load(Relaxed));
                            open
                        }
                    });
                    return self.waited(since.elapsed());
                }
                Err(error) => self.failed(error).await?,
            }
            if self.open.is_some() {
                return Ok(());
            }
        }
    }

    /// What is given beside the silent server of this number: by those after it, the last in any case, or by mirrors at rest. Of one that fell silent
    /// `midway` a body that it begins anew tells little: these come first.
    async fn beside(&self, at: usize, midway: bool) -> Result<Open, RegistryError> {
        let asked = self.endpoints.get(self.from..).unwrap_or_default();
        let spares = self.client.honest_spares(&self.repo, &self.digest, asked);
        let (one, tried) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (others, spared) = (self.ask(at + 1, &one), self.ask_of(&spares, 0, &tried));
        let alone = at + 1 >= self.endpoints.len();
        let order = match midway && alone {
            true => (self.client.0.config.timeouts.second, true),
            false => (self.client.patience_behind(&self.endpoints, at), false),
        };
        self.client.or_spared(order, others, &spares, spared, &tried).await
    }

    /// Asks the servers from number `from` on, the last one in any case; `at`: which of them it is at.
    async fn ask(&self, from: usize, at: &AtomicUsize) -> Result<Open, RegistryError> {
        self.ask_of(&self.endpoints, from, at).await
    }

    async fn ask_of(
        &self,
        endpoints: &[Arc<Endpoint>],
        from: usize,
        at: &AtomicUsize,
    ) -> Result<Open, RegistryError> {
        let path = format!("blobs/{}", self.digest);
        let mut ask = Ask::get(self.doing.clone(), &self.repo, Need::Pull, path);
        ask.blob = Some(self.digest);
        let wanted = format!("bytes={}-{}", self.position, self.end - 1);
        let bad =
            |what: String, host: String| RegistryError::BadAnswer { doing: self.doing.clone(), host, what };
        let value =
            HeaderValue::from_str(&wanted).map_err(|_| bad("no range".to_owned(), self.repo.host.clone()))?;
        ask.headers.insert(RANGE, value);
        let mut turn = self.client.turn_from(endpoints, from);
        loop {
            at.store(turn.at(), Relaxed);
            let endpoint = turn.endpoint();
            let opened = if endpoint.ignores_ranges() && self.position >= CHEAP_SKIP {
                Err(self.ignored(authority(&endpoint.base)))
            } else {
                // Retries are counted in `failed`, together with bodies that break.
                let response = self.client.ask(endpoint, &ask, false).await;
                response.and_then(|response| self.opened(&turn.shared(), response))
            };
            match opened {
                Ok(open) => {
                    endpoint.serves(&self.digest);
                    return Ok(open);
                }
                Err(error) => turn.next(error)?,
            }
        }
    }

    fn ignored(&self, host: String) -> RegistryError {
        RegistryError::RangesIgnored { doing: self.doing.clone(), host }
    }

    /// Judges the header of a response: which of the bytes we want will it bring, and where?
    fn opened(&self, from: &Arc<Endpoint>, response: Response) -> Result<Open, RegistryError> {
        let (endpoint, since) = (Arc::clone(from), Instant::now());
        let host = authority(response.url());
        let bad =
            |what: String| RegistryError::BadAnswer { doing: self.doing.clone(), host: host.clone(), what };
        let missing = self.end - self.position;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let header = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let Some((first, last)) = header.and_then(content_range) else {
                return Err(bad("a part without saying which (no valid Content-Range)".to_owned()));
            };
            if first != self.position || last >= self.end || last < first {
                return Err(bad(format!("bytes {first}-{last} of the blob instead")));
            }
            return Ok(Open { response, endpoint, since, skip: 0, promised: last - first + 1 });
        }
        if response.status() != StatusCode::OK {
            return Err(bad(format!("status {} to a request for a part", response.status())));
        }
        let length = response.content_length();
        if length.is_some_and(|length| length < self.end) {
            return Err(bad("a blob that is shorter than expected".to_owned()));
        }
        // A whole blob in answer to the wish for the whole blob tells nothing about ranges.
        if self.position != 0 || length != Some(self.end) {
            endpoint.ranges_ignored.store(true, Relaxed);
        }
        if self.position >= CHEAP_SKIP {
            return Err(self.ignored(host));
        }
        Ok(Open { response, endpoint, since, skip: self.position, promised: missing })
    }
}

impl Open {
    /// The part of `chunk` that belongs to the range, if any.
    fn cut(&mut self, mut chunk: Bytes) -> Option<Bytes> {
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        let mut piece = chunk.split_off(skipped as usize);
        piece.truncate(self.promised.min(piece.len() as u64) as usize);
        self.promised -= piece.len() as u64;
        (!piece.is_empty()).then_some(piece)
    }
}

/// The size in `bytes 0-9/100`.
fn total(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes ")?.split_once('/')?.1.trim().parse().ok()
}

/// First and last byte of `bytes 0-9/100` (RFC 9110 section 14.4).
fn content_range(value: &str) -> Option<(u64, u64)> {
    let (range, _total) = value.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}
