//! `hoist inspect`.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use hoist_engine::reference::Source;
use hoist_engine::store::Store;
use serde_json::Value;

use crate::cli::{Global, Inspect};
use crate::failure::user_hint;
use crate::unchecked;
use crate::worker::{Worker, absolute_name};

/// After this long a wait is explained.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) fn run(global: &Global, options: &Inspect) -> anyhow::Result<()> {
    let mut inspection = look(global, &options.image)?;
    if options.json {
        return super::print_json(&inspection);
    }
    if inspection["index"].is_null() && inspection["complete"] == true {
        inspection["index"] = "none needed: all of it is here".into();
    }
    let layers = super::layers::text(&inspection["layers"]);
    if let Some(told) = inspection.as_object_mut() {
        told.remove("layers");
        // That was said.
        told.remove("unchecked");
    }
    let rest = crate::human::text(&inspection);
    super::print(format!("{rest}\nlayers:\n{layers}").trim_end())
}

/// What is known of an image. Of a name that means nothing here it is said who is asked, of a registry that lets us
/// wait, too.
pub(super) fn look(global: &Global, image: &str) -> anyhow::Result<Value> {
    let asked = unknown_here(global, image)?;
    if let Some(asked) = asked.as_ref().filter(|_| std::io::stderr().is_terminal()) {
        eprintln!("note: {image:?} is no image or container here: asking for {asked}");
    }
    let inspected =
        super::block_on(patiently(image, async { Worker::find(global).await?.inspect(image).await }));
    let inspected = match asked {
        Some(asked) => inspected
            .with_context(|| format!("{image:?} is no image or container here, and {asked} can't be had")),
        None => inspected,
    }?;
    if let Some(why) = inspected["unchecked"].as_str() {
        eprintln!("{}", unchecked::of(image, inspected["complete"] == true, why));
    }
    Ok(inspected)
}

/// Says who is waited for, if it takes long.
async fn patiently<T>(image: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = tokio::time::timeout(PATIENCE, &mut work).await {
        return done;
    }
    if let Ok(Source::Registry(reference)) = image.parse() {
        eprintln!("note: waiting for {} to say what it has of {image:?}", reference.repo.host);
    }
    work.await
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
