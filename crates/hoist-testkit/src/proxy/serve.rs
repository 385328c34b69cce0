//! One task per client connection, with one connection to the registry behind it.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::fault::{FaultKind, due};
use super::message::{BodyLength, Head};
use super::{LOG_LIMIT, Logged, ProxyOptions, ProxyStats, Shared, control, login};

/// Bodies are copied in pieces of this size; small enough that a limited line is shared fairly.
const PIECE: usize = 256 << 10;
const LIMITED_PIECE: usize = 16 << 10;

/// The first byte of who begins with TLS (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

type Stream = BufReader<TcpStream>;

pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        shared.state().stats.connections += 1;
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // A client that goes away, or a fault that closes, is no failure of the proxy.
            let _ = converse(client, &shared).await;
        });
    }
}

async fn converse(client: TcpStream, shared: &Shared) -> Result<()> {
    client.set_nodelay(true)?;
    let mut client = BufReader::with_capacity(PIECE, client);
    let mut upstream: Option<Stream> = None;
    if client.fill_buf().await?.first() == Some(&TLS_HANDSHAKE) {
        // As Go's servers say it: by this clients know that they are to do without TLS.
        let told = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n";
        return Ok(client.write_all(told.as_bytes()).await?);
    }
    while let Some(request) = Head::read(&mut client).await? {
        let closes = request.closes();
        if let Some(json) = control::answer(shared, request.word(1)) {
            let length = json.len();
            let text = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
            );
            client.write_all((text + &json).as_bytes()).await?;
        } else if !pass(&mut client, &mut upstream, request, shared).await? {
            return Ok(());
        }
        if closes {
            return Ok(());
        }
    }
    Ok(())
}

/// Counts a request, and tells what is to become of it.
fn register(request: &Head, shared: &Shared) -> (ProxyOptions, Option<FaultKind>) {
    let mut state = shared.state();
    state.stats.requests += 1;
    if state.log.len() < LOG_LIMIT {
        state.log.push(Logged {
            method: request.word(0).to_owned(),
            path: request.word(1).to_owned(),
            range: request.get("range").map(str::to_owned),
            authorization: request.get("authorization").map(str::to_owned),
        });
    }
    let name = format!("{} {}", request.word(0), request.word(1));
    (state.options, due(&mut state.faults, &name))
}

/// Passes one request and its response. False when the connection can't be used further.
async fn pass(
    client: &mut Stream,
    upstream: &mut Option<Stream>,
    mut request: Head,
    shared: &Shared,
) -> Result<bool> {
    let (options, fault) = register(&request, shared);
    tokio::time::sleep(options.delay).await;
    if let Some(answer) = login::answer(shared, &request) {
        drain(client, request.request_body()?).await?;
        return say(client, answer.status, &answer.headers, &answer.body).await.map(|()| true);
    }
    match &fault {
        Some(FaultKind::Status(status, headers)) => {
            drain(client, request.request_body()?).await?;
            return refuse(client, *status, headers).await.map(|()| true);
        }
        Some(FaultKind::Answer(media_type, body)) => {
            drain(client, request.request_body()?).await?;
            let headers = [("content-type".to_owned(), (*media_type).to_owned())];
            return say(client, 200, &headers, body).await.map(|()| true);
        }
        Some(FaultKind::Hang) => std::future::pending::<()>().await,
        Some(FaultKind::Delay(wait)) => tokio::time::sleep(*wait).await,
        Some(FaultKind::IgnoreRange) => request.remove("range"),
        _ => {}
    }
    let mut response = match exchange(client, upstream, &request, shared).await {
        Ok(response) => response,
        Err(error) => {
            let why = vec![("x-proxy-error".to_owned(), format!("{error:#}").replace(['\r', '\n'], " "))];
            refuse(client, 502, &why).await?;
            return Ok(false);
        }
    };
    let Some(registry) = upstream.as_mut() else { bail!("no connection to the registry") };
    let body = response.response_body(request.word(0))?;
    let sent = alter(&mut response, body, fault.as_ref());
    client.write_all(&response.to_bytes()).await?;
    let counted: Counted = |stats| &mut stats.body_bytes;
    let mut copy = Copy { shared, limited: options.rate.is_some(), at: 0, fault, counted };
    copy.response(registry, client, body).await?;
    let ends = body == BodyLength::UntilClose || response.closes() || sent != body;
    if ends {
        *upstream = None;
    }
    Ok(body != BodyLength::UntilClose)
}

