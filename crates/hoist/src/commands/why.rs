//! `hoist why`: why something was not lazy, or was slow.

use hoist_engine::reference::Source;
use hoist_engine::store::Store;
use hoist_engine::store::history::{History, SlowRead};
use serde_json::{Value, json};

use crate::cli::{Global, Why};
use crate::daemon::status::{age, now, of_total};
use crate::failure::user_hint;
use crate::human::{self, bytes};
use crate::worker::Worker;

pub(super) fn run(global: &Global, options: &Why) -> anyhow::Result<()> {
    // A folder that is no store has nothing to tell.
    let store = Store::open(&global.root()?)?;
    let living = store.mounts()?;
    let is_alive = |history: &History| living.iter().any(|record| record.id == history.id);
    let mut histories = store.histories();
    // Two mounts of one second have no order of their own, and what lives is what is meant.
    histories.sort_by_key(|history| !is_alive(history));
    let mut history = find(&store, &histories, &options.of);
    if history.is_none() {
        // A container that hoist did not start itself.
        let standing = super::block_on(async { Worker::find(global).await?.standing(&options.of).await })?;
        history = standing.and_then(|standing| match &standing.folder {
            Some(folder) => histories.iter().find(|history| history.target == *folder).cloned(),
            None => find(&store, &histories, &standing.image),
        });
    }
    // What a mount of it would be now, for what is the name of an image.
    let image = history.as_ref().map_or(options.of.as_str(), |history| history.image.as_str());
    let inspected = super::inspect::look(global, image);
    let inspected = match (inspected, &history) {
        (Ok(inspected), _) => Some(inspected),
        // What is known of it may still be told.
        (Err(_), Some(_)) => None,
        (Err(error), None) => {
            let text = format!(
                "nothing is known of {:?}: it was not mounted from this store, or long ago",
                options.of
            );
            let hint = format!("name a container, a mounted folder or an image; as an image: {error:#}");
            return Err(user_hint(text, hint));
        }
    };
    let faster = history.as_ref().map_or(Vec::new(), |history| faster_drivers(&store, history));
    if options.json {
        let mount = history.as_ref().map(with_files).transpose()?;
        return super::print_json(&json!({"mount": mount, "faster_drivers": faster, "image": inspected}));
    }
    let told = history.as_ref().map(|history| (history, is_alive(history)));
    super::print(text(told, &faster, inspected.as_ref()).trim_end())
}

/// The latest mount of a container, on a folder, or of an image.
fn find(store: &Store, histories: &[History], of: &str) -> Option<History> {
    let container = crate::container::image_of(store.root(), of).ok();
    let folder = std::path::Path::new(of).canonicalize().ok();
    let folder = folder.or_else(|| std::path::absolute(of).ok());
    let digits = of.strip_prefix("sha256:").unwrap_or(of);
    let is_digest = digits.len() >= 6 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let by = |is: &dyn Fn(&History) -> bool| histories.iter().find(|history| is(history)).cloned();
    by(&|history| container.as_ref() == Some(&history.target))
        .or_else(|| by(&|history| folder.as_ref() == Some(&history.target)))
        .or_else(|| by(&|history| history.image == of || history.image == crate::worker::absolute_name(of)))
        .or_else(|| by(&|history| is_named(&history.image, of)))
        .or_else(|| {
            by(&|history| is_digest && history.digest.is_some_and(|digest| digest.hex().starts_with(digits)))
        })
}

/// Is an image called so? containerd's have a digest too, which need not be said.
fn is_named(image: &str, of: &str) -> bool {
    let (Ok(Source::Registry(image)), Ok(Source::Registry(of))) = (image.parse(), of.parse()) else {
        return false;
    };
    image.repo == of.repo && image.tag == of.tag && (of.digest.is_none() || of.digest == image.digest)
}

/// Drivers that would be faster than the one that was used, and what is missing for them.
fn faster_drivers(store: &Store, history: &History) -> Vec<String> {
    if history.was_left() {
        return Vec::new();
    }
    let states = hoist_engine::drivers(store.root());
    let faster = states.into_iter().take_while(|state| state.driver.name() != history.driver);
    let why = |state: hoist_engine::DriverState| {
        let missing = state.missing.unwrap_or_else(|| "works here: another was asked for".to_owned());
        format!("{}: {missing}", state.driver.name())
    };
    faster.map(why).collect()
}

/// With the names of the files that were read slowly.
fn with_files(history: &History) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(history)?;
    let slowest = history.slowest.iter().map(|read| {
        let mut shown = serde_json::to_value(read)?;
        shown["file"] = read.file().into();
        anyhow::Ok(shown)
    });
    value["slowest"] = slowest.collect::<Result<_, _>>()?;
    Ok(value)
}

