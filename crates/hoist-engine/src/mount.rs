//! A mounted image: EROFS over the layers' sparse data files, filled by pre-content events.
//!
//! Order is what makes it safe: data files are opened, then marked, then mounted; at the end
//! unmounted, then unmarked. In between nobody but a verified `publish` makes a byte readable.

mod layer;
mod lazy;
mod serve;
mod upkeep;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hoist_sys::mount as sys;

use crate::config::Trust;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::oci::Descriptor;
use crate::progress::Progress;
use crate::stats::Stats;
use crate::store::{FillerMark, Store};

use layer::{LazyLayer, MountedLayer};
use serve::Server;

/// What will be done with a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It may be only looked at: nothing of a layer is fetched before somebody reads.
    Look,
    /// A program is about to run in it: what its first reads need is fetched beside the mounting.
    Run,
}

/// An image mounted by this process, served as long as this value lives.
pub struct Mount {
    engine: Engine,
    target: PathBuf,
    layers: Layers,
    /// Bytes asked for and stalls of the layers before this mount, which may share them.
    before: (u64, u64),
    seconds_to_mount: f64,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _filler: FillerMark,
}

/// The layers of a mount, lowest first; the lazy ones are served until it is dropped.
struct Layers {
    all: Vec<MountedLayer>,
    server: Option<Arc<Server>>,
    /// Where the keeper guards them.
    guarded: Option<PathBuf>,
    /// Mounted, so that they must be served whatever becomes of this value.
    shown: bool,
}

impl Layers {
    fn lazy(&self) -> impl Iterator<Item = &Arc<LazyLayer>> {
        self.all.iter().filter_map(|l| match l {
            MountedLayer::Lazy(layer) => Some(layer),
            MountedLayer::Whole(_) => None,
        })
    }

    fn devices(&self) -> Vec<PathBuf> {
        let path = |l: &MountedLayer| match l {
            MountedLayer::Whole(path) => path.clone(),
            MountedLayer::Lazy(layer) => layer.dir().file("data"),
        };
        self.all.iter().map(path).collect()
    }

    /// To be called before the mounting.
    fn guard(&mut self, store: &Store, target: &Path) -> Result<(), String> {
        if let Some(server) = self.server.as_ref().filter(|_| self.lazy().next().is_some()) {
            server.guard(store, target)?;
            self.guarded = Some(target.to_owned());
        }
        Ok(())
    }

    fn counts(&self) -> (u64, u64) {
        let counts = self.lazy().map(|l| l.counts.so_far());
        counts.fold((0, 0), |sum, (bytes, stalls)| (sum.0 + bytes, sum.1 + stalls))
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if let (Some(server), false) = (&self.server, self.shown) {
            self.lazy().for_each(|layer| server.release(layer));
            if let Some(target) = &self.guarded {
                server.unguard(target);
            }
        }
    }
}

/// The server of a process, once there is one; it ends with the last engine.
#[derive(Default)]
pub(crate) struct Serving(Mutex<Option<Arc<Server>>>);

impl Serving {
    fn server(&self, engine: &Engine) -> Result<Arc<Server>, String> {
        let mut server = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = &*server {
            return Ok(Arc::clone(server));
        }
        let started = Server::start(engine.config.read_timeout)?;
        *server = Some(Arc::clone(&started));
        Ok(started)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(server) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            server.stop();
        }
    }
}

impl Engine {
    /// Mounts an image read-only at `target`: lazily where an index is trusted, else after a pull.
    ///
    /// # Errors
    /// When this kernel cannot do it, or the image cannot be had.
    pub async fn mount(
        &self,
        image: &Image,
        target: &Path,
        purpose: Use,
        progress: &dyn Progress,
    ) -> Result<Mount, Error> {
        let cannot = |why: String| Error::Mount { image: image.name.clone(), why };
        let own = self.has_own_layout(&image.digest);
        let index = image.index.as_ref().filter(|_| self.config.trust == Trust::Registry && !own);
        let (tree, mut layers) = match index {
            Some(index) => self.lazy(image, index, purpose).await?,
            None => {
                if !own {
                    progress.note(&format!("{} has no trusted index: fetching all of it first", image.name));
                    self.pull(image, progress).await?;
                }
                let whole =
                    |l: &Descriptor| MountedLayer::Whole(self.store.layer(&l.digest, None).file("data"));
                let all = image.manifest.layers.iter().map(whole).collect();
                (self.own_tree(image)?, Layers { all, server: None, guarded: None, shown: false })
            }
        };
        let filler = self.store.become_filler()?;
        layers.guard(&self.store, target).map_err(&cannot)?;
        let devices = layers.devices();
        let devices: Vec<&Path> = devices.iter().map(PathBuf::as_path).collect();
        // In this very process reads of absent data would wait for the thread that asks: mount(2)
        // itself reads metadata only, which is whole.
        sys::erofs(&tree, &devices, target).map_err(|e| cannot(e.to_string()))?;
        layers.shown = true;
        let mut tasks = vec![tokio::spawn(upkeep::keep(layers.all.clone()))];
        if let (Some(index), Some(server)) = (index, &layers.server) {
            let lazy = layers.lazy().map(Arc::clone).collect();
            let (server, engine) = (Arc::clone(server), self.clone());
            tasks.push(tokio::spawn(verify::when_whole(server, lazy, engine, image.clone(), index.digest)));
        }
        Ok(Mount {
            engine: self.clone(),
            target: target.to_owned(),
            before: layers.counts(),
            layers,
            seconds_to_mount: self.started.elapsed().as_secs_f64(),
            tasks,
            _filler: filler,
        })
    }
}

impl Mount {
    /// Where it is mounted.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// What it cost so far.
    pub fn stats(&self) -> Stats {
        let (bytes, stalls) = self.layers.counts();
        Stats {
            demand_bytes: bytes - self.before.0,
            demand_stalls: stalls - self.before.1,
            seconds_to_mount: self.seconds_to_mount,
            ..Stats::of_client(&self.engine.stats, self.engine.started.elapsed())
        }
    }

    /// Returns once somebody has unmounted it.
    pub async fn wait_unmounted(&self) {
        while sys::is_mountpoint(&self.target).unwrap_or(false) {
            let _ = tokio::task::spawn_blocking(|| sys::wait_for_change(Duration::from_secs(1))).await;
        }
    }

    /// Unmounts (if nobody has). What was fetched is good for this boot at once; it outlives a power
    /// cut as far as it was synced, which the next mount of it takes up.
    ///
    /// # Errors
    /// When it is still in use, or the store cannot be synced.
    pub async fn unmount(mut self) -> Result<Stats, Error> {
        let stats = self.stats();
        let started = Instant::now();
        while sys::is_mountpoint(&self.target).unwrap_or(false) {
            match sys::unmount(&self.target, false) {
                Ok(()) => break,
                // A container's last process may still be on its way out.
                Err(_) if started.elapsed() < Duration::from_secs(2) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(e) => {
                    return Err(Error::io("unmount", &self.target)(std::io::Error::other(e.to_string())));
                }
            }
        }
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.layers.shown = false;
        Ok(stats)
    }
}
