//! `hoist inspect`.

use crate::cli::{Global, Inspect};
use crate::worker::Worker;

pub(super) fn run(global: &Global, options: &Inspect) -> anyhow::Result<()> {
    let inspection = super::block_on(async { Worker::find(global).await?.inspect(&options.image).await })?;
    super::print_value(&inspection, options.json)
}
