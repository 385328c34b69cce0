//! What is known of containers beside their files: `container.json` in their folders.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Container, Program, check_name, containers, folder, unknown};
use crate::failure::user_hint;

/// What is known of a container beside its files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The image's name, as it was given.
    pub image: Option<String>,
    /// Its manifest.
    pub digest: Option<String>,
    /// What was run.
    pub command: Vec<String>,
    /// What showed the image.
    pub driver: Option<String>,
    /// When it was started, in seconds since 1970.
    pub started: Option<u64>,
    /// When it ended.
    pub ended: Option<u64>,
    /// With which exit code.
    pub exit_code: Option<u8>,
    /// Reads of its image that had to wait for data.
    pub demand_stalls: Option<u64>,
    /// The OCI runtime that runs it.
    pub runtime: Option<PathBuf>,
    /// It is to be removed at its end.
    pub rm: bool,
    /// The signal that asks its program to end, if its image names one.
    pub stop_signal: Option<String>,
}

/// A container of the store.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Somebody runs it.
    pub running: bool,
    /// Its first process, while that lives.
    pub program: Option<Program>,
    /// None where it has none: it never ran.
    pub record: Option<Record>,
}

/// The containers of the store at `root`, by name.
///
/// # Errors
/// Their folder can't be read.
pub fn list(root: &Path) -> anyhow::Result<Vec<Listed>> {
    let parent = containers(root);
    let entries = match std::fs::read_dir(&parent) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("listing {}", parent.display()))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut listed: Vec<Listed> = names
        .filter(|name| check_name(name).is_ok())
        .map(|name| {
            let dir = parent.join(&name);
            let running = is_locked(&dir);
            let program = Program::of(&dir).filter(|_| running);
            Listed { record: record(&dir), name, running, program }
        })
        .collect();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(listed)
}

/// The environment and the working folder of the program of a container that runs, as its bundle has them.
pub fn environment(root: &Path, name: &str) -> Option<(Vec<String>, String)> {
    #[derive(Deserialize)]
    struct Process {
        env: Vec<String>,
        cwd: String,
    }
    let Process { env, cwd } = serde_json::from_value(process(root, name)?).ok()?;
    Some((env, cwd))
}

/// What a container's bundle says of its program (OCI runtime specification, config.md, Process).
pub fn process(root: &Path, name: &str) -> Option<Value> {
    let config = std::fs::read(folder(root, name)?.join("bundle/config.json")).ok()?;
    let mut config: Value = serde_json::from_slice(&config).ok()?;
    config.get_mut("process").map(Value::take)
}

/// Is there a container of this name?
pub fn is_there(root: &Path, name: &str) -> bool {
    folder(root, name).is_some()
}

/// Does anybody run it?
pub fn is_running(root: &Path, name: &str) -> bool {
    folder(root, name).is_some_and(|dir| is_locked(&dir))
}

fn is_locked(dir: &Path) -> bool {
    let lock = File::open(dir.join("lock"));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

const RECORD: &str = "container.json";

pub(super) fn record(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(dir.join(RECORD)).ok()?).ok()
}

/// A container that runs: its program, and what is known of it.
///
/// # Errors
/// There is none of this name, or it does not run: the user's to mend.
pub fn running(root: &Path, name: &str) -> anyhow::Result<(Program, Record)> {
    let dir = folder(root, name).ok_or_else(|| unknown(name))?;
    let program = Program::of(&dir).ok_or_else(|| {
        user_hint(format!("the container {name:?} does not run"), "`hoist ps` tells how it ended")
    })?;
    Ok((program, record(&dir).unwrap_or_default()))
}

impl Container {
    /// Notes what is known of it.
    ///
    /// # Errors
    /// The file system's.
    pub fn note(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.dir.join(RECORD);
        crate::stats_file::write_atomically(&path, &serde_json::to_vec(record)?)
            .with_context(|| format!("writing {}", path.display()))
    }
}
