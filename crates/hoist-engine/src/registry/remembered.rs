//! Credentials that somebody gave for one pull, kept in memory alone for the reads that come after it: this process's, and
//! where there is one a file in memory that its successor reads.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, io};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::credentials::{CredentialSource, Credentials};
use super::docker_config::{Login, is_key_of};
use super::secret::Secret;
use crate::reference::{Reference, Repo};

/// Repositories' credentials that are kept, and those of one repository: different users' for one.
const MAX_KEPT: usize = 1024;
const MAX_OF_ONE: usize = 4;
/// Bytes of the file that are read.
const MAX_FILE: u64 = 64 << 20;

/// See the module. They count for the repository they were given for and no other, as the registry may not know who
/// asks for the next.
#[derive(Default)]
pub struct Remembered {
    kept: Mutex<Kept>,
    memory: Option<Arc<File>>,
}

/// The newest first.
type Kept = VecDeque<(Repo, Credentials)>;

/// What stands in the file for one.
#[derive(Serialize, Deserialize)]
struct Written {
    host: String,
    name: String,
    user: Option<String>,
    password: Option<String>,
    identity_token: Option<String>,
    registry_token: Option<String>,
}

impl Written {
    fn of((repo, credentials): &(Repo, Credentials)) -> Written {
        let mut written = Written {
            host: repo.host.clone(),
            name: repo.name.clone(),
            user: None,
            password: None,
            identity_token: None,
            registry_token: None,
        };
        let told = |secret: &Secret| Some(secret.expose().to_owned());
        match credentials {
            Credentials::Basic { user, password } => {
                (written.user, written.password) = (Some(user.clone()), told(password));
            }
            Credentials::IdentityToken(token) => written.identity_token = told(token),
            Credentials::RegistryToken(token) => written.registry_token = told(token),
        }
        written
    }

    fn read(self) -> Option<(Repo, Credentials)> {
        let credentials = match (self.user.zip(self.password), self.identity_token, self.registry_token) {
            (Some((user, password)), ..) => Credentials::Basic { user, password: Secret::new(password) },
            (None, Some(token), _) => Credentials::IdentityToken(Secret::new(token)),
            (None, None, Some(token)) => Credentials::RegistryToken(Secret::new(token)),
            (None, None, None) => return None,
        };
        Some((Repo { host: self.host, name: self.name }, credentials))
    }
}

impl Remembered {
    /// With what stands in a file in memory, which is to have what comes too.
    ///
    /// # Errors
    /// The file can't be read. What is no such file counts as empty.
    pub fn in_memory(file: Arc<File>) -> io::Result<Remembered> {
        let mut text = vec![0; usize::try_from(file.metadata()?.len().min(MAX_FILE)).unwrap_or(0)];
        file.read_exact_at(&mut text, 0)?;
        let written: Vec<Written> = serde_json::from_slice(&text).unwrap_or_default();
        let kept = written.into_iter().take(MAX_KEPT).filter_map(Written::read).collect();
        Ok(Remembered { kept: Mutex::new(kept), memory: Some(file) })
    }

    /// A successor may read it at any moment: what is cut short is empty to it.
    fn write(&self, kept: &Kept) {
        let Some(file) = &self.memory else { return };
        let written: Vec<_> = kept.iter().map(Written::of).collect();
        let text = serde_json::to_vec(&written).unwrap_or_default();
        if let Err(error) = file.set_len(0).and_then(|()| file.write_all_at(&text, 0)) {
            tracing::warn!("a successor of this process will not know what pulls were given: {error}");
        }
    }

    /// Keeps what was given for an image, if it is for its registry.
    ///
    /// # Errors
    /// It can't be read; nothing of it is told.
    pub fn keep(&self, image: &Reference, login: &Login) -> Result<(), String> {
        let server = login.serveraddress.as_deref().filter(|server| !server.is_empty());
        if server.is_some_and(|server| !is_key_of(server, &image.repo.host)) {
            return Ok(());
        }
        if let Some(credentials) = login.credentials(&image.repo.to_string())? {
            self.keep_for(image, credentials);
        }
        Ok(())
    }

