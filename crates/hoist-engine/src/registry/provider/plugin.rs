//! One plugin asked once (credentialprovider.kubelet.k8s.io/v1): a request on stdin, an answer on stdout.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use super::config::{self, Provider};
use crate::registry::credentials::Credentials;
use crate::registry::pattern::Pattern;
use crate::registry::program;
use crate::registry::secret::Secret;

/// What a plugin said.
pub(super) struct Answer {
    pub key_kind: KeyKind,
    /// How long it counts; None: it did not say.
    pub life: Option<Duration>,
    /// The closest pattern first.
    known: Vec<(Pattern, Credentials)>,
}

/// For what an answer counts.
#[derive(Deserialize, Clone, Copy)]
pub(super) enum KeyKind {
    Image,
    Registry,
    Global,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    cache_key_type: KeyKind,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Login {
    username: String,
    password: String,
}

pub(super) async fn run(
    programs: &Path,
    provider: &Provider,
    image: &str,
    limit: Duration,
) -> Result<Answer, String> {
    let name = &provider.name;
    let request = serde_json::json!({
        "apiVersion": provider.version,
        "kind": "CredentialProviderRequest",
        "image": image,
    });
    let mut command = Command::new(programs.join(name));
    command.args(&provider.arguments).envs(provider.environment.iter().map(|(name, value)| (name, value)));
    let ran = match program::run(command, request.to_string().as_bytes(), limit).await {
        None => return Err(format!("the credential provider {name} gave no answer within {limit:?}")),
        Some(Err(error)) => return Err(format!("cannot run the credential provider {name}: {error}")),
        Some(Ok(ran)) => ran,
    };
    if !ran.status.success() {
        return Err(format!("the credential provider {name} failed ({}), saying: {}", ran.status, ran.why()));
    }
    // serde's words may quote what holds a secret.
    let response = serde_json::from_slice(&ran.stdout).map_err(|_| {
        format!("the credential provider {name} gave no CredentialProviderResponse for {image}")
    })?;
    answer(response).ok_or_else(|| {
        format!("the credential provider {name} gave an answer of another kind, or of no valid cacheDuration")
    })
}

fn answer(response: Response) -> Option<Answer> {
    if response.kind != "CredentialProviderResponse" {
        return None;
    }
    let life = match response.cache_duration {
        Some(text) => Some(config::duration(&text)?),
        None => None,
    };
    // As the kubelet does: the last by name, which is the longest of those that begin alike, is the first.
    let auth = response.auth.unwrap_or_default().into_iter().rev();
    let known = auth.map(|(pattern, Login { username, password })| {
        let password = Secret::new(password);
        (Pattern::parse(&pattern), Credentials::Basic { user: username, password })
    });
    Some(Answer { key_kind: response.cache_key_type, life, known: known.collect() })
}

impl Answer {
    /// What of it is for this image, and was not refused.
    pub(super) fn choose(&self, image: &str, refused: &[Credentials]) -> Option<Credentials> {
        let of_image =
            self.known.iter().filter(|(pattern, _)| pattern.matches(image)).map(|(_, known)| known);
        of_image.into_iter().find(|known| !refused.contains(known)).cloned()
    }
}
