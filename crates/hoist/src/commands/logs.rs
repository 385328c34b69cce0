//! `hoist logs`.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use anyhow::Context;

use crate::cli::{Global, Logs};
use crate::container::{self, Output};
use crate::failure::user_hint;

/// Between two looks at what was said.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) fn run(global: &Global, options: &Logs) -> anyhow::Result<()> {
    let root = global.root()?;
    hoist_engine::store::Store::open(&root)?;
    let output = Output::open(&root, &options.name)?;
    let Some(mut output) = output else {
        return Err(user_hint(
            format!("nothing is kept of what the container {:?} says", options.name),
            "it runs, or ran, in the foreground: its output went where its `hoist run` was started; `hoist run -d` keeps it",
        ));
    };
    if let Some(lines) = options.tail {
        output.skip_to_last(lines).context("looking for the last lines")?;
    }
    loop {
        // Looked at before the last words are read, which may come in between.
        let is_over = !options.follow || !container::is_running(&root, &options.name);
        let mut out = std::io::stdout().lock();
        match output.copy_to(&mut out).and_then(|()| out.flush()) {
            Ok(()) if is_over => return Ok(()),
            Ok(()) => std::thread::sleep(LOOK_EVERY),
            // Who reads has read enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error).context("showing what the container has said"),
        }
    }
}
