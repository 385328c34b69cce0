//! Going on with the mounts of a process that is dead or about to go: what to serve stands in the store, and
//! nobody needs to be asked for it.

use std::fs::File;
use std::sync::Arc;

use hoist_sys::keeper::Inheritance;
use hoist_sys::presence::Snapshot;

use super::layer::{LazyLayer, MountedLayer};
use super::serve::Server;
use super::{Layers, Mount, guard};
use crate::config::Driver;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::store::MountRecord;
use crate::store::mounts::Lease;

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
            let now = Snapshot::take().map_err(Error::io("read", "/proc/self/mountinfo"))?;
            if let Some(mount) = inheritance.mounts().iter().find(|mount| mount.is_alive(&now)) {
                let why = format!("the store has no record of the mount on {}", mount.target.display());
                return Err(Error::Store { path: self.store.root().to_owned(), why });
            }
            inheritance.decline();
            return Ok(Vec::new());
        }
        let server = Server::resume(self, &inheritance);
        let mut ready = Vec::new();
        let mut failed = None;
        for record in records {
            match self.layers_of(&record, &server).await {
                Ok((image, layers)) => ready.push((record, image, layers)),
                Err(e) => {
                    tracing::error!(target = %record.target.display(), "the mount cannot be served any more: {e}");
                    failed = Some(e);
                }
            }
        }
        if let (true, Some(e)) = (ready.is_empty(), failed) {
            return Err(e);
        }
        let taking = {
            let server = Arc::clone(&server);
            tokio::task::spawn_blocking(move || server.take_over(inheritance))
        };
        taking.await.map_err(|e| Error::Internal(e.to_string()))??;
        self.serving.set(&server);
        let mut mounts = Vec::new();
        for (record, image, layers) in ready {
            let lease = server.guard.lease(&record.id);
            let lease = lease.map_err(Error::io("take the lease of", &record.target))?;
            let missing = || Error::Internal("a lease was withdrawn".into());
            let lease =
                Arc::new(Lease::inherited(&self.store, &record.id, lease.ok_or_else(missing)?.into()));
            server.serves(&lease)?;
            mounts.push(self.attend(&image, record, layers, lease, Driver::Erofs, None));
        }
        Ok(mounts)
    }

    /// The layers of a mount, as the kernel has them: it reads the very files that are in the record.
    async fn layers_of(&self, record: &MountRecord, server: &Arc<Server>) -> Result<(Image, Layers), Error> {
        let image = self.recall_mounted(record).await?;
        let gone = |what: String| Error::Store { path: self.store.root().to_owned(), why: what };
        let index =
            image.index.as_ref().ok_or_else(|| gone(format!("no index of {} is here", record.image)))?;
        let (_, sizes) = self.published_tree(&image, index).await?;
        let expected = image.expected()?;
        if sizes.len() != expected.len() || record.data.len() != expected.len() {
            return Err(gone(format!("what it has of {} is not what was mounted", record.image)));
        }
        let mut layers = Layers { all: Vec::new(), server: Some(Arc::clone(server)), shown: true };
        for ((expected, size), data) in expected.into_iter().zip(sizes).zip(&record.data) {
            let dir = self.store.layer(&expected.blob, Some(&index.digest));
            let state = dir.state();
            let whole = dir.file("data") != *data || (state.complete && state.verified);
            layers.all.push(if state.lied.is_some() {
                // Its file is unlinked, and its reads fail.
                MountedLayer::Whole(data.clone())
            } else if whole {
                server.add_whole(&File::open(data).map_err(Error::io("open", data))?);
                MountedLayer::Whole(data.clone())
            } else {
                let table = Arc::new(self.table_source(&image, index, expected)?);
                let known = Arc::clone(&self.known);
                let (meter, slots) = (Arc::clone(&self.meter), Arc::clone(&self.slots));
                MountedLayer::Lazy(server.add(LazyLayer::open(table, size, known, meter, slots)?)?)
            });
        }
        Ok((image, layers))
    }
}
