//! Layers and images in our own layout: fetched whole, verified and indexed in one pass, and merged to the image's tree.

mod fetch;
mod room;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use hoist_format::digest::Digest;
use hoist_format::table::Table;
use hoist_format::tree::Tree;
use hoist_format::{erofs, merge};

pub(crate) use fetch::fetch_and_ingest;

use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::ingest::{Expected, Ingested};
use crate::progress::Progress;
use crate::registry::ImageSource;
use crate::store::{Begun, LayerDir, LayerState, Parts};

/// Layers that are decoded at once: each takes two threads.
pub(crate) const LAYERS: usize = 2;

impl Engine {
    /// Gives what keeps the layer from being taken away.
    pub(crate) async fn pull_layer(
        &self,
        expected: &Expected,
        source: &ImageSource,
        progress: &dyn Progress,
    ) -> Result<File, Error> {
        let dir = self.store.layer(&expected.blob, None);
        let held = dir.hold()?;
        let aside = self.store.aside()?;
        let path = aside.path().to_owned();
        let file = aside.reopen().map_err(Error::io("open", &path))?;
        let kept = self.store.kept(&expected.blob, expected.size).map(Arc::new);
        let begun = (expected.size > fetch::PART).then(|| Begun::open(&dir)).transpose()?.map(Arc::new);
        let data = Some((file, path));
        let pulled =
            fetch_and_ingest(expected, (source, &self.store), kept, begun.clone(), data, progress).await;
        if let (Err(Error::Io { .. }), Some(begun)) = (&pulled, &begun) {
            // It may have been for want of room.
            begun.forget();
        }
        let (done, reused) = pulled?;
        self.known.copied(reused);
        let parts = keep(&dir, done)?;
        aside.persist(dir.file("data")).map_err(|e| Error::io("rename to", dir.file("data"))(e.error))?;
        // A complete layer without its data would be the worst to find after a power cut.
        crate::store::sync_dir(dir.path())?;
        dir.save_state(&LayerState::whole(parts))?;
        begun.iter().for_each(|begun| begun.forget());
        Ok(held)
    }

    /// Takes over a layer that was completed and verified in the layout of a published index: the same
    /// pass has found its data and its tree right. Spans and windows are the index's, so none are kept.
    pub(crate) fn adopt(&self, own: &LayerDir) -> Result<bool, Error> {
        for theirs in self.store.published_layouts(own.blob()) {
            let state = theirs.state();
            // A conversion has no tree of the layer alone.
            if !(state.verified && theirs.is_whole() && theirs.file("tree").exists()) {
                continue;
            }
            let parts = (theirs.sound_part("table", |p| &p.table), theirs.sound_part("tree", |p| &p.tree));
            let (Some(table), Some(tree)) = parts else { continue };
            let parts = state.parts.unwrap_or_else(|| Parts {
                data_size: 0,
                table: Digest::of(&table),
                tree: Digest::of(&tree),
            });
            let _held = own.hold()?;
            let _ = std::fs::remove_file(own.file("windows"));
            own.save("tree", &tree)?;
            own.save("table", &table)?;
            let _ = std::fs::remove_file(own.file("data"));
            let data = own.file("data");
            std::fs::hard_link(theirs.file("data"), &data).map_err(Error::io("link to", &data))?;
            crate::store::sync_dir(own.path())?;
            own.save_state(&LayerState::whole(parts))?;
            return Ok(true);
        }
        Ok(false)
    }

    /// True when every layer is here in our own, verified layout.
    pub(crate) fn has_own_layout(&self, manifest: &Digest) -> bool {
        let Some((bytes, _)) = self.store.image(manifest).load(manifest) else { return false };
        let Ok(parsed) = serde_json::from_slice::<crate::oci::Manifest>(&bytes) else { return false };
        parsed.layers.iter().all(|l| self.store.layer(&l.digest, None).is_whole())
    }

    /// The merged tree of our own layouts, made if it is not there.
    pub(crate) fn own_tree(&self, image: &Image) -> Result<PathBuf, Error> {
        let dir = self.store.image(&image.digest);
        if let Some(path) = dir.sound_tree(None) {
            return Ok(path);
        }
        let layers: Vec<_> = image.manifest.layers.iter().map(|layer| layer.digest).collect();
        dir.save_tree(None, &self.merged(&layers, &image.digest, |blob| self.store.layer(blob, None))?)
    }

    /// The tree of these layers, lowest first, merged anew from their own trees in the folders that `layout` names.
    /// `image`: the manifest that they are of.
    pub(crate) fn merged(
        &self,
        layers: &[Digest],
        image: &Digest,
        layout: impl Fn(&Digest) -> LayerDir,
    ) -> Result<Vec<u8>, Error> {
        let mut trees = Vec::new();
        let mut devices = Vec::new();
        for layer in layers {
            let (tree, size) = layer_tree(&layout(layer))?;
            trees.push(tree);
            devices.push(erofs::Device { tag: layer.hex(), size });
        }
        let refs: Vec<_> = trees.iter().collect();
        let merged = merge::merge(&refs).map_err(|source| Error::Merge { image: *image, source })?;
        erofs::encode(&merged, &devices).map_err(|e| Error::image("image", image, e))
    }
}

/// The tree of a layer alone, and the size of its data file.
pub(crate) fn layer_tree(folder: &LayerDir) -> Result<(Tree, u64), Error> {
    let bad = |name: &str, e: &dyn std::fmt::Display| {
        // Nothing is made of it any more, and the next pull brings it again.
        let disowned = folder.disown();
        let path = folder.file(name);
        disowned.err().unwrap_or(Error::Store { path, why: format!("is damaged: {e}; pull the image again") })
    };
    let part = |name: &str, digest: fn(&Parts) -> &Digest| {
        folder.sound_part(name, digest).ok_or_else(|| bad(name, &"it is not what was written"))
    };
    let tree = part("tree", |parts| &parts.tree)?;
    let tree = erofs::decode(&tree).map_err(|e| bad("tree", &e))?;
    let table = part("table", |parts| &parts.table)?;
    let table = Table::decode(&table).map_err(|e| bad("table", &e))?;
    Ok((tree, table.extents.data_size))
}

/// Keeps what a pass found, except the data file.
fn keep(dir: &LayerDir, done: Ingested) -> Result<Parts, Error> {
    let tree = keep_tree(dir, &done)?;
    dir.save("windows", &done.windows)?;
    let table = done.table.encode();
    dir.save("table", &table)?;
    Ok(Parts { data_size: done.table.extents.data_size, table: Digest::of(&table), tree })
}

/// Keeps the layer's own tree; gives the digest of what was written.
pub(crate) fn keep_tree(dir: &LayerDir, done: &Ingested) -> Result<Digest, Error> {
    let device = erofs::Device { tag: dir.blob().hex(), size: done.table.extents.data_size };
    let tree = erofs::encode(&done.layer.tree, &[device])
        .map_err(|e| Error::Layer { blob: *dir.blob(), why: e.to_string() })?;
    dir.save("tree", &tree)?;
    Ok(Digest::of(&tree))
}
