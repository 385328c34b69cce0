//! Preparing a lazy mount: the published tree, and the layers' data files, watched.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hoist_format::digest::Digest;
use hoist_format::erofs;

use super::layer::{LazyLayer, MountedLayer, TableSource};
use super::serve::{NotWatched, Server};
use super::{Layers, Use, lost, others};
use crate::config::Driver;
use crate::convert::Again;
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::Anew;
use crate::image::Image;
use crate::publish::PublishedIndex;
use crate::registry::ImageSource;
use crate::store::Names;

/// Most that a published tree may have when decompressed, bytes.
const TREE_MAX: usize = 1 << 30;
/// Bytes of one entry in the device table.
const DEVICE_SLOT: u64 = 128;

/// The tables of a lazy mount's layers, by blob.
pub(super) type Tables = BTreeMap<Digest, Arc<TableSource>>;

/// A layer that is filled without being mounted.
pub(crate) struct Filled {
    layer: Arc<LazyLayer>,
    /// Who watches it.
    server: Option<Arc<Server>>,
}

impl Deref for Filled {
    type Target = LazyLayer;

    fn deref(&self) -> &LazyLayer {
        &self.layer
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.release(&self.layer);
        }
    }
}

impl Engine {
    /// Fetches what a lazy mount needs first: the merged tree. Long, and safe without the lock of those who choose: what
    /// is taken away meanwhile, [`Engine::lazy`] fetches again.
    pub(super) async fn fetch_tree(
        &self,
        image: &Image,
        index: &PublishedIndex,
        purpose: Use,
    ) -> Result<Tables, Error> {
        let mut tables = Tables::new();
        let again = Again::of(&self.store, image, index);
        let own = |blob: &&Digest| image.manifest.layers.iter().any(|layer| layer.digest == **blob);
        for blob in index.layers.keys().filter(own) {
            tables.insert(*blob, Arc::new(self.table_source(image, index, blob, again.clone())?));
        }
        if purpose == Use::Run && !index.converted {
            for table in tables.values().map(Arc::clone) {
                // Side by side with the tree. What fails here is said by the read that needs it.
                tokio::spawn(async move { tokio::join!(table.bytes(), table.fetch_windows()) });
            }
        }
        self.published_tree(image, index).await?;
        Ok(tables)
    }

