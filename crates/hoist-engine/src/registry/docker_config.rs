//! User names and passwords as Docker and podman keep them: `config.json` and `auth.json`, which may
//! name credential helpers to be asked.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

use super::credentials::Credentials;
use super::helper::Helpers;
use super::secret::Secret;
use crate::reference::DOCKER_HUB;

/// Key under which Docker itself keeps the credentials of Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
const MAX_CONFIG: u64 = 4 << 20;

/// The file of one user.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DockerConfig {
    auths: HashMap<String, Login>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

/// What opens a registry, as `auths` has it and as the container runtime interface does.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Login {
    /// Base64 of `user:password`.
    pub auth: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// OAuth2 refresh token.
    pub identitytoken: Option<String>,
    /// Bearer token.
    pub registrytoken: Option<String>,
    /// The registry it is for; None: the one it stands beside.
    pub serveraddress: Option<String>,
}

impl DockerConfig {
    /// None if there is no file, or nothing in it.
    pub(super) async fn read(file: &Path) -> Result<Option<DockerConfig>, String> {
        let open = match tokio::fs::File::open(file).await {
            Ok(open) => open,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let mut text = Vec::new();
        open.take(MAX_CONFIG).read_to_end(&mut text).await.map_err(|error| error.to_string())?;
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        DockerConfig::parse(&text).map(Some)
    }

    pub(super) fn parse(text: &[u8]) -> Result<DockerConfig, String> {
        // serde's message may quote the text, and the text holds secrets: give the place only.
        let place = |error: serde_json::Error| {
            format!("not valid at line {}, column {}", error.line(), error.column())
        };
        serde_json::from_slice(text).map_err(place)
    }

    /// What it has for the repository `name` at `host`, a helper's word first.
    pub(super) async fn find(
        &self,
        helpers: &Helpers<'_>,
        host: &str,
        name: &str,
    ) -> Result<Option<Credentials>, String> {
        let hub = host == DOCKER_HUB;
        let helper = self.cred_helpers.iter().find(|(key, _)| is_key_of(key, host)).map(|(_, name)| name);
        if let Some(helper) = helper.or(self.creds_store.as_ref()).filter(|name| !name.is_empty()) {
            let server = if hub { DOCKER_HUB_KEY } else { host };
            if let Some(found) = helpers.ask(helper, server).await? {
                return Ok(Some(found));
            }
        }
        self.own(host, name)
    }

    /// What stands in it.
    pub(super) fn own(&self, host: &str, name: &str) -> Result<Option<Credentials>, String> {
        // podman's keys may name a part of the registry: the longest match wins.
        let mut key = format!("{host}/{name}");
        while key.len() > host.len() {
            if let Some(entry) = self.auths.get(&key) {
                return entry.credentials(&key);
            }
            key.truncate(key.rfind('/').unwrap_or(host.len()));
        }
        match self.auths.iter().find(|(key, _)| is_key_of(key, host)) {
            Some((key, entry)) => entry.credentials(key),
            None => Ok(None),
        }
    }
}

/// Whether `key` (a host, or a URL as Docker once wrote them) stands for the whole of `host`.
pub(super) fn is_key_of(key: &str, host: &str) -> bool {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let (name, path) = match bare.unwrap_or(key).split_once('/') {
        Some((name, path)) => (name, path.trim_end_matches('/')),
        None => (bare.unwrap_or(key), ""),
    };
    let same = match host {
        DOCKER_HUB => matches!(name, "docker.io" | "index.docker.io" | "registry-1.docker.io"),
        host => name == host,
    };
    same && matches!(path, "" | "v1" | "v2")
}

impl Login {
    /// None of an empty one. `key` is what it is for, in the words of an error.
    ///
    /// # Errors
    /// It can't be read; nothing of it is told.
    pub fn credentials(&self, key: &str) -> Result<Option<Credentials>, String> {
        let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = set(&self.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(Secret::new(token))));
        }
        if let Some(token) = set(&self.registrytoken) {
            return Ok(Some(Credentials::RegistryToken(Secret::new(token))));
        }
        if let Some(auth) = set(&self.auth) {
            let bad = || format!("the auth of {key} is not base64 of user:password; log in again");
            let plain = BASE64.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let plain = plain.ok_or_else(bad)?;
            let (user, password) = plain.split_once(':').ok_or_else(bad)?;
            let password = Secret::new(password.trim_end_matches('\0'));
            return Ok(Some(Credentials::Basic { user: user.to_owned(), password }));
        }
        let pair = set(&self.username).zip(self.password.clone());
        Ok(pair.map(|(user, password)| Credentials::Basic { user, password: Secret::new(password) }))
    }
}