    fn keep_for(&self, image: &Reference, credentials: Credentials) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let new = (image.repo.clone(), credentials);
        kept.retain(|old| *old != new);
        kept.push_front(new);
        let mut of_this = 0;
        kept.retain(|(repo, _)| {
            of_this += usize::from(*repo == image.repo);
            *repo != image.repo || of_this <= MAX_OF_ONE
        });
        kept.truncate(MAX_KEPT);
        self.write(&kept);
    }
}

impl CredentialSource for Remembered {
    fn find<'a>(
        &'a self,
        host: &'a str,
        repo: &'a Repo,
        refused: &'a [Credentials],
    ) -> BoxFuture<'a, Result<Option<Credentials>, String>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // They were given for the registry, not for a mirror of it.
        let of_repo = kept.iter().filter(|(of, _)| host == repo.host && of == repo);
        let found = of_repo.map(|(_, known)| known).find(|known| !refused.contains(known)).cloned();
        Box::pin(std::future::ready(Ok(found)))
    }
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Remembered").field("kept", &kept.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_successor_knows_what_the_one_before_was_given() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let image: Reference = "r.io/app:1".parse().unwrap();
        let secret = || Secret::new("hunter2");
        let all = [
            Credentials::Basic { user: "someone".into(), password: secret() },
            Credentials::IdentityToken(secret()),
            Credentials::RegistryToken(secret()),
        ];
        let first = Remembered::in_memory(Arc::clone(&file)).unwrap();
        all.iter().for_each(|one| first.keep_for(&image, one.clone()));
        let second = Remembered::in_memory(Arc::clone(&file)).unwrap();
        let mut refused = Vec::new();
        while let Some(found) = second.find("r.io", &image.repo, &refused).await.unwrap() {
            refused.push(found);
        }
        refused.reverse();
        assert_eq!(refused, all);
        file.set_len(20).unwrap();
        let damaged = Remembered::in_memory(file).unwrap();
        assert_eq!(damaged.find("r.io", &image.repo, &[]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_newest_of_a_repository_first_and_bounded() {
        let remembered = Remembered::default();
        let basic = |user: &str| Credentials::Basic { user: user.into(), password: Secret::new("hunter2") };
        for user in ["a", "b", "c", "d", "e", "b"] {
            remembered.keep_for(&"r.io/team/app:1".parse().unwrap(), basic(user));
        }
        let of = async |host: &str, name: &str, refused: &[Credentials]| {
            let repo = Repo { host: "r.io".into(), name: name.into() };
            remembered.find(host, &repo, refused).await.unwrap()
        };
        assert_eq!(of("r.io", "team/app", &[]).await, Some(basic("b")));
        assert_eq!(of("r.io", "team/app", &[basic("b")]).await, Some(basic("e")));
        let refused = [basic("b"), basic("e"), basic("d"), basic("c")];
        assert_eq!(of("r.io", "team/app", &refused).await, None);
        assert_eq!(of("r.io", "team/other", &[]).await, None);
        assert_eq!(of("mirror.io", "team/app", &[]).await, None);
        for i in 0..MAX_KEPT {
            remembered.keep_for(&format!("r.io/app{i}").parse().unwrap(), basic("x"));
        }
        assert_eq!(of("r.io", "team/app", &[]).await, None);
        assert_eq!(format!("{remembered:?}"), "Remembered { kept: 1024 }");
        let login = |server: &str| Login {
            username: Some("of server".into()),
            password: Some("hunter2".into()),
            serveraddress: Some(server.into()),
            ..Login::default()
        };
        for (server, kept) in [("other.io", None), ("https://r.io/v2/", Some("of server"))] {
            remembered.keep(&"r.io/mine".parse().unwrap(), &login(server)).unwrap();
            assert_eq!(of("r.io", "mine", &[]).await, kept.map(basic));
        }
    }
}
