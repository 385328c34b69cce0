//! `hoist pin` and `hoist unpin`.

use crate::cli::{Global, Pin};

pub(super) fn run(global: &Global, options: &Pin, pinned: bool) -> anyhow::Result<()> {
    let engine = crate::engine_glue::open(global)?;
    for name in &options.names {
        engine.pin(name, pinned)?;
    }
    Ok(())
}
