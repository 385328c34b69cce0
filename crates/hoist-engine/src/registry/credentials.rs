//! User names and passwords as Docker and podman keep them: `config.json` and `auth.json`, which may
//! name credential helpers to be asked.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

use super::error::RegistryError;
use super::helper;
use super::secret::Secret;
use crate::reference::{DOCKER_HUB, Repo};

/// Key under which Docker itself keeps the credentials of Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
const HELPER_LIMIT: Duration = Duration::from_secs(30);
const MAX_CONFIG: u64 = 4 << 20;

/// What opens a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User name and password.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: Secret,
    },
    /// An OAuth2 refresh token, traded for access tokens.
    IdentityToken(Secret),
    /// A bearer token used as it is.
    RegistryToken(Secret),
}

/// Where credentials are looked up.
#[derive(Debug, Clone)]
pub struct CredentialStore {
    /// Credentials by host, asked first.
    pub fixed: HashMap<String, Credentials>,
    /// Files in the format of Docker's config.json; those that do not exist are passed over.
    pub files: Vec<PathBuf>,
    /// How long a credential helper may take: it may have to ask a person, or a server of its own.
    pub helper_limit: Duration,
    /// Where helpers are looked for, if not on this process's PATH.
    pub helper_path: Option<OsString>,
}

impl Default for CredentialStore {
    fn default() -> Self {
        Self { fixed: HashMap::new(), files: Vec::new(), helper_limit: HELPER_LIMIT, helper_path: None }
    }
}

impl CredentialStore {
    /// The files Docker and podman would read: `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG` or
    /// `~/.docker`, `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json`.
    pub fn from_environment() -> Self {
        let dir = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = dir("HOME");
        let docker = dir("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
        let config = dir("XDG_CONFIG_HOME").or_else(|| home.map(|home| home.join(".config")));
        let podman = |dir: PathBuf| dir.join("containers/auth.json");
        let files = [
            dir("REGISTRY_AUTH_FILE"),
            docker.map(|dir| dir.join("config.json")),
            dir("XDG_RUNTIME_DIR").map(podman),
            config.map(podman),
        ];
        Self { files: files.into_iter().flatten().collect(), ..Self::default() }
    }

    /// The credentials for `repo` at `host` (a mirror has its own).
    ///
    /// # Errors
    /// `Config` when a file or a helper that should know fails.
    pub(super) async fn find(&self, host: &str, repo: &Repo) -> Result<Option<Credentials>, RegistryError> {
        if let Some(known) = self.fixed.get(host) {
            return Ok(Some(known.clone()));
        }
        for file in &self.files {
            let fail = |what: String| RegistryError::Config {
                doing: format!("reading credentials for {host}"),
                what: format!("{}: {what}", file.display()),
            };
            let Some(config) = read(file).await.map_err(fail)? else { continue };
            if let Some(found) = config.find(self, host, &repo.name).await.map_err(fail)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

async fn read(file: &Path) -> Result<Option<ConfigFile>, String> {
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
    // serde's message may quote the file, and the file holds secrets: give the place only.
    let place =
        |error: serde_json::Error| format!("not valid at line {}, column {}", error.line(), error.column());
    serde_json::from_slice(&text).map(Some).map_err(place)
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: HashMap<String, AuthEntry>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl ConfigFile {
    async fn find(
        &self,
        store: &CredentialStore,
        host: &str,
        name: &str,
    ) -> Result<Option<Credentials>, String> {
        let hub = host == DOCKER_HUB;
        let helper = self.cred_helpers.iter().find(|(key, _)| is_key_of(key, host)).map(|(_, name)| name);
        if let Some(helper) = helper.or(self.creds_store.as_ref()).filter(|name| !name.is_empty()) {
            let server = if hub { DOCKER_HUB_KEY } else { host };
            if let Some(found) = helper::ask(store, helper, server).await? {
                return Ok(Some(found));
            }
        }
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
fn is_key_of(key: &str, host: &str) -> bool {
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

impl AuthEntry {
    fn credentials(&self, key: &str) -> Result<Option<Credentials>, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic { user: user.into(), password: Secret::new(password) })
    }

    #[tokio::test]
    async fn keys_of_docker_and_podman() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // dXNlcjpwYTpzcw== is user:pa:ss
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dXNlcjpwYTpzcw=="},
            "a.example:5000": {"username": "u", "password": "p"},
            "a.example:5000/team/app": {"username": "team", "password": "t"},
            "b.example": {"identitytoken": "refresh"},
            "c.example": {}
        }}"#;
        std::fs::write(file.path(), text).unwrap();
        let files = vec!["/nonexistent/config.json".into(), file.path().to_owned()];
        let store = CredentialStore { files, ..Default::default() };
        let find = async |host: &str, name: &str| {
            let repo = Repo { host: host.into(), name: name.into() };
            store.find(host, &repo).await.unwrap()
        };
        assert_eq!(find("docker.io", "library/debian").await, basic("user", "pa:ss"));
        assert_eq!(find("a.example:5000", "x").await, basic("u", "p"));
        assert_eq!(find("a.example:5000", "team/app/web").await, basic("team", "t"));
        assert_eq!(find("a.example:5000", "team/app2").await, basic("u", "p"));
        assert_eq!(find("a.example", "x").await, None);
        assert_eq!(find("b.example", "x").await, Some(Credentials::IdentityToken(Secret::new("refresh"))));
        assert_eq!(find("c.example", "x").await, None);
    }

    #[tokio::test]
    async fn errors_and_debug_show_no_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"auths": {"a": {"auth": "hunter2!"}, "b": {"auth": hunter2}}}"#)
            .unwrap();
        let store = CredentialStore { files: vec![file.path().to_owned()], ..Default::default() };
        let repo = Repo { host: "a".into(), name: "x".into() };
        let error = store.find("a", &repo).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        std::fs::write(file.path(), r#"{"auths": {"a": {"auth": "hunter2!"}}}"#).unwrap();
        let error = store.find("a", &repo).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        assert!(!format!("{:?}", basic("u", "hunter2")).contains("hunter2"));
    }
}
