//! `hoist status`: what is mounted from a store, and how far it is.

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hoist_engine::{Engine, LayerStatus, Viewer};
use hoist_format::digest::Digest;
use serde::{Deserialize, Serialize};

use super::connection::crate_version;
use super::mounts::{Mounts, Served};
use crate::container::name_of;

/// A store and its mounts.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// None where no daemon runs.
    pub daemon: Option<DaemonStatus>,
    /// The store.
    pub store: StoreStatus,
    /// Its mounts, by target.
    pub mounts: Vec<MountStatus>,
}

/// The daemon.
#[derive(Debug, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// The process that fills what is read.
    pub filler_pid: u32,
    /// The process that guards the mounts should that one die; None while nothing can be absent.
    pub keeper_pid: Option<u32>,
    /// Its version.
    pub version: String,
    /// How long it runs.
    pub uptime_seconds: u64,
}

/// The store.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Where.
    pub root: PathBuf,
    /// What images and layers take on disk.
    pub disk_bytes: u64,
    /// What layers took that containerd unpacked into snapshots, as far as a daemon knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked_bytes: Option<u64>,
}

/// A mount. What a process of its own serves is known less of.
#[derive(Debug, Serialize, Deserialize)]
pub struct MountStatus {
    /// Where.
    pub target: PathBuf,
    /// The image as it was named.
    pub image: String,
    /// The process that serves it; None where nobody does any more.
    pub filler_pid: Option<u32>,
    /// The process that guards it; None where nothing can be absent.
    pub keeper_pid: Option<u32>,
    /// Nobody guarded it when the process that served it died: it is out of service.
    pub lost: bool,
    /// It is a FUSE mount, and who served it and guarded it is dead: reads of it fail.
    #[serde(default)]
    pub dead: bool,
    /// Its manifest.
    pub digest: Option<Digest>,
    /// What shows it.
    pub driver: Option<String>,
    /// Since when, in seconds since 1970.
    pub since: Option<u64>,
    /// Of which container it is the image.
    pub container: Option<String>,
    /// Reads that had to wait for data.
    pub demand_stalls: Option<u64>,
    /// Its layers, lowest first.
    pub layers: Option<Vec<LayerStatus>>,
}

/// What a daemon knows.
///
/// # Errors
/// The store can't be read.
pub fn of_daemon(
    engine: &Engine,
    mounts: &Mounts,
    unpacked_bytes: Option<u64>,
    started: Instant,
) -> anyhow::Result<Status> {
    let filler_pid = std::process::id();
    let mut all: Vec<_> = mounts.all().iter().map(|served| mount(served, filler_pid)).collect();
    let (own, others): (Vec<_>, Vec<_>) =
        recorded(engine)?.into_iter().partition(|mount| mount.filler_pid == Some(filler_pid));
    let keeper_pid = own.iter().find_map(|mount| mount.keeper_pid);
    all.extend(others);
    all.sort_by(|a, b| a.target.cmp(&b.target));
    let daemon = DaemonStatus {
        filler_pid,
        keeper_pid,
        version: crate_version().to_owned(),
        uptime_seconds: started.elapsed().as_secs(),
    };
    let store = StoreStatus { unpacked_bytes, ..store(engine) };
    Ok(Status { daemon: Some(daemon), store, mounts: all })
}

/// What stands in the store.
///
/// # Errors
/// The store can't be read.
pub fn of_store(engine: &Engine) -> anyhow::Result<Status> {
    Ok(Status { daemon: None, store: store(engine), mounts: recorded(engine)? })
}

fn store(engine: &Engine) -> StoreStatus {
    let store = engine.store();
    StoreStatus { root: store.root().to_owned(), disk_bytes: store.disk_bytes(), unpacked_bytes: None }
}

fn mount(served: &Served, filler_pid: u32) -> MountStatus {
    let since = served.since.duration_since(UNIX_EPOCH).unwrap_or_default();
    MountStatus {
        target: served.target.clone(),
        image: served.image.clone(),
        filler_pid: Some(filler_pid),
        keeper_pid: None,
        lost: false,
        dead: false,
        digest: Some(served.digest),
        driver: Some(served.driver.to_owned()),
        since: Some(since.as_secs()),
        container: served.container.clone(),
        demand_stalls: Some(served.demand_stalls()),
        layers: Some(served.layers()),
    }
}

/// Mounts that processes of their own serve.
fn recorded(engine: &Engine) -> anyhow::Result<Vec<MountStatus>> {
    engine.store().forget_gone()?;
    let (mut mounts, mut viewer) = (Vec::new(), Viewer::default());
    for record in engine.store().mounts()? {
        let servers = engine.store().servers(&record.id);
        let (layers, container) = (viewer.layers(&record), name_of(engine.store().root(), &record.target));
        let (driver, dead) = (record.driver().name().to_owned(), engine.store().is_dead(&record));
        mounts.push(MountStatus {
            target: record.target,
            image: record.image,
            filler_pid: servers.map(|servers| servers.filler_pid),
            keeper_pid: servers.and_then(|servers| servers.keeper_pid),
            lost: record.lost,
            dead,
            digest: Some(record.manifest),
            driver: Some(driver),
            since: record.since,
            container,
            demand_stalls: engine.store().history(&record.id).map(|history| history.stalls),
            layers: Some(layers),
        });
    }
    mounts.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(mounts)
}

