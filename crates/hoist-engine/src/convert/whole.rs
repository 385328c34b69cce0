//! The full pull of an image whose layers say nothing each by itself: what was converted is filled to its end.

use std::collections::BTreeSet;

use hoist_format::formats::{self, Covers};

use super::Converted;
use crate::engine::Engine;
use crate::error::Error;
use crate::fill::FillError;
use crate::image::{Image, stream_of};
use crate::progress::Progress;

/// Bytes of a data file that are asked for at once.
const STEP: u64 = 32 << 20;

/// What a pull of such an image had to fetch: of one file system all layers that have it, or none.
pub(crate) struct Brought {
    /// Layers that had to be fetched.
    pub fetched: usize,
    /// Of so many that it is shown by.
    pub of: usize,
    /// These have one file system between them, which is fetched as a whole.
    pub one: bool,
}

impl Image {
    /// Can its layers be unpacked, each by itself?
    pub(crate) fn is_of_layers(&self) -> bool {
        self.manifest.layers.iter().all(|layer| stream_of(&layer.media_type).is_some())
            && formats::readers(&self.facts(false)).iter().all(|reader| reader.covers() != Covers::Image)
    }
}

impl Brought {
    pub(super) fn all_or_none(image: &Image, all: bool) -> Self {
        let of = image.manifest.layers.len();
        Self { fetched: if all { of } else { 0 }, of, one: true }
    }
}

impl Engine {
    /// Fetches all of an image in the layout of its own format.
    ///
    /// # Errors
    /// When it cannot be read in that format, or something of it cannot be had.
    pub(crate) async fn pull_converted(
        &self,
        image: &Image,
        progress: &dyn Progress,
    ) -> Result<Brought, Error> {
        if image.is_unvouched() {
            return self.pull_unvouched(image, progress).await;
        }
        let before = image.originals().into_iter().flatten();
        let before: BTreeSet<_> =
            before.map(|o| o.digest).filter(|blob| self.store.layer(blob, None).is_whole()).collect();
        let (index, choosing) = match self.converted(image, progress).await? {
            Converted::Kept { index, choosing } => (index, choosing),
            Converted::Plain(notes) => return Err(notes.refusal(image)),
        };
        let (tree, devices) = self.published_tree(image, &index).await?;
        let mut held = Vec::new();
        for (blob, _) in &devices {
            let layout = index.layers.contains_key(blob).then_some(&index.digest);
            let dir = self.store.layer(blob, layout);
            held.push(dir.hold()?);
            // What was just pulled is the last to be evicted.
            dir.touch();
        }
        drop(choosing);
        let spared = devices.iter().map(|(blob, _)| blob.hex()).collect();
        let instead = index.instead();
        let mut filled = false;
        for (number, (blob, size)) in devices.into_iter().enumerate() {
            let dir = self.store.layer(&blob, Some(&index.digest));
            let state = dir.state();
            if !index.layers.contains_key(&blob) || state.complete && state.verified && dir.has_data(size) {
                continue;
            }
            let layer = self.filled_layer(image, &index, (&blob, size), (&tree, number as u16))?;
            progress.begin(&format!("pulling {}", image.name), size);
            let failed = |e: FillError| Error::contents(&image.name, e);
            let fill = layer.fill().await.map_err(failed)?;
            for at in (0..size).step_by(STEP as usize) {
                let end = size.min(at + STEP);
                fill.fill(at, end).await.map_err(failed)?;
                progress.advance(end - at);
            }
            fill.finish(index.is_pinned()).await?;
            progress.end();
            filled = true;
        }
        if index.of_image && index.is_pinned() {
            self.hold_others(image, &index, None)?;
        }
        drop(held);
        crate::evict::keep_limit(self, spared).await;
        Ok(match instead.is_empty() {
            true => Brought::all_or_none(image, filled),
            false => {
                let fetched = instead.iter().filter(|blob| !before.contains(blob)).count();
                Brought { fetched, of: instead.len(), one: false }
            }
        })
    }
}
