//! `hoist prune`.

use crate::cli::{Global, Prune};

pub(super) fn run(global: &Global, options: &Prune) -> anyhow::Result<()> {
    let pruned = crate::engine_glue::open(global)?.prune()?;
    super::print_value(&pruned, options.json)
}
