//! A small HTTPS server: one answer a connection, as the test decides.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A request without a body.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Path and query.
    pub path: String,
    /// The `Authorization` header.
    pub authorization: String,
}

/// Status and body.
type Answer = dyn Fn(&Asked) -> (u16, String) + Send + Sync;

/// Starts one with a certificate and its key (PEM files) on a free loopback port; it serves as long as the process.
pub fn start(
    certificate: &Path,
    key: &Path,
    answer: impl Fn(&Asked) -> (u16, String) + Send + Sync + 'static,
) -> Result<SocketAddr> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answer: Arc<Answer> = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (config, answer) = (Arc::clone(&config), Arc::clone(&answer));
            // A client that does not trust it goes away: no failure of the server.
            std::thread::spawn(move || converse(stream, config, &*answer));
        }
    });
    Ok(address)
}

fn converse(stream: TcpStream, config: Arc<ServerConfig>, answer: &Answer) -> Result<()> {
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    let mut asked = Asked { path: String::new(), authorization: String::new() };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                value.clone_into(&mut asked.authorization);
            }
            Some(_) => {}
            None if line.trim_end().is_empty() => break,
            None => line.split(' ').nth(1).context("no request line")?.clone_into(&mut asked.path),
        }
    }
    let (status, body) = answer(&asked);
    let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let stream = stream.get_mut();
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}
