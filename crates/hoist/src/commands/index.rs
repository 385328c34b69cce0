//! `hoist index`.

use hoist_engine::Progress;

use crate::cli::{Global, Index};
use crate::printer::Printer;
use crate::signals::{Signals, interrupted};

pub(super) fn run(global: &Global, options: &Index) -> anyhow::Result<()> {
    let printer = Printer::new();
    let indexed = crate::engine_glue::tokio_runtime()?.block_on(async {
        let mut signals = Signals::catch()?;
        let work = async {
            let engine = crate::engine_glue::open(global)?;
            let image = engine.resolve(&options.image).await?;
            anyhow::Ok(engine.index(&image, options.push, &printer).await?)
        };
        tokio::select! {
            indexed = work => indexed,
            signal = signals.next_fatal() => Err(interrupted(signal)),
        }
    });
    printer.end();
    let indexed = indexed?;
    super::print_value(&indexed, options.json)
}