/// Sends the request and reads the head of the response. A kept connection that the registry has meanwhile
/// closed is replaced by a new one, once, if the request has no body that is already gone.
async fn exchange(
    client: &mut Stream,
    upstream: &mut Option<Stream>,
    request: &Head,
    shared: &Shared,
) -> Result<Head> {
    let body = request.request_body()?;
    if request.get("expect").is_some() {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let mut request = request.clone();
    request.remove("expect");
    if let Some(kept) = upstream.as_mut()
        && body == BodyLength::Known(0)
        && kept.write_all(&request.to_bytes()).await.is_ok()
        && let Ok(Some(head)) = Head::read(kept).await
    {
        return Ok(head);
    }
    let stream = TcpStream::connect(shared.upstream).await.context("connecting to the registry")?;
    stream.set_nodelay(true)?;
    let registry = upstream.insert(BufReader::with_capacity(PIECE, stream));
    registry.write_all(&request.to_bytes()).await?;
    let counted: Counted = |stats| &mut stats.request_body_bytes;
    let mut copy = Copy { shared, limited: false, at: 0, fault: None, counted };
    copy.request(client, registry, body).await?;
    loop {
        let head = Head::read(registry).await?.context("the registry closed the connection")?;
        if head.word(1) != "100" {
            return Ok(head);
        }
    }
}

/// Changes a response's head as the fault has it; returns the body length that is then told.
fn alter(response: &mut Head, body: BodyLength, fault: Option<&FaultKind>) -> BodyLength {
    match (fault, body) {
        (Some(FaultKind::ShortBody(keep)), BodyLength::Known(length)) => {
            response.set("content-length", length.min(*keep).to_string());
            BodyLength::Known(length.min(*keep))
        }
        (Some(FaultKind::WrongContentRange), _) => {
            if let Some(range) = response.get("content-range") {
                let wrong = shifted(range);
                response.set("content-range", wrong);
            }
            body
        }
        _ => body,
    }
}

/// `bytes 10-19/100` becomes `bytes 11-20/100`.
fn shifted(range: &str) -> String {
    let numbers: Vec<u64> =
        range.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [first, last, total] => format!("bytes {}-{}/{total}", first.wrapping_add(1), last.wrapping_add(1)),
        _ => "bytes 1-2/3".to_owned(),
    }
}

async fn refuse(client: &mut Stream, status: u16, headers: &[(String, String)]) -> Result<()> {
    let body = r#"{"errors":[{"code":"TESTKIT","message":"injected by the test"}]}"#;
    say(client, status, headers, body).await
}

async fn say(client: &mut Stream, status: u16, headers: &[(String, String)], body: &str) -> Result<()> {
    let mut head = Head { start: format!("HTTP/1.1 {status} Testkit"), headers: headers.to_vec() };
    head.set("content-length", body.len().to_string());
    let mut bytes = head.to_bytes();
    bytes.extend_from_slice(body.as_bytes());
    Ok(client.write_all(&bytes).await?)
}

async fn drain(from: &mut Stream, body: BodyLength) -> Result<()> {
    let BodyLength::Known(length) = body else { bail!("a chunked body can't be left out") };
    tokio::io::copy(&mut from.take(length), &mut tokio::io::sink()).await?;
    Ok(())
}

/// A body under way.
struct Copy<'a> {
    shared: &'a Shared,
    limited: bool,
    /// Bytes of the body so far.
    at: u64,
    fault: Option<FaultKind>,
    /// Where its bytes are counted.
    counted: Counted,
}

type Counted = fn(&mut ProxyStats) -> &mut u64;

