//! `hoist prune`.

use crate::cli::{Global, Prune};

pub(super) fn run(global: &Global, options: &Prune) -> anyhow::Result<()> {
    let pruned = crate::engine_glue::open(global)?.prune()?;
    let _ = options;
    super::print_json(&pruned)
}
