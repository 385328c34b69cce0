//! Programs that know credentials: what they are to answer goes to stdin and the answer comes from stdout,
//! so that no secret stands in an argument; of what they say, only words of failure are repeated.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

const MAX_ANSWER: u64 = 1 << 20;

/// What a program did.
pub(super) struct Ran {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs it to its end; None if that did not come within the limit, at which it is killed.
pub(super) async fn run(command: Command, input: &[u8], limit: Duration) -> Option<std::io::Result<Ran>> {
    tokio::time::timeout(limit, to_its_end(command, input)).await.ok()
}

async fn to_its_end(mut command: Command, input: &[u8]) -> std::io::Result<Ran> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ask = async {
        if let Some(mut stdin) = stdin {
            // A program that answers without reading is no failure.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(ask, all(stdout), all(stderr));
    Ok(Ran { status: child.wait().await?, stdout: stdout?, stderr: stderr? })
}

async fn all(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(MAX_ANSWER).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

impl Ran {
    /// Why it failed: it may say so on either; what looks like an answer may hold the secret.
    pub(super) fn why(&self) -> String {
        let (text, said) = (words(&self.stdout), words(&self.stderr));
        let why = if said.is_empty() && !text.contains('{') { text } else { said };
        if why.is_empty() { "nothing".to_owned() } else { why }
    }
}

/// The first line with anything in it, fit for a terminal.
pub(super) fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}
