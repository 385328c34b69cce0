//! TurboOCI's metadata layer: a small tar archive with the file system's own blocks, and an index of the original
//! layer where that is gzip (accelerated-container-image `pkg/convertor`, overlaybd `src/tools/turboOCI-apply.cpp`).

use super::{Blob, GzipIndex, OverlaybdError, Room};
use crate::codec::{CodecError, StreamDecoder};
use crate::span::Codec;
use crate::tar::{Decoder, Entry, EntryKind, Sink, TarError};

const EXT4: &[u8] = b"ext4.fs.meta";
const EROFS: &[u8] = b"erofs.fs.meta";
const GZIP: &[u8] = b"gzip.meta";
/// Which file system the blocks are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// EROFS.
    Erofs,
}

/// A metadata layer.
#[derive(Debug, Clone)]
pub struct TurboMeta {
    /// Which file system.
    pub file_system: FileSystem,
    /// Its blocks.
    pub blob: Blob,
    /// The index of the original layer, if that is gzip.
    pub gzip: Option<GzipIndex>,
}

impl TurboMeta {
    /// Reads a metadata layer (`stored`: all of it, its digest right) of layer number `layer`, lowest first from 0.
    ///
    /// # Errors
    /// [`OverlaybdError`].
    pub(super) fn read(stored: &[u8], layer: u16, room: &mut Room) -> Result<Self, OverlaybdError> {
        let codec = if stored.starts_with(&[0x1f, 0x8b]) { Codec::Gzip } else { Codec::Plain };
        let mut files = Files::default();
        files.unpack(codec, stored, room.left()).map_err(|e| OverlaybdError::Turbo(e.0))?;
        let held = [&files.ext4, &files.erofs, &files.gzip].into_iter().flatten().map(Vec::len);
        room.take(held.sum::<usize>() as u64)?;
        let (file_system, meta) = match (files.ext4, files.erofs) {
            (Some(meta), None) => (FileSystem::Ext4, meta),
            (None, Some(meta)) => (FileSystem::Erofs, meta),
            _ => {
                return Err(OverlaybdError::Turbo(
                    "it has not one of ext4.fs.meta and erofs.fs.meta".to_owned(),
                ));
            }
        };
        let mut blob = Blob::whole(meta, layer);
        if !blob.open()?.is_empty() {
            return Err(OverlaybdError::Turbo("its blocks are cut off".to_owned()));
        }
        let gzip = files.gzip.map(GzipIndex::read).transpose()?;
        room.take(blob.held() + gzip.as_ref().map_or(0, GzipIndex::held))?;
        Ok(Self { file_system, blob, gzip })
    }
}

#[derive(Default)]
struct Files {
    ext4: Option<Vec<u8>>,
    erofs: Option<Vec<u8>>,
    gzip: Option<Vec<u8>>,
    /// The file whose data comes.
    current: Vec<u8>,
}

struct Failed(String);

impl From<TarError> for Failed {
    fn from(e: TarError) -> Self {
        Self(e.to_string())
    }
}

impl From<CodecError> for Failed {
    fn from(e: CodecError) -> Self {
        Self(e.to_string())
    }
}

impl Files {
    /// `most`: bytes of the archive.
    fn unpack(&mut self, codec: Codec, stored: &[u8], most: u64) -> Result<(), Failed> {
        let mut tar = Decoder::new();
        let mut stream = StreamDecoder::with_limit(codec, false, most)?;
        stream.feed(stored, &mut |bytes: &[u8]| tar.feed(bytes, self))?;
        stream.finish()?;
        Ok(tar.finish()?)
    }

    fn file(&mut self) -> Option<&mut Option<Vec<u8>>> {
        let name = self.current.strip_prefix(b"./").unwrap_or(&self.current);
        match name {
            EXT4 => Some(&mut self.ext4),
            EROFS => Some(&mut self.erofs),
            GZIP => Some(&mut self.gzip),
            _ => None,
        }
    }
}

impl Sink for Files {
    type Error = Failed;

    fn entry(&mut self, entry: Entry) -> Result<(), Failed> {
        self.current = entry.path;
        if let EntryKind::File(_) = entry.kind
            && let Some(file) = self.file()
            && file.replace(Vec::new()).is_some()
        {
            return Err(Failed("it names a file twice".to_owned()));
        }
        Ok(())
    }

    fn data(&mut self, file_offset: u64, _: u64, bytes: &[u8]) -> Result<(), Failed> {
        if let Some(Some(file)) = self.file() {
            if file_offset != file.len() as u64 {
                return Err(Failed("one of its files has holes".to_owned()));
            }
            file.extend_from_slice(bytes);
        }
        Ok(())
    }
}
