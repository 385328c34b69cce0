//! A real `docker-registry` (distribution 2.8 in Debian: no referrers API, so the tag fallback is what it
//! tests) on a free loopback port, with a store of its own that goes when it goes.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::http;
use crate::process::Daemon;

/// The user of [`Registry::with_login`], as htpasswd(1) writes one.
const LOGIN: &str = "someone:$2b$04$OlrhAdCYztk4n9Gkw2nxzemaz2sRyw26GdJoXgHMD0ajYxcPdUexO\n";

/// A running registry; ends when dropped.
#[derive(Debug)]
pub struct Registry {
    daemon: Daemon,
    address: SocketAddr,
    directory: TempDir,
}

impl Registry {
    /// Starts an empty registry and returns once it answers.
    pub fn start() -> Result<Self> {
        Self::start_with(|_| String::new())
    }

    /// The same, which wants the user `someone` with the password `s3cret`.
    pub fn with_login() -> Result<Self> {
        Self::start_with(|folder| {
            let path = folder.join("htpasswd");
            format!("auth:\n  htpasswd: {{realm: test, path: {path:?}}}\n")
        })
    }

    fn start_with(more: impl FnOnce(&Path) -> String) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hoist-registry-").tempdir()?;
        std::fs::write(directory.path().join("htpasswd"), LOGIN)?;
        let config = directory.path().join("config.yml");
        let text = config_text(&directory.path().join("data")) + &more(directory.path());
        std::fs::write(&config, text)?;
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting docker-registry (is it installed? `make deps` installs what tests need)")?;
        let stderr = child.stderr.take().context("docker-registry has no stderr")?;
        let daemon = Daemon::new(child);
        let log = directory.path().join("log");
        let port = listening_port(stderr, &log)?;
        let registry = Self { daemon, address: SocketAddr::from(([127, 0, 0, 1], port)), directory };
        http::get(&registry.host(), "/v2/", &[])?;
        Ok(registry)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `127.0.0.1:port`, as it stands in an image's name.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Where it keeps the bytes of a blob, for tests that damage what is stored.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(hex.get(..2).unwrap_or_default()).join(hex).join("data")
    }
}

/// The whole configuration. Relative URLs keep upload locations right behind a proxy; validation is off since
/// fixtures name blobs that a strict registry refuses.
fn config_text(data: &Path) -> String {
    format!(
        "version: 0.1\n\
         log: {{level: info, formatter: text, accesslog: {{disabled: true}}}}\n\
         storage:\n  filesystem: {{rootdirectory: {data:?}}}\n  delete: {{enabled: true}}\n  \
         maintenance: {{uploadpurging: {{enabled: false}}}}\n\
         http: {{addr: \"127.0.0.1:0\", relativeurls: true}}\n\
         validation: {{disabled: true}}\n"
    )
}

/// Port 0 lets the kernel choose, so the port is read from the log line that tells it: no race with others.
fn listening_port(stderr: impl std::io::Read + Send + 'static, log: &Path) -> Result<u16> {
    let mut log_file = File::create(log)?;
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        // Must keep reading to the end, or the registry blocks on a full pipe.
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if let Some(port) = port_in(&line) {
                let _ = send.send(port);
            }
            let _ = writeln!(log_file, "{line}");
        }
    });
    receive.recv_timeout(Duration::from_secs(120)).with_context(|| {
        format!("docker-registry did not listen: {}", std::fs::read_to_string(log).unwrap_or_default())
    })
}

fn port_in(line: &str) -> Option<u16> {
    let rest = line.split_once("listening on 127.0.0.1:")?.1;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
