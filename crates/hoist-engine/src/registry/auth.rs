//! Who we are to a server: nothing, basic, or a bearer token (distribution's token and OAuth2
//! specs). Tokens are kept per server and scope, renewed before they expire, and fetched once
//! however many requests wait for them. A header made here goes to the origin it was made for only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue};
use reqwest::{Method, Request, Url};
use serde::Deserialize;

use super::challenge::{Challenge, challenges};
use super::credential_store::CredentialStore;
use super::credentials::Credentials;
use super::date;
use super::error::RegistryError;
use super::hosts::is_loopback;
use super::secret::Secret;
use super::tls::Http;
use super::wire::{Wire, authority};
use crate::reference::Repo;

/// Life of a token that tells none (distribution `token.md`).
const DEFAULT_LIFE: u64 = 60;
/// A token is given up this long before it expires, so that it does not expire on the way.
const MARGIN: Duration = Duration::from_secs(5);
/// Credentials that are tried for one repository before all count as refused.
const MAX_REFUSED: usize = 8;

/// What came of a refusal.
#[derive(PartialEq, Eq)]
pub(super) enum Renewal {
    /// A new ticket was made for it.
    Made,
    /// Somebody else had made one meanwhile; it is worth a try of its own.
    Newer,
    /// There was no token that could have expired.
    Nothing,
}

/// For whom and for what a header is made.
pub(super) struct Purpose<'a> {
    pub base: &'a Url,
    /// Host under which the credentials are kept.
    pub host: &'a str,
    pub repo: &'a Repo,
    pub push: bool,
}

/// A refused request.
pub(super) struct Refusal<'a> {
    /// Of the ticket it had.
    pub generation: u64,
    pub response: &'a reqwest::Response,
    /// It had been refused before, and had a new ticket since.
    pub again: bool,
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
    /// What the state was made of.
    used: Option<Credentials>,
    /// What was refused since all were tried last.
    refused: Vec<Credentials>,
}

