//! Child processes that do not outlive the test that started them.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A daemon of ours: asked to end, and then made to, when dropped. Only ever signalled by its own pid.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Takes charge of a started process.
    pub fn new(child: Child) -> Self {
        Self { child }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Daemon {
    /// Ends it, if it has not ended.
    pub fn end(&mut self) {
        if self.has_ended() {
            return;
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.has_ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a command to its end and returns its standard output; a failure names the command and its stderr.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!("starting {shown} (is it installed? `make deps` installs what tests need)")
    })?;
    if !output.status.success() {
        bail!("{shown} failed with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The least that anything is waited for: a loaded machine may take long for what is done at once.
const LEAST: Duration = Duration::from_secs(60);

/// Polls `ready` until it says so, for at most `limit`, or a minute if that is more.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let limit = limit.max(LEAST);
    let deadline = Instant::now() + limit;
    while !ready()? {
        if Instant::now() > deadline {
            bail!("{what} was not ready within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
