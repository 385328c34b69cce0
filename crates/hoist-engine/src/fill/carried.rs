//! What an earlier boot has left of a layer is held against its digests once in each boot, while others have nothing
//! better to do. What a disk has spoiled meanwhile is not readable any more then, and fetched again when it is wanted.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::LayerFill;

/// Whoever waits for the line has the disk first, for so long.
const STAND_BACK: Duration = Duration::from_millis(50);

impl LayerFill {
    /// Has the extents of these bits looked at, one layer after the other. Not if it is put away before its turn: then
    /// who opens it next sees to it.
    pub(super) fn check_later(self: &Arc<Self>, carried: Vec<u8>) {
        let (meter, this) = (Arc::clone(&self.meter), Arc::downgrade(self));
        self.runtime.spawn(async move {
            let Ok(_turn) = meter.checks.acquire().await else { return };
            let (done, over) = tokio::sync::oneshot::channel::<()>();
            let checking = move || {
                // Without that it is only less polite.
                let _ = hoist_sys::thread::stand_back();
                if let Some(fill) = Weak::upgrade(&this) {
                    fill.check_carried(&carried);
                }
                drop(done);
            };
            if let Err(e) = std::thread::Builder::new().name("hoist-checks".into()).spawn(checking) {
                return tracing::warn!("looking at what an earlier boot has left: {e}");
            }
            let _ = over.await;
        });
    }

    fn check_carried(&self, carried: &[u8]) {
        let (mut bytes, mut bad) = (Vec::new(), 0);
        for (i, extent) in self.table.extents.extents.iter().enumerate() {
            if carried[i / 8] >> (i % 8) & 1 == 0 || !self.live.get(i as u64) {
                continue;
            }
            // It was looked at as a whole, or is nobody's any more.
            if self.is_native() || self.condemned().is_some() {
                return;
            }
            if self.meter.is_busy() {
                let idle = async { tokio::time::timeout(STAND_BACK, self.meter.idle()).await };
                let _ = self.runtime.block_on(idle);
            }
            bytes.resize(extent.len as usize, 0);
            let read = self.data.read_exact_at(&mut bytes, extent.data_offset);
            let _ = hoist_sys::file::fadvise_dontneed(&self.data, extent.data_offset, extent.len);
            if read.is_err() || self.digests.wanted(i, extent) != Some(*blake3::hash(&bytes).as_bytes()) {
                self.live.clear(i as u64);
                self.dirty.store(true, Ordering::Release);
                bad += 1;
            }
        }
        if bad > 0 {
            self.meter.chores.notify_one();
            tracing::error!(
                layer = %self.dir.blob(),
                extents = bad,
                "what was here before this boot is not what it was: fetching it again"
            );
        }
        self.dir.note_checked();
    }
}
