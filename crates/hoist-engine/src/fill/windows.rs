//! The gzip windows of a layer, and what else decoding a span needs besides its bytes: from the store, or from the published windows blob in groups of
//! neighbours, so that a handful of requests brings all of them.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use hoist_format::chunk::State;
use hoist_format::span::Spans;

use super::FillError;
use crate::error::Error;
use crate::oci::Descriptor;
use crate::registry::ImageSource;
use crate::store::LayerDir;

/// Windows are fetched this many bytes around the wanted one at once.
const GROUP: u64 = 256 << 10;

/// See the module.
pub struct Windows {
    /// Of every span; where it needs none its length is 0.
    spans: Vec<State>,
    local: Option<File>,
    remote: Option<(Descriptor, ImageSource)>,
    cache: Arc<Mutex<HashMap<usize, Bytes>>>,
}

impl Windows {
    /// Opens the stored windows, or prepares to fetch the published ones.
    pub fn new(
        dir: &LayerDir,
        spans: &Spans,
        published: Option<Descriptor>,
        source: ImageSource,
    ) -> Result<Self, Error> {
        let local = File::open(dir.file("windows")).ok();
        let remote = published.map(|d| (d, source));
        Ok(Self {
            spans: (0..spans.len()).map(|i| spans.state(i)).collect(),
            local,
            remote,
            cache: Arc::default(),
        })
    }

    /// Drops cached windows, which may be what was wrong.
    pub fn forget(&self, spans: &Range<usize>) {
        self.lock().retain(|i, _| !spans.contains(i));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Bytes>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stored (compressed, verified) window of a span; None when it needs none.
    pub fn get(&self, span: usize) -> impl Future<Output = Result<Option<Bytes>, FillError>> + Send + use<> {
        let wanted = self.spans[span];
        let cached = self.lock().get(&span).cloned();
        let local = self.local.as_ref().filter(|_| cached.is_none()).and_then(|file| {
            let mut bytes = vec![0; wanted.len as usize];
            file.read_exact_at(&mut bytes, wanted.offset).ok()?;
            let bytes = Bytes::from(bytes);
            fits(&wanted, &bytes).then_some(bytes)
        });
        let remote = self.remote.clone().filter(|_| cached.is_none() && local.is_none());
        let group: Vec<(usize, State)> = match remote {
            Some(_) => self.group(span),
            None => Vec::new(),
        };
        let cache = Arc::clone(&self.cache);
        async move {
            if wanted.len == 0 {
                return Ok(None);
            }
            if let Some(bytes) = cached.or(local) {
                return Ok(Some(bytes));
            }
            let Some((descriptor, source)) = remote else {
                return Err(FillError::Corrupt(
                    "the window of a checkpoint is missing from the store".into(),
                ));
            };
            let end = |s: &State| s.offset + u64::from(s.len);
            let from = group.iter().map(|(_, s)| s.offset).min().unwrap_or(wanted.offset);
            let range = from..group.iter().map(|(_, s)| end(s)).max().unwrap_or(end(&wanted));
            let all = fetch(&source, &descriptor, range.clone()).await?;
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            for (i, s) in &group {
                let at = (s.offset - range.start) as usize;
                let bytes = all.slice(at..at + s.len as usize);
                if s.len > 0 && fits(s, &bytes) {
                    cache.insert(*i, bytes);
                }
            }
            let found = cache.get(&span).cloned();
            found
                .map(Some)
                .ok_or_else(|| FillError::Corrupt("what a checkpoint needs has another digest".into()))
        }
    }

    fn group(&self, span: usize) -> Vec<(usize, State)> {
        let from = self.spans[span].offset.saturating_sub(GROUP / 4);
        let to = from + GROUP;
        let near = |s: &State| s.len > 0 && s.offset >= from && s.offset + u64::from(s.len) <= to;
        self.spans.iter().copied().enumerate().filter(|(i, s)| *i == span || near(s)).collect()
    }
}

async fn fetch(source: &ImageSource, d: &Descriptor, range: Range<u64>) -> Result<Bytes, FillError> {
    let failed = |e| FillError::Fetch(Arc::new(e));
    if range.end > d.size {
        return Err(FillError::Corrupt("the windows blob is shorter than the table says".into()));
    }
    let mut stream = source.blob_range(&d.digest, range.clone()).await.map_err(failed)?;
    let mut all = BytesMut::with_capacity((range.end - range.start) as usize);
    while let Some(bytes) = stream.next().await.map_err(failed)? {
        all.extend_from_slice(&bytes);
    }
    if all.len() as u64 != range.end - range.start {
        return Err(FillError::Corrupt("the windows came short".into()));
    }
    Ok(all.freeze())
}

fn fits(state: &State, bytes: &[u8]) -> bool {
    *blake3::hash(bytes).as_bytes() == state.digest
}
