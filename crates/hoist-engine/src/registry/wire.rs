//! One HTTP exchange: counted, timed, bounded, its failures told without URLs (which may be signed).

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use reqwest::{Request, Response};

use super::certificate;
use super::config::Timeouts;
use super::date;
use super::error::{RegistryError, cause};
use super::limit::within;
use super::stats::Stats;
use super::tls::Http;

/// Slowest upload that is waited for, in bytes per second.
const SLOWEST_UPLOAD: u64 = 64 << 10;
/// What a server did not do that is too slow.
pub(super) const TRICKLES: &str = "send more than a trickle";

pub(super) struct Wire {
    pub stats: Arc<Stats>,
    pub timeouts: Timeouts,
}

/// How a body comes, in however many responses; only the time that was spent waiting for it counts.
#[derive(Default)]
pub(super) struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Counts what was waited for; true at the end of a window in which too little came.
    pub(super) fn is_trickle(&mut self, waited: Duration, bytes: usize, limits: &Timeouts) -> bool {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < limits.window {
            return false;
        }
        std::mem::take(self).bytes < limits.least()
    }
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
        let secure = request.url().scheme() == "https";
        let body = request.body().and_then(|body| body.as_bytes()).map_or(0, <[u8]>::len);
        let limit = self.timeouts.first_byte + Duration::from_secs(body as u64 / SLOWEST_UPLOAD);
        self.stats.request(&host);
        match within(limit, client.execute(request)).await.0 {
            Some(Ok(response)) => Ok(response),
            Some(Err(error)) => {
                let established = secure && !error.is_connect();
                Err(match self.failure(error, doing, host) {
                    // A server refuses a missing certificate after the handshake, and its word may be lost
                    // when the connection breaks.
                    RegistryError::Unreachable { doing, host, detail, nobody } if established => {
                        let advice = certificate::client_advice(&host);
                        let detail =
                            format!("{detail}; if it wants a client certificate, or another, {advice}");
                        RegistryError::Unreachable { doing, host, detail, nobody }
                    }
                    other => other,
                })
            }
            None => Err(RegistryError::TimedOut { doing: doing.to_owned(), host, what: "answer", limit }),
        }
    }

    /// The next piece of a body.
    pub(super) async fn chunk(
        &self,
        response: &mut Response,
        pace: &mut Pace,
        doing: &str,
    ) -> Result<Option<Bytes>, RegistryError> {
        let limit = self.timeouts.idle;
        let (next, waited) = within(limit, response.chunk()).await;
        let host = || authority(response.url());
        let late =
            |what, limit| RegistryError::TimedOut { doing: doing.to_owned(), host: host(), what, limit };
        match next {
            Some(Ok(chunk)) => {
                let length = chunk.as_ref().map_or(0, Bytes::len);
                // What a server says of its troubles is nothing that it served.
                let host = response.status().is_success().then(|| authority(response.url()));
                self.stats.received(host.as_deref(), length);
                if pace.is_trickle(waited, length, &self.timeouts) && chunk.is_some() {
                    return Err(late(TRICKLES, self.timeouts.window));
                }
                Ok(chunk)
            }
            Some(Err(error)) => Err(self.failure(error, doing, host())),
            None => Err(late("send more", limit)),
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
        let (mut all, mut pace) = (BytesMut::new(), Pace::default());
        while let Some(chunk) = self.chunk(response, &mut pace, doing).await? {
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
        if let Some((detail, advice)) = certificate::trouble(&error, &host) {
            return RegistryError::Tls { doing, host, detail, advice };
        }
        if let Some(what) = no_http(&error) {
            return RegistryError::BadAnswer { doing, host, what };
        }
        let nobody = error.is_connect();
        RegistryError::Unreachable { doing, host, detail: cause(error), nobody }
    }
}

/// What is wrong with an answer that is none of HTTP's.
fn no_http(error: &reqwest::Error) -> Option<String> {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<hyper::Error>().filter(|error| error.is_parse()) {
            return Some(format!("what is no HTTP answer ({error})"));
        }
        cause = inner.source();
    }
    None
}

/// `host[:port]` of a URL.
pub(super) fn authority(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// `Retry-After` in its two forms: seconds, or the date from which on to come back. That is taken by
/// the server's own clock where it tells it, as ours may be wrong.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let wish = text(RETRY_AFTER)?;
    if !wish.is_empty() && wish.bytes().all(|c| c.is_ascii_digit()) {
        // More than fits is long enough to be bounded by who waits.
        return Some(Duration::from_secs(wish.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let now = text(DATE).and_then(date::http).unwrap_or_else(date::now);
    Some(Duration::from_secs(date::http(wish)?.saturating_sub(now)))
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
    let text = redacted(&texts.collect::<Vec<_>>().join("; "));
    Some(text.chars().filter(|c| !c.is_control()).take(300).collect())
}

/// How a body begins that is not what it should be, fit for a terminal.
pub(super) fn beginning(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(400)]);
    let words: Vec<_> = text.split_whitespace().collect();
    let text: String = redacted(&words.join(" ")).chars().filter(|c| !c.is_control()).take(80).collect();
    match text.is_empty() {
        true => format!("{} bytes", body.len()),
        false => format!("{} bytes, beginning {text:?}", body.len()),
    }
}

/// A server may say what it was sent: no credential of ours goes on to a terminal or log.
fn redacted(text: &str) -> String {
    let mut secret = false;
    let words = text.split(' ').map(|word| {
        let told = if secret { "***" } else { word };
        secret = ["basic", "bearer"].iter().any(|scheme| {
            word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).eq_ignore_ascii_case(scheme)
        });
        told
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_echoes_of_credentials_is_not_said() {
        let said =
            words(br#"{"errors":[{"code":"DENIED","message":"you sent 'Basic dTpw' and Bearer abc"}]}"#);
        assert_eq!(said.unwrap(), "DENIED you sent 'Basic *** and Bearer ***");
    }

    #[test]
    fn retry_after_in_seconds_and_as_a_date() {
        let wish = |pairs: &[(&'static str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| {
                (reqwest::header::HeaderName::from_static(name), value.parse().unwrap())
            });
            retry_after(&pairs.collect()).map(|wish| wish.as_secs())
        };
        assert_eq!(wish(&[("retry-after", "120")]), Some(120));
        assert_eq!(wish(&[("retry-after", " 0 ")]), Some(0));
        assert_eq!(wish(&[("retry-after", "99999999999999999999999")]), Some(4_294_967_295));
        let at = ("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT");
        assert_eq!(wish(&[at, ("date", "Fri, 31 Dec 1999 23:58:59 GMT")]), Some(60));
        assert_eq!(wish(&[at]), Some(0), "long past by our clock");
        assert!(wish(&[("retry-after", "Thu, 31 Dec 2099 23:59:59 GMT")]).is_some_and(|s| s > 1_000_000));
        for nonsense in ["", "-1", "1.5", "soon", "0x10"] {
            assert_eq!(wish(&[("retry-after", nonsense)]), None, "{nonsense}");
        }
        assert_eq!(wish(&[]), None);
    }
}
