//! The OCI runtime that starts containers: found on PATH, run in the foreground, its signals passed on.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};

use crate::container::Container;
use crate::failure::user_hint;
use crate::signals::Signals;

/// Runtimes in the order of preference: the fastest to start first.
const KNOWN: [&str; 3] = ["crun", "runc", "youki"];

/// Between two looks whether a container has started.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A program that speaks the OCI runtime command line.
#[derive(Debug, Clone)]
pub struct Runtime {
    program: PathBuf,
    options: &'static [&'static str],
    instead: Option<&'static str>,
}

/// What the program has for standard input and output.
#[derive(Debug)]
pub struct Streams {
    /// Standard input.
    pub input: Stdio,
    /// Standard output.
    pub output: Stdio,
    /// Standard error; the runtime speaks there, too.
    pub error: Stdio,
}

/// What is to be done once the program runs.
pub type Started<'a> = Box<dyn FnOnce() -> anyhow::Result<()> + Send + 'a>;

/// The runtime failed before the program began; it has said why on stderr.
#[derive(Debug)]
pub struct NotStarted(PathBuf);

impl std::fmt::Display for NotStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} could not start the container (its own message is above)", self.0.display())
    }
}

impl std::error::Error for NotStarted {}

/// A program of this name in the folders of `path`, or the path it is.
pub fn find_program(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let runs = |path: &Path| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| runs(path));
    }
    // Daemons and cron start with a PATH without sbin, where Debian has runc.
    let default = OsStr::new("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    std::env::split_paths(path.unwrap_or_default())
        .chain(std::env::split_paths(default))
        .map(|dir| dir.join(name))
        .find(|path| runs(path))
}

/// What is said of a runtime that such a machine has first.
const MIXED: &str =
    "crun is passed over: it refuses cgroups v1 and v2 with controllers in both, as they are mounted here";

/// Whether cgroups v1 and v2 are mixed with controllers in both, which crun refuses.
fn mixed_cgroups(sys_fs_cgroup: &Path) -> bool {
    std::fs::read_to_string(sys_fs_cgroup.join("unified/cgroup.controllers"))
        .is_ok_and(|controllers| !controllers.trim().is_empty())
}

impl Runtime {
    /// The runtime asked for, or the first that is there and works with this machine's cgroups.
    ///
    /// # Errors
    /// None is there: the user's to mend.
    pub fn find(asked: Option<&str>) -> anyhow::Result<Runtime> {
        let path = std::env::var_os("PATH");
        if let Some(name) = asked {
            let program = find_program(name, path.as_deref()).ok_or_else(|| {
                user_hint(
                    format!("there is no OCI runtime {name:?}"),
                    "give --runtime a program on PATH or a path",
                )
            })?;
            return Ok(Runtime { program: std::path::absolute(program)?, options: &[], instead: None });
        }
        let mut found: Vec<PathBuf> =
            KNOWN.iter().filter_map(|name| find_program(name, path.as_deref())).collect();
        let mut instead = None;
        if found.len() > 1 && found[0].ends_with("crun") && mixed_cgroups(Path::new("/sys/fs/cgroup")) {
            found.remove(0);
            instead = Some(MIXED);
        }
        let program = found.into_iter().next().ok_or_else(|| {
            user_hint("there is no OCI runtime on PATH", "install one: apt install crun (or runc, or youki)")
        })?;
        Ok(Runtime { program, options: &[], instead })
    }

    /// That of a container which it runs.
    pub fn of(program: PathBuf) -> Runtime {
        Runtime { program, options: &[], instead: None }
    }

