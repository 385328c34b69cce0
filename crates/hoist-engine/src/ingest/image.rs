//! The pass over a layer that is a file system's image: its parts refer to each other in any order, so it is read from
//! the disk, in as little memory as the kernel likes.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};

use hoist_format::codec::Piece;
use hoist_format::digest::Hasher;
use hoist_format::formats::{ImageError, ImageLayer};
use hoist_format::layer::Layer;
use hoist_format::span::Spans;
use hoist_sys::map::FileMap;

use super::{Built, Expected, Writer};
use crate::error::Error;

/// Where the image is written. It has no name, and goes with its last user.
pub(super) struct Scratch {
    file: File,
    folder: PathBuf,
}

impl Scratch {
    pub fn new(folder: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let file = tempfile::tempfile_in(folder).map_err(Error::io("write in", folder))?;
        Ok(Self { file, folder: folder.to_owned() })
    }
}

pub(super) fn build(
    expected: &Expected,
    mut scratch: Scratch,
    stream: Receiver<Piece>,
    recycle: &Sender<Piece>,
    data: Option<(File, PathBuf)>,
) -> Result<Built, Error> {
    let mut hasher = Hasher::new();
    for piece in stream {
        hasher.update(&piece);
        scratch.file.write_all(&piece).map_err(Error::io("write in", &scratch.folder))?;
        let _ = recycle.send(piece);
    }
    let diff_id = hasher.finish();
    let image = FileMap::of(&scratch.file).map_err(Error::io("map a file in", &scratch.folder))?;
    let path = data.as_ref().map(|(_, path)| path.clone());
    let mut sink = Writer::new(data);
    let blob = (expected.blob, expected.size);
    let layer = ImageLayer { image: &image, digest: diff_id, codec: expected.codec, blob };
    let described = layer.read(&mut sink).map_err(|e| match (e, path) {
        (ImageError::Write { source, .. }, Some(path)) => Error::io("write", path)(source),
        (e, _) => Error::Layer { blob: expected.blob, why: e.to_string() },
    })?;
    let Spans::Chunks(chunks) = described.table.spans else {
        return Err(Error::Internal("an image without a table of chunks".into()));
    };
    let extents = described.table.extents;
    sink.finish(extents.data_size)?;
    let layer = Layer { tree: described.tree, extents, stream_size: image.len() as u64 };
    Ok(Built { layer, diff_id, chunks: Some(chunks) })
}
