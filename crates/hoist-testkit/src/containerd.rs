//! A real containerd with root, state and socket of its own: the judge of what an image unpacks to, and hoist's
//! client.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::process::{self, Daemon as Process};
use crate::system::{System, unmount_below};

/// The namespace of pods.
pub const PODS: &str = "k8s.io";
/// The namespace of `ctr`, unless it is told another.
pub const DEFAULT: &str = "default";

/// What hoist is tried with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// This machine's, of Debian 12.
    V1_6,
    /// Of Debian 13.
    V1_7,
    /// 2.1 or what came after it, of Debian testing.
    V2,
    /// 2.2, which `scripts/containerd-next` builds. It unpacks layers side by side.
    V2_2,
}

impl Version {
    /// A system that has it.
    ///
    /// # Errors
    /// It is missing.
    pub fn system(self) -> Result<Arc<System>> {
        let (system, version) = match self {
            Version::V1_6 => (System::this()?, "1.6."),
            Version::V1_7 => (System::of(&["trixie"])?, "1.7."),
            Version::V2 => (System::of(&["forky"])?, "2."),
            Version::V2_2 => (System::of(&["containerd-2.2", "forky"])?, "2.2."),
        };
        let said = process::run(system.command("containerd").arg("--version"))?;
        let is = said.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
        ensure!(is.starts_with(version), "containerd {is} is not of version {version}");
        Ok(Arc::new(system))
    }

    /// Is it 2.0 or later?
    pub fn is_2(self) -> bool {
        matches!(self, Version::V2 | Version::V2_2)
    }

    /// What `deploy/` has for it.
    fn deployed(self) -> Result<String> {
        let name = match self {
            Version::V1_6 => "containerd-1.6.toml",
            Version::V1_7 => "containerd-1.7.toml",
            Version::V2 | Version::V2_2 => "containerd-2.toml",
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// What this machine, a test's one, needs besides: what pods are made of, as no registry is asked but the test's;
    /// and no priorities that it may not give. Mirrors are where `certs` says.
    fn besides(self, pause: &str, certs: Option<&Path>) -> String {
        let (besides, images) = match self {
            Version::V1_6 | Version::V1_7 => (
                format!(
                    "[plugins.\"io.containerd.grpc.v1.cri\"]\n\
                     sandbox_image = {pause:?}\nrestrict_oom_score_adj = true\n"
                ),
                "io.containerd.grpc.v1.cri",
            ),
            Version::V2 | Version::V2_2 => (
                format!(
                    "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {pause:?}\n\
                     [plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n"
                ),
                "io.containerd.cri.v1.images",
            ),
        };
        let side_by_side = match self {
            Version::V2_2 => "[plugins.\"io.containerd.transfer.v1.local\"]\nmax_concurrent_unpacks = 4\n",
            _ => "",
        };
        let mirrors = certs.map(|certs| format!("[plugins.{images:?}.registry]\nconfig_path = {certs:?}\n"));
        besides + side_by_side + &mirrors.unwrap_or_default()
    }
}

/// A running containerd; ends when dropped, with what it runs.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    directory: TempDir,
    system: Arc<System>,
}

/// A mount of an image as containerd has it; unmounted when dropped.
#[derive(Debug)]
pub struct View {
    path: PathBuf,
    unmount: Command,
}

impl Daemon {
    /// Starts this machine's with empty stores and returns once its socket answers. Needs root.
    ///
    /// # Errors
    /// It does not start.
    pub fn start() -> Result<Self> {
        let config = |_: &Path| {
            "version = 2\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n"
                .to_owned()
        };
        Self::start_with(&Version::V1_6.system()?, config)
    }

    /// This machine's as the runtime of a kubelet, with this snapshotter for all images; `pause` is what pods are made
    /// of.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_for_pods(snapshotter: &Path, pause: &str) -> Result<Self> {
        let system = Version::V1_6.system()?;
        Self::start_deployed(
            Version::V1_6,
            &system,
            (snapshotter, Path::new("/var/lib/hoist")),
            (pause, None),
        )
    }

