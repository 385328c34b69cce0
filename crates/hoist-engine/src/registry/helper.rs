//! Credential helpers: programs that keep passwords elsewhere (docker/docker-credential-helpers
//! protocol). They are told the server's name.

use std::ffi::OsStr;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use super::credentials::Credentials;
use super::program;
use super::secret::Secret;

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username", default)]
    user: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// How helpers are run.
pub(super) struct Helpers<'a> {
    /// How long one may take: it may have to ask a person, or a server of its own.
    pub limit: Duration,
    /// Where they are looked for, if not on this process's PATH.
    pub path: Option<&'a OsStr>,
}

impl Helpers<'_> {
    /// What the helper `name` knows of `server`.
    pub(super) async fn ask(&self, name: &str, server: &str) -> Result<Option<Credentials>, String> {
        if !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c)) {
            return Err(format!("{name:?} is no name of a credential helper"));
        }
        let program = format!("docker-credential-{name}");
        let mut command = Command::new(&program);
        if let Some(path) = self.path {
            command.env("PATH", path);
        }
        command.arg("get");
        let ran = match program::run(command, format!("{server}\n").as_bytes(), self.limit).await {
            None => {
                let limit = self.limit;
                return Err(format!(
                    "{program} gave no answer within {limit:?}; run `echo {server} | {program} get` to see why"
                ));
            }
            Some(Err(error)) => {
                return Err(format!(
                    "cannot run {program}: {error}; install it, or take it out of the file and log in again"
                ));
            }
            Some(Ok(ran)) => ran,
        };
        if !ran.status.success() {
            // The helpers' one way to say "none" is this sentence.
            if program::words(&ran.stdout).contains("credentials not found") {
                return Ok(None);
            }
            return Err(format!(
                "{program} failed ({}), saying: {}; run `echo {server} | {program} get` to try it",
                ran.status,
                ran.why()
            ));
        }
        let Answer { user, secret } = serde_json::from_slice(&ran.stdout).map_err(|_| {
            format!(
                "{program} gave an answer that is not the JSON expected; run `echo {server} | {program} get`"
            )
        })?;
        if secret.is_empty() {
            return Ok(None);
        }
        let secret = Secret::new(secret);
        Ok(Some(match user.as_str() {
            "<token>" => Credentials::IdentityToken(secret),
            _ => Credentials::Basic { user, password: secret },
        }))
    }
}
