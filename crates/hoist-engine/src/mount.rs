//! A mounted image: EROFS over the layers' sparse data files, filled by pre-content events.
//!
//! Order is what makes it safe: data files are opened, then marked, then mounted; at the end
//! unmounted, then unmarked. In between nobody but a verified `publish` makes a byte readable.

mod serve;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hoist_format::table::Table;
use hoist_sys::mount as sys;

use crate::config::Trust;
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::{FillCounts, LayerFill};
use crate::image::Image;
use crate::oci::Descriptor;
use crate::progress::Progress;
use crate::publish::PublishedIndex;
use crate::stats::Stats;
use crate::store::FillerMark;

use serve::Server;

/// An image mounted by this process, served as long as this value lives.
pub struct Mount {
    engine: Engine,
    target: PathBuf,
    server: Arc<Server>,
    counts: Arc<FillCounts>,
    seconds_to_mount: f64,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _filler: FillerMark,
}

/// One layer of a mount: whole and out of our hands, or being filled.
pub(crate) enum MountedLayer {
    Whole(PathBuf),
    Lazy(Arc<LayerFill>),
}

impl Engine {
    /// Mounts an image read-only at `target`: lazily where an index is trusted, else after a pull.
    ///
    /// # Errors
    /// When this kernel cannot do it, or the image cannot be had.
    pub async fn mount(&self, image: &Image, target: &Path, progress: &dyn Progress) -> Result<Mount, Error> {
        let cannot = |why: String| Error::Mount { image: image.name.clone(), why };
        let own = self.has_own_layout(&image.digest);
        let index = image.index.as_ref().filter(|_| self.config.trust == Trust::Registry && !own);
        let (tree, layers) = match index {
            Some(index) => self.lazy(image, index).await?,
            None => {
                if !own {
                    progress.note(&format!("{} has no trusted index: fetching all of it first", image.name));
                    self.pull(image, progress).await?;
                }
                let whole =
                    |l: &Descriptor| MountedLayer::Whole(self.store.layer(&l.digest, None).file("data"));
                (self.own_tree(image)?, image.manifest.layers.iter().map(whole).collect())
            }
        };
        let filler = self.store.become_filler()?;
        let counts: Arc<FillCounts> = Arc::default();
        let server = Server::start(self, layers, Arc::clone(&counts), target).map_err(&cannot)?;
        let devices = server.devices();
        let devices: Vec<&Path> = devices.iter().map(PathBuf::as_path).collect();
        let mounting = (tree.clone(), target.to_owned());
        // In this very process reads of absent data would wait for the thread that asks: mount(2)
        // itself reads metadata only, which is whole.
        sys::erofs(&mounting.0, &devices, &mounting.1).map_err(|e| cannot(e.to_string()))?;
        let mut tasks = vec![tokio::spawn(Arc::clone(&server).keep_house())];
        if let Some(index) = index {
            tasks.push(tokio::spawn(Arc::clone(&server).verify_when_whole(
                self.clone(),
                image.clone(),
                index.digest,
            )));
        }
        Ok(Mount {
            engine: self.clone(),
            target: target.to_owned(),
            server,
            counts,
            seconds_to_mount: self.started.elapsed().as_secs_f64(),
            tasks,
            _filler: filler,
        })
    }

