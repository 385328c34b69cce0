//! Going on with the mounts of a process that is dead or about to go: what to serve stands in the store, and
//! nobody needs to be asked for it. A mount that cannot be served is none of the others' concern: it is taken
//! out of service.

use std::fs::File;
use std::sync::Arc;

use hoist_sys::keeper::Inheritance;

use super::layer::{LazyLayer, MountedLayer};
use super::serve::Server;
use super::{Layers, Mount, Shown, fuse, guard, lost};
use crate::config::{Driver, Owners};
use crate::convert::Again;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::store::mounts::{FuseRecord, Lease};
use crate::store::{MountRecord, Names};

/// A mount that could be served.
struct Ready {
    record: MountRecord,
    image: Image,
    tree: std::path::PathBuf,
    layers: Layers,
}

impl Engine {
    /// Becomes the filler of what another process left. A mount that cannot be served is said in the log;
    /// reads of it fail.
    ///
    /// # Errors
    /// When nothing can be taken over.
    pub async fn resume(&self, inheritance: Inheritance) -> Result<Vec<Mount>, Error> {
        let ids = guard::deposited(&inheritance);
        let records = self.store.mounts()?.into_iter().filter(|record| ids.contains(&record.id));
        let records: Vec<MountRecord> = records.collect();
        if records.is_empty() {
            // They may have been ended in good order since this process was started.
            if inheritance.is_needed() {
                let why = format!("the store has no record of mounts {}", ids.join(", "));
                return Err(Error::Store { path: self.store.root().to_owned(), why });
            }
            inheritance.decline();
            return Ok(Vec::new());
        }
        let server = Server::resume(self, &inheritance);
        let (mut ready, mut failed) = self.make_ready(records, &server).await;
        if ready.is_empty()
            && let Some((_, e)) = failed.pop()
        {
            // Another may have more luck.
            return Err(e);
        }
        let taking = {
            let server = Arc::clone(&server);
            tokio::task::spawn_blocking(move || server.take_over(inheritance))
        };
        taking.await.map_err(|e| Error::Internal(e.to_string()))??;
        self.serving.set(&server);
        // Where the one before lived until now, mounts may have come and gone.
        let left = server.guard.mounts();
        ready.retain(|mount| left.contains(&mount.record.id));
        failed.retain(|(record, _)| left.contains(&record.id));
        let new = self.store.mounts()?.into_iter().filter(|r| left.contains(&r.id) && !ids.contains(&r.id));
        let (more, worse) = self.make_ready(new.collect(), &server).await;
        ready.extend(more);
        failed.extend(worse);
        let mut mounts = Vec::new();
        for mount in ready {
            let record = mount.record.clone();
            match self.go_on(mount, &server).await {
                Ok(mount) => mounts.push(mount),
                Err(e) => failed.push((record, e)),
            }
        }
        for (record, e) in failed {
            self.give_up(record, &e, &server);
        }
        Ok(mounts)
    }

    async fn make_ready(
        &self,
        records: Vec<MountRecord>,
        server: &Arc<Server>,
    ) -> (Vec<Ready>, Vec<(MountRecord, Error)>) {
        let (mut ready, mut failed) = (Vec::new(), Vec::new());
        for record in records {
            match self.layers_of(&record, server).await {
                Ok((image, tree, layers)) => ready.push(Ready { record, image, tree, layers }),
                Err(e) => failed.push((record, e)),
            }
        }
        (ready, failed)
    }

    /// Serves it from now on.
    async fn go_on(&self, mount: Ready, server: &Arc<Server>) -> Result<Mount, Error> {
        let Ready { record, image, tree, layers } = mount;
        let lease = server.guard.lease(&record.id).map_err(Error::io("take the lease of", &record.target))?;
        let lease = lease.ok_or_else(|| Error::Internal("a lease was withdrawn".into()))?;
        let lease = Arc::new(Lease::inherited(&self.store, &record.id, lease.into()));
        let (driver, served) = match &record.fuse {
            None => (Driver::Erofs, None),
            Some(how) => {
                let driver = if how.carried.is_some() { Driver::ErofsFuse } else { Driver::Fuse };
                let served = self.go_on_by_fuse(how, &record, &tree, &layers, server).await?;
                (driver, Some(Arc::new(served)))
            }
        };
        server.serves(&lease)?;
        let guarded = Some(Arc::clone(server));
        let why = "a process before this one mounted it".to_owned();
        Ok(self.attend(&image, Shown { record, layers, tree, lease, driver, guarded, served, why }))
    }

