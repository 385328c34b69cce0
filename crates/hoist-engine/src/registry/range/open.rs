//! Who gives bytes of a range, asked in turn, and whether what is answered is any of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};

use super::super::content_range;
use super::super::error::RegistryError;
use super::super::second::Came;
use super::super::send::{Ask, Endpoint, Need};
use super::super::wire::authority;
use super::HttpRange;

/// A part that starts before this is cut out of a whole blob when the server ignores ranges.
const CHEAP_SKIP: u64 = 4 << 20;

/// A response that brings bytes of a range.
pub(super) struct Open {
    pub response: Response,
    pub endpoint: Arc<Endpoint>,
    pub since: Instant,
    /// Bytes of the body that come before `position`.
    skip: u64,
    /// Bytes of the body after those that belong to the range.
    pub promised: u64,
}

impl HttpRange {
    /// What is given beside the silent server of this number: by those after it, the last in any case, or by mirrors at rest. Of one that fell silent
    /// `midway` a body that it begins anew tells little: these come first.
    pub(super) async fn beside(&self, at: usize, midway: bool) -> Result<Open, RegistryError> {
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
    pub(super) async fn ask(&self, from: usize, at: &AtomicUsize) -> Result<Open, RegistryError> {
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
            let Some((first, last)) = header.and_then(content_range::part) else {
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

    /// What mirrors at rest give where all others have failed. The registry is asked anew beside one that hangs.
    pub(super) async fn spared(&self, error: &RegistryError) -> Option<Open> {
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
}

impl Open {
    /// The part of `chunk` that belongs to the range, if any.
    pub(super) fn cut(&mut self, mut chunk: Bytes) -> Option<Bytes> {
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        let mut piece = chunk.split_off(skipped as usize);
        piece.truncate(self.promised.min(piece.len() as u64) as usize);
        self.promised -= piece.len() as u64;
        (!piece.is_empty()).then_some(piece)
    }
}
