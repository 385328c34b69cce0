//! The full pull of an image whose contents no digest vouches for but those of whole blobs: these are fetched, metadata
//! and contents are read from them alone, and what was taken on trust before is held to them.

use std::sync::Arc;

use hoist_format::digest::Digest;

use super::verified::Verified;
use super::whole::Brought;
use super::{Converted, Notes, keep};
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::FillError;
use crate::image::Image;
use crate::progress::Progress;
use crate::publish::PublishedIndex;

impl Engine {
    /// Fetches all of it, verified.
    ///
    /// # Errors
    /// When something of it cannot be had, or is not what the image's digests say.
    pub(super) async fn pull_unvouched(
        &self,
        image: &Image,
        progress: &dyn Progress,
    ) -> Result<Brought, Error> {
        if self.complete_conversion(&image.digest).is_some() {
            return Ok(Brought::all_or_none(image, false));
        }
        let before = self.noted_conversion(&image.digest);
        let mut blobs = Verified::default();
        let layers = image.manifest.layers.iter().map(|layer| (layer.digest, layer.size));
        self.verify_whole(image, layers.collect(), &mut blobs, progress).await?;
        let blobs = Arc::new(blobs);
        let (conversion, notes) = self.convert(image, Some(Arc::clone(&blobs))).await;
        let Some(conversion) = conversion else { return self.pull_instead(image, notes, progress).await };
        let choosing = self.store.choosing()?;
        let index = keep::keep(&self.store, image, conversion, None).await?;
        if let Some(why) = self.store.distrusted(&index.digest) {
            return Err(Error::image("image", image.digest, why));
        }
        let (tree, devices) = self.published_tree(image, &index).await?;
        let Some((blob, size)) = devices.into_iter().next() else {
            return Ok(Brought::all_or_none(image, false));
        };
        let dir = self.store.layer(&blob, Some(&index.digest));
        let held = dir.hold()?;
        dir.touch();
        drop(choosing);
        let layer = self.filled_layer(image, &index, (&blob, size), (&tree, 0))?;
        let failed = |e: FillError| Error::contents(&image.name, e);
        let fill = layer.fill().await.map_err(failed)?;
        let mut blobs =
            Arc::into_inner(blobs).ok_or_else(|| Error::Internal("blobs with two owners".into()))?;
        // Contents may stand in the layers of the image that it was made of.
        let others = fill.table().spans.blobs().iter().map(|blob| (blob.digest, blob.size));
        self.verify_whole(image, others.collect(), &mut blobs, progress).await?;
        let wrong = fill.prove(Arc::new(blobs)).await.map_err(failed)?;
        if wrong > 0 {
            tracing::error!(
                image = image.name,
                extents = wrong,
                "what was read of it lazily was not what its digests say, and is put right: end what runs on it"
            );
        }
        fill.finish(true).await?;
        self.keep_proven(image, &index.digest)?;
        self.hold_others(image, &index, before.as_ref())?;
        drop(held);
        crate::evict::keep_limit(self, [blob.hex()].into()).await;
        Ok(Brought::all_or_none(image, true))
    }

    /// Brings the layers that it was made of, as its own metadata is of no use.
    pub(super) async fn pull_instead(
        &self,
        image: &Image,
        notes: Notes,
        progress: &dyn Progress,
    ) -> Result<Brought, Error> {
        let whole = |digest: &Digest| self.store.layer(digest, None).is_whole();
        let originals: Vec<_> = image.originals().into_iter().flatten().map(|o| o.digest).collect();
        let missing = originals.iter().filter(|digest| !whole(digest)).count();
        match self.instead(image, notes, progress).await? {
            Converted::Kept { choosing, .. } => {
                for digest in &originals {
                    self.store.layer(digest, None).touch();
                }
                drop(choosing);
            }
            Converted::Plain(notes) => return Err(notes.refusal(image)),
        }
        let spared = originals.iter().map(Digest::hex).collect();
        crate::evict::keep_limit(self, spared).await;
        Ok(Brought { fetched: missing, of: originals.len(), one: false })
    }

    /// Holds other layouts of the image against `proven`, which is complete: what was converted `before` of other
    /// metadata, and the published index.
    pub(super) fn hold_others(
        &self,
        image: &Image,
        proven: &PublishedIndex,
        before: Option<&PublishedIndex>,
    ) -> Result<(), Error> {
        for other in before.into_iter().chain(&image.index).filter(|other| other.digest != proven.digest) {
            if let Some((dir, lie)) = self.held_against(image, proven, other)? {
                self.judge(&other.digest, &dir, Some(&lie))?;
            }
        }
        Ok(())
    }
}
