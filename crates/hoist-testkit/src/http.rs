//! A small blocking HTTP/1.1 client: enough to push to a registry and to ask one, and nothing of hoist's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A response, its body whole in memory.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// A body to send, with its length.
pub struct Body<'a> {
    /// Where it is read from.
    pub from: &'a mut dyn Read,
    /// Its length in bytes.
    pub length: u64,
}

/// Sends one request to `host` (`address:port`) on a connection of its own, and reads the whole response.
pub fn request(
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Body<'_>>,
) -> Result<Response> {
    let what = || format!("{method} http://{host}{path}");
    exchange(host, method, path, headers, body).with_context(what)
}

/// A GET.
pub fn get(host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    request(host, "GET", path, headers, None)
}

fn exchange(
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Body<'_>>,
) -> Result<Response> {
    let mut stream = TcpStream::connect(host)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let length = body.as_ref().map_or(0, |b| b.length);
    if body.is_some() || method != "GET" && method != "HEAD" {
        head += &format!("content-length: {length}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    if let Some(body) = body {
        let mut from = body.from.take(body.length);
        std::io::copy(&mut from, &mut stream)?;
    }
    stream.flush()?;
    read_response(BufReader::new(stream), method)
}

fn read_response(mut from: impl BufRead, method: &str) -> Result<Response> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let status: u16 = line
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .with_context(|| format!("bad status line {line:?}"))?;
        let headers = read_headers(&mut from)?;
        if status == 100 {
            continue;
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if method == "HEAD" || status == 204 || status == 304 {
            return Ok(response);
        }
        if response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            response.body = read_chunked(&mut from)?;
        } else if let Some(length) = response.header("content-length") {
            let length: u64 = length.parse().context("bad content-length")?;
            from.take(length).read_to_end(&mut response.body)?;
            if response.body.len() as u64 != length {
                bail!("the body ended after {} of {length} bytes", response.body.len());
            }
        } else {
            from.read_to_end(&mut response.body)?;
        }
        return Ok(response);
    }
}

fn read_headers(from: &mut impl BufRead) -> Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').with_context(|| format!("bad header {line:?}"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_chunked(from: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).with_context(|| format!("bad chunk size {line:?}"))?;
        if size == 0 {
            read_headers(from)?;
            return Ok(body);
        }
        from.take(size).read_to_end(&mut body)?;
        let mut end = [0; 2];
        from.read_exact(&mut end)?;
    }
}
