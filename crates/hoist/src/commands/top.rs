//! `hoist top`: what the mounts of a store are doing, again and again.
//!
//! It reads what the processes that serve them write down in the store each second, so it is the same with
//! and without a daemon.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use hoist_engine::Viewer;
use hoist_engine::store::Store;
use hoist_engine::store::history::{History, SlowRead};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::{Global, Top};
use crate::daemon::status::{now, share};
use crate::human::bytes;

/// Columns that a narrow terminal does without, first things first.
const OPTIONAL: [&str; 7] = ["driver", "+stalls", "+here", "image", "failed", "fetched", "waited"];
/// Slow reads that are shown.
const SLOW: usize = 8;

/// A mount at one moment.
#[derive(Debug, Clone, Serialize)]
struct Row {
    target: String,
    container: Option<String>,
    image: String,
    driver: String,
    present_bytes: u64,
    total_bytes: u64,
    /// Reads that the serving process was asked about, and those of them that waited or failed.
    reads: u64,
    stalls: u64,
    failed: u64,
    waited_seconds: f64,
    wire_bytes: u64,
    copied_bytes: u64,
    /// Since the last look.
    present_bytes_per_second: u64,
    wire_bytes_per_second: u64,
    reads_per_second: u64,
    stalls_per_second: f64,
    /// It was not looked at before: there are no rates yet.
    #[serde(skip)]
    first: bool,
}

/// All of them at one moment: a line of `--json`.
#[derive(Debug, Serialize)]
struct Moment {
    /// Seconds since 1970.
    time: u64,
    mounts: Vec<Row>,
    /// What came from which server, for all of them.
    sources: Vec<Value>,
    slowest: Vec<Value>,
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct Watch {
    last: HashMap<String, (Instant, Row)>,
    viewer: Viewer,
    files: HashMap<(std::path::PathBuf, u16, u64), String>,
}

pub(super) fn run(global: &Global, options: &Top) -> anyhow::Result<()> {
    let store = Store::open(&global.root()?)?;
    let mut watch = Watch::default();
    let mut left = options.count;
    let terminal = std::io::stdout().is_terminal() && !options.json;
    loop {
        let moment = watch.look(&store)?;
        // Clear, and begin at the upper left (ECMA-48, ED and CUP).
        let clear = if terminal { "\x1b[2J\x1b[H" } else { "" };
        let text = match options.json {
            true => serde_json::to_string(&moment)?,
            false => format!("{clear}{}", moment.text(crate::human::terminal_width())),
        };
        if !super::print_if_read(&text)? {
            return Ok(());
        }
        if let Some(left) = &mut left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                return Ok(());
            }
        }
        std::thread::sleep(options.interval);
    }
}

/// A line of `--json` where there is no store.
pub(super) fn nothing() -> anyhow::Result<String> {
    let none = Moment { time: now(), mounts: Vec::new(), sources: Vec::new(), slowest: Vec::new() };
    Ok(serde_json::to_string(&none)?)
}

impl Watch {
    fn look(&mut self, store: &Store) -> anyhow::Result<Moment> {
        let (mut mounts, mut last) = (Vec::new(), HashMap::new());
        let mut sources: std::collections::BTreeMap<String, hoist_engine::registry::HostCounts> =
            Default::default();
        let mut slowest = Vec::new();
        for record in store.mounts()? {
            // Nobody serves it any more, or it is being made.
            let Some(history) = store.history(&record.id) else { continue };
            let at = Instant::now();
            let layers = self.viewer.layers(&record);
            let present = layers.iter().map(|layer| layer.present_bytes).sum();
            let total = layers.iter().map(|layer| layer.total_bytes).sum();
            let before = self.last.get(&record.id);
            let row = row(store, &history, (present, total), before, at);
            last.insert(record.id.clone(), (at, row.clone()));
            mounts.push(row);
            for (host, counts) in &history.sources {
                sources.entry(host.clone()).or_default().add(counts);
            }
            slowest.extend(history.slowest);
        }
        self.last = last;
        mounts.sort_by(|a: &Row, b: &Row| a.target.cmp(&b.target));
        slowest.sort_by_key(|read: &SlowRead| std::cmp::Reverse(read.waited_ms));
        slowest.truncate(SLOW);
        let slowest = slowest.iter().map(|read| self.slow(read)).collect();
        let sources = sources.iter().map(|(host, counts)| {
            json!({"source": host, "bytes": counts.bytes, "requests": counts.requests, "failures": counts.failures})
        });
        Ok(Moment { time: now(), mounts, sources: sources.collect(), slowest })
    }