    async fn go_on_by_fuse(
        &self,
        how: &FuseRecord,
        record: &MountRecord,
        tree: &std::path::Path,
        layers: &Layers,
        server: &Arc<Server>,
    ) -> Result<fuse::Served, Error> {
        let descriptors = server.guard.session(&record.id);
        let descriptors = descriptors.map_err(Error::io("take the FUSE session of", &record.target))?;
        let (how, record, tree, layers) = (how.clone(), record.clone(), tree.to_owned(), layers.all.clone());
        let (read_timeout, server) = (self.config.read_timeout, Arc::clone(server));
        let image = record.image.clone();
        let (upkeep, meter) = (Arc::clone(&self.serving.upkeep), Arc::clone(&self.meter));
        let serving = tokio::task::spawn_blocking(move || {
            let show = fuse::Show {
                tree: &tree,
                upkeep: &upkeep,
                meter: &meter,
                layers: &layers,
                target: &record.target,
                image: &record.image,
                read_timeout,
                owners: if how.root_alone { Owners::Root } else { Owners::Image },
                answers: server.kept().1,
                resumed: true,
            };
            fuse::Served::resume(&show, how, descriptors)
        });
        let served = serving.await.map_err(|e| Error::Internal(e.to_string()))?;
        served.map_err(|why| Error::Mount { image, why })
    }

    /// A mount that cannot be served goes out of service, and nobody waits for it.
    fn give_up(&self, record: MountRecord, why: &Error, server: &Arc<Server>) {
        tracing::error!(target = %record.target.display(), "the mount cannot be served any more: {why}");
        let (target, id) = (record.target.clone(), record.id.clone());
        let lease = server.guard.lease(&id).ok().flatten();
        let lease = lease.map(|lease| Lease::inherited(&self.store, &id, lease.into()));
        let retired = lease.map_or(Ok(()), |lease| lost::take_out_of_service(&self.store, record, &lease));
        match retired {
            Ok(()) => server.guard.remove(&target, &id),
            // It stays guarded: its reads are denied here.
            Err(e) => tracing::error!(target = %target.display(), "{e}"),
        }
    }

    /// The layers of a mount, as the kernel has them: it reads the very files that are in the record.
    async fn layers_of(
        &self,
        record: &MountRecord,
        server: &Arc<Server>,
    ) -> Result<(Image, std::path::PathBuf, Layers), Error> {
        let image = self.recall_mounted(record).await?;
        let marking = record.fuse.is_none().then(|| Arc::clone(server));
        let mut layers = Layers { all: Vec::new(), server: marking, shown: true };
        let gone = |what: String| Error::Store { path: self.store.root().to_owned(), why: what };
        let Some(index) = image.index.as_ref() else {
            if record.fuse.is_none() {
                return Err(gone(format!("no index of {} is here", record.image)));
            }
            layers.all = record.data.iter().cloned().map(MountedLayer::Whole).collect();
            return Ok((image.clone(), self.own_tree(&image)?, layers));
        };
        let (tree, devices) = self.published_tree(&image, index).await?;
        if record.data.len() != devices.len() {
            return Err(gone(format!("what it has of {} is not what was mounted", record.image)));
        }
        let again = Again::of(&self.store, &image, index);
        for (i, ((blob, size), data)) in devices.into_iter().zip(&record.data).enumerate() {
            let dir = self.store.layer(&blob, Some(&index.digest));
            let state = dir.state();
            let whole = dir.file("data") != *data || (state.complete && state.verified);
            layers.all.push(if state.lied.is_some() {
                // Its file is unlinked, and its reads fail.
                MountedLayer::Whole(data.clone())
            } else if whole {
                if let Some(server) = &layers.server {
                    server.add_whole(&File::open(data).map_err(Error::io("open", data))?);
                }
                MountedLayer::Whole(data.clone())
            } else {
                let table = Arc::new(self.table_source(&image, index, &blob, again.clone())?);
                let known = Arc::clone(&self.known);
                let (meter, slots) = (Arc::clone(&self.meter), Arc::clone(&self.slots));
                let names = Names { tree: tree.clone(), layer: i as u16 };
                let layer = LazyLayer::open(table, size, names, known, meter, slots)?;
                MountedLayer::Lazy(match &layers.server {
                    Some(server) => server.add(layer)?,
                    None => self.serving.share(layer)?,
                })
            });
        }
        Ok((image.clone(), tree, layers))
    }
}
