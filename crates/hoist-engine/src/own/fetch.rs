//! A pass over a whole blob, as it comes from its servers.

use std::io::Seek as _;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;

use crate::error::Error;
use crate::ingest::{Expected, Haste, Ingest, Ingested};
use crate::progress::Progress;
use crate::registry::ImageSource;
use crate::store::{Begun, Kept, Store};

/// Blob bytes asked for in one request of a pull, and how many such requests run at once.
pub(super) const PART: u64 = 4 << 20;
const PARALLEL: usize = 4;

/// A pass over a blob, from the first server that has it right: a mirror that has not is found out
/// only at the end. What was `kept` is not fetched; how much of it was used stands beside the outcome.
pub(crate) async fn fetch_and_ingest(
    expected: &Expected,
    (source, store): (&ImageSource, &Store),
    mut kept: Option<Arc<Kept>>,
    mut begun: Option<Arc<Begun>>,
    data: Option<(std::fs::File, PathBuf)>,
    progress: &dyn Progress,
) -> Result<(Ingested, u64), Error> {
    loop {
        let anew = |(file, path): &(std::fs::File, PathBuf)| {
            let mut again = file.try_clone().map_err(Error::io("open", path))?;
            again.set_len(0).and_then(|()| again.rewind()).map_err(Error::io("empty", path))?;
            Ok::<_, Error>((again, path.clone()))
        };
        let data = data.as_ref().map(anew).transpose()?;
        let fetched =
            fetch_once(expected, (source, store), kept.as_ref(), begun.as_ref(), data, progress).await;
        if let Err(Error::Digest { .. } | Error::Layer { .. }) = fetched {
            begun.take().iter().for_each(|begun| begun.forget());
        }
        match fetched {
            Err(e @ (Error::Digest { .. } | Error::Layer { .. })) if kept.is_some() => {
                tracing::warn!("{e}; fetching all of it, without what was kept here");
                kept = None;
            }
            Err(e @ (Error::Digest { .. } | Error::Layer { .. })) if source.lied(&expected.blob) => {
                tracing::warn!("{e}; fetching it from another server");
            }
            // The layer may have room without its blob beside it.
            Err(e @ Error::Io { .. }) if e.is_for_room() && begun.is_some() => {
                tracing::info!(
                    "{e}; once more, keeping nothing of the blob for a pull that goes on after this one"
                );
                begun.take().iter().for_each(|begun| begun.give_way());
                kept = None;
            }
            done => return done.map(|done| (done, kept.map_or(0, |kept| kept.bytes()))),
        }
    }
}

/// Streams a blob in order, by several ranged requests side by side, through a pass.
async fn fetch_once(
    expected: &Expected,
    (source, store): (&ImageSource, &Store),
    kept: Option<&Arc<Kept>>,
    begun: Option<&Arc<Begun>>,
    data: Option<(std::fs::File, PathBuf)>,
    progress: &dyn Progress,
) -> Result<Ingested, Error> {
    // Without a data file it is a check, which readers need not wait for.
    let haste = if data.is_some() { Haste::Now } else { Haste::Whenever };
    let ingest = Arc::new(Ingest::start(expected.clone(), data, &store.aside_folder(), haste)?);
    let parts: Vec<_> = if source.ranges_ignored() {
        vec![(0..expected.size, false)]
    } else {
        let ranges = (0..expected.size).step_by(PART as usize).map(|at| at..expected.size.min(at + PART));
        ranges
            .flat_map(|range| kept.map_or_else(|| vec![(range.clone(), false)], |k| k.cut(range.clone())))
            .collect()
    };
    let mut fetches = futures_util::stream::iter(parts.into_iter().map(|(range, is_kept)| {
        let kept = kept.filter(|_| is_kept).cloned();
        let (source, blob) = (source.clone(), expected.blob);
        let fetching = async move {
            if let Some(kept) = kept {
                let (to, from) = tokio::sync::mpsc::channel(4);
                // What cannot be read comes short, and so the digest finds it wrong.
                tokio::task::spawn_blocking(move || kept.read(range, |b| to.blocking_send(Ok(b)).is_ok()));
                return Ok(from);
            }
            let mut body = source.blob_range(&blob, range.clone()).await?;
            // The first part streams at once; later ones are gathered while they wait their turn.
            let (to, from) = tokio::sync::mpsc::channel(1024);
            tokio::spawn(async move {
                loop {
                    let next = body.next().await.transpose();
                    let Some(next) = next else { return };
                    let last = next.is_err();
                    if to.send(next).await.is_err() || last {
                        return;
                    }
                }
            });
            Ok::<_, crate::registry::RegistryError>(from)
        };
        // A task of its own: it goes on while an earlier part is being fed.
        let task = tokio::spawn(fetching);
        async move { task.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())) }
    }))
    .buffered(PARALLEL);
    let mut ignored = false;
    let mut fed = 0;
    let mut failure = None;
    'parts: while let Some(part) = fetches.next().await {
        let mut part = match part {
            Ok(part) => part,
            Err(e) => {
                ignored = e.is_ranges_ignored();
                failure = Some(e);
                break;
            }
        };
        while let Some(next) = part.recv().await {
            match next {
                Ok(bytes) => {
                    let at = fed;
                    fed += bytes.len() as u64;
                    progress.advance(bytes.len() as u64);
                    feed(&ingest, begun, bytes, at).await;
                }
                Err(e) => {
                    failure = Some(e);
                    break 'parts;
                }
            }
        }
    }
    drop(fetches);
    if ignored {
        // This server sends whole blobs only: the rest comes in one stream from the start.
        failure = None;
        let mut body = source.blob_range(&expected.blob, 0..expected.size).await?;
        let mut skip = fed;
        while let Some(mut bytes) = body.next().await? {
            let cut = skip.min(bytes.len() as u64);
            skip -= cut;
            let bytes = bytes.split_off(cut as usize);
            let length = bytes.len() as u64;
            progress.advance(bytes.len() as u64);
            feed(&ingest, begun, bytes, fed).await;
            fed += length;
        }
    }
    let ingest = Arc::into_inner(ingest).ok_or_else(|| Error::Internal("a pass has two owners".into()))?;
    let result = tokio::task::spawn_blocking(move || ingest.finish()).await;
    let result = result.map_err(|e| Error::Internal(e.to_string()))?;
    match failure {
        Some(e) => Err(e.into()),
        None => result,
    }
}

/// Feeding blocks while the pass is behind, so it may not be done on an async worker's time.
async fn feed(ingest: &Arc<Ingest>, begun: Option<&Arc<Begun>>, bytes: bytes::Bytes, at: u64) {
    let (ingest, begun) = (Arc::clone(ingest), begun.cloned());
    let feeding = tokio::task::spawn_blocking(move || {
        begun.iter().for_each(|begun| begun.keep(&bytes, at));
        ingest.feed(bytes);
    });
    let _ = feeding.await;
}
