//! `hoist images`.

use crate::cli::{Global, Images};

pub(super) fn run(global: &Global, options: &Images) -> anyhow::Result<()> {
    let images = crate::engine_glue::open(global)?.images()?;
    super::print_value(&images, options.json)
}
