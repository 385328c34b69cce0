//! Credentials from the kubelet's credential provider plugins: programs that the node has for its cloud's
//! registries. They are run as the kubelet runs them (Kubernetes' kubelet.config.k8s.io/v1
//! `CredentialProviderConfig`), and what they say is kept as long as they say.

mod config;
mod plugin;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use self::config::Provider;
use self::plugin::{Answer, KeyKind};
use super::credentials::{CredentialSource, Credentials};
use crate::reference::Repo;

/// How long a plugin may take, as in the kubelet.
const LIMIT: Duration = Duration::from_secs(60);
/// Answers that are kept of one plugin.
const MAX_KEPT: usize = 1024;

/// The plugins of a node.
pub struct Providers {
    programs: PathBuf,
    all: Vec<(Provider, Mutex<Kept>)>,
}

/// What a plugin has said lately. Locked while it is asked: it is asked once however many wait.
#[derive(Default)]
struct Kept(HashMap<Key, (Answer, Instant)>);

/// For what an answer counts.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Image(String),
    Registry(String),
    Global,
}

impl Providers {
    /// Those of a `CredentialProviderConfig` file, whose programs are in a folder.
    ///
    /// # Errors
    /// What is wrong in the file, and what is allowed.
    pub fn read(file: &Path, programs: &Path) -> Result<Providers, String> {
        let text = std::fs::read_to_string(file).map_err(|e| format!("reading {}: {e}", file.display()))?;
        let all = config::parse(&text).map_err(|what| format!("{}: {what}", file.display()))?;
        for provider in &all {
            let program = programs.join(&provider.name);
            if !program.is_file() {
                return Err(format!(
                    "{}: provider {} has no program: there is no {}",
                    file.display(),
                    provider.name,
                    program.display()
                ));
            }
        }
        let all = all.into_iter().map(|provider| (provider, Mutex::default())).collect();
        Ok(Providers { programs: programs.to_owned(), all })
    }

    /// The first that one of them has for this image.
    async fn ask(
        &self,
        host: &str,
        image: &str,
        refused: &[Credentials],
    ) -> Result<Option<Credentials>, String> {
        let mut failure = None;
        for (provider, kept) in &self.all {
            if !provider.match_images.iter().any(|pattern| pattern.matches(image)) {
                continue;
            }
            let mut kept = kept.lock().await;
            let known = kept.get(host, image).and_then(|answer| answer.choose(image, refused));
            if known.is_some() {
                return Ok(known);
            }
            match plugin::run(&self.programs, provider, image, LIMIT).await {
                Ok(answer) => {
                    let chosen = answer.choose(image, refused);
                    kept.keep(provider, host, image, answer);
                    if chosen.is_some() {
                        return Ok(chosen);
                    }
                }
                Err(what) => failure = failure.or(Some(what)),
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

impl Kept {
    fn get(&self, host: &str, image: &str) -> Option<&Answer> {
        let keys = [Key::Image(image.to_owned()), Key::Registry(host.to_owned()), Key::Global];
        let mut answers = keys.iter().filter_map(|key| self.0.get(key));
        answers.find(|(_, until)| Instant::now() < *until).map(|(answer, _)| answer)
    }

    fn keep(&mut self, provider: &Provider, host: &str, image: &str, answer: Answer) {
        let life = answer.life.unwrap_or(provider.default_life);
        let now = Instant::now();
        let Some(until) = now.checked_add(life).filter(|_| !life.is_zero()) else { return };
        let key = match answer.key_kind {
            KeyKind::Image => Key::Image(image.to_owned()),
            KeyKind::Registry => Key::Registry(host.to_owned()),
            KeyKind::Global => Key::Global,
        };
        self.0.retain(|_, (_, until)| now < *until);
        if self.0.len() >= MAX_KEPT {
            self.0.clear();
        }
        self.0.insert(key, (answer, until));
    }
}

impl CredentialSource for Providers {
    fn find<'a>(
        &'a self,
        host: &'a str,
        repo: &'a Repo,
        refused: &'a [Credentials],
    ) -> BoxFuture<'a, Result<Option<Credentials>, String>> {
        Box::pin(async move { self.ask(host, &format!("{host}/{}", repo.name), refused).await })
    }
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.all.iter().map(|(provider, _)| &provider.name).collect();
        f.debug_struct("Providers").field("names", &names).finish_non_exhaustive()
    }
}
