//! A real containerd with root, state and socket of its own: the judge of what an image unpacks to.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process::{self, Daemon as Process};

/// A running containerd; ends when dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    directory: TempDir,
}

/// A read-only mount of an image as containerd unpacked it; unmounted when dropped.
#[derive(Debug)]
pub struct View {
    path: PathBuf,
    socket: PathBuf,
}

impl Daemon {
    /// Starts containerd with empty stores and returns once its socket answers. Needs root.
    pub fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hoist-ctrd-").tempdir()?;
        let config = directory.path().join("config.toml");
        std::fs::write(&config, config_text(directory.path()))?;
        let log = File::create(directory.path().join("log"))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting containerd (is it installed? `make deps` installs what tests need)")?;
        let mut daemon = Self { process: Process::new(child), directory };
        let socket = daemon.socket();
        process::wait_until("containerd", Duration::from_secs(30), || {
            if daemon.process.has_ended() {
                let log = std::fs::read_to_string(daemon.directory.path().join("log")).unwrap_or_default();
                bail!("containerd ended at once: {log}");
            }
            Ok(UnixStream::connect(&socket).is_ok())
        })?;
        daemon.ctr(&["version"])?;
        Ok(daemon)
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Runs `ctr` against it and returns what it prints.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        process::run(ctr(&self.socket()).args(args))
    }

    /// Pulls an image over plain HTTP, unpacks it into overlayfs snapshots and mounts a view of it.
    pub fn unpack(&self, image: &str) -> Result<View> {
        self.ctr(&["images", "pull", "--plain-http", "--snapshotter", "overlayfs", image])?;
        let path = tempfile::Builder::new().prefix("view-").tempdir_in(self.directory.path())?.keep();
        let target = path.to_str().context("the temporary folder's name is not UTF-8")?;
        self.ctr(&["images", "mount", "--snapshotter", "overlayfs", image, target])?;
        Ok(View { path, socket: self.socket() })
    }
}

impl View {
    /// Where the tree is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let unmount = ["images", "unmount", "--rm", "--snapshotter", "overlayfs"];
        let _ = process::run(ctr(&self.socket).args(unmount).arg(&self.path));
    }
}

fn ctr(socket: &Path) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket);
    command
}

fn config_text(directory: &Path) -> String {
    let path = |name: &str| directory.join(name).display().to_string();
    format!(
        "version = 2\nroot = {:?}\nstate = {:?}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
        path("root"),
        path("state"),
        path("sock"),
        path("sock.ttrpc")
    )
}