    /// Why it was taken before one that is usually preferred.
    pub fn instead(&self) -> Option<&'static str> {
        self.instead
    }

    /// From now on it is told to go without control groups.
    pub fn without_cgroups(&mut self) {
        self.options = crate::rootless::runtime_options(&self.program);
    }

    /// The program's path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Runs the container's bundle until it ends; returns the exit code (128+N for signal N). `started` is
    /// called once its program runs.
    ///
    /// The container's lock is held by the runtime too, until it ends, whatever becomes of this process.
    /// Signals that arrive are passed on to the runtime, which in the foreground passes them on to the program.
    ///
    /// # Errors
    /// The runtime could not be started, is [`NotStarted`], or is none (the user's to mend).
    pub async fn run(
        &self,
        container: &Container,
        streams: Streams,
        terminal: bool,
        signals: &mut Signals,
        mut started: Option<Started<'_>>,
    ) -> anyhow::Result<u8> {
        let (bundle, state) = (container.bundle(), container.state());
        let pid_file = bundle.join("pid");
        // Unlike the lock itself, a copy made by dup is inherited.
        let inherited = rustix::io::dup(container.lock()).context("sharing a container's lock")?;
        let mut child = tokio::process::Command::new(&self.program)
            .args(self.options)
            .arg("--root")
            .arg(state)
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(container.name())
            .stdin(streams.input)
            .stdout(streams.output)
            .stderr(streams.error)
            .spawn()
            .with_context(|| format!("starting the OCI runtime {}", self.program.display()))?;
        drop(inherited);
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.context("waiting for the OCI runtime")?,
                () = appears(&pid_file), if started.is_some() => {
                    if let Some(started) = started.take() {
                        started()?;
                    }
                }
                signal = signals.next() => {
                    if let Some(pid) = pid.filter(|_| !sent_to_group_too(signal, terminal)) {
                        tracing::debug!(?signal, "passing a signal on");
                        // It may just have ended: then there is no one to tell.
                        let _ = rustix::process::kill_process(pid, signal);
                    }
                }
            }
        };
        if !pid_file.exists() && status.signal().is_none() {
            return Err(match status.success() {
                true => user_hint(
                    format!("{} did nothing: it ended and had started no program", self.program.display()),
                    "--runtime names an OCI runtime, as crun, runc or youki",
                ),
                false => NotStarted(self.program.clone()).into(),
            });
        }
        if let Some(started) = started {
            // It ran, and that was over before anybody looked.
            started()?;
        }
        Ok(exit_code(status))
    }

    /// Becomes the runtime, which runs one more program in a container of that id; returns only why it can't.
    pub fn exec(&self, id: &str, state: &Path, options: &[OsString], command: &[String]) -> std::io::Error {
        use std::os::unix::process::CommandExt;
        let mut exec = std::process::Command::new(&self.program);
        exec.args(self.options)
            .arg("--root")
            .arg(state)
            .arg("exec")
            .args(options)
            .arg(id)
            .args(command)
            .exec()
    }

    /// Removes what the runtime keeps of a container, and kills what still runs in it.
    pub async fn delete(&self, id: &str, state: &Path) {
        let command = tokio::process::Command::new(&self.program)
            .args(self.options)
            .arg("--root")
            .arg(state)
            .args(["delete", "--force", id])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await;
        tracing::debug!(?command, id, "deleted the container's remains");
    }
}

/// Returns once the file is there.
async fn appears(file: &Path) {
    while !file.exists() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether the terminal has sent this signal to the runtime as well, which is in the same process group:
/// passing it on would deliver it twice. A container's own terminal is in raw mode and sends none but
/// WINCH.
fn sent_to_group_too(signal: Signal, terminal: bool) -> bool {
    let keyboard = signal == Signal::INT || signal == Signal::QUIT;
    (signal == Signal::WINCH || (keyboard && !terminal)) && in_foreground()
}

fn in_foreground() -> bool {
    rustix::termios::tcgetpgrp(std::io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// The exit code a shell would show.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs() {
        assert!(find_program("sh", None).is_some());
        assert!(find_program("/bin/sh", None).is_some());
        assert!(find_program("no-such-program", None).is_none());
        assert!(find_program("/etc/passwd", None).is_none());
    }

    #[test]
    fn exit_codes_are_the_shell_s() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }

    #[test]
    fn mixed_cgroups_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!mixed_cgroups(dir.path()));
        std::fs::create_dir(dir.path().join("unified")).unwrap();
        std::fs::write(dir.path().join("unified/cgroup.controllers"), "\n").unwrap();
        assert!(!mixed_cgroups(dir.path()));
        std::fs::write(dir.path().join("unified/cgroup.controllers"), "hugetlb\n").unwrap();
        assert!(mixed_cgroups(dir.path()));
    }
}
