//! A node's daemon, as a test starts and ends it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hoist_testkit::process;
use rustix::process::{Pid, Signal};

use super::Node;

/// For what a daemon does at once.
const SOON: Duration = Duration::from_secs(30);

/// `hoist daemon`; ended with everything it serves when dropped.
pub struct Daemon<'a> {
    node: &'a Node,
    child: Child,
    log: PathBuf,
}

impl<'a> Daemon<'a> {
    /// Starts it and waits until it is ready.
    pub fn start(node: &'a Node, args: &[&str]) -> Daemon<'a> {
        let mut daemon = Self::launch(node, node.hoist(&[&["daemon", "--log", "info"], args].concat()));
        daemon.wait_said("ready");
        daemon
    }

    /// This command, not waited for.
    pub fn launch(node: &'a Node, mut command: Command) -> Daemon<'a> {
        let log = tempfile::NamedTempFile::new_in(node.path("")).unwrap().into_temp_path().keep().unwrap();
        let out = fs::File::create(&log).unwrap();
        let child = command.stdout(Stdio::null()).stderr(out).spawn().unwrap();
        Daemon { node, child, log }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it has logged.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has logged this, or has ended.
    pub fn wait_said(&mut self, what: &str) {
        let waited = process::wait_until(what, SOON, || {
            Ok(self.said().contains(what) || self.child.try_wait()?.is_some())
        });
        assert!(waited.is_ok() && self.said().contains(what), "wanted {what:?}: {}", self.said());
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// SIGTERM, and its end.
    pub fn end(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{status}: {}", self.said());
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.node.store("hoist.sock")
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- the daemon's log\n{}", self.said());
        }
        if self.child.try_wait().unwrap().is_none() {
            // What a failed test left mounted would keep it.
            super::unmount_below(Path::new(&self.node.path("")));
            let _ = rustix::process::kill_process(self.pid(), Signal::TERM);
            let ended =
                process::wait_until("the daemon's end", SOON, || Ok(self.child.try_wait()?.is_some()));
            if ended.is_err() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

/// What a daemon tells where its metrics are served.
pub fn metrics(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    answer
}
