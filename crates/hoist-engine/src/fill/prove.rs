//! A layer of chunks against its blobs, where these are here whole and their digests were found right: what was taken
//! on trust when it was fetched is corrected, and what is not here yet comes from them.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hoist_format::codec::decode_chunk;
use hoist_format::digest::Digest;
use hoist_format::extent::Extent;

use super::assemble::Assembler;
use super::{FillError, LayerFill};
use crate::error::Error;
use crate::store::Digests;

/// Blobs that are here whole.
pub trait Blobs: Send + Sync {
    /// Bytes of one; None where it is not here, or has not so many.
    fn get(&self, blob: &Digest, range: Range<u64>) -> Option<&[u8]>;
}

impl LayerFill {
    /// Makes the layer complete, and what its blobs say; gives how many extents were readable and something else.
    ///
    /// # Errors
    /// When the blobs do not decode to what the table says, or the store has no room.
    pub async fn prove(self: &Arc<Self>, blobs: Arc<dyn Blobs>) -> Result<u64, FillError> {
        let this = Arc::clone(self);
        let proving = tokio::task::spawn_blocking(move || this.prove_all(&*blobs));
        proving.await.unwrap_or_else(|_| Err(FillError::Corrupt("the decoder panicked".into())))
    }

    fn prove_all(&self, blobs: &dyn Blobs) -> Result<u64, FillError> {
        let Some(table) = self.table.spans.chunks() else {
            return Err(FillError::Index("it has no chunks".into()));
        };
        let failed = |e: Error| FillError::Store(Arc::new(std::io::Error::other(e.to_string())));
        // Opened anew: so we take turns with the jobs of this process too.
        let digests = Digests::open(&self.dir, &self.table).map_err(failed)?;
        let mut assembler = Assembler::new(&self.table.extents, 0);
        let mut wrong = 0;
        for chunk in 0..table.chunks.len() {
            let state = self.runtime.block_on(self.windows.get(&self.table.spans, chunk))?;
            let blob = &table.blobs[usize::from(table.chunks[chunk].blob)].digest;
            let stored = blobs.get(blob, table.stored_range(chunk));
            let stored =
                stored.ok_or_else(|| FillError::Corrupt(format!("chunk {chunk} is beyond its blob")))?;
            let decoded = decode_chunk(table, chunk, stored, state.as_deref());
            let decoded = decoded.map_err(|e| FillError::Corrupt(e.to_string()))?;
            assembler.feed(&decoded, &|_| false, &mut |i, extent, bytes| {
                wrong += u64::from(self.correct(&digests, i, extent, bytes)?);
                Ok::<_, FillError>(())
            })?;
            self.progress.notify_waiters();
        }
        Ok(wrong)
    }

    /// These are the extent's bytes. Was it readable with others?
    fn correct(&self, digests: &Digests, i: usize, extent: &Extent, bytes: &[u8]) -> Result<bool, FillError> {
        let failed = |e| FillError::Store(Arc::new(e));
        let digest = *blake3::hash(bytes).as_bytes();
        let _turn = digests.turn(i).map_err(failed)?;
        let was_here = self.live.get(i as u64);
        let recorded = digests.wanted(i, extent);
        if was_here && recorded == Some(digest) {
            return Ok(false);
        }
        if let Some(why) = self.condemned() {
            return Err(FillError::Lied(why));
        }
        let is_wrong = recorded.is_some_and(|recorded| recorded != digest);
        if is_wrong {
            // First: whoever finds the data wrong after a crash asks for the right bytes.
            digests.correct(i, digest).map_err(failed)?;
        }
        // It stays readable meanwhile: who reads it would else wait for what is fetched by parts.
        self.data.write_all_at(bytes, extent.data_offset).map_err(failed)?;
        if !is_wrong {
            digests.correct(i, digest).map_err(failed)?;
        }
        self.live.set(i as u64);
        if !was_here {
            self.meter.counters.published(extent.len);
        }
        if !self.dirty.swap(true, Ordering::AcqRel) {
            self.meter.chores.notify_one();
        }
        Ok(was_here && is_wrong)
    }
}