/// How many mounts of the store other processes serve.
pub fn of_others(engine: &Engine) -> u64 {
    let records = engine.store().mounts().unwrap_or_default();
    let servers = records.iter().filter_map(|record| engine.store().servers(&record.id));
    servers.filter(|servers| servers.filler_pid != std::process::id()).count() as u64
}

impl Status {
    /// For a person, on a terminal of this width: a line for each mount.
    pub fn text(&self, width: Option<usize>) -> String {
        let mut text = match &self.daemon {
            Some(daemon) => format!(
                "hoist {} serves {} since {} (process {}{})\n",
                daemon.version,
                self.store.root.display(),
                age(daemon.uptime_seconds),
                daemon.filler_pid,
                daemon.keeper_pid.map_or(String::new(), |pid| format!(", kept by {pid}")),
            ),
            None => format!("no daemon serves {}\n", self.store.root.display()),
        };
        text.push_str(&format!("images and layers take {}\n", crate::human::bytes(self.store.disk_bytes)));
        if let Some(bytes) = self.store.unpacked_bytes.filter(|bytes| *bytes > 0) {
            let bytes = crate::human::bytes(bytes);
            text.push_str(&format!("layers that containerd has unpacked take {bytes}\n"));
        }
        let rows: Vec<_> = self.mounts.iter().map(MountStatus::row).collect();
        match rows.is_empty() {
            true => text.push_str("nothing is mounted\n"),
            false => {
                let rows = serde_json::Value::Array(rows);
                let table = crate::human::fitted(&rows, width, &["process", "stalls", "for"]);
                text.push_str(&format!("\n{table}"));
            }
        }
        if self.mounts.iter().any(|mount| mount.dead) {
            text.push_str(
                "\ndead: the processes that served it were killed, and its reads fail; `hoist unmount` it, and mount it anew\n",
            );
        }
        text
    }
}

impl MountStatus {
    /// Bytes of file contents that are here, and of how many.
    pub fn present(&self) -> Option<(u64, u64)> {
        let layers = self.layers.as_ref()?.iter();
        Some(layers.fold((0, 0), |sum, l| (sum.0 + l.present_bytes, sum.1 + l.total_bytes)))
    }

    fn row(&self) -> serde_json::Value {
        let layers = self.layers.as_deref().unwrap_or_default();
        let here = self.present().map(|(here, total)| of_total(here, total));
        let state = match layers {
            _ if self.lost => Some("lost"),
            _ if self.dead => Some("dead"),
            [] => None,
            _ if layers.iter().any(|layer| layer.condemned.is_some()) => Some("out of service"),
            _ if layers.iter().all(|layer| layer.verified) => Some("verified"),
            _ if layers.iter().all(|layer| layer.complete) => Some("complete"),
            _ => Some("lazy"),
        };
        serde_json::json!({
            "mount": self.container.clone().unwrap_or_else(|| self.target.display().to_string()),
            "image": self.image,
            "for": self.since.map(|since| age(now().saturating_sub(since))),
            "here": here,
            "state": state,
            "stalls": self.demand_stalls,
            "process": self.filler_pid,
        })
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// So much of so much, for a person.
pub fn of_total(here: u64, total: u64) -> String {
    format!("{} of {}", crate::human::bytes(here), crate::human::bytes(total))
}

/// So much of so much, as a share.
pub fn share(here: u64, total: u64) -> String {
    let percent = if total == 0 { 100 } else { u128::from(here) * 100 / u128::from(total) };
    format!("{percent}% of {}", crate::human::bytes(total))
}

/// A time for a person.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_what_is_here_of_each_mount() {
        let layer = |present_bytes, verified| LayerStatus {
            digest: Digest::of(b""),
            present_bytes,
            total_bytes: 2048,
            complete: verified,
            verified,
            condemned: None,
        };
        let mount = |layers| MountStatus {
            target: "/mnt".into(),
            image: "app:1".into(),
            filler_pid: Some(7),
            keeper_pid: None,
            lost: false,
            dead: false,
            digest: None,
            driver: None,
            since: None,
            container: None,
            demand_stalls: Some(3),
            layers,
        };
        let store = StoreStatus { root: "/store".into(), disk_bytes: 4096, unpacked_bytes: Some(2048) };
        let daemon =
            DaemonStatus { filler_pid: 7, keeper_pid: Some(8), version: "1".into(), uptime_seconds: 7200 };
        let web = MountStatus { container: Some("web".to_owned()), ..mount(None) };
        let mounts = vec![mount(Some(vec![layer(1024, false), layer(2048, true)])), web];
        let status = Status { daemon: Some(daemon), store, mounts };
        assert_eq!(
            status.text(None),
            "hoist 1 serves /store since 2 h (process 7, kept by 8)\nimages and layers take 4.00 KiB\n\
             layers that containerd has unpacked take 2.00 KiB\n\n\
             MOUNT  IMAGE  FOR  HERE                  STATE  STALLS  PROCESS\n\
             /mnt   app:1  -    3.00 KiB of 4.00 KiB  lazy   3       7\n\
             web    app:1  -    -                     -      3       7\n"
        );
        let narrow = status.text(Some(50));
        assert!(narrow.contains("MOUNT  IMAGE  FOR  HERE                  STATE\n"), "{narrow}");
        let store = StoreStatus { unpacked_bytes: None, ..status.store };
        let none = Status { daemon: None, mounts: Vec::new(), store };
        assert_eq!(
            none.text(None),
            "no daemon serves /store\nimages and layers take 4.00 KiB\nnothing is mounted\n"
        );
    }
}
