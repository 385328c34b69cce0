//! The mounts of this daemon: made, listed, ended, and noticed when somebody else ends them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use hoist_engine::{Engine, Files, Image, LayerStatus, Mount, MountTable, Needs, Progress, Stats, Use};
use hoist_format::digest::Digest;
use hoist_sys::presence::Snapshot;
use tokio::sync::{Notify, watch};

use crate::failure::user;

/// A mount, until its end is known.
pub struct Served {
    /// The mount point, canonical.
    pub target: PathBuf,
    /// The image as it was named.
    pub image: String,
    /// Its manifest.
    pub digest: Digest,
    /// Since when it is mounted.
    pub since: SystemTime,
    /// What shows it.
    pub driver: &'static str,
    /// Who must be there for it to be readable.
    pub needs: Needs,
    /// Of which container it is the image.
    pub container: Option<String>,
    /// Is it the lower folder of snapshots? They are in it whatever the mount table says.
    pub lower: bool,
    /// Where to write what it took.
    stats: Option<PathBuf>,
    /// None once it is being ended.
    mount: Mutex<Option<Mount>>,
    end: watch::Sender<Option<Ended>>,
}

/// What a mount took, or why it could not be ended.
type Ended = Result<Stats, Arc<hoist_engine::Error>>;

/// What stands at a mount point.
enum Slot {
    /// Something that is being made.
    Making,
    Served(Arc<Served>),
}

/// All of them.
#[derive(Default)]
pub struct Mounts {
    slots: Mutex<HashMap<PathBuf, Slot>>,
    /// Rung for each that is new.
    made: Notify,
}

/// What is asked for.
pub struct Wanted {
    /// The mount point.
    pub target: PathBuf,
    /// What it is mounted for.
    pub purpose: Use,
    /// See [`Served::container`].
    pub container: Option<String>,
    /// See [`Served::lower`].
    pub lower: bool,
    /// See [`Served::stats`].
    pub stats: Option<PathBuf>,
}

impl Served {
    fn lock(&self) -> MutexGuard<'_, Option<Mount>> {
        self.mount.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is it for somebody whom the mount table does not show in it?
    pub fn is_held(&self) -> bool {
        self.container.is_some() || self.lower
    }

    /// Its layers; none once it is being ended.
    pub fn layers(&self) -> Vec<LayerStatus> {
        self.lock().as_ref().map_or(Vec::new(), Mount::layers)
    }

    /// Its files that may have to be fetched; None once it is being ended, or if there are none.
    pub fn files(&self) -> std::io::Result<Option<Files>> {
        self.lock().as_ref().map_or(Ok(None), Mount::files)
    }

    /// Reads that had to wait.
    pub fn demand_stalls(&self) -> u64 {
        self.lock().as_ref().map_or(0, Mount::demand_stalls)
    }
}

impl Mounts {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one on this target.
    pub fn get(&self, target: &Path) -> Option<Arc<Served>> {
        match self.lock().get(target)? {
            Slot::Served(served) => Some(Arc::clone(served)),
            Slot::Making => None,
        }
    }

    /// All of them, by target.
    pub fn all(&self) -> Vec<Arc<Served>> {
        let slots = self.lock();
        let served = slots.values().filter_map(|slot| match slot {
            Slot::Served(served) => Some(Arc::clone(served)),
            Slot::Making => None,
        });
        let mut served: Vec<_> = served.collect();
        served.sort_by(|a, b| a.target.cmp(&b.target));
        served
    }

    /// Mounts an image. Dropped in its middle, it leaves nothing.
    ///
    /// # Errors
    /// Those of the engine; the target is in use.
    pub async fn mount(
        &self,
        engine: &Engine,
        image: &Image,
        wanted: Wanted,
        progress: &dyn Progress,
    ) -> anyhow::Result<Arc<Served>> {
        let target = crate::commands::free_from(engine.store().root(), &wanted.target)?;
        let place = Place::reserve(self, &target)?;
        let mount = engine.mount(image, &target, wanted.purpose, progress).await?;
        let served = Arc::new(Served {
            target: target.clone(),
            image: image.name.clone(),
            digest: image.digest,
            since: SystemTime::now(),
            driver: mount.driver().name(),
            needs: mount.needs(),
            container: wanted.container,
            lower: wanted.lower,
            stats: wanted.stats,
            mount: Mutex::new(Some(mount)),
            end: watch::Sender::new(None),
        });
        place.fill(&served);
        self.made.notify_one();
        Ok(served)
    }

