//! What is mounted of an image: by a published index, by one that was made of its own format's metadata, or whole, as it was
//! pulled or has to be now.

use std::path::PathBuf;

use super::layer::MountedLayer;
use super::{Layers, Use};
use crate::config::{Driver, Trust};
use crate::convert::Converted;
use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::oci::Descriptor;
use crate::progress::Progress;
use crate::publish::PublishedIndex;
use crate::store::usage::Choosing;

/// A tree, and the layers that its files lie in.
pub(super) struct Chosen {
    /// With the index that its layers are read by, if they are.
    pub image: Image,
    /// Are they?
    pub by_index: bool,
    pub tree: PathBuf,
    pub layers: Layers,
    /// Why it is lazy or not, in words.
    pub why: String,
    /// Nothing of it is taken out of the store before this is dropped.
    pub choosing: Option<Choosing>,
}

/// For what, and by which driver.
type How = (Use, Driver);

impl Engine {
    /// Chooses what is mounted of an image, and fetches what is needed first.
    ///
    /// # Errors
    /// When the image cannot be had.
    pub(super) async fn choose(
        &self,
        image: &Image,
        how: How,
        progress: &dyn Progress,
    ) -> Result<Chosen, Error> {
        let mut choosing = Some(self.store.choosing()?);
        let own = self.own_tree_if_sound(image)?;
        let (_, mut why) = self.would_be_lazy(image);
        let all_here = own.is_some() || self.complete_conversion(&image.digest).is_some();
        let index = image.index.as_ref().filter(|_| self.config.trust == Trust::Registry && !all_here);
        if let Some(index) = index {
            match self.lazy_by(image, index, how, &mut choosing).await {
                // Just found to be bad: that counts as none.
                Err(e) if self.store.distrusted(&index.digest).is_some() => {
                    tracing::warn!("the published index is not used: {e}");
                    why = format!("the published index is not used: {e}");
                }
                lazy => {
                    let (tree, layers) = lazy?;
                    let image = image.clone();
                    return Ok(Chosen { image, by_index: true, tree, layers, why, choosing });
                }
            }
        }
        if own.is_none() {
            // Long, and it takes the lock itself.
            drop(choosing.take());
            match self.converted(image, progress).await? {
                Converted::Kept { index, choosing } => {
                    return self.choose_converted(image, *index, how, choosing).await;
                }
                Converted::Plain(notes) if !image.is_of_layers() => return Err(notes.refusal(image)),
                Converted::Plain(_) => {}
            }
        }
        let tree = match own {
            Some(tree) => tree,
            None => {
                choosing = Some(self.pull_to_mount(image, progress).await?);
                self.own_tree(image)?
            }
        };
        let whole = |l: &Descriptor| MountedLayer::Whole(self.store.layer(&l.digest, None).file("data"));
        let all = image.manifest.layers.iter().map(whole).collect();
        let layers = Layers { all, server: None, shown: false };
        Ok(Chosen { image: image.clone(), by_index: false, tree, layers, why, choosing })
    }

    /// The tree of an image that is here whole. Found damaged, it is fetched again like what was never here.
    fn own_tree_if_sound(&self, image: &Image) -> Result<Option<PathBuf>, Error> {
        if !self.has_own_layout(&image.digest) {
            return Ok(None);
        }
        match self.own_tree(image) {
            Err(e) if !self.has_own_layout(&image.digest) => {
                tracing::warn!("{e}");
                Ok(None)
            }
            tree => tree.map(Some),
        }
    }

    /// What a published index lays out. Who would take something away does not wait for the registry.
    async fn lazy_by(
        &self,
        image: &Image,
        index: &PublishedIndex,
        (purpose, driver): How,
        choosing: &mut Option<Choosing>,
    ) -> Result<(PathBuf, Layers), Error> {
        drop(choosing.take());
        let tables = self.fetch_tree(image, index, purpose).await?;
        *choosing = Some(self.store.choosing()?);
        self.lazy(image, index, &tables, driver).await
    }

    /// What was made of the metadata of the image's own format.
    async fn choose_converted(
        &self,
        image: &Image,
        index: PublishedIndex,
        (purpose, driver): How,
        choosing: Choosing,
    ) -> Result<Chosen, Error> {
        let tables = self.fetch_tree(image, &index, purpose).await?;
        let (tree, layers) = self.lazy(image, &index, &tables, driver).await?;
        let why = self.lazy_as_it_is(image, &index.notes());
        let image = Image { index: Some(index), ..image.clone() };
        Ok(Chosen { image, by_index: true, tree, layers, why, choosing: Some(choosing) })
    }

    /// Fetches all of it, and holds it.
    async fn pull_to_mount(&self, image: &Image, progress: &dyn Progress) -> Result<Choosing, Error> {
        progress.note(&format!("{} has no trusted index: fetching all of it first", image.name));
        // Long, and safe without the lock: what is pulled is locked layer by layer.
        self.pull(image, progress).await?;
        let choosing = self.store.choosing()?;
        if !self.has_own_layout(&image.digest) {
            let why = "it was taken out of the store just when it was fetched: try again".into();
            return Err(Error::Mount { image: image.name.clone(), why });
        }
        Ok(choosing)
    }
}
