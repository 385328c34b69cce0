//! Credential helpers: programs that keep passwords elsewhere (docker/docker-credential-helpers
//! protocol). The server's name goes to the program's stdin and the secret comes from its stdout, so
//! that neither stands in an argument; of what it says, only words of failure are repeated.

use std::process::{ExitStatus, Stdio};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::credentials::{CredentialStore, Credentials};
use super::secret::Secret;

const MAX_ANSWER: u64 = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username", default)]
    user: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// What the helper `name` knows of `server`.
pub(super) async fn ask(
    store: &CredentialStore,
    name: &str,
    server: &str,
) -> Result<Option<Credentials>, String> {
    if !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c)) {
        return Err(format!("{name:?} is no name of a credential helper"));
    }
    let program = format!("docker-credential-{name}");
    // Dropped at the limit, which kills the program.
    let run = tokio::time::timeout(store.helper_limit, run(store, &program, server));
    let (status, answer, said) = match run.await {
        Err(_) => {
            let limit = store.helper_limit;
            return Err(format!(
                "{program} gave no answer within {limit:?}; run `echo {server} | {program} get` to see why"
            ));
        }
        Ok(Err(error)) => {
            return Err(format!(
                "cannot run {program}: {error}; install it, or take it out of the file and log in again"
            ));
        }
        Ok(Ok(done)) => done,
    };
    if !status.success() {
        // The helpers' one way to say "none" is this sentence.
        let text = words(&answer);
        if text.contains("credentials not found") {
            return Ok(None);
        }
        // A failing helper says why on either; what looks like an answer may hold the secret.
        let said = words(&said);
        let why = if said.is_empty() && !text.contains('{') { text } else { said };
        let why = if why.is_empty() { "nothing".to_owned() } else { why };
        return Err(format!(
            "{program} failed ({status}), saying: {why}; run `echo {server} | {program} get` to try it"
        ));
    }
    let Answer { user, secret } = serde_json::from_slice(&answer).map_err(|_| {
        format!("{program} gave an answer that is not the JSON expected; run `echo {server} | {program} get`")
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

async fn run(
    store: &CredentialStore,
    program: &str,
    server: &str,
) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let mut command = tokio::process::Command::new(program);
    if let Some(path) = &store.helper_path {
        command.env("PATH", path);
    }
    let command = command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ask = async {
        if let Some(mut stdin) = stdin {
            // A helper that answers without reading is no failure.
            let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        }
    };
    let ((), answer, said) = tokio::join!(ask, all(stdout), all(stderr));
    Ok((child.wait().await?, answer?, said?))
}

async fn all(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(MAX_ANSWER).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// The first line with anything in it, fit for a terminal.
fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}
