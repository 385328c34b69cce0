//! What is done beside reading while a mount lives: page cache given back, what was fetched made durable,
//! condemnations by other processes heard.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::layer::{LazyLayer, MountedLayer};
use crate::fill::LayerFill;

/// The data files' cached pages are looked at this often while they are being read, and at rest.
const TRIM_BUSY: Duration = Duration::from_millis(20);
const TRIM_IDLE: Duration = Duration::from_millis(250);
/// Read ranges of lazy layers are trimmed, and condemnations looked for, this often.
const TURN: Duration = Duration::from_millis(250);
/// What was published is made durable this often.
const SYNC_EVERY: Duration = Duration::from_secs(2);
/// Second copies of what was read may take this many bytes in all before they are given back: dropping
/// them at once would also drop what the kernel has read ahead for random readers. At rest all go.
const SECOND_COPY: u64 = 32 << 20;

/// Looks after a mount until it is dropped.
pub(super) async fn keep(layers: Vec<MountedLayer>) {
    let whole = layers.iter().filter_map(|l| match l {
        MountedLayer::Whole(path) => File::open(path).ok(),
        MountedLayer::Lazy(_) => None,
    });
    let mut upkeep = Upkeep { whole: whole.collect(), layers, cached: 0 };
    let (mut turned, mut synced) = (Instant::now(), Instant::now());
    let mut pause = TRIM_IDLE;
    loop {
        tokio::time::sleep(pause).await;
        let turn = turned.elapsed() >= TURN;
        let sync = synced.elapsed() >= SYNC_EVERY;
        let worked = tokio::task::spawn_blocking(move || {
            let busy = upkeep.trim_native();
            if turn {
                upkeep.trim_filling(sync);
                upkeep.hear();
            }
            if sync {
                upkeep.sync();
            }
            (upkeep, busy)
        });
        let Ok((same, busy)) = worked.await else { return };
        upkeep = same;
        pause = if busy { TRIM_BUSY } else { TRIM_IDLE };
        turned = if turn { Instant::now() } else { turned };
        synced = if sync { Instant::now() } else { synced };
    }
}

struct Upkeep {
    layers: Vec<MountedLayer>,
    whole: Vec<File>,
    /// Second copies of complete layers at the last look, bytes.
    cached: u64,
}

impl Upkeep {
    fn lazy(&self) -> impl Iterator<Item = &Arc<LazyLayer>> {
        self.layers.iter().filter_map(|l| match l {
            MountedLayer::Lazy(layer) => Some(layer),
            MountedLayer::Whole(_) => None,
        })
    }

    fn filling(&self) -> impl Iterator<Item = &Arc<LayerFill>> {
        self.lazy().filter_map(|l| l.filling())
    }

    /// Gives back second copies of complete layers, of which no events tell what was read. True while it
    /// is worth looking again soon.
    fn trim_native(&mut self) -> bool {
        let native = self.lazy().filter(|l| l.filling().is_some_and(|f| f.is_native())).map(|l| l.data());
        let files = self.whole.iter().chain(native);
        let cached = files.map(|f| (f, hoist_sys::file::cached_bytes(f).unwrap_or(u64::MAX >> 16)));
        let cached: Vec<_> = cached.filter(|(_, bytes)| *bytes > 0).collect();
        let total: u64 = cached.iter().map(|(_, bytes)| bytes).sum();
        let at_rest = total == self.cached;
        if total > SECOND_COPY || at_rest {
            for (file, _) in cached {
                let _ = hoist_sys::file::fadvise_dontneed(file, 0, 0);
            }
        }
        self.cached = total;
        !at_rest
    }

    fn trim_filling(&self, forget: bool) {
        self.filling().for_each(|fill| fill.trim_read(forget));
    }

    fn hear(&self) {
        for fill in self.filling().filter(|f| f.condemned().is_none()) {
            if let Some(why) = fill.dir().state().lied {
                fill.condemn(&why);
            }
        }
    }

    fn sync(&self) {
        for fill in self.filling() {
            if let Err(e) = fill.sync() {
                tracing::error!("{e}");
            }
        }
    }
}
