//! The process behind a mount or a container: started by `hoist mount`, it serves until unmounted, by `hoist run
//! --detach`, until the program ends.
//!
//! While the mount or container is being made, the child tells its parent on its standard output, a line of JSON for
//! each event; the parent shows it and leaves when the mount is ready. If the parent goes away earlier, so
//! does the child.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use hoist_engine::Progress;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::sync::Notify;

use crate::cli::{Global, Mount};
use crate::failure::Relayed;

/// What the child tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    Begin { what: String, total_bytes: u64 },
    Advance(u64),
    End,
    Note(String),
    Say(String),
    Ready,
    Failed { text: String, code: u8 },
}

/// Starts the child behind a mount and shows what it tells until the mount is ready.
///
/// # Errors
/// What the child failed with, or that it ended without a word.
pub fn start(global: &Global, mount: &Mount, progress: &dyn Progress) -> anyhow::Result<()> {
    let (log, log_path) = hoist_engine::store::new_log(&global.root()?, "mount")?;
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments(global, mount)?).stderr(log);
    await_ready(command, progress)?
        .with_context(|| format!("making the mount in the background; its log is {}", log_path.display()))
}

/// Starts a child and shows what it tells until it is ready. The inner error is that it ended without a word.
///
/// # Errors
/// What the child failed with.
pub fn await_ready(mut command: Command, progress: &dyn Progress) -> anyhow::Result<anyhow::Result<()>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the process in the background")?;
    let stdout = child.stdout.take().context("the process in the background has no standard output")?;
    let outcome = follow(BufReader::new(stdout), progress);
    progress.end();
    match outcome? {
        Some(outcome) => outcome.map(Ok),
        None => {
            let status = child.wait().context("waiting for the process in the background")?;
            Ok(Err(anyhow::anyhow!("the process in the background ended ({status}) without a word")))
        }
    }
}

/// `None` if the child went away without a last word.
fn follow(lines: impl BufRead, progress: &dyn Progress) -> anyhow::Result<Option<anyhow::Result<()>>> {
    for line in lines.lines() {
        let line = line.context("reading from the background process")?;
        match serde_json::from_str(&line).with_context(|| format!("the background process said {line:?}"))? {
            Event::Begin { what, total_bytes } => progress.begin(&what, total_bytes),
            Event::Advance(bytes) => progress.advance(bytes),
            Event::End => progress.end(),
            Event::Note(text) => progress.note(&text),
            Event::Say(text) => eprintln!("{text}"),
            Event::Ready => return Ok(Some(Ok(()))),
            Event::Failed { text, code } => return Ok(Some(Err(Relayed { text, code }.into()))),
        }
    }
    Ok(None)
}

fn arguments(global: &Global, mount: &Mount) -> anyhow::Result<Vec<std::ffi::OsString>> {
    let mut arguments = crate::engine_glue::arguments(global)?;
    arguments.extend(["mount", "--foreground", "--report"].map(Into::into));
    if let Some(stats) = &mount.stats.path {
        arguments.extend(["--stats".into(), std::path::absolute(stats)?.into()]);
    }
    arguments.extend(["--".into(), (&mount.image).into(), (&mount.target).into()]);
    Ok(arguments)
}

/// What the child says when it ends for that.
pub const PARENT_GONE: &str = "the process that asked for it is gone";

/// The child's side: progress for the parent, and at last that it is ready or has failed.
#[derive(Debug, Default, Clone)]
pub struct Reporter {
    gone: Arc<Notify>,
    /// It was told that it is ready: from then on nobody listens.
    is_ready: Arc<AtomicBool>,
}

impl Reporter {
    /// Leaves the parent's session, so that its terminal's end is not the mount's.
    pub fn detach() -> Reporter {
        // It fails if this process leads a group, that is, was started by hand: then all is well as it is.
        let _ = rustix::process::setsid();
        Reporter::default()
    }

    fn tell(&self, event: &Event) -> std::io::Result<()> {
        let told = serde_json::to_string(event).map_err(std::io::Error::from).and_then(|line| {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{line}")?;
            out.flush()
        });
        told.inspect_err(|_| self.gone.notify_one())
    }

    /// Waits until the parent is gone. Cancel safe.
    pub async fn parent_gone(&self) {
        let out = std::io::stdout().as_fd().try_clone_to_owned();
        // A pipe tells when nobody reads it any more; what can't be waited for shows it at the next word.
        match out.and_then(|out| hoist_engine::waitable(out, Interest::ERROR)) {
            Ok(out) => tokio::select! {
                () = self.gone.notified() => {}
                _ = out.ready(Interest::ERROR) => {}
            },
            Err(_) => self.gone.notified().await,
        }
    }

    /// Something to be told, also where nobody watches.
    pub fn say(&self, text: &str) {
        let _ = self.tell(&Event::Say(text.to_owned()));
    }

    /// It is ready: from here on nobody listens.
    ///
    /// # Errors
    /// The parent is gone: nobody knows of it.
    pub fn ready(&self) -> anyhow::Result<()> {
        self.tell(&Event::Ready).context(PARENT_GONE)?;
        let null = File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(null)?;
        self.is_ready.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Was it told that it is ready?
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// It can't be made. False if nobody hears it.
    pub fn failed(&self, error: &anyhow::Error) -> bool {
        let (text, code) = (crate::failure::describe(error), crate::engine_glue::exit_code(error));
        self.tell(&Event::Failed { text, code }).is_ok() && !self.is_ready()
    }
}

impl Progress for Reporter {
    fn begin(&self, what: &str, total_bytes: u64) {
        let _ = self.tell(&Event::Begin { what: what.to_owned(), total_bytes });
    }

    fn advance(&self, bytes: u64) {
        let _ = self.tell(&Event::Advance(bytes));
    }

    fn end(&self) {
        let _ = self.tell(&Event::End);
    }

    fn note(&self, text: &str) {
        let _ = self.tell(&Event::Note(text.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_s_last_word_is_kept() {
        let silent = hoist_engine::progress::Silent;
        let ready = br#"{"begin":{"what":"x","total_bytes":3}}
{"advance":3}
"end"
"ready"
"#;
        assert!(matches!(follow(&ready[..], &silent), Ok(Some(Ok(())))));
        let failed = br#"{"failed":{"text":"error: no","code":1}}"#;
        let error = follow(&failed[..], &silent).unwrap().unwrap().unwrap_err();
        assert_eq!(
            (crate::failure::describe(&error).as_str(), crate::engine_glue::exit_code(&error)),
            ("error: no", 1)
        );
        assert!(matches!(follow(&b"\"end\"\n"[..], &silent), Ok(None)));
        assert!(follow(&b"nonsense\n"[..], &silent).is_err());
    }
}
