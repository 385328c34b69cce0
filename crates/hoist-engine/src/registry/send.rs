//! From a question to a response: mirrors in order, tokens, redirects, retries.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hoist_format::digest::Digest;
use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION};
use reqwest::{Method, Request, Response, Url};

use super::Client;
use super::auth::{Purpose, Refusal, Renewal};
use super::error::RegistryError;
use super::health::Health;
use super::hosts::{Capabilities, Upstream, upstreams};
use super::tls::Http;
use super::wire::authority;
use crate::reference::{DOCKER_HUB, DOCKER_HUB_API, Repo};

/// Redirects followed for one answer.
const MAX_HOPS: usize = 5;
/// Redirect URLs remembered per server; beyond that the oldest knowledge is dropped as a whole.
const MAX_REDIRECTS: usize = 4096;

/// One server that is asked for a registry's content.
pub(super) struct Endpoint {
    pub base: Url,
    pub http: Http,
    capabilities: Capabilities,
    headers: HeaderMap,
    /// The registry a mirror is asked for, sent as `?ns=`.
    namespace: Option<String>,
    /// Host under which its credentials are kept.
    credentials_host: String,
    rests_until: Mutex<Option<Instant>>,
    pub health: Health,
    redirects: Mutex<HashMap<(String, Digest), (Url, Instant)>>,
    /// Blobs of which it served parts, and whether these were found wrong.
    parts: Mutex<HashMap<Digest, bool>>,
    /// Set once the server sent a whole blob for a part of it.
    pub ranges_ignored: AtomicBool,
    /// 0 unknown, 1 has the referrers API, 2 has it not.
    pub referrers_api: AtomicU8,
}

/// What a request needs the server to be good for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Pull,
    Resolve,
    Push,
}

/// A question to a registry.
#[derive(Clone)]
pub(super) struct Ask<'a> {
    pub doing: String,
    pub repo: &'a Repo,
    pub need: Need,
    pub method: Method,
    /// Below `<base>/<name>/`; or a whole URL for upload sessions.
    pub path: Target,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
    /// Content whose redirect may be remembered.
    pub blob: Option<Digest>,
    /// Whoever asks can do without: a server that is not there is not waited for.
    pub brief: bool,
    /// Nobody waits longer for it: no pause is made that would end later.
    pub within: Duration,
    /// No digest says what comes: it must look like a manifest.
    pub named: bool,
}

#[derive(Clone)]
pub(super) enum Target {
    Path(String),
    Url(Url),
}

impl<'a> Ask<'a> {
    pub(super) fn get(doing: String, repo: &'a Repo, need: Need, path: String) -> Self {
        let path = Target::Path(path);
        let (headers, method) = (HeaderMap::new(), Method::GET);
        Self {
            doing,
            repo,
            need,
            method,
            path,
            headers,
            body: None,
            blob: None,
            brief: false,
            within: Duration::MAX,
            named: false,
        }
    }
}

impl Endpoint {
    fn new(upstream: Upstream, host: &str, client: &Client) -> Self {
        let own = authority(&upstream.base);
        let hub = |name: &str| if name == DOCKER_HUB_API { DOCKER_HUB.to_owned() } else { name.to_owned() };
        Self {
            http: Http::new(upstream.trust, &client.0.config.timeouts),
            capabilities: upstream.capabilities,
            headers: upstream.headers,
            namespace: (hub(&own) != host).then(|| host.to_owned()),
            credentials_host: hub(&own),
            base: upstream.base,
            rests_until: Mutex::default(),
            health: Health::new(client.0.config.down.clone()),
            redirects: Mutex::default(),
            parts: Mutex::default(),
            ranges_ignored: AtomicBool::new(false),
            referrers_api: AtomicU8::new(0),
        }
    }

    fn can(&self, need: Need) -> bool {
        match need {
            Need::Pull => self.capabilities.pull,
            Need::Resolve => self.capabilities.resolve,
            Need::Push => self.capabilities.push,
        }
    }

