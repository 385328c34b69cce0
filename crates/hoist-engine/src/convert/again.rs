//! A conversion that is in use and of which the store has lost a part is made anew, for no registry has the part. It is what it
//! was if the image's own metadata is.

use std::sync::Arc;

use hoist_format::digest::Digest;
use tokio::sync::Mutex;

use super::{convert, keep};
use crate::config::Trust;
use crate::error::Error;
use crate::image::Image;
use crate::publish::PublishedIndex;
use crate::store::Store;

/// See the module.
pub(crate) struct Again {
    store: Store,
    image: Image,
    index: Digest,
    is_pinned: bool,
    /// One makes it, and others have it then.
    making: Mutex<()>,
}

impl Again {
    /// Of an index that was made here.
    pub fn of(store: &Store, image: &Image, index: &PublishedIndex) -> Option<Arc<Self>> {
        let again = || Self {
            store: store.clone(),
            image: image.clone(),
            index: index.digest,
            is_pinned: index.is_pinned(),
            making: Mutex::default(),
        };
        // What is shown instead is no conversion's.
        (index.converted && index.instead().is_empty()).then(|| Arc::new(again()))
    }

    /// Makes it anew, if `is_here` does not find that somebody just has.
    ///
    /// # Errors
    /// When the image's metadata cannot be had, or is another now.
    pub async fn make(&self, is_here: impl Fn() -> bool) -> Result<(), Error> {
        let _alone = self.making.lock().await;
        if is_here() {
            return Ok(());
        }
        let image = &self.image;
        tracing::warn!(
            image = image.name,
            "a part of what was made of its metadata is gone or damaged: fetching that anew"
        );
        // As far as it was trusted then.
        let trust =
            if self.is_pinned { [Trust::Local, Trust::Registry] } else { [Trust::Registry, Trust::Local] };
        let mut why = None;
        for trust in trust {
            let (conversion, notes) = convert(image, trust, None).await;
            let Some(conversion) = conversion else {
                why.get_or_insert_with(|| notes.refusal(image));
                continue;
            };
            match keep::keep(&self.store, image, conversion, Some(self.index)).await {
                Ok(_) => return Ok(()),
                Err(e) => drop(why.get_or_insert(e)),
            }
        }
        Err(why.unwrap_or_else(|| Error::Internal("no conversion was tried".into())))
    }
}
