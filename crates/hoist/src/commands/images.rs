//! `hoist images`.

use crate::cli::{Global, Images};
use crate::worker::Worker;

pub(super) fn run(global: &Global, options: &Images) -> anyhow::Result<()> {
    let images = super::block_on(async { Worker::find(global).await?.images().await })?;
    super::print_value(&images, options.json)
}
