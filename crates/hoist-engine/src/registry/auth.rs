//! Who we are to a server: nothing, basic, or a bearer token (distribution's token and OAuth2
//! specs). Tokens are kept per server and scope, renewed before they expire, and fetched once
//! however many requests wait for them. A header made here goes to the origin it was made for only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, Request, Url};
use serde::Deserialize;

use super::challenge::{Challenge, challenges};
use super::credentials::{CredentialStore, Credentials};
use super::error::RegistryError;
use super::hosts::is_loopback;
use super::tls::Http;
use super::wire::{Wire, authority};
use crate::reference::Repo;

/// Life of a token that tells none (distribution `token.md`).
const DEFAULT_LIFE: u64 = 60;
/// A token is given up this long before it expires, so that it does not expire on the way.
const MARGIN: Duration = Duration::from_secs(5);

/// For whom and for what a header is made.
pub(super) struct Purpose<'a> {
    pub base: &'a Url,
    /// Host under which the credentials are kept.
    pub host: &'a str,
    pub repo: &'a Repo,
    pub push: bool,
}

/// An `Authorization` header and the version of the slot it came from.
pub(super) struct Ticket {
    pub header: Option<HeaderValue>,
    pub generation: u64,
}

#[derive(Default)]
struct Slot {
    generation: u64,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Unknown,
    Fixed(HeaderValue),
    Bearer {
        service: BearerService,
        token: HeaderValue,
        expires: Instant,
    },
}

#[derive(Clone)]
struct BearerService {
    realm: Url,
    service: Option<String>,
    scope: String,
}

type Key = (String, String);

pub(super) struct Auth {
    store: CredentialStore,
    slots: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Slot>>>>,
}

impl Auth {
    pub(super) fn new(store: CredentialStore) -> Self {
        Self { store, slots: Mutex::default() }
    }

    fn slot(&self, purpose: &Purpose<'_>) -> Arc<tokio::sync::Mutex<Slot>> {
        let key = (purpose.base.origin().ascii_serialization(), purpose.scope());
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(key).or_default().clone()
    }

    /// The header to try first: what worked last, renewed if it is about to expire.
    pub(super) async fn ticket(
        &self,
        wire: &Wire,
        http: &Http,
        purpose: &Purpose<'_>,
    ) -> Result<Ticket, RegistryError> {
        let slot = self.slot(purpose);
        let mut slot = slot.lock().await;
        if let State::Bearer { service, expires, .. } = &slot.state
            && *expires <= Instant::now()
        {
            let service = service.clone();
            let credentials = self.store.find(purpose.host, purpose.repo).await?;
            slot.state = fetch_token(wire, http, purpose, service, credentials).await?;
            slot.generation += 1;
        }
        let header = match &slot.state {
            State::Unknown => None,
            State::Fixed(header) | State::Bearer { token: header, .. } => Some(header.clone()),
        };
        Ok(Ticket { header, generation: slot.generation })
    }

    /// Meets the challenge of a 401 to a request with the ticket `generation`. False when somebody
    /// else has done so meanwhile and the newer ticket is worth a try of its own.
    ///
    /// # Errors
    /// `Unauthorized` when there is nothing (left) to offer.
    pub(super) async fn renew(
        &self,
        wire: &Wire,
        http: &Http,
        purpose: &Purpose<'_>,
        generation: u64,
        response: &reqwest::Response,
    ) -> Result<bool, RegistryError> {
        let slot = self.slot(purpose);
        let mut slot = slot.lock().await;
        if slot.generation != generation {
            return Ok(false);
        }
        let refuse = |detail: &str| RegistryError::Unauthorized {
            doing: purpose.doing(),
            host: purpose.host.to_owned(),
            detail: detail.to_owned(),
        };
        let credentials = self.store.find(purpose.host, purpose.repo).await?;
        let offered = challenges(response.headers());
        let bearer = offered.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        slot.state = match (bearer, credentials) {
            (Some(_), Some(Credentials::RegistryToken(token))) => State::Fixed(
                sensitive(&format!("Bearer {}", token.expose())).ok_or_else(|| refuse("bad token"))?,
            ),
            (Some((realm, service, scope)), credentials) => {
                let service = BearerService {
                    realm: realm_url(realm, purpose).map_err(|what| refuse(&what))?,
                    service: service.clone(),
                    scope: scope.clone().unwrap_or_else(|| purpose.scope()),
                };
                fetch_token(wire, http, purpose, service, credentials).await?
            }
            (None, Some(Credentials::Basic { user, password })) if offered.contains(&Challenge::Basic) => {
                State::Fixed(basic(&user, password.expose()).ok_or_else(|| refuse("bad password"))?)
            }
            (None, None) => return Err(refuse("no credentials for it are known here")),
            (None, Some(_)) => return Err(refuse("it takes none of the known kinds of credentials")),
        };
        slot.generation += 1;
        Ok(true)
    }
}

