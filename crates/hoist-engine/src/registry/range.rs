//! A part of a blob, exactly: what a server sends short, long, elsewhere or not at all is cut,
//! asked for again from where it stopped, or refused (`open`: by whom it is sent, and what of it).

mod open;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use hoist_format::digest::Digest;

use self::open::Open;
use super::Client;
use super::error::RegistryError;
use super::layout::LayoutRange;
use super::second::{Came, Patience};
use super::send::Endpoint;
use super::wire::{Pace, TRICKLES, authority};
use crate::reference::Repo;

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
}