    /// Ends a mount that nobody sees any more, or sees to it that it is ended as soon as that is so.
    pub async fn end(self: &Arc<Self>, served: &Arc<Served>) -> Ended {
        self.begin_end(served);
        let mut end = served.end.subscribe();
        let gone = || Arc::new(hoist_engine::Error::Internal("the end of a mount was not told".into()));
        end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone()).unwrap_or_else(|| Err(gone()))
    }

    fn begin_end(self: &Arc<Self>, served: &Arc<Served>) {
        let Some(mut mount) = served.lock().take() else { return };
        let (this, served) = (Arc::clone(self), Arc::clone(served));
        tokio::spawn(async move {
            mount.wait_unmounted().await;
            let ended = mount.unmount().await.map_err(Arc::new);
            if let Err(error) = &ended {
                tracing::error!(target = %served.target.display(), "ending a mount: {error}");
            }
            if let (Some(path), Ok(stats)) = (&served.stats, &ended)
                && let Err(error) = crate::stats_file::write(path, stats)
            {
                tracing::error!("{error:#}");
            }
            this.forget(&served);
            tracing::info!(target = %served.target.display(), image = served.image, "unmounted");
            served.end.send_replace(Some(ended));
        });
    }

    /// Gives up the place of a mount that is not there any more, though some may still be in what it showed.
    pub fn vacate(self: &Arc<Self>, served: &Arc<Served>) {
        self.begin_end(served);
        self.forget(served);
    }

    /// Another may have been made in its place since.
    fn forget(&self, served: &Arc<Served>) {
        let mut slots = self.lock();
        if let Some(Slot::Served(there)) = slots.get(&served.target)
            && Arc::ptr_eq(there, served)
        {
            slots.remove(&served.target);
        }
    }

    /// Notices mounts that somebody has unmounted; calls `gone` with each. Never returns.
    pub async fn watch(self: &Arc<Self>, table: MountTable, gone: impl Fn(&Path)) {
        loop {
            // What has changed since it was looked at is told; but one that was not known yet may have gone then.
            let changed = tokio::select! {
                changed = table.changed() => changed,
                () = self.made.notified() => Ok(()),
            };
            let told = changed.and_then(|()| Snapshot::take());
            let now = match told {
                Ok(now) => now,
                Err(error) => {
                    tracing::error!("reading the mount table: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            // Listed before it was looked at, a mount could be taken for gone that had just been made.
            for served in self.all().into_iter().filter(|served| !now.mounted(&served.target)) {
                if Snapshot::take().is_ok_and(|now| now.mounted(&served.target)) {
                    continue;
                }
                gone(&served.target);
                self.begin_end(&served);
            }
        }
    }
}

/// Unmounts what the user sees on `target`.
///
/// # Errors
/// It is in use: the user's to mend.
pub async fn unmount(target: &Path, lazy: bool) -> anyhow::Result<()> {
    let target = target.to_owned();
    // The kernel may have to wait for a file system.
    tokio::task::spawn_blocking(move || crate::commands::unmount_target(&target, lazy))
        .await
        .context("an unmounting thread died")?
}

/// The same for the image of a container, whose last process may still be on its way out.
///
/// # Errors
/// It is in use for longer.
pub async fn unmount_patiently(target: &Path) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        match unmount(target, false).await {
            Err(_) if since.elapsed() < Duration::from_secs(2) => {
                tokio::time::sleep(Duration::from_millis(5)).await
            }
            other => return other,
        }
    }
}

/// A target that a mount is being made on.
struct Place<'a> {
    mounts: &'a Mounts,
    target: &'a Path,
    filled: bool,
}

impl<'a> Place<'a> {
    fn reserve(mounts: &'a Mounts, target: &'a Path) -> anyhow::Result<Self> {
        let mut slots = mounts.lock();
        if slots.contains_key(target) {
            return Err(user(format!(
                "something is being mounted on or unmounted from {} right now",
                target.display()
            )));
        }
        slots.insert(target.to_owned(), Slot::Making);
        Ok(Self { mounts, target, filled: false })
    }

    fn fill(mut self, served: &Arc<Served>) {
        self.filled = true;
        self.mounts.lock().insert(served.target.clone(), Slot::Served(Arc::clone(served)));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.mounts.lock().remove(self.target);
        }
    }
}
