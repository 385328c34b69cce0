//! A command's connection to its store's daemon.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hoist_engine::Progress;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::protocol::{Answer, Call, Greeting, MAX_ANSWER, Request, VERSION};
use super::{connection, socket};
use crate::failure::{Relayed, user_hint};

/// For a daemon that lives to greet.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Client {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

/// The daemon ended, or was replaced, before it had answered.
#[derive(Debug)]
pub struct Gone {
    /// What the kernel said where the request could not even be sent.
    why: Option<io::Error>,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the daemon went away before it had answered")?;
        self.why.as_ref().map_or(Ok(()), |why| write!(f, ": {why}"))
    }
}

impl std::error::Error for Gone {}

/// The failure of two programs that do not speak the same version of the protocol.
pub fn other_version(client: &str, spoken: u32, daemon: &str, understood: u32) -> anyhow::Error {
    user_hint(
        format!(
            "hoist {client} speaks version {spoken} of the daemon's protocol, the running daemon is hoist {daemon} \
             and speaks version {understood}"
        ),
        "restart the daemon with the installed version (systemctl restart hoist), or do without it: --no-daemon",
    )
}

impl Client {
    /// Connects to the daemon of the store at `root`; None where none answers.
    ///
    /// # Errors
    /// It speaks another version, or does not let this user ask: the user's to mend.
    pub async fn find(root: &Path) -> anyhow::Result<Option<Client>> {
        let path = socket::path(root);
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(error) => {
                // A socket nobody listens on is what a dead daemon leaves.
                let absent =
                    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
                if !absent {
                    tracing::debug!("no daemon is used: connecting to {}: {error}", path.display());
                }
                return Ok(None);
            }
        };
        let (reader, writer) = stream.into_split();
        let mut client = Client { reader: BufReader::new(reader), writer };
        let line = match tokio::time::timeout(PATIENCE, client.line()).await {
            Ok(Ok(Some(line))) => line,
            silent => {
                let why = match silent {
                    Err(_) => "it does not answer".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                    Ok(_) => "it hung up".to_owned(),
                };
                tracing::warn!("doing without the daemon at {}: {why}", path.display());
                return Ok(None);
            }
        };
        if let Ok(Answer::Failed { text, code }) = serde_json::from_slice(&line) {
            return Err(Relayed { text, code }.into());
        }
        let greeting: Greeting = serde_json::from_slice(&line)
            .with_context(|| format!("what listens on {} is no daemon of hoist's", path.display()))?;
        if greeting.protocol != VERSION {
            return Err(other_version(
                connection::crate_version(),
                VERSION,
                &greeting.version,
                greeting.protocol,
            ));
        }
        if socket::mount_namespace().ok() != Some(greeting.mount_namespace) {
            tracing::info!(
                "doing without the daemon at {}: it is in another mount namespace, and what it mounts is not seen here",
                path.display()
            );
            return Ok(None);
        }
        Ok(Some(client))
    }

    async fn line(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(MAX_ANSWER).read_until(b'\n', &mut line).await;
        // A dead process's socket is reset where it had not read all.
        if let Err(error) = read {
            return match error.kind() {
                io::ErrorKind::ConnectionReset => Err(Gone { why: Some(error) }.into()),
                _ => Err(error).context("reading from the daemon"),
            };
        }
        Ok(Some(line).filter(|line| line.ends_with(b"\n")))
    }

    /// Asks, shows the progress, and gives the answer.
    ///
    /// # Errors
    /// What the daemon failed with, or that it went away.
    pub async fn ask(&mut self, request: &Request, progress: &dyn Progress) -> anyhow::Result<Value> {
        let call = Call {
            protocol: VERSION,
            version: connection::crate_version().to_owned(),
            request: serde_json::to_value(request)
                .context("a path that is not UTF-8 can't be told the daemon")?,
        };
        let mut line = serde_json::to_vec(&call)?;
        line.push(b'\n');
        let mut why = self.writer.write_all(&line).await.err();
        loop {
            let line = self.line().await?.ok_or_else(|| Gone { why: why.take() })?;
            match serde_json::from_slice(&line).context("the daemon's answer is none of hoist's")? {
                Answer::Begin { what, total_bytes } => progress.begin(&what, total_bytes),
                Answer::Advance(bytes) => progress.advance(bytes),
                Answer::End => progress.end(),
                Answer::Note(text) => progress.note(&text),
                Answer::Done(value) => return Ok(value),
                Answer::Failed { text, code } => return Err(Relayed { text, code }.into()),
            }
        }
    }

    /// A descriptor of the connection that programs inherit: the daemon hears of its end only when they have
    /// ended too.
    pub fn inheritable(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::dup(self.reader.get_ref().as_ref())?)
    }
}
