//! Heads of HTTP/1.1 messages, and how long the body after one is.

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// Longer heads are refused.
const HEAD_LIMIT: u64 = 1 << 20;

#[derive(Debug, Clone)]
pub(super) struct Head {
    /// The first line, without its end.
    pub(super) start: String,
    pub(super) headers: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyLength {
    Known(u64),
    Chunked,
    UntilClose,
}

impl Head {
    /// Reads one head; none at a clean end of the connection.
    pub(super) async fn read(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Self>> {
        let mut from = from.take(HEAD_LIMIT);
        let mut start = String::new();
        if from.read_line(&mut start).await? == 0 {
            return Ok(None);
        }
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line).await? == 0 {
                bail!("the connection closed within a message's head");
            }
            let line = line.trim_end();
            if line.is_empty() {
                return Ok(Some(Self { start: start.trim_end().to_owned(), headers }));
            }
            let (name, value) = line.split_once(':').with_context(|| format!("bad header {line:?}"))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }

    pub(super) fn set(&mut self, name: &str, value: String) {
        self.remove(name);
        self.headers.push((name.to_owned(), value));
    }

    /// The nth word of the first line.
    pub(super) fn word(&self, n: usize) -> &str {
        self.start.split(' ').nth(n).unwrap_or_default()
    }

    /// Whether its sender wants the connection closed after this message.
    pub(super) fn closes(&self) -> bool {
        self.get("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"))
            || self.start.contains("HTTP/1.0")
    }

    pub(super) fn request_body(&self) -> Result<BodyLength> {
        Ok(self.body()?.unwrap_or(BodyLength::Known(0)))
    }

    pub(super) fn response_body(&self, method: &str) -> Result<BodyLength> {
        let status: u16 =
            self.word(1).parse().with_context(|| format!("bad status line {:?}", self.start))?;
        if method == "HEAD" || status == 204 || status == 304 || status < 200 {
            return Ok(BodyLength::Known(0));
        }
        Ok(self.body()?.unwrap_or(BodyLength::UntilClose))
    }

    fn body(&self) -> Result<Option<BodyLength>> {
        if self.get("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            return Ok(Some(BodyLength::Chunked));
        }
        let length = self.get("content-length").map(str::parse).transpose().context("bad content-length")?;
        Ok(length.map(BodyLength::Known))
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.start);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        text.into_bytes()
    }
}