    /// The same of any version, in its system, configured as `deploy/` says; with hoist's socket and its store, and a
    /// folder that tells of mirrors.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_deployed(
        version: Version,
        system: &Arc<System>,
        (socket, store): (&Path, &Path),
        (pause, certs): (&str, Option<&Path>),
    ) -> Result<Self> {
        let mut config = version.deployed()?;
        for (path, ours) in [("/run/hoist/snapshotter.sock", socket), ("/var/lib/hoist/", store)] {
            let ours = ours.to_str().context("a folder's name is not UTF-8")?;
            ensure!(config.contains(path) || version == Version::V1_6, "{path} is not in the configuration");
            let end = if path.ends_with('/') { "/" } else { "" };
            config = config.replace(path, &format!("{ours}{end}"));
        }
        Self::start_with(system, |directory| {
            let opt = directory.join("opt");
            format!(
                "{config}\n{}[plugins.\"io.containerd.internal.v1.opt\"]\npath = {opt:?}\n",
                version.besides(pause, certs)
            )
        })
    }

    fn start_with(system: &Arc<System>, config: impl FnOnce(&Path) -> String) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("ctrd-").tempdir_in(system.directory())?;
        // The root of a container whose users are mapped is nobody here.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711))?;
        std::fs::write(directory.path().join("config.toml"), config(&system.inside(directory.path())))?;
        let process = launch(system, directory.path())?;
        Ok(Self { process, directory, system: Arc::clone(system) })
    }

    /// Ends it and starts it again on the same stores. What it runs runs on.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.process.end();
        self.process = launch(&self.system, self.directory.path())?;
        Ok(())
    }

    /// The same, but that it is killed.
    ///
    /// # Errors
    /// It does not start.
    pub fn crash(&mut self) -> Result<()> {
        let pid = i32::try_from(self.process.pid()).ok().and_then(Pid::from_raw);
        rustix::process::kill_process(pid.context("it has no process id")?, Signal::KILL)?;
        self.restart()
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
    ///
    /// # Errors
    /// It fails.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        process::run(ctr(&self.system, &self.socket()).args(args))
    }

    /// The same in the namespace of pods.
    ///
    /// # Errors
    /// It fails.
    pub fn ctr_of_pods(&self, args: &[&str]) -> Result<String> {
        self.ctr(&[&["--namespace", PODS], args].concat())
    }

    /// Pulls an image over plain HTTP, unpacks it into overlayfs snapshots and mounts a view of it.
    ///
    /// # Errors
    /// It fails.
    pub fn unpack(&self, image: &str) -> Result<View> {
        self.ctr(&["images", "pull", "--plain-http", "--snapshotter", "overlayfs", image])?;
        self.show(DEFAULT, "overlayfs", image, &[])
    }

    /// Mounts an image that is there as a container sees it: with a folder of its own to write to.
    ///
    /// # Errors
    /// It fails.
    pub fn as_a_container(&self, namespace: &str, snapshotter: &str, image: &str) -> Result<View> {
        self.show(namespace, snapshotter, image, &["--rw"])
    }

    fn show(&self, namespace: &str, snapshotter: &str, image: &str, options: &[&str]) -> Result<View> {
        let path = tempfile::Builder::new().prefix("view-").tempdir_in(self.directory.path())?.keep();
        let target = self.system.inside(&path);
        // From 2.2 on it is containerd that mounts, where it is itself.
        let command = |what: &[&str]| {
            let mut command = ctr(&self.system, &self.socket());
            command.args(["--namespace", namespace, "images"]).args(what);
            command.args(["--snapshotter", snapshotter]);
            command
        };
        process::run(command(&["mount"]).args(options).arg(image).arg(&target))?;
        let mut unmount = command(&["unmount", "--rm"]);
        unmount.arg(&target);
        Ok(View { path: self.system.seen(&path), unmount })
    }

    fn end_tasks(&self, namespace: &str) {
        let tasks = ["--namespace", namespace, "tasks"];
        let all = self.ctr(&[&tasks[..], &["list", "--quiet"]].concat()).unwrap_or_default();
        for task in all.lines() {
            let _ = self.ctr(&[&tasks[..], &["delete", "--force", task]].concat());
        }
    }

    /// The root of a container that runs, as this machine sees it.
    pub fn rootfs(&self, namespace: &str, container: &str) -> PathBuf {
        let tasks = self.directory.path().join("state/io.containerd.runtime.v2.task");
        self.system.seen(&tasks.join(namespace).join(container).join("rootfs"))
    }
}

impl Drop for Daemon {
    /// What it runs would outlive it. Another system has nothing else.
    fn drop(&mut self) {
        if self.system.keeper().is_some() {
            self.system.end();
        } else {
            [PODS, DEFAULT].iter().for_each(|namespace| self.end_tasks(namespace));
        }
        unmount_below(self.directory.path());
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
        let _ = process::run(&mut self.unmount);
    }
}

fn launch(system: &System, directory: &Path) -> Result<Process> {
    let log_path = directory.join("log");
    let log = File::options().create(true).append(true).open(&log_path)?;
    let inside = system.inside(directory);
    let mut command = system.command("containerd");
    for (option, name) in
        [("--config", "config.toml"), ("--root", "root"), ("--state", "state"), ("--address", "sock")]
    {
        command.arg(option).arg(inside.join(name));
    }
    let child = command
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
        Ok(UnixStream::connect(&socket).is_ok() && process::run(ctr(system, &socket).arg("version")).is_ok())
    })?;
    Ok(process)
}

fn ctr(system: &System, socket: &Path) -> Command {
    let mut command = system.command("ctr");
    command.arg("--address").arg(system.inside(socket));
    command
}
