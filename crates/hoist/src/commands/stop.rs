//! `hoist stop`.

use crate::cli::{Global, Stop};

pub(super) fn run(global: &Global, options: &Stop) -> anyhow::Result<()> {
    let root = global.root()?;
    // A folder that is no store has no containers of ours.
    hoist_engine::store::Store::open(&root)?;
    options
        .names
        .iter()
        .try_for_each(|name| crate::container::stop(&root, name, options.time, &|line| eprintln!("{line}")))
}
