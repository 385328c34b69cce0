//! One layer's tar stream in, its tree and extent table out, in one pass.
//!
//! The tree keeps what a merge needs to know: whiteouts, opaque and implied folders, and hard links
//! to files that only a lower layer can have, which stand as a whiteout with [`LINK_XATTR`].

mod apply;
mod extents;
pub(crate) mod walk;

use std::io;

pub(crate) use apply::{Applier, lossy};
use extents::Cutter;
pub use extents::MAX_DATA;
pub use walk::WalkError;

use crate::extent::ExtentTable;
use crate::tar::{Decoder, Entry, EntryKind, Sink, TarError};
use crate::tree::{FileData, Tree};

/// On a whiteout: it is a hard link to this path in the lower layers. In overlayfs's namespace,
/// which no image may set and no mount shows.
pub const LINK_XATTR: &[u8] = b"trusted.overlay.hoist.link";

/// Takes every file byte at its place in the data file. Offsets ascend; what is left out is zero.
pub trait DataSink {
    /// Writes `bytes` at `data_offset` of the data file.
    ///
    /// # Errors
    /// What the storage says; it stops the layer.
    fn write(&mut self, data_offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// A [`DataSink`] for those who only want the tree and the table.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl DataSink for Discard {
    fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// What a layer decodes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its files, whiteouts and opaque folders.
    pub tree: Tree,
    /// Where their bytes are.
    pub extents: ExtentTable,
    /// Bytes of the uncompressed stream.
    pub stream_size: u64,
}

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream is no tar archive hoist can read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry that cannot be applied.
    #[error("applying the layer's entry {path:?}: {what}")]
    Entry {
        /// Its path as the archive has it, cut to 300 characters.
        path: String,
        /// What is wrong with it.
        what: LayerFault,
    },
    /// The data could not be stored.
    #[error("writing {len} bytes of layer data at {offset}")]
    Write {
        /// Offset in the data file.
        offset: u64,
        /// Bytes.
        len: usize,
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with an entry. The image is damaged or hostile: rebuild it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerFault {
    /// Its path leads nowhere.
    #[error(transparent)]
    Path(#[from] WalkError),
    /// A hard link to its own path.
    #[error("a hard link to itself")]
    LinkToSelf,
    /// A hard link to a folder.
    #[error("a hard link to a folder")]
    LinkToDir,
    /// A hard link to a path that is not there.
    #[error("a hard link to {0:?}, which is missing")]
    LinkTarget(String),
    /// A whiteout of no name, `.` or `..`.
    #[error("a whiteout that names no file")]
    Whiteout,
    /// More files and folders than hoist accepts.
    #[error("the layer has more than 16777216 files and folders")]
    TooManyFiles,
    /// More attribute bytes than hoist accepts.
    #[error("the layer's extended attributes and link targets take more than 512 MiB")]
    TooMuchMetadata,
    /// A data file beyond [`MAX_DATA`].
    #[error("the layer's files take more than 8 TiB")]
    TooMuchData,
    /// More pieces than a table may have.
    #[error("its sparse map cuts the layer into more pieces than one in 512 bytes")]
    TooManyPieces,
}

impl LayerError {
    fn entry(path: &[u8], what: LayerFault) -> Self {
        Self::Entry { path: lossy(path), what }
    }
}

/// Builds a [`Layer`] from its uncompressed stream. After an error it must not be fed again.
pub struct LayerBuilder {
    decoder: Decoder,
    parts: Parts,
}

struct Parts {
    applier: Applier,
    cutter: Cutter,
    /// Path of the current file, for errors.
    path: Vec<u8>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerBuilder {
    /// A builder at the start of a stream.
    pub fn new() -> Self {
        let parts = Parts { applier: Applier::new(), cutter: Cutter::default(), path: Vec::new() };
        Self { decoder: Decoder::new(), parts }
    }

    /// Takes the next bytes of the uncompressed stream, in pieces of any size (large is fast), and
    /// passes the file bytes among them to `out`.
    ///
    /// # Errors
    /// [`LayerError`]: the stream is damaged or hostile, or `out` failed.
    pub fn feed(&mut self, stream: &[u8], out: &mut dyn DataSink) -> Result<(), LayerError> {
        self.decoder.feed(stream, &mut Feed { parts: &mut self.parts, out })
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`LayerError::Tar`] when it is truncated.
    pub fn finish(self) -> Result<Layer, LayerError> {
        let stream_size = self.decoder.offset();
        self.decoder.finish()?;
        let Parts { applier, cutter, .. } = self.parts;
        Ok(Layer { tree: applier.tree, extents: cutter.finish(), stream_size })
    }
}

struct Feed<'a> {
    parts: &'a mut Parts,
    out: &'a mut dyn DataSink,
}

impl Sink for Feed<'_> {
    type Error = LayerError;

    fn entry(&mut self, entry: Entry) -> Result<(), LayerError> {
        let mut data = FileData::default();
        if let EntryKind::File(size) = entry.kind
            && size > 0
        {
            self.parts.path.clone_from(&entry.path);
            let placed = self.parts.cutter.begin(&entry.path, size);
            data.offset = placed.ok_or_else(|| LayerError::entry(&entry.path, LayerFault::TooMuchData))?;
        }
        self.parts.applier.apply(entry, data)
    }

    fn data(&mut self, file_offset: u64, stream_offset: u64, bytes: &[u8]) -> Result<(), LayerError> {
        let Parts { cutter, path, .. } = &mut *self.parts;
        let cut = cutter.data(file_offset, stream_offset, bytes);
        cut.ok_or_else(|| LayerError::entry(path, LayerFault::TooManyPieces))?;
        let offset = cutter.base() + file_offset;
        let write = self.out.write(offset, bytes);
        write.map_err(|source| LayerError::Write { offset, len: bytes.len(), source })
    }
}
