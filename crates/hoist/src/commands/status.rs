//! `hoist status`.

use crate::cli::{Global, Status};
use crate::worker::Worker;

pub(super) fn run(global: &Global, options: &Status) -> anyhow::Result<()> {
    let status = super::block_on(async { Worker::find(global).await?.status().await })?;
    if options.json {
        return super::print_json(&status);
    }
    let status: crate::daemon::status::Status = serde_json::from_value(status)?;
    super::print(status.text(crate::human::terminal_width()).trim_end())
}
