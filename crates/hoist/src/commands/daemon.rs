//! `hoist daemon`.

use crate::cli::{Daemon, Global};

pub(super) fn run(global: &Global, options: &Daemon) -> anyhow::Result<()> {
    crate::daemon::run(global, options)
}
