//! User names and passwords as Docker and podman keep them: `config.json` and `auth.json`, with
//! credential helpers run as processes (docker/docker-credential-helpers protocol).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::error::RegistryError;
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
#[derive(Debug, Clone, Default)]
pub struct CredentialStore {
    /// Credentials by host, asked first.
    pub fixed: HashMap<String, Credentials>,
    /// Files in the format of Docker's config.json; those that do not exist are passed over.
    pub files: Vec<PathBuf>,
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
        Self { fixed: HashMap::new(), files: files.into_iter().flatten().collect() }
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
            if let Some(found) = config.find(host, &repo.name).await.map_err(fail)? {
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
    async fn find(&self, host: &str, name: &str) -> Result<Option<Credentials>, String> {
        let hub = host == DOCKER_HUB;
        let helper = self.cred_helpers.iter().find(|(key, _)| is_key_of(key, host)).map(|(_, name)| name);
        if let Some(helper) = helper.or(self.creds_store.as_ref()).filter(|name| !name.is_empty()) {
            let server = if hub { DOCKER_HUB_KEY } else { host };
            if let Some(found) = ask_helper(helper, server).await? {
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

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

async fn ask_helper(name: &str, server: &str) -> Result<Option<Credentials>, String> {
    if !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c)) {
        return Err(format!("{name:?} is no name of a credential helper"));
    }
    let program = format!("docker-credential-{name}");
    let run = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that answers without reading is no failure.
            let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(1 << 20).read_to_end(&mut answer).await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, answer))
    };
    let (status, answer) = match tokio::time::timeout(HELPER_LIMIT, run).await {
        Err(_) => return Err(format!("{program} gave no answer within {HELPER_LIMIT:?}")),
        Ok(Err(error)) => return Err(format!("cannot run {program}: {error}; install it or edit the file")),
        Ok(Ok(done)) => done,
    };
    if !status.success() {
        // The helpers' one way to say "none" is this sentence.
        if String::from_utf8_lossy(&answer).contains("credentials not found") {
            return Ok(None);
        }
        return Err(format!("{program} failed ({status}); run `{program} get` by hand to see why"));
    }
    let HelperAnswer { user, secret } =
        serde_json::from_slice(&answer).map_err(|_| format!("{program} gave no valid answer"))?;
    let secret = Secret::new(secret);
    Ok(Some(match user.as_str() {
        "<token>" => Credentials::IdentityToken(secret),
        _ => Credentials::Basic { user, password: secret },
    }))
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

    #[test]
    fn helper_names_cannot_be_paths() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(ask_helper("../../bin/sh", "a")).is_err());
    }
}
