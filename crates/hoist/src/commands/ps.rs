//! `hoist ps`.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::cli::{Global, Ps};
use crate::container::{self, Listed};
use crate::daemon::status::{MountStatus, age, now, of_total};
use crate::worker::Worker;

/// A container, as `--json` tells it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    image: Option<String>,
    digest: Option<String>,
    command: Vec<String>,
    /// `running` or `exited`.
    state: &'static str,
    /// Its first process, while it runs.
    pid: Option<i32>,
    /// Of its end; None while it runs, and where `hoist run` did not live to see it.
    exit_code: Option<u8>,
    /// Seconds since 1970.
    started: Option<u64>,
    ended: Option<u64>,
    /// What shows, or showed, its image.
    driver: Option<String>,
    /// How much of its image is here, bytes.
    present_bytes: Option<u64>,
    total_bytes: Option<u64>,
    /// Reads that had to wait for data.
    demand_stalls: Option<u64>,
}

pub(super) fn run(global: &Global, options: &Ps) -> anyhow::Result<()> {
    let root = global.root()?;
    // A folder that is no store has no containers of ours.
    hoist_engine::store::Store::open(&root)?;
    let listed = container::list(&root)?;
    let rows = super::block_on(async {
        let status = Worker::find(global).await?.status().await?;
        let mounts: Vec<MountStatus> = serde_json::from_value(status["mounts"].clone())?;
        let mut rows = Vec::new();
        for container in listed {
            rows.push(row(global, &root, container, &mounts).await?);
        }
        anyhow::Ok(rows)
    })?;
    if options.json {
        return super::print_json(&rows);
    }
    if rows.is_empty() {
        return super::print("no containers");
    }
    let rows: Vec<Value> = rows.iter().map(Row::shown).collect();
    super::print_fitted(&Value::Array(rows), &["driver", "stalls", "here"])
}

async fn row(global: &Global, root: &Path, container: Listed, mounts: &[MountStatus]) -> anyhow::Result<Row> {
    let Listed { name, running, program, record } = container;
    let target = container::image_of(root, &name)?;
    let mount = mounts.iter().find(|mount| mount.target == target);
    let record = record.unwrap_or_default();
    let here = match mount.and_then(MountStatus::present) {
        Some(here) => Some(here),
        None => in_store(global, &record).await,
    };
    Ok(Row {
        state: if running { "running" } else { "exited" },
        pid: program.map(|program| program.pid()),
        image: record.image,
        digest: record.digest,
        command: record.command,
        exit_code: record.exit_code,
        started: record.started,
        ended: record.ended,
        driver: mount.and_then(|mount| mount.driver.clone()).or(record.driver),
        present_bytes: here.map(|here| here.0),
        total_bytes: here.map(|here| here.1),
        demand_stalls: mount.and_then(|mount| mount.demand_stalls).or(record.demand_stalls),
        name,
    })
}

/// How much of an image is here that is not mounted any more; None where that can't be told.
async fn in_store(global: &Global, record: &container::Record) -> Option<(u64, u64)> {
    let digest = record.digest.as_ref()?.parse().ok()?;
    let engine = crate::engine_glue::open(global).ok()?;
    let image = engine.known(record.image.as_deref()?, digest).await.ok()??;
    let told = engine.inspect_here(&image).ok()?;
    let by_layers = || {
        told.layers.iter().try_fold((0, 0), |sum, layer| {
            let (here, total) = layer.present??;
            Some((sum.0 + here, sum.1 + total))
        })
    };
    told.present.unwrap_or_else(by_layers)
}

impl Row {
    /// For a person.
    fn shown(&self) -> Value {
        let since = |at: Option<u64>| at.map_or("?".to_owned(), |at| age(now().saturating_sub(at)));
        let state = match (self.state, self.exit_code, self.ended) {
            ("running", ..) => format!("running for {}", since(self.started)),
            (_, Some(code), ended) => format!("exited ({code}) {} ago", since(ended)),
            _ => "ended, nobody saw how".to_owned(),
        };
        let here = self.present_bytes.zip(self.total_bytes);
        serde_json::json!({
            "name": self.name,
            "image": self.image,
            "command": shortened(&self.command.join(" ")),
            "state": state,
            "pid": self.pid,
            "driver": self.driver,
            "here": here.map(|(here, total)| of_total(here, total)),
            "stalls": self.demand_stalls,
        })
    }
}

fn shortened(command: &str) -> String {
    const LONGEST: usize = 30;
    match command.chars().nth(LONGEST) {
        Some(_) => command.chars().take(LONGEST - 3).chain("...".chars()).collect(),
        None => command.to_owned(),
    }
}
