//! A conversion that is in use and of which the store has lost a part is made anew, for no registry has the part. It is what it
//! was if the image's own metadata is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hoist_format::digest::Digest;
use tokio::sync::Mutex;

use super::{convert, keep};
use crate::config::Trust;
use crate::error::Error;
use crate::fill::Anew;
use crate::image::Image;
use crate::pauses::{self, Failed, Pauses};
use crate::publish::PublishedIndex;
use crate::store::Store;

/// After a failure it is tried again no sooner than this, and then ever later: every read that needs the part asks for it,
/// and each time all of the metadata is fetched.
const PAUSES: Pauses = Pauses { first: Duration::from_secs(1), longest: Duration::from_secs(60) };

/// See the module.
pub(crate) struct Again {
    store: Store,
    image: Image,
    index: Digest,
    is_pinned: bool,
    /// One makes it, and others have it then.
    making: Mutex<Option<Failed<String>>>,
}

impl Again {
    /// Of an index that was made here.
    pub fn of(store: &Store, image: &Image, index: &PublishedIndex) -> Option<Arc<dyn Anew>> {
        let again = || Self {
            store: store.clone(),
            image: image.clone(),
            index: index.digest,
            is_pinned: index.is_pinned(),
            making: Mutex::default(),
        };
        // What is shown instead is no conversion's.
        (index.converted && index.instead().is_empty()).then(|| Arc::new(again()) as Arc<dyn Anew>)
    }

    /// See [`Anew::make`]; an error too where it could not be made a moment ago.
    async fn make_it(&self, is_here: &(dyn Fn() -> bool + Sync)) -> Result<(), Error> {
        let mut failed = self.making.lock().await;
        if is_here() {
            return Ok(());
        }
        if let Some(failed) = failed.as_ref()
            && let Some(left) = failed.left(Instant::now())
        {
            let why = format!(
                "a part of what was made of its metadata is gone, and could not be made anew: {}",
                failed.why
            );
            return Err(Error::image(
                "image",
                self.image.digest,
                format!("{why}; {}", pauses::again_in(left)),
            ));
        }
        let made = self.attempt().await;
        *failed = made.as_ref().err().map(|e| PAUSES.after(failed.take(), e.to_string(), Instant::now()));
        made
    }

    async fn attempt(&self) -> Result<(), Error> {
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

impl Anew for Again {
    fn make<'a>(&'a self, is_here: &'a (dyn Fn() -> bool + Sync)) -> BoxFuture<'a, Result<(), Error>> {
        self.make_it(is_here).boxed()
    }
}
