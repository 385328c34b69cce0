//! `hoist prune`.

use crate::cli::{Global, Prune};
use crate::worker::Worker;

pub(super) fn run(global: &Global, options: &Prune) -> anyhow::Result<()> {
    let pruned = super::block_on(async { Worker::find(global).await?.prune().await })?;
    super::print_value(&pruned, options.json)
}