    /// The merged tree and the layers' data files, opened and watched.
    pub(super) async fn lazy(
        &self,
        image: &Image,
        index: &PublishedIndex,
        tables: &Tables,
        driver: Driver,
    ) -> Result<(PathBuf, Layers), Error> {
        let (tree, devices) = self.published_tree(image, index).await?;
        let server = match driver {
            Driver::Erofs => {
                let server = self.serving.server(self);
                Some(server.map_err(|why| Error::Mount { image: image.name.clone(), why })?)
            }
            Driver::ErofsFuse | Driver::Fuse => None,
        };
        let mut layers = Layers { all: Vec::new(), server: server.clone(), shown: false };
        let denied = lost::denied(&self.store)?;
        for (i, (blob, size)) in devices.into_iter().enumerate() {
            let table = tables.get(&blob).map(Arc::clone);
            let here = match &table {
                Some(table) => self.whole_alike(table, size).await?,
                None => Some(self.own_data(index, &blob, size)?),
            };
            let layer = match (here, table) {
                (Some(data), _) => MountedLayer::Whole(data),
                (None, None) => return Err(Error::Internal("a layer without a table".into())),
                (None, Some(table)) => {
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
                        None => self.share(layer)?,
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
        blob: &Digest,
        again: Option<Arc<dyn Anew>>,
    ) -> Result<TableSource, Error> {
        let bad = |why: String| Error::image("published index", index.digest, why);
        let parts = index.layers.get(blob).cloned();
        let parts =
            parts.ok_or_else(|| bad(format!("index {} has no table of layer {blob}", index.digest)))?;
        // Of an image that is one file system its layers say nothing each by itself.
        let expected = match index.converted || index.of_image {
            true => None,
            false => image.expected()?.into_iter().find(|e| e.blob == *blob),
        };
        let dir = self.store.layer(blob, Some(&index.digest));
        match dir.state().lied {
            Some(why) => Err(bad(why)),
            None => Ok(TableSource::new(
                self.store.clone(),
                dir,
                index.digest,
                expected,
                parts,
                image.source.clone(),
                again,
            )),
        }
    }

    /// A layer that is filled without any mount, or beside those of other processes. Where that can be had it is watched
    /// like a mounted one: what is written to it then asks none of the others, who may be unable to answer.
    pub(crate) fn filled_layer(
        &self,
        image: &Image,
        index: &PublishedIndex,
        (blob, size): (&Digest, u64),
        (tree, layer): (&Path, u16),
    ) -> Result<Filled, Error> {
        let again = Again::of(&self.store, image, index);
        let table = Arc::new(self.table_source(image, index, blob, again)?);
        let open = || {
            let names = Names { tree: tree.to_owned(), layer };
            let known = Arc::clone(&self.known);
            let (meter, slots) = (Arc::clone(&self.meter), Arc::clone(&self.slots));
            LazyLayer::open(Arc::clone(&table), size, names, known, meter, slots)
        };
        let server = self.serving.server(self).ok().filter(|server| server.group().is_ok());
        if let Some(server) = server {
            match server.add(open()?) {
                Ok(layer) => return Ok(Filled { layer, server: Some(server) }),
                Err(NotWatched::Cannot(e)) => tracing::debug!(layer = %blob, "filled unwatched: {e}"),
                // Unwatched its writes would ask that one too.
                Err(NotWatched::Unanswered(e)) => return Err(e),
            }
        }
        Ok(Filled { layer: self.share(open()?)?, server: None })
    }

    /// The layer as other mounts of this process have it; of what others have marked, only if they answer.
    fn share(&self, layer: LazyLayer) -> Result<Arc<LazyLayer>, Error> {
        let file = (layer.data(), &*layer.dir().file("data"));
        others::all_answer(&self.store, file, layer.data_size(), self.config.read_timeout)?;
        self.serving.share(layer)
    }

    /// The data file of a layer that is here whole and laid out as the index says, if there is one: of
    /// an earlier mount, or of another image that was pulled.
    async fn whole_alike(&self, table: &TableSource, size: u64) -> Result<Option<PathBuf>, Error> {
        let state = table.dir.state();
        if state.complete && state.verified && table.dir.has_data(size) {
            return Ok(Some(table.dir.file("data")));
        }
        if table.expected.is_none() {
            return Ok(None);
        }
        let own = self.store.layer(table.dir.blob(), None);
        if !own.is_whole() || !own.has_data(size) {
            return Ok(None);
        }
        let Some(ours) = own.sound_part("table", |parts| &parts.table) else { return Ok(None) };
        let alike = crate::check::lie(&table.bytes().await?, &ours).is_none();
        Ok(alike.then(|| own.file("data")))
    }

    /// The data file of a layer that a conversion left in our own layout.
    fn own_data(&self, index: &PublishedIndex, blob: &Digest, size: u64) -> Result<PathBuf, Error> {
        let own = self.store.layer(blob, None);
        if index.converted && own.is_whole() && own.has_data(size) {
            return Ok(own.file("data"));
        }
        let why = format!("index {} has no table of layer {blob}", index.digest);
        Err(Error::image("published index", index.digest, why))
    }

    /// The published tree, checked and kept, and the layers and sizes of the data files that it speaks of.
    pub(crate) async fn published_tree(
        &self,
        image: &Image,
        index: &PublishedIndex,
    ) -> Result<(PathBuf, Vec<(Digest, u64)>), Error> {
        let dir = self.store.image(&image.digest);
        let mut kept = dir.sound_tree(Some(&index.digest));
        if kept.is_none()
            && let Some(again) = Again::of(&self.store, image, index)
        {
            again.make(&|| false).await?;
            kept = dir.sound_tree(Some(&index.digest));
        }
        if let Some(path) = kept {
            // Superblock and device table stand at the start: no need to read names and attributes.
            let most = 8192 + DEVICE_SLOT * image.manifest.layers.len() as u64;
            let mut head = Vec::new();
            let read = File::open(&path).and_then(|file| file.take(most).read_to_end(&mut head));
            read.map_err(Error::io("read", &path))?;
            let found = devices(&head).map_err(|e| self.is_bad(index, &e))?;
            return Ok((path, in_order(image, index, found)?));
        }
        let (path, found) = self.keep_tree(&image.digest, &image.source, index).await?;
        Ok((path, in_order(image, index, found)?))
    }

    /// Fetches an index's tree, checks it and keeps it for an image; gives the data files that it speaks of.
    pub(crate) async fn keep_tree(
        &self,
        image: &Digest,
        source: &ImageSource,
        index: &PublishedIndex,
    ) -> Result<(PathBuf, Vec<(Digest, u64)>), Error> {
        let stored = source.blob(&index.tree.digest, Some(index.tree.size)).await?;
        let bad = |e: &dyn std::fmt::Display| self.is_bad(index, e);
        let (dir, of) = (self.store.image(image), index.digest);
        let checking = tokio::task::spawn_blocking(move || {
            let tree = hoist_format::table::decompress(&stored, TREE_MAX).map_err(|e| e.to_string())?;
            // The kernel parses this: only what our own decoder finds sound is handed to it. It is written meanwhile.
            std::thread::scope(|scope| {
                let writing = scope.spawn(|| dir.tree_aside(Some(&of), &tree));
                let found = erofs::decode(&tree).and_then(|_| devices(&tree)).map_err(|e| e.to_string());
                let written = writing.join().map_err(|_| Error::Internal("a writing thread died".into()));
                found.map(|found| (written.flatten(), found))
            })
        });
        let checked = checking.await.map_err(|e| Error::Internal(e.to_string()))?;
        let (written, found) = checked.map_err(|e| bad(&e))?;
        Ok((written?.keep()?, found))
    }

    /// Said of bytes that are what the index names: the index itself is no good, now and ever.
    fn is_bad(&self, index: &PublishedIndex, why: &dyn std::fmt::Display) -> Error {
        let error = Error::image("published index", index.digest, why.to_string());
        if let Err(e) = self.store.distrust(&index.digest, &error.to_string()) {
            tracing::warn!("remembering that an index is bad: {e}");
        }
        error
    }
}

/// Which data file is of which layer: in a published index as the manifest has them, whatever they are called, and in a
/// conversion, or where there is one for the image, by their names.
fn in_order(
    image: &Image,
    index: &PublishedIndex,
    found: Vec<(Digest, u64)>,
) -> Result<Vec<(Digest, u64)>, Error> {
    let layers = &image.manifest.layers;
    if index.converted || index.of_image {
        return Ok(found);
    }
    if found.len() != layers.len() {
        let why = "its tree is of another number of layers: index the image again";
        return Err(Error::image("published index", index.digest, why));
    }
    Ok(layers.iter().zip(found).map(|(layer, (_, size))| (layer.digest, size)).collect())
}

/// The layers of a tree and the sizes of their data files, of its first bytes. A device whose tag is no digest is of
/// no layer.
fn devices(head: &[u8]) -> Result<Vec<(Digest, u64)>, erofs::DecodeError> {
    let image = erofs::Image::new(head)?;
    let layer = |tag: &str| format!("sha256:{tag}").parse().unwrap_or(Digest::from_bytes([0; 32]));
    Ok(image.devices().iter().map(|d| (layer(&d.tag), d.size)).collect())
}
