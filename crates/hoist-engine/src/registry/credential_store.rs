//! Where credentials are looked up: those that were given, those who know, then the files of Docker and podman.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::credentials::{CredentialSource, Credentials};
use super::docker_config::DockerConfig;
use super::error::RegistryError;
use super::helper::Helpers;
use crate::reference::Repo;

const HELPER_LIMIT: Duration = Duration::from_secs(30);

/// Where credentials are looked up.
#[derive(Debug, Clone)]
pub struct CredentialStore {
    /// Credentials by host, asked first.
    pub fixed: HashMap<String, Credentials>,
    /// Asked next, in order.
    pub sources: Vec<Arc<dyn CredentialSource>>,
    /// Files in the format of Docker's config.json; those that do not exist are passed over.
    pub files: Vec<PathBuf>,
    /// How long a credential helper may take: it may have to ask a person, or a server of its own.
    pub helper_limit: Duration,
    /// Where helpers are looked for, if not on this process's PATH.
    pub helper_path: Option<OsString>,
}

impl Default for CredentialStore {
    fn default() -> Self {
        Self {
            fixed: HashMap::new(),
            sources: Vec::new(),
            files: Vec::new(),
            helper_limit: HELPER_LIMIT,
            helper_path: None,
        }
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

    /// The next credentials to try for `repo` at `host` (a mirror has its own). Who fails to tell keeps nobody else
    /// from telling.
    ///
    /// # Errors
    /// `Config` when nobody knows any and one who should know failed.
    pub(super) async fn find(
        &self,
        host: &str,
        repo: &Repo,
        refused: &[Credentials],
    ) -> Result<Option<Credentials>, RegistryError> {
        let new = |found: &Credentials| !refused.contains(found);
        if let Some(known) = self.fixed.get(host).filter(|known| new(known)) {
            return Ok(Some(known.clone()));
        }
        let mut failure = None;
        for source in &self.sources {
            match source.find(host, repo, refused).await {
                Ok(Some(found)) if new(&found) => return Ok(Some(found)),
                Ok(_) => {}
                Err(what) => note(&mut failure, what),
            }
        }
        for file in &self.files {
            match self.in_file(file, host, repo).await {
                Ok(Some(found)) if new(&found) => return Ok(Some(found)),
                Ok(_) => {}
                Err(what) => note(&mut failure, format!("{}: {what}", file.display())),
            }
        }
        let doing = format!("reading credentials for {host}");
        failure.map_or(Ok(None), |what| Err(RegistryError::Config { doing, what }))
    }

    fn helpers(&self) -> Helpers<'_> {
        Helpers { limit: self.helper_limit, path: self.helper_path.as_deref() }
    }

    async fn in_file(&self, file: &Path, host: &str, repo: &Repo) -> Result<Option<Credentials>, String> {
        match DockerConfig::read(file).await? {
            Some(config) => config.find(&self.helpers(), host, &repo.name).await,
            None => Ok(None),
        }
    }
}

/// The first failure is told by an error, if it matters; the others by the log.
fn note(failure: &mut Option<String>, what: String) {
    tracing::debug!("looking for credentials: {what}");
    failure.get_or_insert(what);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Secret;

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
            store.find(host, &repo, &[]).await.unwrap()
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
        let error = store.find("a", &repo, &[]).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        std::fs::write(file.path(), r#"{"auths": {"a": {"auth": "hunter2!"}}}"#).unwrap();
        let error = store.find("a", &repo, &[]).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        assert!(!format!("{:?}", basic("u", "hunter2")).contains("hunter2"));
    }
}