impl Slot {
    fn hold(&mut self, state: State, made_of: Option<Credentials>) {
        (self.state, self.used) = (state, made_of);
        self.generation += 1;
    }
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
            self.acquire(wire, http, purpose, service, &mut slot, true).await?;
        }
        let header = match &slot.state {
            State::Unknown => None,
            State::Fixed(header) | State::Bearer { token: header, .. } => Some(header.clone()),
        };
        Ok(Ticket { header, generation: slot.generation })
    }

    /// Meets a 401, or a 403 that may be the word for an expired token, to a request with the
    /// ticket `generation`. If the request was refused `again`, the token was new: then what it was made of
    /// does not open the repository, but something else that is known may.
    ///
    /// # Errors
    /// `Unauthorized` when there is nothing to offer to a 401.
    pub(super) async fn renew(
        &self,
        wire: &Wire,
        http: &Http,
        purpose: &Purpose<'_>,
        refusal: &Refusal<'_>,
    ) -> Result<Renewal, RegistryError> {
        let slot = self.slot(purpose);
        let mut slot = slot.lock().await;
        if slot.generation != refusal.generation {
            return Ok(Renewal::Newer);
        }
        let refuse = |detail: &str| RegistryError::Unauthorized {
            doing: purpose.doing(),
            host: purpose.host.to_owned(),
            detail: detail.to_owned(),
        };
        let offered = challenges(refusal.response.headers());
        let service = match offered.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. })) {
            Some(Challenge::Bearer { realm, service, scope }) => Some(BearerService {
                realm: realm_url(realm, purpose).map_err(|what| refuse(&what))?,
                service: service.clone(),
                scope: scope.clone().unwrap_or_else(|| purpose.scope()),
            }),
            // No word on where tokens come from: where the last one came from.
            _ => match &slot.state {
                State::Bearer { service, .. } => Some(service.clone()),
                State::Unknown | State::Fixed(_) => None,
            },
        };
        let is_fixed = matches!(slot.state, State::Fixed(_));
        // A token may have expired. A password, or a new token, says that others are to be tried.
        let spent = refusal.again || is_fixed;
        if spent {
            let used = slot.used.clone();
            slot.refused.extend(used);
        }
        let forbidden = refusal.response.status() == reqwest::StatusCode::FORBIDDEN;
        let takes_passwords = offered.contains(&Challenge::Basic) || is_fixed && forbidden;
        let made = match service {
            Some(service) => self.acquire(wire, http, purpose, service, &mut slot, !spent).await?,
            None if takes_passwords => self.log_in(purpose, &mut slot).await?,
            None if forbidden => false,
            None => return Err(refuse("it takes none of the known kinds of credentials")),
        };
        match made {
            true => Ok(Renewal::Made),
            // The server's own words are told.
            false if forbidden || slot.used.is_some() => Ok(Renewal::Nothing),
            false => Err(refuse("no credentials for it are known here")),
        }
    }

    /// A token for the first credentials that its service takes, or for none where none are known and that is worth
    /// a try. False if there is nothing left to try.
    async fn acquire(
        &self,
        wire: &Wire,
        http: &Http,
        purpose: &Purpose<'_>,
        service: BearerService,
        slot: &mut Slot,
        anonymously: bool,
    ) -> Result<bool, RegistryError> {
        let mut refusal = None;
        loop {
            let credentials = self.next(purpose, slot).await?;
            if credentials.is_none() && !(anonymously && slot.refused.is_empty()) {
                slot.refused.clear();
                return refusal.map_or(Ok(false), Err);
            }
            let made = match &credentials {
                Some(Credentials::RegistryToken(token)) => fixed_token(purpose, token),
                other => fetch_token(wire, http, purpose, service.clone(), other.as_ref()).await,
            };
            match made {
                Ok(state) => {
                    slot.hold(state, credentials);
                    return Ok(true);
                }
                Err(error) if error.is_unauthorized() && credentials.is_some() => {
                    slot.refused.extend(credentials);
                    refusal = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The first password that was not refused. False if there is none.
    async fn log_in(&self, purpose: &Purpose<'_>, slot: &mut Slot) -> Result<bool, RegistryError> {
        while let Some(credentials) = self.next(purpose, slot).await? {
            if let Credentials::Basic { user, password } = &credentials
                && let Some(header) = basic(user, password.expose())
            {
                slot.hold(State::Fixed(header), Some(credentials));
                return Ok(true);
            }
            slot.refused.push(credentials);
        }
        slot.refused.clear();
        Ok(false)
    }

    async fn next(&self, purpose: &Purpose<'_>, slot: &Slot) -> Result<Option<Credentials>, RegistryError> {
        match slot.refused.len() {
            0..MAX_REFUSED => self.store.find(purpose.host, purpose.repo, &slot.refused).await,
            _ => Ok(None),
        }
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

/// A header that no log shows.
pub(super) fn sensitive(text: &str) -> Option<HeaderValue> {
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
    issued_at: Option<String>,
}

impl TokenAnswer {
    /// How much longer the token is good: its life less its age, as services hand out the same
    /// one for a while. The age is taken by the service's own clock, as ours may be wrong; an age
    /// beyond the life means a wrong clock too.
    fn life(&self, headers: &HeaderMap) -> Duration {
        // A day at most: a server's huge number must not overflow the clock.
        let life = self.expires_in.unwrap_or(DEFAULT_LIFE).min(86_400);
        let date = headers.get(DATE).and_then(|date| date.to_str().ok()).and_then(date::http);
        let issued = self.issued_at.as_deref().and_then(date::rfc3339);
        let age = issued.map_or(0, |issued| date.unwrap_or_else(date::now).saturating_sub(issued));
        let left = Duration::from_secs(if age < life { life - age } else { life });
        left.saturating_sub(MARGIN.min(left / 4))
    }
}

/// A token that needs no service.
fn fixed_token(purpose: &Purpose<'_>, token: &Secret) -> Result<State, RegistryError> {
    let header = sensitive(&format!("Bearer {}", token.expose()));
    header.map(State::Fixed).ok_or_else(|| RegistryError::Unauthorized {
        doing: purpose.doing(),
        host: purpose.host.to_owned(),
        detail: "the token that is known for it is none that could be sent".to_owned(),
    })
}

async fn fetch_token(
    wire: &Wire,
    http: &Http,
    purpose: &Purpose<'_>,
    service: BearerService,
    credentials: Option<&Credentials>,
) -> Result<State, RegistryError> {
    let doing = purpose.doing();
    let request = token_request(&service, credentials);
    let mut response = wire.send(http, request, &doing).await?;
    if !response.status().is_success() {
        let refused = matches!(response.status().as_u16(), 400 | 401 | 403);
        return Err(match wire.status_error(response, &doing).await {
            RegistryError::Unauthorized { doing, host, detail }
            | RegistryError::Status { doing, host, detail, .. }
                if refused =>
            {
                // It is the registry that one logs in to, not its token service.
                let detail = format!("its token service {host} says {detail}");
                RegistryError::Unauthorized { doing, host: purpose.host.to_owned(), detail }
            }
            other => other,
        });
    }
    let headers = std::mem::take(response.headers_mut());
    let body = wire.read(&mut response, 1 << 20, &doing).await?;
    let bad = || RegistryError::BadAnswer {
        doing: doing.clone(),
        host: authority(&service.realm),
        what: "no token where one was asked for".to_owned(),
    };
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| bad())?;
    let expires = Instant::now() + answer.life(&headers);
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token).ok_or_else(bad)?;
    let token = sensitive(&format!("Bearer {token}")).ok_or_else(bad)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_token_counts() {
        let left = |life: Option<u64>, issued: Option<&str>, date: Option<&str>| {
            let issued_at = issued.map(|at| format!("2020-01-01T{at}Z"));
            let answer = TokenAnswer { token: None, access_token: None, expires_in: life, issued_at };
            let date = date.map(|at| (DATE, format!("Wed, 01 Jan 2020 {at} GMT").parse().unwrap()));
            answer.life(&date.into_iter().collect()).as_millis()
        };
        assert_eq!(left(Some(300), None, None), 295_000);
        assert_eq!(left(None, None, None), 55_000);
        assert_eq!(left(Some(0), None, None), 0);
        // By the service's clock: ours, years later, does not count.
        assert_eq!(left(Some(300), Some("00:56:00"), Some("01:00:00")), 55_000);
        assert_eq!(left(Some(300), Some("00:55:01"), Some("01:00:00")), 750);
        // Wrong clocks.
        assert_eq!(left(Some(300), Some("00:50:00"), Some("01:00:00")), 295_000);
        assert_eq!(left(Some(300), Some("02:00:00"), Some("01:00:00")), 295_000);
        assert_eq!(left(Some(300), Some("00:56:00"), None), 295_000);
        assert!(left(Some(u64::MAX), None, None) < 86_400_000);
    }
}
