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
    if makes_one(command) {
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
        Command::Top(options) if options.json => super::print(&super::top::nothing()?)?,
        Command::Images(_) | Command::Ps(_) | Command::Status(_) | Command::Top(_) => super::print(&text)?,
        Command::Inspect(options) => {
            eprintln!("note: {text}: what its registry has of {} is told", options.image);
            // Looked at as any image is, in a store that is gone afterwards.
            let aside = tempfile::tempdir()?;
            let global = Global { root: Some(aside.path().to_owned()), no_daemon: true, ..global.clone() };
            super::inspect::run(&global, options)?;
        }
        _ => return Err(user_hint(text, "--root names another")),
    }
    Ok(true)
}

/// May the command make a store, or does it want none?
fn makes_one(command: &Command) -> bool {
    match command {
        Command::Run(_)
        | Command::Mount(_)
        | Command::Pull(_)
        | Command::Index(_)
        | Command::Daemon(_)
        | Command::Serve(_)
        | Command::Doctor(_) => true,
        Command::Images(_)
        | Command::Ps(_)
        | Command::Status(_)
        | Command::Inspect(_)
        | Command::Why(_)
        | Command::Top(_)
        | Command::Logs(_)
        | Command::Exec(_)
        | Command::Stop(_)
        | Command::Rm(_)
        | Command::Unmount(_)
        | Command::Pin(_)
        | Command::Unpin(_)
        | Command::Prune(_)
        | Command::Fsck(_) => false,
    }
}
