//! Whether a pull can have the room it takes, as far as that is known before it.
//!
//! A manifest tells how long the layers are as they are stored; what they unpack to takes more room than that. So it is
//! the least that is told: a pull that is let go on may still find the disk full.

use hoist_format::span::Codec;

use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::ingest::{Expected, Stream};
use crate::store::usage::on_disk;

impl Engine {
    /// Of an image of which these layers are missing.
    ///
    /// # Errors
    /// There is no room for them: the user's to mend.
    pub(crate) fn has_room(&self, image: &Image, missing: &[&Expected]) -> Result<(), Error> {
        let least = least(missing);
        if let Some(limit) = self.config.store_limit.filter(|limit| least > *limit) {
            tracing::warn!(
                image = image.name,
                bytes = least,
                limit,
                "it takes at least so many bytes, more than the store's limit: it stays until room is made again"
            );
        }
        // What is here of them may become theirs, or be given back.
        let folders = missing.iter().flat_map(|e| {
            let own = self.store.layer(&e.blob, None);
            self.store.published_layouts(&e.blob).into_iter().chain([own])
        });
        let theirs: u64 = folders.map(|dir| on_disk(dir.path())).sum();
        match hoist_sys::file::free(self.store.root()).ok().flatten() {
            Some(free) if least > free.saturating_add(theirs) => Err(Error::Store {
                path: self.store.root().to_owned(),
                why: format!(
                    "has {} of room, and {} takes {} at least; make room there (`hoist prune`, `hoist rm`), or use \
                     another store with --root",
                    mebibytes(free),
                    image.name,
                    mebibytes(least)
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// Bytes that the layers take at least. One that is not compressed may be padding for the most part.
fn least(missing: &[&Expected]) -> u64 {
    let unpacked = missing.iter().filter(|e| e.codec != Codec::Plain && e.stream == Stream::Archive);
    unpacked.fold(0, |sum: u64, e| sum.saturating_add(e.size))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
