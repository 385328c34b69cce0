//! `hoist serve`: the successor of a process that served mounts and is dead, or about to go.

use anyhow::Context;
use hoist_sys::keeper::Inheritance;

use crate::cli::{Global, Serve};
use crate::failure::user;
use crate::signals::Signals;

pub(super) fn run(global: &Global, options: &Serve, inheritance: Option<Inheritance>) -> anyhow::Result<()> {
    let inheritance = inheritance.ok_or_else(|| user("`hoist serve` is started by hoist itself"))?;
    hoist_sys::memory::share_heaps();
    crate::engine_glue::tokio_runtime()?.block_on(async {
        let mut signals = Signals::catch().context("catching signals")?;
        let vault = crate::daemon::notify::vault();
        let memory = hoist_engine::bequeathed(&inheritance);
        let engine = crate::engine_glue::open_with(global, |config| {
            config.vault = vault;
            crate::daemon::inherit(global, options.config.as_deref(), memory, config);
        })?;
        let mounts = engine.resume(inheritance).await.context("taking over the mounts of another process")?;
        crate::serving::until_gone(&engine, mounts, &mut signals).await
    })
}
