//! The gzip windows of a layer, and what else decoding a span needs besides its bytes: from the store, or from the
//! published windows blob in groups of neighbours, so that a handful of requests brings all of them. What was fetched
//! is kept in the store: the file `windows` is sparse then, and what is read of it is held to its digest.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use hoist_format::chunk::State;
use hoist_format::span::Spans;

use super::{Anew, FillError};
use crate::error::Error;
use crate::oci::Descriptor;
use crate::registry::ImageSource;
use crate::store::LayerDir;

/// Windows are fetched in groups of so many bytes of their blob.
const GROUP: u64 = 256 << 10;

/// See the module.
pub struct Windows {
    /// None where it can't be made: then each is fetched when it is wanted.
    local: Option<Arc<File>>,
    remote: Option<(Descriptor, Origin)>,
    /// Held by who fetches a group: others who want of the same wait for it.
    fetching: Mutex<HashMap<u64, Arc<tokio::sync::Mutex<()>>>>,
}

/// Where those come from that the store has not.
#[derive(Clone)]
enum Origin {
    Registry(ImageSource),
    /// From a conversion, as the file `windows` of this folder.
    Made(Arc<dyn Anew>, LayerDir),
}

impl Windows {
    /// Opens the stored windows, or prepares to fetch the published ones.
    pub fn new(
        dir: &LayerDir,
        published: Option<Descriptor>,
        again: Option<Arc<dyn Anew>>,
        source: ImageSource,
    ) -> Self {
        let local = match &published {
            Some(_) => dir.open_sparse("windows", 0).ok(),
            None => File::open(dir.file("windows")).ok(),
        };
        let origin = match again {
            Some(again) => Origin::Made(again, dir.clone()),
            None => Origin::Registry(source),
        };
        let remote = published.map(|d| (d, origin));
        Self { local: local.map(Arc::new), remote, fetching: Mutex::default() }
    }

    fn turn(&self, group: u64) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(group).or_default())
    }

    /// The stored (compressed, verified) window of a span; None when it needs none.
    pub fn get(
        &self,
        spans: &Spans,
        span: usize,
    ) -> impl Future<Output = Result<Option<Bytes>, FillError>> + Send + use<> {
        let wanted = spans.state(span);
        let found = self.local.as_ref().and_then(|file| read(file, &wanted));
        let remote = self.remote.clone().filter(|_| found.is_none() && wanted.len > 0);
        let group = remote.as_ref().map(|_| group(spans, &wanted)).unwrap_or_default();
        let local = self.local.clone();
        let turn = self.turn(wanted.offset / GROUP);
        async move {
            if wanted.len == 0 {
                return Ok(None);
            }
            if let Some(bytes) = found {
                return Ok(Some(bytes));
            }
            let (descriptor, source) = match remote {
                Some((descriptor, Origin::Registry(source))) => (descriptor, source),
                Some((_, Origin::Made(again, dir))) => return made(&*again, &dir, &wanted).await.map(Some),
                None => {
                    return Err(FillError::Corrupt(
                        "the window of a checkpoint is missing from the store".into(),
                    ));
                }
            };
            let alone = turn.lock().await;
            // Whoever had the turn before may have fetched it.
            if let Some(bytes) = local.as_ref().and_then(|file| read(file, &wanted)) {
                return Ok(Some(bytes));
            }
            let end = |s: &State| s.offset + u64::from(s.len);
            let from = group.iter().map(|s| s.offset).min().unwrap_or(wanted.offset);
            let range = from..group.iter().map(end).max().unwrap_or(end(&wanted));
            let found = loop {
                let all = fetch(&source, &descriptor, range.clone()).await?;
                let mut found = None;
                for state in &group {
                    let at = (state.offset - range.start) as usize;
                    let bytes = all.slice(at..at + state.len as usize);
                    if !fits(state, &bytes) {
                        continue;
                    }
                    // One that can't be kept is fetched again.
                    local.iter().for_each(|file| drop(file.write_all_at(&bytes, state.offset)));
                    if *state == wanted {
                        found = Some(bytes);
                    }
                }
                // Another server may have it right.
                if found.is_some() || !source.lied(&descriptor.digest) {
                    break found;
                }
            };
            drop(alone);
            let other = || FillError::Corrupt("what a checkpoint needs has another digest".into());
            found.map(Some).ok_or_else(other)
        }
    }
}

/// One that the store has lost. Where it was made anew, that is another file.
async fn made(again: &dyn Anew, dir: &LayerDir, wanted: &State) -> Result<Bytes, FillError> {
    let stored = || File::open(dir.file("windows")).ok().and_then(|file| read(&file, wanted));
    again.make(&|| stored().is_some()).await.map_err(|e| match e {
        Error::Registry(e) => FillError::Fetch(Arc::new(e)),
        e => FillError::Corrupt(e.to_string()),
    })?;
    stored().ok_or_else(|| FillError::Corrupt("what a checkpoint needs has another digest".into()))
}

/// Those that begin in the same part of their blob as the wanted one.
fn group(spans: &Spans, wanted: &State) -> Vec<State> {
    let all = (0..spans.len()).map(|i| spans.state(i));
    all.filter(|state| state.len > 0 && state.offset / GROUP == wanted.offset / GROUP).collect()
}

fn read(file: &File, state: &State) -> Option<Bytes> {
    let mut bytes = vec![0; state.len as usize];
    file.read_exact_at(&mut bytes, state.offset).ok()?;
    let bytes = Bytes::from(bytes);
    (state.len > 0 && fits(state, &bytes)).then_some(bytes)
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