    /// Brings what a lazy mount needs first: the merged tree and the layers' tables.
    async fn lazy(
        &self,
        image: &Image,
        index: &PublishedIndex,
    ) -> Result<(PathBuf, Vec<MountedLayer>), Error> {
        let tree = self.published_tree(image, index);
        let layers = futures_util::future::try_join_all(image.expected()?.into_iter().map(|expected| {
            let index = index.clone();
            async move {
                let own = self.store.layer(&expected.blob, None);
                let missing = || {
                    let why = format!("index {} has no table of layer {}", index.digest, expected.blob);
                    Error::image("published index", index.digest, why)
                };
                let (table, windows) = index.layers.get(&expected.blob).cloned().ok_or_else(missing)?;
                let dir = self.store.layer(&expected.blob, Some(&index.digest));
                if let Some(why) = dir.state().lied {
                    return Err(Error::image("published index", index.digest, why));
                }
                let bytes = match dir.table_bytes() {
                    Some(bytes) => bytes,
                    None => {
                        let fetched = image.source.blob(&table.digest, Some(table.size)).await?;
                        dir.save("table", &fetched)?;
                        fetched.to_vec()
                    }
                };
                let table =
                    Table::decode(&bytes).map_err(|e| Error::image("published index", index.digest, e))?;
                if table.spans.blob_size != expected.size || table.spans.codec != expected.codec {
                    let why = "its table is of another blob: index the image again";
                    return Err(Error::image("published index", index.digest, why));
                }
                // A layer that another image brought whole serves this one too, if it is laid out alike.
                let whole = own.state().complete
                    && own.table_bytes().is_some_and(|o| crate::check::lie(&bytes, &o).is_none());
                if whole {
                    return Ok((table.extents.data_size, MountedLayer::Whole(own.file("data"))));
                }
                let state = dir.state();
                if state.complete && state.verified {
                    return Ok((table.extents.data_size, MountedLayer::Whole(dir.file("data"))));
                }
                let (meter, slots) = (Arc::clone(&self.meter), Arc::clone(&self.slots));
                let size = table.extents.data_size;
                LayerFill::open(dir, table, windows, image.source.clone(), meter, slots)
                    .map(|fill| (size, MountedLayer::Lazy(fill)))
            }
        }));
        let ((path, sizes), layers) = tokio::try_join!(tree, layers)?;
        // A file that reached beyond its data file would read as nothing that was ever verified.
        if sizes.is_some_and(|sizes| !sizes.into_iter().eq(layers.iter().map(|(size, _)| *size))) {
            let why = "its tree and its tables are not of one piece: index the image again";
            return Err(Error::image("published index", index.digest, why));
        }
        Ok((path, layers.into_iter().map(|(_, layer)| layer).collect()))
    }

    /// The published tree, checked and kept. With it, when it was fetched just now, the sizes of the
    /// data files that it speaks of.
    async fn published_tree(
        &self,
        image: &Image,
        index: &PublishedIndex,
    ) -> Result<(PathBuf, Option<Vec<u64>>), Error> {
        let dir = self.store.image(&image.digest);
        let path = dir.tree_path(Some(&index.digest));
        if path.exists() {
            return Ok((path, None));
        }
        let stored = image.source.blob(&index.tree.digest, Some(index.tree.size)).await?;
        let bad = |e: &dyn std::fmt::Display| Error::image("published index", index.digest, e.to_string());
        let erofs = hoist_format::table::decompress(&stored, 1 << 30).map_err(|e| bad(&e))?;
        // The kernel parses this: only what our own decoder finds sound is handed to it.
        let checked = tokio::task::spawn_blocking(move || {
            hoist_format::erofs::decode(&erofs)?;
            let sizes = hoist_format::erofs::Image::new(&erofs)?.devices().iter().map(|d| d.size).collect();
            Ok::<_, hoist_format::erofs::DecodeError>((erofs, sizes))
        });
        let (erofs, sizes) =
            checked.await.map_err(|e| Error::Internal(e.to_string()))?.map_err(|e| bad(&e))?;
        Ok((dir.save_tree(Some(&index.digest), &erofs)?, Some(sizes)))
    }
}

impl Mount {
    /// Where it is mounted.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// What it cost so far.
    pub fn stats(&self) -> Stats {
        Stats {
            demand_bytes: self.counts.demand_bytes.load(Ordering::Relaxed),
            demand_stalls: self.counts.demand_stalls.load(Ordering::Relaxed),
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
    pub async fn unmount(self) -> Result<Stats, Error> {
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
        self.server.stop();
        self.server.start_writeback();
        Ok(stats)
    }
}
