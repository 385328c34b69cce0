//! Preparing a lazy mount: the published tree, and the layers' data files, watched.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use hoist_format::erofs;

use super::layer::{LazyLayer, MountedLayer, TableSource};
use super::slow::Names;
use super::{Layers, Use, lost};
use crate::config::Driver;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::ingest::Expected;
use crate::publish::PublishedIndex;

/// Most that a published tree may have when decompressed, bytes.
const TREE_MAX: usize = 1 << 30;
/// Bytes of one entry in the device table.
const DEVICE_SLOT: u64 = 128;

impl Engine {
    /// Brings what a lazy mount needs first: the merged tree and the layers' data files.
    pub(super) async fn lazy(
        &self,
        image: &Image,
        index: &PublishedIndex,
        purpose: Use,
        driver: Driver,
    ) -> Result<(PathBuf, Layers), Error> {
        let mut tables = Vec::new();
        for expected in image.expected()? {
            tables.push(Arc::new(self.table_source(image, index, expected)?));
        }
        if purpose == Use::Run {
            for table in tables.iter().map(Arc::clone) {
                // Side by side with the tree. What fails here is said by the read that needs it.
                tokio::spawn(async move { table.bytes().await.map(drop) });
            }
        }
        let (tree, sizes) = self.published_tree(image, index).await?;
        if sizes.len() != tables.len() {
            let why = "its tree is of another number of layers: index the image again";
            return Err(Error::image("published index", index.digest, why));
        }
        let server = match driver {
            Driver::Erofs => {
                let server = self.serving.server(self);
                Some(server.map_err(|why| Error::Mount { image: image.name.clone(), why })?)
            }
            Driver::ErofsFuse | Driver::Fuse => None,
        };
        let mut layers = Layers { all: Vec::new(), server: server.clone(), shown: false };
        let denied = lost::denied(&self.store)?;
        for (i, (table, size)) in tables.into_iter().zip(sizes).enumerate() {
            let layer = match self.whole_alike(&table, size).await? {
                Some(data) => MountedLayer::Whole(data),
                None => {
                    if denied.contains(&table.dir.file("data")) {
                        tracing::warn!(layer = %table.dir.blob(), "a lost mount of it is still in use: fetching it anew");
                        table.dir.forget_data()?;
                    }
                    let known = Arc::clone(&self.known);
                    let (meter, slots) = (Arc::clone(&self.meter), Arc::clone(&self.slots));
                    // A tree has no more devices than fit.
                    let names = Names { tree: tree.clone(), layer: i as u16 };
                    let layer = LazyLayer::open(table, size, names, known, meter, slots)?;
                    MountedLayer::Lazy(match &server {
                        Some(server) => server.add(layer)?,
                        None => self.serving.share(layer)?,
                    })
                }
            };
            layers.all.push(layer);
        }
        Ok((tree, layers))
    }

    pub(super) fn table_source(
        &self,
        image: &Image,
        index: &PublishedIndex,
        expected: Expected,
    ) -> Result<TableSource, Error> {
        let bad = |why: String| Error::image("published index", index.digest, why);
        let parts = index.layers.get(&expected.blob).cloned();
        let parts = parts
            .ok_or_else(|| bad(format!("index {} has no table of layer {}", index.digest, expected.blob)))?;
        let dir = self.store.layer(&expected.blob, Some(&index.digest));
        match dir.state().lied {
            Some(why) => Err(bad(why)),
            None => Ok(TableSource::new(
                self.store.clone(),
                dir,
                index.digest,
                expected,
                parts,
                image.source.clone(),
            )),
        }
    }

    /// The data file of a layer that is here whole and laid out as the index says, if there is one: of
    /// an earlier mount, or of another image that was pulled.
    async fn whole_alike(&self, table: &TableSource, size: u64) -> Result<Option<PathBuf>, Error> {
        let state = table.dir.state();
        if state.complete && state.verified && table.dir.has_data(size) {
            return Ok(Some(table.dir.file("data")));
        }
        let own = self.store.layer(&table.expected.blob, None);
        if !own.is_whole() || !own.has_data(size) {
            return Ok(None);
        }
        let Some(ours) = own.sound_part("table", |parts| &parts.table) else { return Ok(None) };
        let alike = crate::check::lie(table.bytes().await?, &ours).is_none();
        Ok(alike.then(|| own.file("data")))
    }

    /// The published tree, checked and kept, and the sizes of the data files that it speaks of.
    pub(super) async fn published_tree(
        &self,
        image: &Image,
        index: &PublishedIndex,
    ) -> Result<(PathBuf, Vec<u64>), Error> {
        let dir = self.store.image(&image.digest);
        // Said of bytes that are what the index names: the index itself is no good, now and ever.
        let bad = |e: &dyn std::fmt::Display| {
            let error = Error::image("published index", index.digest, e.to_string());
            if let Err(e) = self.store.distrust(&index.digest, &error.to_string()) {
                tracing::warn!("remembering that an index is bad: {e}");
            }
            error
        };
        if let Some(path) = dir.sound_tree(Some(&index.digest)) {
            // Superblock and device table stand at the start: no need to read names and attributes.
            let most = 8192 + DEVICE_SLOT * image.manifest.layers.len() as u64;
            let mut head = Vec::new();
            let read = File::open(&path).and_then(|file| file.take(most).read_to_end(&mut head));
            read.map_err(Error::io("read", &path))?;
            let sizes = device_sizes(&head).map_err(|e| bad(&e))?;
            return Ok((path, sizes));
        }
        let stored = image.source.blob(&index.tree.digest, Some(index.tree.size)).await?;
        let tree = hoist_format::table::decompress(&stored, TREE_MAX).map_err(|e| bad(&e))?;
        // The kernel parses this: only what our own decoder finds sound is handed to it.
        let checked = tokio::task::spawn_blocking(move || {
            erofs::decode(&tree)?;
            let sizes = device_sizes(&tree)?;
            Ok::<_, erofs::DecodeError>((tree, sizes))
        });
        let (tree, sizes) =
            checked.await.map_err(|e| Error::Internal(e.to_string()))?.map_err(|e| bad(&e))?;
        Ok((dir.save_tree(Some(&index.digest), &tree)?, sizes))
    }
}

/// The sizes of the layers' data files, of a tree's first bytes.
fn device_sizes(head: &[u8]) -> Result<Vec<u64>, erofs::DecodeError> {
    Ok(erofs::Image::new(head)?.devices().iter().map(|d| d.size).collect())
}
