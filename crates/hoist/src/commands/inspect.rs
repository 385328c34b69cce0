//! `hoist inspect`.

use std::io::IsTerminal;

use anyhow::Context;
use hoist_engine::reference::Source;
use hoist_engine::store::Store;
use serde_json::Value;

use crate::cli::{Global, Inspect};
use crate::failure::user_hint;
use crate::worker::{Worker, absolute_name};

pub(super) fn run(global: &Global, options: &Inspect) -> anyhow::Result<()> {
    let mut inspection = look(global, &options.image)?;
    if !options.json && inspection["index"].is_null() && inspection["complete"] == true {
        inspection["index"] = "none needed: all of it is here".into();
    }
    super::print_value(&inspection, options.json)
}

/// What is known of an image. Of a name that means nothing here it is said who is asked.
pub(super) fn look(global: &Global, image: &str) -> anyhow::Result<Value> {
    let asked = unknown_here(global, image)?;
    if let Some(asked) = asked.as_ref().filter(|_| std::io::stderr().is_terminal()) {
        eprintln!("note: {image:?} is no image or container here: asking for {asked}");
    }
    let inspected = super::block_on(async { Worker::find(global).await?.inspect(image).await });
    match asked {
        Some(asked) => inspected
            .with_context(|| format!("{image:?} is no image or container here, and {asked} can't be had")),
        None => inspected,
    }
}

/// The whole name of what a name means elsewhere that says no registry and means nothing here.
fn unknown_here(global: &Global, image: &str) -> anyhow::Result<Option<String>> {
    let store = Store::open(&global.root()?)?;
    if store.lookup(&absolute_name(image)).is_some() {
        return Ok(None);
    }
    if crate::container::is_there(store.root(), image) {
        let hint = format!("hoist ps --json tells of it, hoist why {image} of its image");
        return Err(user_hint(format!("{image:?} is a container, not an image"), hint));
    }
    // A digest is looked for here alone.
    let is_digest = image.len() >= 6 && image.bytes().all(|byte| byte.is_ascii_hexdigit());
    let named = image.parse().ok().filter(|_| !image.contains('/') && !image.contains('@') && !is_digest);
    Ok(named.and_then(|named| match named {
        Source::Registry(reference) => Some(reference.to_string()),
        Source::Layout { .. } => None,
    }))
}
