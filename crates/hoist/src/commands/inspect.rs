//! `hoist inspect`.

use crate::cli::{Global, Inspect};

pub(super) fn run(global: &Global, options: &Inspect) -> anyhow::Result<()> {
    let engine = crate::engine_glue::open(global)?;
    let image = crate::engine_glue::tokio_runtime()?.block_on(engine.resolve(&options.image))?;
    super::print_value(&engine.inspect(&image)?, options.json)
}