    fn slow(&mut self, read: &SlowRead) -> Value {
        let key = (read.tree.clone(), read.layer, read.offset);
        let file = self.files.entry(key).or_insert_with(|| read.file()).clone();
        json!({
            "file": file,
            "waited_ms": read.waited_ms,
            "bytes": read.bytes,
            "from": read.from,
            "failed": read.failed,
        })
    }
}

fn row(
    store: &Store,
    history: &History,
    (present_bytes, total_bytes): (u64, u64),
    before: Option<&(Instant, Row)>,
    at: Instant,
) -> Row {
    let rate = |now: u64, of: fn(&Row) -> u64| {
        let (then, row) = before?;
        Some(now.saturating_sub(of(row)) as f64 / at.duration_since(*then).as_secs_f64().max(0.001))
    };
    let rounded = |now: u64, of: fn(&Row) -> u64| rate(now, of).unwrap_or(0.0).round() as u64;
    Row {
        target: history.target.display().to_string(),
        container: crate::container::name_of(store.root(), &history.target),
        image: history.image.clone(),
        driver: history.driver.clone(),
        present_bytes,
        total_bytes,
        reads: history.reads,
        stalls: history.stalls,
        failed: history.failed,
        waited_seconds: history.waited_seconds,
        wire_bytes: history.wire_bytes,
        copied_bytes: history.copied_bytes,
        present_bytes_per_second: rounded(present_bytes, |row| row.present_bytes),
        wire_bytes_per_second: rounded(history.wire_bytes, |row| row.wire_bytes),
        reads_per_second: rounded(history.reads, |row| row.reads),
        stalls_per_second: (rate(history.stalls, |row| row.stalls).unwrap_or(0.0) * 10.0).round() / 10.0,
        first: before.is_none(),
    }
}

impl Row {
    fn shown(&self) -> Value {
        let hits = match self.reads {
            0 => "-".to_owned(),
            reads => format!("{:.1}%", (reads - self.stalls.min(reads)) as f64 * 100.0 / reads as f64),
        };
        let rate = |of: String| if self.first { "-".to_owned() } else { format!("{of}/s") };
        json!({
            "mount": self.container.as_ref().unwrap_or(&self.target),
            "image": self.image,
            "driver": self.driver,
            "here": share(self.present_bytes, self.total_bytes),
            "+here": rate(bytes(self.present_bytes_per_second)),
            "fetched": bytes(self.wire_bytes),
            "+fetched": rate(bytes(self.wire_bytes_per_second)),
            "hits": hits,
            "stalls": self.stalls,
            "+stalls": rate(self.stalls_per_second.to_string()),
            "waited": format!("{:.1} s", self.waited_seconds),
            "failed": self.failed,
        })
    }
}

impl Moment {
    fn text(&self, width: Option<usize>) -> String {
        if self.mounts.is_empty() {
            return "nothing is mounted\n".to_owned();
        }
        let rows: Vec<_> = self.mounts.iter().map(Row::shown).collect();
        let mut text = crate::human::fitted(&Value::Array(rows), width, &OPTIONAL);
        for (title, rows) in [("", &self.sources), ("the slowest reads:\n", &self.slowest)] {
            if !rows.is_empty() {
                text.push_str(&format!(
                    "\n{title}{}",
                    crate::human::fitted(&Value::Array(rows.clone()), width, &[])
                ));
            }
        }
        text
    }
}

/// An interval of the command line: not so short that looking is all that is done.
pub fn interval(text: &str) -> Result<Duration, String> {
    let time = crate::units::time(text)?;
    if time < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(time)
}
