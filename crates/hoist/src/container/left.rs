//! Containers that were to be removed at their end, and whose `hoist run` and daemon were both killed before it.

use std::path::Path;

use super::overlay::detach;
use super::{Container, Listed, Program, Record, folder, list, lock, removal};
use crate::runtime::Runtime;

/// Removes those that have ended; what fails is said in the log, and tried again by whoever comes next.
pub async fn remove_left(root: &Path) {
    let listed = list(root).unwrap_or_else(|error| {
        tracing::warn!("looking for containers that were to be removed: {error:#}");
        Vec::new()
    });
    for Listed { name, record, .. } in listed {
        let Some(record) = record.filter(|record| record.rm) else { continue };
        match remove_one(root, &name, &record).await {
            Ok(true) => {
                tracing::info!(container = name, "removed: it has ended, and whoever was to do so was killed")
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(container = name, "removing what a killed `hoist run` has left: {error:#}")
            }
        }
    }
}

/// False where somebody has it, who removes it, or its program still runs.
async fn remove_one(root: &Path, name: &str, record: &Record) -> anyhow::Result<bool> {
    let Some(dir) = folder(root, name) else { return Ok(false) };
    // Gone meanwhile is as good.
    let Ok(Some(lock)) = lock(&dir) else { return Ok(false) };
    if Program::of(&dir).is_some() {
        return Ok(false);
    }
    let container = Container { name: name.to_owned(), dir, lock };
    if container.state().join(name).exists() {
        let runtime = record.runtime.as_deref().and_then(Path::to_str);
        Runtime::find(runtime)?.delete(name, &container.state()).await;
    }
    container.unmount_overlay()?;
    detach(&container.image())?;
    removal::remove_tree(&container.dir)?;
    Ok(true)
}
