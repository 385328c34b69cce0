//! Another layout of an image that is one file system, held against the one that was verified. Places in the data file
//! may differ, as another version may lay it out otherwise: names, attributes and contents may not.

use std::fs::File;
use std::os::unix::fs::FileExt;

use hoist_format::erofs;
use hoist_format::table::Table;
use hoist_format::tree::{FileData, Kind, Tree};

use crate::engine::Engine;
use crate::error::Error;
use crate::image::Image;
use crate::publish::PublishedIndex;
use crate::store::{Digests, LayerDir};

/// Bytes of one file in both layouts.
struct Place {
    theirs: u64,
    ours: u64,
    len: u64,
}

impl Engine {
    /// The folder of the other layout and why it is not what `proven` says; None where it is, or nothing of it is here.
    pub(super) fn held_against(
        &self,
        image: &Image,
        proven: &PublishedIndex,
        other: &PublishedIndex,
    ) -> Result<Option<(LayerDir, String)>, Error> {
        let dir = self.store.image(&image.digest);
        let layer =
            |index: &PublishedIndex| Some(self.store.layer(index.layers.keys().next()?, Some(&index.digest)));
        let (Some(ours), Some(theirs)) = (layer(proven), layer(other)) else { return Ok(None) };
        // What was damaged here accuses nobody.
        let trees = (dir.read_tree(Some(&proven.digest)), dir.read_tree(Some(&other.digest)));
        let (Some(own), Some(told)) = trees else { return Ok(None) };
        let bad = |e: erofs::DecodeError| Error::image("image", image.digest, e);
        let (own, told) = (erofs::decode(&own).map_err(bad)?, erofs::decode(&told).map_err(bad)?);
        if without_places(&own) != without_places(&told) {
            return Ok(Some((theirs, "its tree is not the image's".into())));
        }
        let Some(table) = theirs.table()? else { return Ok(None) };
        let path = ours.file("data");
        let data = File::open(&path).map_err(Error::io("open", &path))?;
        let digests = Digests::existing(&theirs, &table);
        let differs = contents_differ(&places(&own, &told), &table, &digests, &data);
        let lie = differs.map_err(Error::io("read", &path))?;
        Ok(lie.then(|| (theirs, "its extents are not those of the image".into())))
    }
}

/// The tree, but for where its files are in the data file.
fn without_places(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    for inode in &mut tree.inodes {
        if let Kind::File { data, .. } = &mut inode.kind {
            *data = FileData::default();
        }
    }
    tree
}

/// The files of two trees that are the same but for their places, by their places in the other.
fn places(own: &Tree, told: &Tree) -> Vec<Place> {
    let file = |kind: &Kind| match kind {
        Kind::File { size, data } if *size > 0 => Some((data.offset, *size)),
        _ => None,
    };
    let both = own.inodes.iter().zip(&told.inodes);
    let mut places: Vec<_> = both
        .filter_map(|(own, told)| {
            let ((ours, len), (theirs, _)) = (file(&own.kind)?, file(&told.kind)?);
            Some(Place { theirs, ours, len })
        })
        .collect();
    places.sort_by_key(|place| place.theirs);
    places
}

/// Is there an extent whose digest is told or was recorded, and is not that of the contents in `data`?
fn contents_differ(places: &[Place], table: &Table, digests: &Digests, data: &File) -> std::io::Result<bool> {
    let mut bytes = Vec::new();
    for (i, extent) in table.extents.extents.iter().enumerate() {
        let Some(wanted) = digests.wanted(i, extent) else { continue };
        let (start, end) = (extent.data_offset, extent.data_offset + extent.len);
        bytes.clear();
        bytes.resize(extent.len as usize, 0);
        let first = places.partition_point(|place| place.theirs + place.len <= start);
        for place in places[first..].iter().take_while(|place| place.theirs < end) {
            let (from, to) = (place.theirs.max(start), (place.theirs + place.len).min(end));
            let part = &mut bytes[(from - start) as usize..(to - start) as usize];
            data.read_exact_at(part, place.ours + (from - place.theirs))?;
        }
        if *blake3::hash(&bytes).as_bytes() != wanted {
            return Ok(true);
        }
    }
    Ok(false)
}
