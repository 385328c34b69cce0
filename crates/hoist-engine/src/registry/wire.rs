//! One HTTP exchange: counted, timed, bounded, its failures told without URLs (which may be signed).

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Request, Response};

use super::config::Timeouts;
use super::error::RegistryError;
use super::stats::Stats;
use super::tls::Http;

/// Slowest upload that is waited for, in bytes per second.
const SLOWEST_UPLOAD: u64 = 64 << 10;

pub(super) struct Wire {
    pub stats: Arc<Stats>,
    pub timeouts: Timeouts,
}

impl Wire {
    /// Sends `request` and waits for the header of its response.
    pub(super) async fn send(
        &self,
        http: &Http,
        request: Request,
        doing: &str,
    ) -> Result<Response, RegistryError> {
        let host = authority(request.url());
        let client = http.client(request.url()).map_err(|what| RegistryError::Config {
            doing: format!("{doing}: connecting to {host}"),
            what,
        })?;
        let body = request.body().and_then(|body| body.as_bytes()).map_or(0, <[u8]>::len);
        let limit = self.timeouts.first_byte + Duration::from_secs(body as u64 / SLOWEST_UPLOAD);
        self.stats.request();
        match tokio::time::timeout(limit, client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.failure(error, doing, host)),
            Err(_) => Err(RegistryError::TimedOut { doing: doing.to_owned(), host, what: "answer", limit }),
        }
    }

    /// The next piece of a body.
    pub(super) async fn chunk(
        &self,
        response: &mut Response,
        doing: &str,
    ) -> Result<Option<Bytes>, RegistryError> {
        let limit = self.timeouts.idle;
        let next = tokio::time::timeout(limit, response.chunk()).await;
        let host = || authority(response.url());
        match next {
            Ok(Ok(chunk)) => {
                self.stats.received(chunk.as_ref().map_or(0, Bytes::len));
                Ok(chunk)
            }
            Ok(Err(error)) => Err(self.failure(error, doing, host())),
            Err(_) => Err(RegistryError::TimedOut {
                doing: doing.to_owned(),
                host: host(),
                what: "send more",
                limit,
            }),
        }
    }

    /// The whole body, of at most `limit` bytes.
    pub(super) async fn read(
        &self,
        response: &mut Response,
        limit: u64,
        doing: &str,
    ) -> Result<Bytes, RegistryError> {
        let too_long = |response: &Response| RegistryError::BadAnswer {
            doing: doing.to_owned(),
            host: authority(response.url()),
            what: format!("more than the {limit} bytes expected"),
        };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_long(response));
        }
        let mut all = BytesMut::new();
        while let Some(chunk) = self.chunk(response, doing).await? {
            if (all.len() + chunk.len()) as u64 > limit {
                return Err(too_long(response));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }

    /// The error that a response of failing status stands for; reads what it says.
    pub(super) async fn status_error(&self, mut response: Response, doing: &str) -> RegistryError {
        let host = authority(response.url());
        let doing = doing.to_owned();
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        let body = self.read(&mut response, 64 << 10, &doing).await.unwrap_or_default();
        let detail = words(&body)
            .unwrap_or_else(|| response.status().canonical_reason().unwrap_or("without a reason").to_owned());
        match status {
            404 => RegistryError::NotFound { doing, host },
            401 | 403 => RegistryError::Unauthorized { doing, host, detail: format!("{status}: {detail}") },
            _ => RegistryError::Status { doing, host, status, detail, retry_after },
        }
    }

    fn failure(&self, error: reqwest::Error, doing: &str, host: String) -> RegistryError {
        let doing = doing.to_owned();
        if error.is_timeout() {
            let limit = self.timeouts.connect;
            return RegistryError::TimedOut { doing, host, what: "accept a connection", limit };
        }
        // The innermost cause is the one a user can act on ("connection refused").
        let error = error.without_url();
        let mut detail = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            detail = inner.to_string();
            cause = inner.source();
        }
        RegistryError::Unreachable { doing, host, detail }
    }
}

/// `host[:port]` of a URL.
pub(super) fn authority(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// `Retry-After` in seconds; its date form is rare and stands for "unknown".
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The messages of an OCI error body (distribution-spec v1.1 "Error Codes"), fit for a terminal.
fn words(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let texts = errors.errors.iter().take(3).map(|entry| format!("{} {}", entry.code, entry.message));
    let text = texts.collect::<Vec<_>>().join("; ");
    Some(text.chars().filter(|c| !c.is_control()).take(300).collect())
}