impl Purpose<'_> {
    fn scope(&self) -> String {
        let actions = if self.push { "pull,push" } else { "pull" };
        format!("repository:{}:{actions}", self.repo.name)
    }
    fn doing(&self) -> String {
        let actions = if self.push { "push to" } else { "read" };
        format!("getting access to {actions} {}", self.repo)
    }
}

/// The realm gets the registry's credentials, so it must be as well protected as the registry.
fn realm_url(realm: &str, purpose: &Purpose<'_>) -> Result<Url, String> {
    let url: Url = realm.parse().map_err(|_| "its token service has no valid URL".to_owned())?;
    let safe = match url.scheme() {
        "https" => true,
        "http" => purpose.base.scheme() == "http" || url.host_str().is_some_and(is_loopback),
        _ => false,
    };
    if safe { Ok(url) } else { Err("its token service is not protected by https".to_owned()) }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {pair}"))
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

async fn fetch_token(
    wire: &Wire,
    http: &Http,
    purpose: &Purpose<'_>,
    service: BearerService,
    credentials: Option<Credentials>,
) -> Result<State, RegistryError> {
    let doing = purpose.doing();
    let request = token_request(&service, credentials.as_ref());
    let mut response = wire.send(http, request, &doing).await?;
    if !response.status().is_success() {
        return Err(wire.status_error(response, &doing).await);
    }
    let body = wire.read(&mut response, 1 << 20, &doing).await?;
    let bad = || RegistryError::BadAnswer {
        doing: doing.clone(),
        host: authority(&service.realm),
        what: "no token where one was asked for".to_owned(),
    };
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| bad())?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token).ok_or_else(bad)?;
    let token = sensitive(&format!("Bearer {token}")).ok_or_else(bad)?;
    // A day at most: a server's huge number must not overflow the clock.
    let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).min(86_400));
    let expires = Instant::now() + life.saturating_sub(MARGIN.min(life / 4));
    Ok(State::Bearer { service, token, expires })
}

fn token_request(service: &BearerService, credentials: Option<&Credentials>) -> Request {
    let named = service.service.as_deref();
    // Several scopes stand in one string, parted by spaces, and go out as one parameter each.
    let scopes = || service.scope.split(' ').filter(|scope| !scope.is_empty());
    let mut url = service.realm.clone();
    if let Some(Credentials::IdentityToken(token)) = credentials {
        let mut form = Url::parse("form:").unwrap_or_else(|_| url.clone());
        form.query_pairs_mut()
            .clear()
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", "hoist")
            .append_pair("refresh_token", token.expose())
            .append_pair("scope", &service.scope)
            .extend_pairs(named.map(|named| ("service", named)));
        let mut request = Request::new(Method::POST, url);
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(reqwest::header::CONTENT_TYPE, kind);
        *request.body_mut() = Some(form.query().unwrap_or_default().to_owned().into());
        return request;
    }
    url.query_pairs_mut()
        .extend_pairs(named.map(|named| ("service", named)))
        .extend_pairs(scopes().map(|scope| ("scope", scope)));
    let mut request = Request::new(Method::GET, url);
    if let Some(Credentials::Basic { user, password }) = credentials
        && let Some(value) = basic(user, password.expose())
    {
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    request
}
