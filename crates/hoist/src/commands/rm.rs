//! `hoist rm`: containers first, then image names.

use crate::cli::{Global, Rm};
use crate::container::{self, Removal};
use crate::worker::Worker;

pub(super) fn run(global: &Global, options: &Rm) -> anyhow::Result<()> {
    // What an ordinary user's container wrote may be another's outside of its user namespace.
    let (global, _) = crate::rootless::enter(global)?;
    let root = global.root()?;
    // A folder that is no store has nothing of ours to remove.
    hoist_engine::store::Store::open(&root)?;
    for name in &options.names {
        if container::remove(&root, name, options.force)? == Removal::Unknown {
            super::block_on(async { Worker::find(&global).await?.remove(name).await })?;
        }
    }
    Ok(())
}
