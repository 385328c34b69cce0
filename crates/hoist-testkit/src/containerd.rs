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
        Self::start_with(
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]",
        )
    }

    /// As the runtime of a kubelet, with this snapshotter for all images; `pause` is what pods are made of.
    pub fn start_for_pods(snapshotter: &Path, pause: &str) -> Result<Self> {
        let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
        Self::start_with(&format!(
            "disabled_plugins = [\"io.containerd.internal.v1.opt\"]\n\
             [proxy_plugins.hoist]\ntype = \"snapshot\"\naddress = {snapshotter:?}\n\
             [{cri}]\nsandbox_image = {pause:?}\nrestrict_oom_score_adj = true\n\
             [{cri}.containerd]\nsnapshotter = \"hoist\"\ndisable_snapshot_annotations = false\n\
             default_runtime_name = \"runc\"\n\
             [{cri}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\""
        ))
    }

    fn start_with(plugins: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hoist-ctrd-").tempdir()?;
        std::fs::write(directory.path().join("config.toml"), config_text(directory.path(), plugins))?;
        Ok(Self { process: launch(directory.path())?, directory })
    }

    /// Ends it and starts it again on the same stores. What it runs runs on.
    pub fn restart(&mut self) -> Result<()> {
        self.process.end();
        self.process = launch(self.directory.path())?;
        Ok(())
    }

    /// What it has logged.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
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

impl Drop for Daemon {
    /// What it runs would outlive it.
    fn drop(&mut self) {
        let pods = ["--namespace", "k8s.io", "tasks"];
        let tasks = self.ctr(&[&pods[..], &["list", "--quiet"]].concat()).unwrap_or_default();
        for task in tasks.lines() {
            let _ = self.ctr(&[&pods[..], &["delete", "--force", task]].concat());
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(self.directory.path()) {
                let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
            }
        }
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

fn launch(directory: &Path) -> Result<Process> {
    let log_path = directory.join("log");
    let log = File::options().create(true).append(true).open(&log_path)?;
    let child = Command::new("containerd")
        .arg("--config")
        .arg(directory.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("starting containerd (is it installed? `make deps` installs what tests need)")?;
    let mut process = Process::new(child);
    let socket = directory.join("sock");
    process::wait_until("containerd", Duration::from_secs(30), || {
        if process.has_ended() {
            bail!("containerd ended at once: {}", std::fs::read_to_string(&log_path).unwrap_or_default());
        }
        // One that ended before may have left its socket.
        Ok(UnixStream::connect(&socket).is_ok() && process::run(ctr(&socket).arg("version")).is_ok())
    })?;
    Ok(process)
}

fn ctr(socket: &Path) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket);
    command
}

fn config_text(directory: &Path, plugins: &str) -> String {
    let path = |name: &str| directory.join(name).display().to_string();
    format!(
        "version = 2\nroot = {:?}\nstate = {:?}\n{plugins}\n\
         [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
        path("root"),
        path("state"),
        path("sock"),
        path("sock.ttrpc")
    )
}
