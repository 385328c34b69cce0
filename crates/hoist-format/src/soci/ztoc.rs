//! The zTOC's fields (soci-snapshotter `ztoc/fbs/ztoc.fbs`).

use super::SociError;
use super::flat::{Flat, Table, Tables};
use super::spans::Spans;
use crate::span::Codec;

/// The only version there is.
const VERSION: &[u8] = b"0.9";
const GZIP: u8 = 1;
const UNCOMPRESSED: u8 = 2;

/// A zTOC, its list of files still to be read.
pub(super) struct Ztoc<'a> {
    pub flat: Flat<'a>,
    pub spans: Spans<'a>,
    /// Bytes of the tar stream up to its end mark.
    pub stream_size: u64,
    pub files: Tables,
}

/// What it says of one entry of the tar.
pub(super) struct File<'a> {
    pub name: &'a [u8],
    pub kind: &'a [u8],
    /// Where its bytes start in the tar stream, and how many they are.
    pub offset: u64,
    pub size: u64,
    pub link: &'a [u8],
    pub mode: u64,
    pub uid: u32,
    pub gid: u32,
    pub mtime: &'a [u8],
    pub major: u64,
    pub minor: u64,
    /// All PAX records.
    pub records: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Ztoc<'a> {
    /// `layer_size`: bytes of the layer's blob; `codec`: how it is said to be stored.
    pub fn read(bytes: &'a [u8], layer_size: u64, codec: Codec) -> Result<Self, SociError> {
        let mut flat = Flat::new(bytes);
        let root = flat.root()?;
        let version = flat.bytes(root, 0)?;
        if version != VERSION {
            let version = crate::layer::lossy(version);
            return Err(SociError::ztoc(format!("it is of version {version:?}, not \"0.9\"")));
        }
        let (size, stream_size) = (flat.u64(root, 2)?, flat.u64(root, 3)?);
        if size != layer_size {
            let why = format!("it is of a layer of {size} bytes, and this one has {layer_size}");
            return Err(SociError::ztoc(why));
        }
        let missing = |what| move || SociError::ztoc(format!("it has no {what}"));
        let toc = flat.child(root, 4)?.ok_or_else(missing("list of files"))?;
        let info = flat.child(root, 5)?.ok_or_else(missing("list of spans"))?;
        let digests = flat.vector(info, 2)?;
        let count = u64::from(flat.u32(info, 1)?) + 1;
        if digests.len as u64 != count {
            return Err(SociError::ztoc("it has not one digest for each span"));
        }
        let checkpoints = flat.bytes(info, 3)?;
        let mut spans = match (flat.byte(info, 0, GZIP)?, codec) {
            (GZIP, Codec::Gzip) => Spans::gzip(checkpoints, digests.len, layer_size, stream_size)?,
            (UNCOMPRESSED, Codec::Plain) => Spans::plain(checkpoints, digests.len, layer_size)?,
            (GZIP | UNCOMPRESSED, _) => {
                return Err(SociError::ztoc("it is of a layer that is compressed otherwise"));
            }
            _ => return Err(SociError::ztoc("it is of a compression that hoist does not know")),
        };
        for i in 0..digests.len {
            let text = std::str::from_utf8(flat.text(digests, i)?).ok();
            let digest = text.and_then(|t| t.parse::<crate::digest::Digest>().ok());
            let digest = digest.ok_or_else(|| SociError::ztoc(format!("span {i} has no SHA-256")))?;
            spans.digests.push(*digest.as_bytes());
        }
        let files = flat.vector(toc, 0)?;
        Ok(Self { flat, spans, stream_size, files })
    }

    pub fn file(&mut self, i: usize) -> Result<File<'a>, SociError> {
        let flat = &mut self.flat;
        let table: Table = flat.element(self.files, i)?;
        let list = flat.vector(table, 13)?;
        let mut records = Vec::new();
        for i in 0..list.len {
            let record = flat.element(list, i)?;
            records.push((flat.bytes(record, 0)?, flat.bytes(record, 1)?));
        }
        Ok(File {
            name: flat.bytes(table, 0)?,
            kind: flat.bytes(table, 1)?,
            offset: flat.u64(table, 2)?,
            size: flat.u64(table, 3)?,
            link: flat.bytes(table, 4)?,
            mode: flat.u64(table, 5)?,
            uid: flat.u32(table, 6)?,
            gid: flat.u32(table, 7)?,
            mtime: flat.bytes(table, 10)?,
            major: flat.u64(table, 11)?,
            minor: flat.u64(table, 12)?,
            records,
        })
    }
}
