//! Credentials that somebody gave for one pull, kept in memory alone for the reads that come after it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;

use super::credentials::{CredentialSource, Credentials};
use super::docker_config::{Login, is_key_of};
use crate::reference::{Reference, Repo};

/// Repositories' credentials that are kept, and those of one repository: different users' for one.
const MAX_KEPT: usize = 1024;
const MAX_OF_ONE: usize = 4;

/// See the module. They count for the repository they were given for and no other, as the registry may not know who
/// asks for the next.
#[derive(Default)]
pub struct Remembered {
    /// The newest first.
    kept: Mutex<VecDeque<(Repo, Credentials)>>,
}

impl Remembered {
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
    use super::super::secret::Secret;
    use super::*;

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
