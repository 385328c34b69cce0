//! Asks one format's reader what an image is: fetches what it wants, and lets it think where nobody waits.

use std::time::Duration;

use bytes::BytesMut;
use hoist_format::formats::{Covers, Found, MAX_ANSWER, Reader, Refusal, Step, Want};

use crate::image::Image;
use crate::reference::Reference;
use crate::registry::{ImageSource, RegistryError};

/// Most steps of one reader, and bytes of all answers: nobody hangs on a table that leads in circles.
const MAX_STEPS: usize = 256;
const MAX_TOTAL: u64 = 1 << 30;
/// What metadata takes at most.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a reader covers, its format, and what it found.
pub(super) async fn ask(reader: Box<dyn Reader>, image: &Image) -> (Covers, String, Result<Found, Refusal>) {
    let (covers, format) = (reader.covers(), reader.format().to_owned());
    let found = tokio::time::timeout(PATIENCE, drive(reader, image)).await;
    let late = |_| Err(Refusal::Unusable(format!("its metadata did not come within {PATIENCE:?}")));
    (covers, format, found.unwrap_or_else(late))
}

async fn drive(mut reader: Box<dyn Reader>, image: &Image) -> Result<Found, Refusal> {
    let failed = |what: String| Refusal::Unusable(what);
    let mut answers = Vec::new();
    let mut total = 0;
    for _ in 0..MAX_STEPS {
        // Decoding may take its time.
        let stepped = tokio::task::spawn_blocking(move || {
            let step = reader.step(answers);
            (reader, step)
        });
        let (back, step) = stepped.await.map_err(|_| failed("its reader has given up".into()))?;
        reader = back;
        let wants = match step? {
            Step::Done(found) => return Ok(found),
            Step::Fetch(wants) => wants,
        };
        total += wants.iter().map(size).fold(0, u64::saturating_add);
        if total > MAX_TOTAL {
            return Err(failed("its metadata has more than 1 GiB".into()));
        }
        let fetching = wants.into_iter().map(|want| fetch(want, image));
        let fetched = futures_util::future::try_join_all(fetching).await;
        answers = match fetched {
            Ok(answers) => answers,
            Err(_) if !reader.is_certain() => return Err(Refusal::Other),
            Err(e) => return Err(failed(format!("its metadata cannot be fetched: {e}"))),
        };
    }
    Err(failed(format!("its metadata is not at an end after {MAX_STEPS} steps")))
}

fn size(want: &Want) -> u64 {
    match want {
        Want::Range { range, .. } => range.end.saturating_sub(range.start),
        Want::Blob { size, .. } => *size,
        Want::Manifest(_) | Want::Beside(_) | Want::Referrers(_) => 0,
    }
}

/// None where there is no such thing.
async fn fetch(want: Want, image: &Image) -> Result<Option<Vec<u8>>, RegistryError> {
    if size(&want) > MAX_ANSWER {
        return Ok(None);
    }
    let source = &image.source;
    let answer = match want {
        Want::Range { blob, range } => {
            let mut stream = source.blob_range(&blob, range.clone()).await?;
            let mut all = BytesMut::with_capacity((range.end - range.start) as usize);
            while let Some(bytes) = stream.next().await? {
                all.extend_from_slice(&bytes);
            }
            return Ok(Some(all.into()));
        }
        Want::Blob { blob, size } => source.blob(&blob, Some(size)).await.map(|bytes| bytes.to_vec()),
        Want::Manifest(digest) => source.manifest_by_digest(&digest).await.map(|m| m.bytes.to_vec()),
        Want::Beside(suffix) => match source {
            ImageSource::Registry { client, reference } => {
                let Some(tag) = &reference.tag else { return Ok(None) };
                let tag = Some(format!("{tag}{suffix}"));
                let beside = Reference { tag, digest: None, ..reference.clone() };
                client.manifest(&beside).await.map(|m| m.bytes.to_vec())
            }
            ImageSource::Layout { layout, tag } => {
                let Some(tag) = tag else { return Ok(None) };
                layout.manifest(Some(&format!("{tag}{suffix}"))).await.map(|m| m.bytes.to_vec())
            }
        },
        Want::Referrers(artifact_type) => {
            let manifests = source.referrers(&image.digest, Some(artifact_type)).await?;
            let list = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
            return Ok(Some(list.to_string().into_bytes()));
        }
    };
    match answer {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}
