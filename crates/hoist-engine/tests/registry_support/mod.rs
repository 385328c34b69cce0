//! A real docker-registry on loopback, and a server that misbehaves on demand.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod certificates;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hoist_engine::reference::Repo;
use hoist_engine::registry::{
    Client, ClientConfig, CredentialStore, Credentials, RetryPolicy, Secret, Timeouts,
};
use hoist_format::digest::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

pub fn fixtures() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    std::env::var_os("HOIST_FIXTURES").map_or_else(beside, PathBuf::from)
}

/// Settings that see nothing of this machine and lose no time.
pub fn config() -> ClientConfig {
    ClientConfig {
        certs_dirs: Vec::new(),
        credentials: CredentialStore::default(),
        timeouts: Timeouts {
            connect: Duration::from_secs(2),
            first_byte: Duration::from_secs(20),
            idle: Duration::from_secs(20),
            ..Timeouts::default()
        },
        retry: RetryPolicy {
            attempts: 4,
            total: Duration::from_secs(30),
            base: Duration::from_millis(1),
            longest: Duration::from_secs(2),
        },
        ..ClientConfig::default()
    }
}

pub fn with_password(host: &str) -> ClientConfig {
    let mut config = config();
    let password = Secret::new("s3cret");
    config.credentials.fixed.insert(host.into(), Credentials::Basic { user: "someone".into(), password });
    config
}

/// Debian's docker-registry, killed when dropped.
pub struct Registry {
    pub host: String,
    process: Child,
    _dir: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Self {
        Self::with("")
    }

    pub fn with_htpasswd() -> Self {
        Self::with("auth:\n  htpasswd:\n    realm: test\n    path: DIR/htpasswd\n")
    }

    /// With more lines at the end of its configuration, which are those of `http:` if indented; DIR is its folder.
    pub fn with(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        // someone:s3cret
        let user = "someone:$2b$04$OlrhAdCYztk4n9Gkw2nxzemaz2sRyw26GdJoXgHMD0ajYxcPdUexO\n";
        std::fs::write(dir.path().join("htpasswd"), user).unwrap();
        // Another process may take the free port first: then the registry ends, and we try another.
        for _ in 0..5 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let extra = extra.replace("DIR", at);
            let text = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {at}/data\n\
                 http:\n  addr: 127.0.0.1:{port}\n{extra}"
            );
            let file = dir.path().join("config.yml");
            std::fs::write(&file, text).unwrap();
            let mut process = Command::new("docker-registry")
                .arg("serve")
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry is needed: apt-get install docker-registry");
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(20) && process.try_wait().unwrap().is_none() {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { host: format!("127.0.0.1:{port}"), process, _dir: dir };
                }
                std::thread::yield_now();
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        panic!("docker-registry does not start");
    }

    pub fn repo(&self, name: &str) -> Repo {
        Repo { host: self.host.clone(), name: name.into() }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Pushes every blob of a layout and its images; gives the digest of the first.
pub async fn push_layout(client: &Client, repo: &Repo, dir: &Path, tag: &str) -> Digest {
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    for blob in std::fs::read_dir(dir.join("blobs/sha256")).unwrap() {
        let bytes: Bytes = std::fs::read(blob.unwrap().path()).unwrap().into();
        client.push_blob(repo, bytes).await.unwrap();
    }
    let entry = &index["manifests"][0];
    let digest: Digest = entry["digest"].as_str().unwrap().parse().unwrap();
    let bytes = std::fs::read(dir.join("blobs/sha256").join(digest.hex())).unwrap();
    let kind = entry["mediaType"].as_str().unwrap();
    let pushed = client.push_manifest(repo, Some(tag), kind, bytes.into()).await.unwrap();
    assert_eq!(pushed.digest, digest);
    digest
}

/// A request as the bad server saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: String,
    /// Requests before this one.
    pub number: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
    /// First and last byte asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range").strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// What the bad server does.
pub enum Reply {
    /// Writes these bytes and closes.
    Raw(Vec<u8>),
    /// Says no more, and keeps the connection.
    Hang(Vec<u8>),
    /// Goes on with one byte now and then, without end.
    Trickle(Vec<u8>),
}

pub fn reply(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut out = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        out += &format!("{name}: {value}\r\n");
    }
    let mut out = (out + "\r\n").into_bytes();
    out.extend_from_slice(body);
    Reply::Raw(out)
}

/// The part of `blob` that `seen` asks for, right and whole.
pub fn part(seen: &Seen, blob: &[u8]) -> Reply {
    let (first, last) = seen.range().expect("a range");
    let range = format!("bytes {first}-{last}/{}", blob.len());
    reply(206, &[("content-range", &range)], &blob[first..=last])
}

/// A server that answers as it is told.
pub struct BadServer {
    pub host: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl BadServer {
    pub async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (seen.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (log, answer) = (log.clone(), answer.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let text = String::from_utf8(head).unwrap();
                    let mut lines = text.lines();
                    let mut words = lines.next().unwrap().split(' ').map(str::to_owned);
                    let (method, path) = (words.next().unwrap(), words.next().unwrap());
                    let headers = lines.filter_map(|line| line.split_once(": "));
                    let headers: HashMap<_, _> =
                        headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
                    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
                    let mut body = vec![0; length];
                    if stream.read_exact(&mut body).await.is_err() {
                        return;
                    }
                    let body = String::from_utf8_lossy(&body).into_owned();
                    let reply = {
                        let mut log = log.lock().unwrap();
                        let seen = Seen { method, path, headers, body, number: log.len() };
                        log.push(seen.clone());
                        answer(&seen)
                    };
                    match reply {
                        Reply::Raw(bytes) => {
                            let _ = stream.write_all(&bytes).await;
                            let _ = stream.shutdown().await;
                        }
                        Reply::Hang(bytes) => {
                            let _ = stream.write_all(&bytes).await;
                            let _ = stream.read_u8().await;
                        }
                        Reply::Trickle(bytes) => {
                            let _ = stream.write_all(&bytes).await;
                            while stream.write_u8(b' ').await.is_ok() {
                                tokio::time::sleep(Duration::from_millis(5)).await;
                            }
                        }
                    }
                });
            }
        });
        Self { host, seen }
    }

    pub fn repo(&self) -> Repo {
        Repo { host: self.host.clone(), name: "team/app".into() }
    }

    pub fn log(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests went to paths that start so.
    pub fn count(&self, prefix: &str) -> usize {
        self.log().iter().filter(|seen| seen.path.starts_with(prefix)).count()
    }
}

/// Bytes that differ everywhere enough to show a shift.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

/// All of a range.
pub async fn all(
    client: &Client,
    repo: &Repo,
    digest: &Digest,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>, hoist_engine::registry::RegistryError> {
    let mut body = client.blob_range(repo, digest, range).await?;
    let mut out = Vec::new();
    while let Some(piece) = body.next().await? {
        out.extend_from_slice(&piece);
    }
    Ok(out)
}
