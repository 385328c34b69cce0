//! One client's connection: requests one after another, each answered by lines of progress and a last one.
//!
//! A client is trusted with the store but not with this process: what it sends is bounded in size, what it
//! does not read or does not finish in time ends the connection, and a client that goes away in the middle
//! of a request takes the request with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use hoist_engine::Progress;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::protocol::{Answer, Call, Greeting, MAX_REQUEST, Request, VERSION};
use crate::failure::user_hint;

/// For a request's line to be whole once it has begun, for the first to begin, and for an answer to be read.
const PATIENCE: Duration = Duration::from_secs(10);
/// Progress is told this often at most.
const TICK: Duration = Duration::from_millis(100);

/// See the module.
pub struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

/// How a request was left.
pub enum Outcome {
    /// It was answered.
    Answered,
    /// Its client went away, and heard nothing of it.
    Gone,
}

impl Connection {
    /// Greets.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn open(stream: UnixStream, greeting: &Greeting) -> anyhow::Result<Connection> {
        let (reader, writer) = stream.into_split();
        let mut connection = Connection { reader: BufReader::new(reader), writer };
        connection.send(greeting).await?;
        Ok(connection)
    }

    /// Says only why the client is not served.
    pub async fn refuse(stream: UnixStream, error: &anyhow::Error) {
        let (reader, writer) = stream.into_split();
        let mut connection = Connection { reader: BufReader::new(reader), writer };
        let _ = connection.send(&failed(error)).await;
    }

    async fn send<T: Serialize>(&mut self, message: &T) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let sent = tokio::time::timeout(PATIENCE, self.writer.write_all(&line)).await;
        Ok(sent.context("the client does not read what it is told")??)
    }

    /// The next request; None when the client has no more. What is no request is answered with an error, and
    /// is an error here. The first one has to come soon; `patient` waits for ever for it to begin.
    pub async fn request(&mut self, patient: bool) -> anyhow::Result<Option<Request>> {
        if patient {
            self.reader.fill_buf().await?;
        }
        let line = match tokio::time::timeout(PATIENCE, self.line()).await {
            Ok(line) => line,
            Err(_) => Err(user_hint("no request came in time", "ask sooner")),
        };
        let request = line.and_then(|line| line.map(|line| decode(&line)).transpose());
        if let Err(error) = &request {
            self.send(&failed(error)).await?;
        }
        request
    }

    async fn line(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        loop {
            let piece = self.reader.fill_buf().await?;
            if piece.is_empty() {
                return if line.is_empty() {
                    Ok(None)
                } else {
                    Err(crate::failure::user("half a request came"))
                };
            }
            let end = piece.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(piece.len(), |end| end + 1);
            line.extend_from_slice(&piece[..taken]);
            self.reader.consume(taken);
            if line.len() > MAX_REQUEST {
                return Err(crate::failure::user(format!("a request has at most {MAX_REQUEST} bytes")));
            }
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }

    /// Does the work and answers with what comes of it. Where the client goes away first, the work is dropped
    /// in its middle.
    pub async fn answer(
        &mut self,
        work: impl Future<Output = anyhow::Result<Value>>,
        mut relay: Relay,
    ) -> anyhow::Result<Outcome> {
        let mut work = std::pin::pin!(work);
        let mut tick = tokio::time::interval(TICK);
        loop {
            let told = tokio::select! {
                biased;
                done = &mut work => {
                    while let Ok(told) = relay.told.try_recv() {
                        self.send(&told).await?;
                    }
                    let last = match &done {
                        Ok(value) => Answer::Done(value.clone()),
                        Err(error) => failed(error),
                    };
                    return Ok(match self.send(&last).await {
                        Ok(()) => Outcome::Answered,
                        Err(_) => Outcome::Gone,
                    });
                }
                told = relay.told.recv() => told,
                _ = tick.tick() => None,
                more = self.reader.fill_buf() => match more {
                    Ok(bytes) if !bytes.is_empty() => {
                        anyhow::bail!("the client did not wait for the answer to its request");
                    }
                    _ => return Ok(Outcome::Gone),
                },
            };
            let advanced = relay.advanced.swap(0, Ordering::Relaxed);
            if advanced > 0 && self.send(&Answer::Advance(advanced)).await.is_err() {
                return Ok(Outcome::Gone);
            }
            if let Some(told) = told
                && self.send(&told).await.is_err()
            {
                return Ok(Outcome::Gone);
            }
        }
    }
}

fn failed(error: &anyhow::Error) -> Answer {
    Answer::Failed { text: crate::failure::describe(error), code: crate::engine_glue::exit_code(error) }
}

fn decode(line: &[u8]) -> anyhow::Result<Request> {
    let call: Call = serde_json::from_slice(line)
        .map_err(|error| crate::failure::user(format!("that is no request of hoist's: {error}")))?;
    if call.protocol != VERSION {
        return Err(super::client::other_version(&call.version, call.protocol, crate_version(), VERSION));
    }
    serde_json::from_value(call.request)
        .map_err(|error| crate::failure::user(format!("the daemon knows no such request: {error}")))
}

/// This program's version.
pub fn crate_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Takes the progress of a request's work to its client: bytes are summed up between two lines.
pub struct Relay {
    told: mpsc::UnboundedReceiver<Answer>,
    advanced: std::sync::Arc<AtomicU64>,
}

/// The work's end of a [`Relay`].
pub struct Teller {
    told: mpsc::UnboundedSender<Answer>,
    advanced: std::sync::Arc<AtomicU64>,
}

/// Both ends.
pub fn relay() -> (Teller, Relay) {
    let (to, told) = mpsc::unbounded_channel();
    let advanced = std::sync::Arc::<AtomicU64>::default();
    (Teller { told: to, advanced: std::sync::Arc::clone(&advanced) }, Relay { told, advanced })
}

impl Progress for Teller {
    fn begin(&self, what: &str, total_bytes: u64) {
        let _ = self.told.send(Answer::Begin { what: what.to_owned(), total_bytes });
    }

    fn advance(&self, bytes: u64) {
        self.advanced.fetch_add(bytes, Ordering::Relaxed);
    }

    fn end(&self) {
        let _ = self.told.send(Answer::End);
    }

    fn note(&self, text: &str) {
        let _ = self.told.send(Answer::Note(text.to_owned()));
    }
}
