//! Whom to ask for parts of a blob: nobody but the registry itself vouches for a part before it is verified, so whoever
//! has sent wrong ones is asked for that blob no more.

use std::sync::Arc;

use hoist_format::digest::Digest;

use super::Client;
use super::error::RegistryError;
use super::send::{Endpoint, Need};
use crate::reference::Repo;

impl Client {
    /// Says that parts of a blob were not what they should be. True if another server may have them
    /// right: those that served any are not asked for this blob again, except the registry itself.
    pub fn lied(&self, repo: &Repo, digest: &Digest) -> bool {
        let Ok(all) = self.honest(repo, digest) else { return false };
        let (last, mirrors) = all.split_last().map_or((None, &[][..]), |(last, rest)| (Some(last), rest));
        if let Some(last) = last {
            last.forget(&repo.name, digest);
        }
        let mut another = false;
        // One that rests may have served some as well.
        for mirror in mirrors.iter().chain(&self.honest_spares(repo, digest, &all)) {
            another |= mirror.condemn(digest);
        }
        another
    }

    /// The servers of a blob, without those that sent wrong parts of it.
    pub(super) fn honest(&self, repo: &Repo, digest: &Digest) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let mut all = self.endpoints(repo, Need::Pull)?;
        if let Some(last) = all.pop() {
            all.retain(|endpoint| !endpoint.is_condemned(digest));
            all.push(last);
        }
        Ok(all)
    }

    /// Those at rest, without those that sent wrong parts of it.
    pub(super) fn honest_spares(
        &self,
        repo: &Repo,
        digest: &Digest,
        asked: &[Arc<Endpoint>],
    ) -> Vec<Arc<Endpoint>> {
        let mut spares = self.spares(repo, Need::Pull, asked);
        spares.retain(|endpoint| !endpoint.is_condemned(digest));
        spares
    }

    /// Whether every server of `repo` is known to send whole blobs only.
    pub fn ranges_ignored(&self, repo: &Repo) -> bool {
        let endpoints = self.endpoints(repo, Need::Pull);
        endpoints.is_ok_and(|all| all.iter().all(|endpoint| endpoint.ignores_ranges()))
    }
}
