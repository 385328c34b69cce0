//! Kubernetes' pull secrets (of type `kubernetes.io/dockerconfigjson`): what a cluster keeps for its pods'
//! registries, listed from its API server when it is needed. All that the account may list are used, whichever
//! namespace they are in.

mod access;

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::sync::Mutex;

use self::access::Access;
pub use self::access::Cluster;
use super::credentials::{CredentialSource, Credentials};
use super::docker_config::DockerConfig;
use crate::reference::Repo;

/// What was listed this long ago is listed anew before it is used, and before it is said that there is nothing.
const FRESH: Duration = Duration::from_secs(60);
const AT_LEAST: Duration = Duration::from_secs(5);
/// Secrets of a page, pages, and bytes of one: a secret has at most a megabyte.
const PAGE: usize = 20;
const MAX_PAGES: usize = 100;
const MAX_BYTES: usize = 32 << 20;
/// The key of a secret of this type (Kubernetes' core/v1 types.go, `DockerConfigJsonKey`).
const KEY: &str = ".dockerconfigjson";

/// Those of one cluster.
pub struct PullSecrets {
    access: Access,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    since: Option<Instant>,
    all: Vec<DockerConfig>,
}

impl Kept {
    fn is_older(&self, than: Duration) -> bool {
        self.since.is_none_or(|since| since.elapsed() > than)
    }

    fn find(&self, host: &str, repo: &Repo, refused: &[Credentials]) -> Option<Credentials> {
        let known = self.all.iter().filter_map(|one| one.own(host, &repo.name).ok().flatten());
        known.into_iter().find(|known| !refused.contains(known))
    }
}

impl PullSecrets {
    /// Those of this cluster; asks for nothing yet.
    ///
    /// # Errors
    /// How to reach it is not said, or wrongly.
    pub fn of(cluster: &Cluster) -> Result<PullSecrets, String> {
        Ok(PullSecrets { access: Access::of(cluster)?, kept: Mutex::default() })
    }

    async fn ask(
        &self,
        host: &str,
        repo: &Repo,
        refused: &[Credentials],
    ) -> Result<Option<Credentials>, String> {
        let mut kept = self.kept.lock().await;
        let mut failure = None;
        for age in [FRESH, AT_LEAST] {
            if kept.is_older(age) && failure.is_none() {
                // A server that does not answer is not asked by every read.
                kept.since = Some(Instant::now());
                match self.list().await {
                    Ok(all) => kept.all = all,
                    Err(what) => failure = Some(what),
                }
            }
            if let Some(found) = kept.find(host, repo, refused) {
                return Ok(Some(found));
            }
        }
        failure.map_or(Ok(None), Err)
    }

    async fn list(&self) -> Result<Vec<DockerConfig>, String> {
        let (mut all, mut next) = (Vec::new(), String::new());
        for _ in 0..MAX_PAGES {
            let mut query = vec![
                ("fieldSelector", "type=kubernetes.io/dockerconfigjson".to_owned()),
                ("limit", PAGE.to_string()),
            ];
            if !next.is_empty() {
                query.push(("continue", next));
            }
            let body = self.access.get("/api/v1/secrets", &query, MAX_BYTES).await?;
            let page: Page = serde_json::from_slice(&body)
                .map_err(|_| format!("{} sent no list of secrets", self.access.server()))?;
            all.extend(page.items.iter().filter_map(Secret::config));
            next = page.metadata.next.unwrap_or_default();
            if next.is_empty() {
                break;
            }
        }
        Ok(all)
    }
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(default)]
    items: Vec<Secret>,
}

#[derive(Deserialize, Default)]
struct PageMetadata {
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Secret {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    data: HashMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
}

impl Secret {
    /// One that is damaged keeps no other from counting.
    fn config(&self) -> Option<DockerConfig> {
        let text = BASE64.decode(self.data.get(KEY)?).map_err(|_| "it is no base64".to_owned());
        let config = text.and_then(|text| DockerConfig::parse(&text));
        let Metadata { name, namespace } = &self.metadata;
        config.map_err(|what| tracing::warn!(name, namespace, "a pull secret is not used: {what}")).ok()
    }
}

impl CredentialSource for PullSecrets {
    fn find<'a>(
        &'a self,
        host: &'a str,
        repo: &'a Repo,
        refused: &'a [Credentials],
    ) -> BoxFuture<'a, Result<Option<Credentials>, String>> {
        Box::pin(self.ask(host, repo, refused))
    }
}

impl fmt::Debug for PullSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullSecrets").field("server", &self.access.server()).finish_non_exhaustive()
    }
}
