//! `hoist index`.

use crate::cli::{Global, Index};
use crate::printer::Printer;

pub(super) fn run(global: &Global, options: &Index) -> anyhow::Result<()> {
    let printer = Printer::new();
    let indexed = super::interruptible(&printer, async {
        let engine = crate::engine_glue::open(global)?;
        let image = engine.resolve(&options.image).await?;
        Ok(engine.index(&image, options.push, &printer).await?)
    })?;
    super::print_value(&indexed, options.json)
}