    fn rests(&self) -> bool {
        let until = *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn rest_until(&self, until: Instant) {
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    pub(super) fn url(&self, ask: &Ask<'_>) -> Result<Url, RegistryError> {
        let path = match &ask.path {
            Target::Url(url) => return Ok(url.clone()),
            Target::Path(path) => path,
        };
        let text = format!("{}/{}/{path}", self.base.as_str().trim_end_matches('/'), ask.repo.name);
        let mut url: Url = text.parse().map_err(|error| RegistryError::Config {
            doing: ask.doing.clone(),
            what: format!("the request has no valid URL: {error}"),
        })?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    fn redirect_of(&self, ask: &Ask<'_>) -> Option<Url> {
        let key = (ask.repo.name.clone(), ask.blob?);
        let mut known = self.redirects.lock().unwrap_or_else(PoisonError::into_inner);
        let (url, until) = known.get(&key)?;
        if Instant::now() < *until {
            return Some(url.clone());
        }
        known.remove(&key);
        None
    }

    fn remember_redirect(&self, ask: &Ask<'_>, to: Option<(Url, Instant)>) {
        let Some(digest) = ask.blob else { return };
        let key = (ask.repo.name.clone(), digest);
        let mut known = self.redirects.lock().unwrap_or_else(PoisonError::into_inner);
        match to {
            Some(to) => {
                if known.len() >= MAX_REDIRECTS {
                    known.clear();
                }
                known.insert(key, to);
            }
            None => {
                known.remove(&key);
            }
        }
    }
}

/// A response and how it was reached.
struct Reply {
    response: Response,
    generation: u64,
    /// It came from where the registry sent us, not from the registry.
    redirected: bool,
}

impl Client {
    /// The servers for `repo` that can do what is needed, those at rest left out unless all are.
    pub(super) fn endpoints(&self, repo: &Repo, need: Need) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let able = self.able(repo, need)?;
        let awake: Vec<_> = able.iter().filter(|endpoint| !endpoint.rests()).cloned().collect();
        Ok(if awake.is_empty() { able } else { awake })
    }

    /// Those that are asked where all of `asked` have failed: what is not among these, and what rests, for it may be well
    /// again. In the order of `hosts.toml`; none where a registry has no mirrors.
    pub(super) fn spares(&self, repo: &Repo, need: Need, asked: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
        let mut able = self.able(repo, need).unwrap_or_default();
        able.retain(|one| one.rests() || !asked.iter().any(|other| Arc::ptr_eq(one, other)));
        able
    }

    /// The servers for `repo` that can do what is needed, at rest or not; there is at least one.
    fn able(&self, repo: &Repo, need: Need) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let all = {
            let mut hosts = self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            match hosts.get(&repo.host) {
                Some(known) => known.clone(),
                None => {
                    let config = &self.0.config;
                    let found = upstreams(&repo.host, &config.certs_dirs, config.plain_http)?;
                    let made = found.into_iter().map(|one| Arc::new(Endpoint::new(one, &repo.host, self)));
                    let made: Arc<[_]> = made.collect();
                    hosts.insert(repo.host.clone(), made.clone());
                    made
                }
            }
        };
        let able: Vec<_> = all.iter().filter(|endpoint| endpoint.can(need)).cloned().collect();
        if able.is_empty() {
            return Err(RegistryError::Config {
                doing: format!("choosing a server for {repo}"),
                what: "hosts.toml allows this with none of its servers; add the capability".to_owned(),
            });
        }
        Ok(able)
    }

    /// Asks one server, stubbornly if it is the last hope, and gives a successful response.
    pub(super) async fn ask(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        last: bool,
    ) -> Result<Response, RegistryError> {
        let mut tries = self.tries(endpoint, last);
        loop {
            match self.ask_once(endpoint, ask).await {
                Ok(response) => return Ok(response),
                Err(error) => tries.again(error).await?,
            }
        }
    }

    /// One try, if the server is worth one.
    async fn ask_once(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Response, RegistryError> {
        let admission = endpoint.health.admit().map_err(|detail| RegistryError::Down {
            doing: ask.doing.clone(),
            host: authority(&endpoint.base),
            detail,
        })?;
        let answered = self.ask_admitted(endpoint, ask).await;
        admission.report(&answered, ask.method == Method::GET);
        answered.inspect_err(|error| self.0.wire.stats.trouble(error))
    }

    /// The same, but for what is no failure yet: a token to renew, a redirect that has expired.
    async fn ask_admitted(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Response, RegistryError> {
        let purpose = Purpose {
            base: &endpoint.base,
            host: &endpoint.credentials_host,
            repo: ask.repo,
            push: ask.need == Need::Push,
        };
        let (mut again, mut asked_anew) = (false, false);
        // Others may renew the token while we wait, and many may be refused: that must not go on for ever.
        for _ in 0..10 {
            let reply = self.follow(endpoint, ask, &purpose).await?;
            let status = reply.response.status();
            if status.is_success() {
                return Ok(reply.response);
            }
            let expired = matches!(status.as_u16(), 400 | 401 | 403 | 404 | 410);
            if reply.redirected {
                if expired && !asked_anew {
                    endpoint.remember_redirect(ask, None);
                    asked_anew = true;
                    self.0.wire.stats.retry();
                    continue;
                }
                return Err(self.elsewhere(endpoint, ask, reply.response).await);
            }
            // Several registries call an expired token forbidden, so 403 is given a new token too.
            if matches!(status.as_u16(), 401 | 403) {
                let (wire, http) = (&self.0.wire, &endpoint.http);
                let refusal = Refusal { generation: reply.generation, response: &reply.response, again };
                let renewal = self.0.auth.renew(wire, http, &purpose, &refusal).await?;
                if renewal != Renewal::Nothing {
                    again |= renewal == Renewal::Made;
                    wire.stats.retry();
                    continue;
                }
            }
            return Err(self.0.wire.status_error(reply.response, &ask.doing).await);
        }
        Err(RegistryError::BadAnswer {
            doing: ask.doing.clone(),
            host: authority(&endpoint.base),
            what: "a refusal of one token after another".to_owned(),
        })
    }

    /// A refusal from where the registry sent us: no login mends it.
    async fn elsewhere(&self, endpoint: &Endpoint, ask: &Ask<'_>, response: Response) -> RegistryError {
        let status = response.status().as_u16();
        match self.0.wire.status_error(response, &ask.doing).await {
            RegistryError::Unauthorized { doing, host, detail } => RegistryError::Status {
                doing,
                host,
                status,
                detail: format!("to the URL that {} redirects to ({detail})", authority(&endpoint.base)),
                retry_after: None,
            },
            other => other,
        }
    }

    /// Sends the question and follows redirects; the credentials stay with the endpoint's origin.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        purpose: &Purpose<'_>,
    ) -> Result<Reply, RegistryError> {
        let wire = &self.0.wire;
        let remembered = endpoint.redirect_of(ask);
        let mut redirected = remembered.is_some();
        let mut url = match remembered {
            Some(url) => url,
            None => endpoint.url(ask)?,
        };
        let mut generation = 0;
        for _ in 0..=MAX_HOPS {
            let mut request = Request::new(ask.method.clone(), url.clone());
            let at_home = url.origin() == endpoint.base.origin();
            if at_home {
                let ticket = self.0.auth.ticket(wire, &endpoint.http, purpose).await?;
                generation = ticket.generation;
                request.headers_mut().extend(endpoint.headers.clone());
                request.headers_mut().extend(ticket.header.map(|header| (AUTHORIZATION, header)));
            }
            request.headers_mut().extend(ask.headers.clone());
            *request.body_mut() = ask.body.clone().map(Into::into);
            let response = wire.send(&endpoint.http, request, &ask.doing).await?;
            let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            // What was sent with a body may be sent elsewhere only if the server says so plainly.
            let repeatable = ask.body.is_none() || matches!(response.status().as_u16(), 307 | 308);
            if !moved || !repeatable {
                if redirected && response.status().is_success() && !at_home {
                    let until = Instant::now() + self.0.config.redirect_life;
                    endpoint.remember_redirect(ask, Some((url, until)));
                }
                return Ok(Reply { response, generation, redirected: redirected && !at_home });
            }
            url = location(&response, &ask.doing)?;
            redirected = true;
        }
        Err(RegistryError::BadAnswer {
            doing: ask.doing.clone(),
            host: authority(&endpoint.base),
            what: format!("more than {MAX_HOPS} redirects"),
        })
    }
}

/// Where a response points to.
pub(super) fn location(response: &Response, doing: &str) -> Result<Url, RegistryError> {
    let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let url = target.and_then(|target| response.url().join(target).ok());
    url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host()).ok_or_else(|| {
        RegistryError::BadAnswer {
            doing: doing.to_owned(),
            host: authority(response.url()),
            what: "a redirect without a valid http or https Location".to_owned(),
        }
    })
}

impl Endpoint {
    /// Notes that it served parts of a blob.
    pub(super) fn serves(&self, digest: &Digest) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.len() >= MAX_REDIRECTS {
            // What is known to be wrong must not be forgotten for what is known to be served.
            parts.retain(|_, wrong| *wrong);
        }
        parts.entry(*digest).or_insert(false);
    }
    /// What it served of a blob was wrong; true if it served any.
    pub(super) fn condemn(&self, digest: &Digest) -> bool {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        match parts.get_mut(digest) {
            Some(wrong) => {
                *wrong = true;
                tracing::warn!(server = %authority(&self.base), %digest, "sent wrong bytes, asking another server");
                true
            }
            None => false,
        }
    }
    pub(super) fn is_condemned(&self, digest: &Digest) -> bool {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.get(digest).copied().unwrap_or(false)
    }
    /// Forgets where a blob was redirected to.
    pub(super) fn forget(&self, repo: &str, digest: &Digest) {
        let mut known = self.redirects.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&(repo.to_owned(), *digest));
    }
    /// Whether the server is known to send whole blobs only.
    pub(super) fn ignores_ranges(&self) -> bool {
        self.ranges_ignored.load(Relaxed)
    }
}