impl Copy<'_> {
    async fn request(&mut self, from: &mut Stream, to: &mut Stream, body: BodyLength) -> Result<()> {
        self.body(from, to, body).await
    }

    async fn response(&mut self, from: &mut Stream, to: &mut Stream, body: BodyLength) -> Result<()> {
        let keep = match (&self.fault, body) {
            (Some(FaultKind::ShortBody(keep)), BodyLength::Known(length)) => {
                BodyLength::Known(length.min(*keep))
            }
            _ => body,
        };
        self.body(from, to, keep).await
    }

    async fn body(&mut self, from: &mut Stream, to: &mut Stream, body: BodyLength) -> Result<()> {
        match body {
            BodyLength::Known(length) => self.piece_by_piece(from, to, length).await,
            BodyLength::UntilClose => {
                while !from.fill_buf().await?.is_empty() {
                    let ready = from.buffer().len() as u64;
                    self.piece_by_piece(from, to, ready).await?;
                }
                to.shutdown().await?;
                Ok(())
            }
            BodyLength::Chunked => loop {
                let size = chunk_line(from, to).await?;
                if size == 0 {
                    // Trailers end with an empty line.
                    while copy_line(from, to).await?.trim_end() != "" {}
                    return Ok(());
                }
                self.piece_by_piece(from, to, size).await?;
                copy_line(from, to).await?;
            },
        }
    }

    async fn piece_by_piece(&mut self, from: &mut Stream, to: &mut Stream, mut left: u64) -> Result<()> {
        let most = if self.limited { LIMITED_PIECE } else { PIECE };
        while left > 0 {
            let ready = from.fill_buf().await?;
            if ready.is_empty() {
                bail!("the connection closed with {left} bytes of a body to come");
            }
            let n = ready.len().min(most).min(usize::try_from(left).unwrap_or(most));
            let n = self.cut(n);
            if n == 0 {
                return self.break_off(to).await;
            }
            if self.limited {
                self.shared.limit.pass(n).await;
            }
            // Before it is sent: whoever has received it may look at the count.
            *(self.counted)(&mut self.shared.state().stats) += n as u64;
            match self.flipped(&from.buffer()[..n]) {
                Some(wrong) => to.write_all(&wrong).await?,
                None => to.get_mut().write_all(&from.buffer()[..n]).await?,
            }
            from.consume(n);
            self.at += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    /// No further than to the place where the fault breaks off.
    fn cut(&self, n: usize) -> usize {
        match self.fault {
            Some(FaultKind::CloseAfter(keep) | FaultKind::HangAfter(keep)) => {
                n.min(usize::try_from(keep.saturating_sub(self.at)).unwrap_or(n))
            }
            _ => n,
        }
    }

    async fn break_off(&self, to: &mut Stream) -> Result<()> {
        to.flush().await?;
        if matches!(self.fault, Some(FaultKind::HangAfter(_))) {
            std::future::pending::<()>().await;
        }
        bail!("closed on purpose")
    }

    fn flipped(&self, piece: &[u8]) -> Option<Vec<u8>> {
        let Some(FaultKind::FlipBit(offset)) = self.fault else { return None };
        let at = usize::try_from(offset.checked_sub(self.at)?).ok().filter(|at| *at < piece.len())?;
        let mut wrong = piece.to_vec();
        wrong[at] ^= 1;
        Some(wrong)
    }
}

async fn chunk_line(from: &mut Stream, to: &mut Stream) -> Result<u64> {
    let line = copy_line(from, to).await?;
    let size = line.trim_end().split(';').next().unwrap_or_default();
    u64::from_str_radix(size, 16).with_context(|| format!("bad chunk size {line:?}"))
}

async fn copy_line(from: &mut (impl AsyncBufRead + Unpin), to: &mut Stream) -> Result<String> {
    let mut line = String::new();
    if from.read_line(&mut line).await? == 0 {
        bail!("the connection closed within a chunked body");
    }
    to.write_all(line.as_bytes()).await?;
    Ok(line)
}
