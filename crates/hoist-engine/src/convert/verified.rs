//! Blobs of an image, fetched whole and held to their digests: where nothing less vouches for what is in them.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;

use bytes::Bytes;
use futures_util::StreamExt;
use hoist_format::digest::{Digest, Hasher};
use hoist_sys::map::FileMap;
use tokio::sync::mpsc;

use crate::engine::Engine;
use crate::error::Error;
use crate::fill::Blobs;
use crate::image::Image;
use crate::progress::Progress;
use crate::registry::{ImageSource, RegistryError};

/// Bytes that are asked for in one request, and how many such requests run at once.
const PART: u64 = 4 << 20;
const PARALLEL: usize = 4;

/// Blobs on disk, without names: they go with this value.
#[derive(Debug, Default)]
pub(super) struct Verified(HashMap<Digest, FileMap>);

impl Blobs for Verified {
    fn get(&self, blob: &Digest, range: Range<u64>) -> Option<&[u8]> {
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        self.0.get(blob)?.get(start..end)
    }
}

impl Engine {
    /// Fetches those of the blobs that are not here yet: digest and size of each.
    ///
    /// # Errors
    /// When one cannot be had, or is another.
    pub(super) async fn verify_whole(
        &self,
        image: &Image,
        blobs: Vec<(Digest, u64)>,
        verified: &mut Verified,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        for (blob, size) in blobs {
            if verified.0.contains_key(&blob) {
                continue;
            }
            progress.begin(&format!("pulling {}", image.name), size);
            let map = loop {
                match self.fetch_whole(image, &blob, size, progress).await {
                    Err(e @ Error::Digest { .. }) if image.source.lied(&blob) => {
                        tracing::warn!("{e}; fetching it from another server");
                    }
                    fetched => break fetched?,
                }
            };
            progress.end();
            verified.0.insert(blob, map);
        }
        Ok(())
    }

    async fn fetch_whole(
        &self,
        image: &Image,
        blob: &Digest,
        size: u64,
        progress: &dyn Progress,
    ) -> Result<FileMap, Error> {
        let folder = self.store.aside_folder();
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let file = tempfile::tempfile_in(&folder).map_err(Error::io("write in", &folder))?;
        let (to, from) = mpsc::channel::<Bytes>(PARALLEL);
        let writing = tokio::task::spawn_blocking(move || write(file, from));
        let fetched = in_order(&image.source, blob, size, &to, progress).await;
        drop(to);
        let written = writing.await.map_err(|e| Error::Internal(e.to_string()))?;
        // What could not be written is why no more was wanted.
        let (file, found) = written.map_err(Error::io("write in", &folder))?;
        fetched?;
        if found != *blob {
            return Err(Error::Digest { blob: *blob, which: "the digest of its blob", found, wanted: *blob });
        }
        FileMap::of(&file).map_err(Error::io("map a file in", &folder))
    }
}

/// Streams a blob, by several ranged requests side by side where the server knows ranges.
async fn in_order(
    source: &ImageSource,
    blob: &Digest,
    size: u64,
    to: &mpsc::Sender<Bytes>,
    progress: &dyn Progress,
) -> Result<(), RegistryError> {
    let step = if source.ranges_ignored() { size.max(1) } else { PART };
    let ranges = (0..size).step_by(step as usize).map(|at| at..size.min(at + step));
    let parts: Vec<_> = ranges.map(|range| part(source.clone(), *blob, range)).collect();
    let mut parts = futures_util::stream::iter(parts).buffered(PARALLEL);
    let mut at = 0;
    while let Some(part) = parts.next().await {
        match part {
            Ok(pieces) => {
                for bytes in pieces {
                    at += bytes.len() as u64;
                    progress.advance(bytes.len() as u64);
                    if to.send(bytes).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(e) if e.is_ranges_ignored() => break,
            Err(e) => return Err(e),
        }
    }
    drop(parts);
    if at == size {
        return Ok(());
    }
    // This server sends whole blobs only: the rest comes in one stream from the start.
    let mut body = source.blob_range(blob, 0..size).await?;
    let mut skip = at;
    while let Some(mut bytes) = body.next().await? {
        let cut = skip.min(bytes.len() as u64);
        skip -= cut;
        let bytes = bytes.split_off(cut as usize);
        progress.advance(bytes.len() as u64);
        if !bytes.is_empty() && to.send(bytes).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn part(source: ImageSource, blob: Digest, range: Range<u64>) -> Result<Vec<Bytes>, RegistryError> {
    let mut body = source.blob_range(&blob, range).await?;
    let mut pieces = Vec::new();
    while let Some(bytes) = body.next().await? {
        pieces.push(bytes);
    }
    Ok(pieces)
}

/// The file and the digest of what was written.
fn write(mut file: File, mut from: mpsc::Receiver<Bytes>) -> std::io::Result<(File, Digest)> {
    let mut hasher = Hasher::new();
    while let Some(bytes) = from.blocking_recv() {
        hasher.update(&bytes);
        file.write_all(&bytes)?;
    }
    Ok((file, hasher.finish()))
}
