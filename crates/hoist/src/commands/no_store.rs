//! Commands that only look, or only remove, where there is no store: they make none.

use std::io::ErrorKind;

use serde_json::json;

use crate::cli::{Command, Global};
use crate::daemon::status::{Status, StoreStatus};
use crate::failure::user_hint;

/// Answers for a store whose folder is not there; false if it is there, or the command may make it.
///
/// # Errors
/// The command wants something of the store: the user's to mend.
pub(super) fn answer(global: &Global, command: &Command) -> anyhow::Result<bool> {
    if !matches!(
        command,
        Command::Images(_) | Command::Ps(_) | Command::Status(_) | Command::Rm(_) | Command::Fsck(_)
    ) {
        return Ok(false);
    }
    let root = global.root()?;
    // A path that can be no store's is refused as by any command.
    let is_absent = std::fs::metadata(&root).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    if !is_absent || root.to_str().is_none() {
        return Ok(false);
    }
    let text = format!("there is no store in {}", root.display());
    match command {
        Command::Images(options) if options.json => super::print_json(&json!([]))?,
        Command::Ps(options) if options.json => super::print_json(&json!([]))?,
        Command::Status(options) if options.json => {
            let store = StoreStatus { root, disk_bytes: 0, unpacked_bytes: None };
            super::print_json(&Status { daemon: None, store, mounts: Vec::new() })?;
        }
        Command::Images(_) | Command::Ps(_) | Command::Status(_) => super::print(&text)?,
        _ => return Err(user_hint(text, "--root names another")),
    }
    Ok(true)
}
