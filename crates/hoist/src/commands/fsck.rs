//! `hoist fsck`.

use crate::cli::{Fsck, Global};

pub(super) fn run(global: &Global, options: &Fsck) -> anyhow::Result<u8> {
    let checked = crate::engine_glue::open_damaged(global)?.fsck(options.repair)?;
    super::print_value(&checked, options.json)?;
    let left = checked.problems.iter().any(|problem| !problem.repaired);
    Ok(if left { crate::failure::EXIT_USER } else { 0 })
}
