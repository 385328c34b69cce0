//! An image whose own metadata is of no use is shown as the layers that it was made of, where its manifest names them:
//! fetched whole and held to these digests, as layers are of which nothing better is known.

use futures_util::StreamExt;
use hoist_format::digest::Digest;
use hoist_format::formats::{self, Original};

use super::{Converted, Notes};
use crate::engine::Engine;
use crate::error::Error;
use crate::image::{Image, stream_of};
use crate::ingest::Expected;
use crate::own::LAYERS;
use crate::progress::Progress;

impl Image {
    /// The layers that it was made of.
    pub(crate) fn originals(&self) -> Option<Vec<Original>> {
        formats::originals(&self.facts(true))
    }
}

impl Engine {
    /// Brings the layers that an image was made of; `notes` say why nothing better can be done. Plain where there are none.
    ///
    /// # Errors
    /// When they cannot be had or kept.
    pub(super) async fn instead(
        &self,
        image: &Image,
        notes: Notes,
        progress: &dyn Progress,
    ) -> Result<Converted, Error> {
        let Some(originals) = image.originals() else { return Ok(Converted::Plain(notes)) };
        let why = notes.why(image);
        tracing::warn!(image = image.name, "its original layers are fetched whole instead: {why}");
        progress.note(&format!("{} is not read as it is: fetching its original layers", image.name));
        let failed = |e: Error| {
            let why = format!("{why}; and the layers that it was made of cannot be had: {e}");
            Error::image("image", image.digest, why)
        };
        let mut missing = Vec::new();
        for original in &originals {
            if !self.store.layer(&original.digest, None).is_whole() {
                missing.push(expected(image, original).await.map_err(failed)?);
            }
        }
        if !missing.is_empty() {
            progress.begin(&format!("pulling {}", image.name), missing.iter().map(|e| e.size).sum());
            let work: Vec<_> = missing.iter().map(|e| self.pull_layer(e, &image.source, progress)).collect();
            let mut running = futures_util::stream::iter(work).buffer_unordered(LAYERS);
            while let Some(done) = running.next().await {
                done.map_err(failed)?;
            }
            progress.end();
        }
        let layers: Vec<Digest> = originals.iter().map(|original| original.digest).collect();
        let choosing = self.store.choosing()?;
        if let Some(gone) = layers.iter().find(|layer| !self.store.layer(layer, None).is_whole()) {
            let why = format!("layer {gone} was taken out of the store just when it was fetched");
            return Err(Error::NotFound(format!("{why}: try again")));
        }
        let (engine, image) = (self.clone(), image.clone());
        let keeping = tokio::task::spawn_blocking(move || engine.keep_instead(&image, &layers, &notes));
        let index = keeping.await.map_err(|e| Error::Internal(e.to_string()))??;
        Ok(Converted::Kept { index: Box::new(index), choosing })
    }
}

/// What they decode to is told by no config; the blob's digest holds it right.
async fn expected(image: &Image, original: &Original) -> Result<Expected, Error> {
    let (codec, stream) = stream_of(&original.media_type).ok_or_else(|| {
        let why = format!("its media type {:?} is no layer that hoist reads", original.media_type);
        Error::image("layer", original.digest, why)
    })?;
    let size = image.source.blob_size(&original.digest).await?;
    Ok(Expected { blob: original.digest, size, diff_id: None, codec, stream })
}