fn text(history: Option<(&History, bool)>, faster: &[String], inspected: Option<&Value>) -> String {
    let mut text = String::new();
    match history {
        Some((history, is_alive)) => mounted(&mut text, history, is_alive, faster),
        None => text.push_str("it was not mounted from this store, or long ago\n"),
    }
    if let Some(inspected) = inspected {
        let lazy = match (&inspected["complete"], &inspected["lazy"]) {
            (Value::Bool(true), _) => "",
            (_, Value::Bool(true)) => " would be lazy",
            _ => " would not be lazy",
        };
        let why = inspected["why"].as_str().unwrap_or_default();
        text.push_str(&format!(
            "\na mount of {} now{lazy}: {why}\n",
            inspected["image"].as_str().unwrap_or_default()
        ));
        text.push_str(&format!("\n{}", super::layers::text(&inspected["layers"])));
    }
    text
}

fn mounted(text: &mut String, history: &History, is_alive: bool, faster: &[String]) {
    let ago = |at: u64| age(now().saturating_sub(at));
    let mut line = |what: String| {
        text.push_str(&what);
        text.push('\n');
    };
    if history.was_left() {
        return line(format!(
            "{} was left to containerd to fetch and unpack {} ago\nnot lazy: {}",
            history.image,
            ago(history.since),
            history.why
        ));
    }
    let state = match history.ended {
        Some(ended) => format!("ended {} ago", ago(ended)),
        None if is_alive => format!("for {}", ago(history.since)),
        None => format!("mounted {} ago; nobody saw its end", ago(history.since)),
    };
    line(format!(
        "{} on {} by the driver {}, {state}",
        history.image,
        history.target.display(),
        history.driver
    ));
    line(format!("{}: {}", if history.lazy { "lazy" } else { "not lazy" }, history.why));
    faster.iter().for_each(|why| line(format!("a faster driver was not used: {why}")));
    line(format!("it was there after {:.3} s", history.seconds_to_mount));
    let stalls = match history.reads {
        0 => "no read asked for data that might not be here".to_owned(),
        reads => format!(
            "{} of {reads} reads waited for data ({}), {:.3} s in all",
            history.stalls,
            bytes(history.demand_bytes),
            history.waited_seconds
        ),
    };
    line(match history.failed {
        0 => stalls,
        failed => format!("{stalls}; {failed} failed"),
    });
    line(format!(
        "{} came in {} requests, {} from other layers here",
        bytes(history.wire_bytes),
        history.requests,
        bytes(history.copied_bytes)
    ));
    if let Some((here, total)) = history.present.filter(|_| history.ended.is_some()) {
        line(format!("{} were here at its end", of_total(here, total)));
    }
    servers(text, history);
    slowest(text, history);
}

fn table(rows: Vec<Value>) -> String {
    human::fitted(&Value::Array(rows), human::terminal_width(), &[])
}

/// What came from where, and what failed there last.
fn servers(text: &mut String, history: &History) {
    if !history.sources.is_empty() {
        text.push_str(&format!("\n{}", table(sources(history))));
    }
    for (host, counts) in &history.sources {
        if let Some(failure) = &counts.last_failure {
            text.push_str(&format!("the last failure of {host}: {}\n", human::printable(failure)));
        }
    }
}

/// The slowest reads, and what went wrong meanwhile.
fn slowest(text: &mut String, history: &History) {
    let slowest = &history.slowest[..history.slowest.len().min(10)];
    if !slowest.is_empty() {
        let rows = slowest.iter().zip(1..).map(slow_row).collect();
        let trouble = |read: &SlowRead| read.failed.iter().chain(&read.trouble).cloned().collect();
        let troubles = human::said_once("read", &slowest.iter().map(trouble).collect::<Vec<_>>());
        text.push_str(&format!("\nthe slowest reads:\n{}{troubles}", table(rows)));
    }
}

fn sources(history: &History) -> Vec<Value> {
    let row = |(host, counts): (&String, &hoist_engine::registry::HostCounts)| {
        json!({
            "source": host,
            "bytes": counts.bytes,
            "requests": counts.requests,
            "failures": counts.failures,
        })
    };
    history.sources.iter().map(row).collect()
}

fn slow_row((read, number): (&SlowRead, usize)) -> Value {
    json!({
        "read": number,
        "file": read.file(),
        "waited": format!("{} ms", read.waited_ms),
        "bytes": read.bytes,
        "requests": read.requests,
        "from": read.from,
    })
}
