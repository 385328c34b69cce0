//! Layers that are not unpacked: committed as soon as their image is mounted, which is the one lower folder of
//! whatever stands on its uppermost layer.
//!
//! A mount is there before a record speaks of its image, and goes when none does any more. Both are looked
//! after under a lock for each image: so of several who prepare one image, one mounts and the others wait.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use crate::error::Error;
use crate::part::{Found, How, Images, Part, Reason, Refusal, Wanted};
use crate::record::Labels;
use crate::snapshotter::{ImageFolder, Snapshotter};

/// See the module.
pub struct Remote {
    snapshotter: Arc<Snapshotter>,
    images: Arc<dyn Images>,
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Remote {
    /// For the layers of these images.
    pub fn new(snapshotter: Arc<Snapshotter>, images: Arc<dyn Images>) -> Remote {
        Remote { snapshotter, images, locks: Mutex::default() }
    }

    /// Blocks as little of the runtime as the disk allows.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshotter) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let snapshotter = Arc::clone(&self.snapshotter);
        let done = tokio::task::spawn_blocking(move || work(&snapshotter)).await;
        done.map_err(|e| Error::Internal(e.to_string()))?
    }

    /// One at a time for each image.
    fn lock(&self, manifest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(manifest).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(manifest.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// Has the layer that the labels ask for without unpacking it. False if they ask for none. Who pulls an image is about to
    /// start it: `pulls` has that begin at once.
    ///
    /// # Errors
    /// Why it is to be unpacked.
    pub async fn prepare(&self, parent: &str, labels: &Labels, pulls: bool) -> Result<bool, String> {
        let Some(mut wanted) = Wanted::of(labels, None) else { return Ok(false) };
        let begun = Instant::now();
        let outcome = self.have(&mut wanted, parent, pulls).await;
        self.images.told(&wanted, outcome.as_ref().copied(), begun.elapsed());
        outcome.map(|_| true).map_err(|refusal| refusal.why)
    }

    async fn have(&self, wanted: &mut Wanted, parent: &str, pulls: bool) -> Result<How, Refusal> {
        let internal = |error: Error| Reason::Internal.because(error.to_string());
        let beneath = parent.to_owned();
        wanted.below = self.work(move |snapshotter| snapshotter.depth(&beneath)).await.map_err(internal)?;
        let Found { part, how } = self.images.find(wanted).await?;
        let lock = self.lock(&part.manifest);
        let _alone = lock.lock().await;
        // The image, be it of its lowest layer: if it can't be mounted, nothing of it is to count on it.
        let whole = Part { whole: true, ..part.clone() };
        let cannot = |why| Reason::Mount.because(why);
        let folder = self.snapshotter.image_folder(&whole).map_err(cannot)?;
        self.images.mount(&whole, &folder).await.map_err(cannot)?;
        if pulls {
            self.images.starts(&whole, &folder);
        }
        let (chain, parent, labels) = (wanted.chain.clone(), parent.to_owned(), wanted.labels.clone());
        let kept = self.work(move |snapshotter| snapshotter.adopt(&chain, &parent, labels, part)).await;
        kept.map_err(internal)?;
        Ok(how)
    }

    /// Mounts the image that snapshots on `parent` stand on, if it is one and is not mounted; tells it and where it is.
    ///
    /// # Errors
    /// It can't be had now.
    pub async fn stand_on(&self, parent: &str) -> Result<Option<(Part, PathBuf)>, Error> {
        let beneath = parent.to_owned();
        let Some(part) = self.work(move |snapshotter| snapshotter.part_of(&beneath)).await? else {
            return Ok(None);
        };
        let lock = self.lock(&part.manifest);
        let _alone = lock.lock().await;
        let folder = self.snapshotter.image_folder(&part).map_err(Error::Internal)?;
        let unavailable = |why| Error::Image { image: part.image.clone(), why };
        self.images.mount(&part, &folder).await.map_err(unavailable)?;
        Ok(Some((part, folder)))
    }

    /// After a snapshot was removed: lets go of its image, if it was the last that needs it.
    pub async fn let_go(&self, part: &Part) {
        let lock = self.lock(&part.manifest);
        let _alone = lock.lock().await;
        match self.work(|snapshotter| snapshotter.images_in_use()).await {
            Ok(used) if used.contains(&part.manifest) => return,
            Ok(_) => {}
            Err(error) => return tracing::error!("image {} stays mounted: {error}", part.image),
        }
        let folders = self.snapshotter.image_folders().into_iter();
        let folders: Vec<_> = folders.filter(|folder| folder.manifest == part.manifest).collect();
        self.end(&part.manifest, &folders).await;
    }

    /// Lets go of whatever a crash has left mounted, or not freed.
    pub async fn cleanup(&self) {
        for folder in self.snapshotter.image_folders() {
            let lock = self.lock(&folder.manifest);
            let _alone = lock.lock().await;
            match self.work(|snapshotter| snapshotter.images_in_use()).await {
                Ok(used) if !used.contains(&folder.manifest) => {
                    self.end(&folder.manifest.clone(), &[folder]).await
                }
                Ok(_) => {}
                Err(error) => tracing::error!("looking for images that nobody needs: {error}"),
            }
        }
    }

    /// The folders go last: by them the next start knows what is not freed yet.
    async fn end(&self, manifest: &str, folders: &[ImageFolder]) {
        for folder in folders {
            self.images.unmount(&folder.path).await;
        }
        self.images.forget(manifest).await;
        for ImageFolder { path, .. } in folders {
            if let Err(error) = std::fs::remove_dir(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(
                    "the folder {} of an image stays until the next cleanup: {error}",
                    path.display()
                );
            }
        }
    }
}
