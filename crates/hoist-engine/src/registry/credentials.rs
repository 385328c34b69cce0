//! What opens registries, and who knows it.

use std::fmt;

use futures_util::future::BoxFuture;

use super::secret::Secret;
use crate::reference::Repo;

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

/// Somebody who knows credentials. Several may know different ones for one repository.
pub trait CredentialSource: fmt::Debug + Send + Sync {
    /// The best it has for `repo` at `host` (a mirror has its own) that is not among those that were refused. What
    /// it had kept is asked for anew before it gives up.
    ///
    /// # Errors
    /// Why it, which should know, does not: without a word of what it knows.
    fn find<'a>(
        &'a self,
        host: &'a str,
        repo: &'a Repo,
        refused: &'a [Credentials],
    ) -> BoxFuture<'a, Result<Option<Credentials>, String>>;
}
