//! The published index of an image that is one file system: its conversion, whose extents have digests by now.

use hoist_format::digest::Digest;
use hoist_format::span::Spans;
use hoist_format::table::Table;

use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::progress::Progress;
use crate::publish::{Part, TABLE, WINDOWS};
use crate::store::{Digests, LayerDir};

impl Engine {
    /// The parts of the index of an image whose layers say nothing each by itself. All of it is here then, and verified.
    ///
    /// # Errors
    /// As a pull's; and where an index cannot say what the image is.
    pub(crate) async fn parts_of_image(
        &self,
        image: &Image,
        progress: &dyn Progress,
    ) -> Result<Vec<Part>, Error> {
        self.pull_converted(image, progress).await?;
        let gone =
            || Error::NotFound("it was taken out of the store just when it was fetched: try again".into());
        let index = self.complete_conversion(&image.digest).ok_or_else(gone)?;
        if !index.instead().is_empty() {
            let why = index.notes().why(image);
            let why = format!(
                "it is shown by the layers of the image that it was made of, and has no index: index that image, by its own name ({why})"
            );
            return Err(Error::image("image", image.digest, why));
        }
        let images = self.store.image(&image.digest);
        let tree = images.read_tree(Some(&index.digest)).ok_or_else(gone)?;
        let path = images.tree_path(Some(&index.digest));
        let mut parts = vec![Part::tree(&tree).map_err(Error::io("compress", path))?];
        for (blob, (_, windows)) in &index.layers {
            let dir = self.store.layer(blob, Some(&index.digest));
            let bytes = table_of(&dir)?;
            parts.push(Part { media_type: TABLE, layer: Some(*blob), bytes: bytes.into() });
            if let Some(told) = windows {
                let path = dir.file("windows");
                let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
                if Digest::of(&bytes) != told.digest {
                    let why = "is not what was written: `hoist fsck --repair` mends it".into();
                    return Err(Error::Store { path, why });
                }
                parts.push(Part { media_type: WINDOWS, layer: Some(*blob), bytes: bytes.into() });
            }
        }
        Ok(parts)
    }
}

/// The table of a complete layer, with the digests of its extents.
fn table_of(dir: &LayerDir) -> Result<Vec<u8>, Error> {
    let bad =
        |why: &str| Error::Store { path: dir.path().to_owned(), why: format!("{why}: pull the image again") };
    let mut table = dir.table()?.ok_or_else(|| bad("has no table"))?;
    let digests = Digests::existing(dir, &table);
    for (i, extent) in table.extents.extents.iter_mut().enumerate() {
        extent.digest = digests.wanted(i, extent).ok_or_else(|| bad("has lost digests of its contents"))?;
    }
    if let Spans::Chunks(chunks) = &mut table.spans {
        chunks.rest_on_extents();
    }
    let bytes = table.encode();
    let again = Table::decode(&bytes).is_ok_and(|again| again == table);
    again.then_some(bytes).ok_or_else(|| bad("has a table that cannot be told to others"))
}
