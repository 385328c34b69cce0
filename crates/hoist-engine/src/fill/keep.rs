//! The compressed bytes that were fetched, kept until the whole layer is checked against its blob's digest. Of chunks,
//! which are each checked alone, nothing is kept. Only a convenience: a failure here loses nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use hoist_format::span::Spans;
use hoist_sys::shm::SharedBits;

use crate::error::Error;
use crate::store::LayerDir;

/// See the module.
pub(super) struct Keep(Option<Kept>);

struct Kept {
    blob: File,
    size: u64,
    /// One bit per span: its whole blob range is in `blob`.
    spans: SharedBits,
}

impl Keep {
    pub fn of(dir: &LayerDir, spans: &Spans) -> Result<Self, Error> {
        let Some(linear) = spans.linear() else { return Ok(Self(None)) };
        let blob = dir.open_sparse("blob", linear.blob_size)?;
        let path = dir.file("kept");
        let bits = SharedBits::open(&path, spans.len() as u64).map_err(Error::io("map", &path))?;
        Ok(Self(Some(Kept { blob, size: linear.blob_size, spans: bits })))
    }

    /// Is span `i` kept whole?
    pub fn has(&self, span: usize) -> bool {
        self.0.as_ref().is_some_and(|kept| kept.spans.get(span as u64))
    }

    /// Span `i` was written whole.
    pub fn note(&self, span: usize) {
        if let Some(kept) = &self.0 {
            kept.spans.set(span as u64);
        }
    }

    pub fn write(&self, bytes: &[u8], at: u64) {
        if let Some(kept) = &self.0 {
            let _ = kept.blob.write_all_at(bytes, at);
        }
    }

    /// The next bytes of the blob from `at`; None at its end.
    pub fn read(&self, at: u64) -> io::Result<Option<Bytes>> {
        let Some(kept) = &self.0 else { return Ok(None) };
        let left = kept.size.saturating_sub(at).min(1 << 20);
        let mut bytes = vec![0; left as usize];
        kept.blob.read_exact_at(&mut bytes, at)?;
        Ok((left > 0).then(|| bytes.into()))
    }

    /// Gives back what it takes of the page cache.
    pub fn trim(&self) {
        if let Some(kept) = &self.0 {
            let _ = hoist_sys::file::sync_range(&kept.blob, 0, 0);
            let _ = hoist_sys::file::fadvise_dontneed(&kept.blob, 0, 0);
        }
    }

    /// It is not needed any more.
    pub fn empty(&self) {
        if let Some(kept) = &self.0 {
            let _ = hoist_sys::file::punch_hole(&kept.blob, 0, kept.size);
        }
    }
}
