//! Asks one format's reader what an image is: fetches what it wants, and lets it think where nobody waits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use futures_util::{StreamExt, TryStreamExt};
use hoist_format::build::Described;
use hoist_format::digest::Digest;
use hoist_format::formats::{Covers, Found, Left, MAX_ANSWER, Reader, Refusal, Step, Want};
use hoist_format::table::Table;
use tokio::sync::Semaphore;

use super::verified::Verified;
use crate::fill::Blobs;
use crate::image::Image;
use crate::reference::Reference;
use crate::registry::{ImageSource, RegistryError};

/// Most steps of one reader: nobody hangs on a table that leads in circles. A sound one takes a dozen.
const MAX_STEPS: usize = 32;
/// Most bytes that are fetched for one conversion: they are held in memory.
const MAX_TOTAL: u64 = 512 << 20;
/// Requests of one conversion that run at once.
const AT_ONCE: usize = 12;

/// What all readers of a conversion have in common. How long a fetch may take is the client's to say, by what comes in
/// that time: a slow line is no reason to fetch the layers whole.
pub(super) struct Limits {
    left: AtomicU64,
    slots: Semaphore,
    /// All there is to ask, where nothing else is trusted.
    verified: Option<Arc<Verified>>,
}

impl Limits {
    pub fn new(verified: Option<Arc<Verified>>) -> Self {
        Self { left: AtomicU64::new(MAX_TOTAL), slots: Semaphore::new(AT_ONCE), verified }
    }

    fn take(&self, bytes: u64) -> Option<()> {
        let taken = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok().map(drop)
    }
}

/// What a reader has found, as it will be kept.
pub(super) struct Asked {
    /// Format and version, for people.
    pub format: String,
    /// Is all of it held right by the manifest's digest?
    pub pinned: bool,
    pub parts: Vec<(Covers, Part)>,
    pub left: Vec<Left>,
}

/// What a layer or an image is, and its table as it will be read.
pub(super) struct Part {
    pub described: Described,
    pub table: Vec<u8>,
}

/// What a reader covers, its format, and what it found. `again`: the same reader anew. Bytes that nothing has verified
/// may have been damaged on their way: they are fetched once more before the image is blamed.
pub(super) async fn ask(
    (reader, again): (Box<dyn Reader>, Box<dyn Reader>),
    image: &Image,
    limits: &Limits,
) -> (Covers, String, Result<Asked, Refusal>) {
    let (covers, format) = (reader.covers(), reader.format().to_owned());
    let mut unverified = BTreeSet::new();
    let mut found = drive(reader, image, limits, &mut unverified).await;
    if let Err(Refusal::Unusable(why)) = &found
        && !unverified.is_empty()
        && limits.verified.is_none()
    {
        tracing::warn!(image = image.name, ?covers, "fetching its metadata again: {why}");
        for blob in &unverified {
            image.source.lied(blob);
        }
        found = drive(again, image, limits, &mut unverified).await;
    }
    let found = match found {
        Ok(found) => encoded(found).await,
        Err(refusal) => Err(refusal),
    };
    (covers, format, found)
}

/// A table that could not be read again would be found out by the reads that need it.
async fn encoded(found: Found) -> Result<Asked, Refusal> {
    let encoding = tokio::task::spawn_blocking(move || {
        let Found { format, pinned, parts, left } = found;
        let encode = |(covers, described): (Covers, Described)| {
            let table = described.table.encode();
            let again = Table::decode(&table);
            let why = match again {
                Ok(again) if again == described.table => return Ok((covers, Part { described, table })),
                Ok(_) => "it says something else when it is read again".to_owned(),
                Err(e) => e.to_string(),
            };
            Err(Refusal::Unusable(format!("the table made of its metadata cannot be used: {why}")))
        };
        let parts = parts.into_iter().map(encode).collect::<Result<_, _>>()?;
        Ok(Asked { format, pinned, parts, left })
    });
    encoding.await.unwrap_or_else(|_| Err(Refusal::Unusable("its table cannot be made".into())))
}

/// `unverified`: blobs of which parts came.
async fn drive(
    mut reader: Box<dyn Reader>,
    image: &Image,
    limits: &Limits,
    unverified: &mut BTreeSet<Digest>,
) -> Result<Found, Refusal> {
    let failed = |what: String| Refusal::Unusable(what);
    let mut answers = Vec::new();
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
        let bytes = wants.iter().map(size).fold(0, u64::saturating_add);
        limits.take(bytes).ok_or_else(|| failed("the image's metadata has more than 512 MiB".into()))?;
        unverified.extend(wants.iter().filter_map(|want| match want {
            Want::Range { blob, .. } => Some(*blob),
            _ => None,
        }));
        // Collected, for a closure with borrows could not be sent to another thread while it runs.
        let fetching: Vec<_> = wants.into_iter().map(|want| fetch(want, image, limits)).collect();
        let fetched = futures_util::stream::iter(fetching).buffered(AT_ONCE).try_collect().await;
        answers = match fetched {
            Ok(answers) => answers,
            Err(_) if !reader.is_certain() => return Err(Refusal::Other),
            Err(e) => {
                // What did not come is not wrong.
                unverified.clear();
                return Err(failed(format!("its metadata cannot be fetched: {e}")));
            }
        };
    }
    Err(failed(format!("its metadata is not at an end after {MAX_STEPS} steps")))
}

fn size(want: &Want) -> u64 {
    match want {
        Want::Range { range, .. } => range.end.saturating_sub(range.start),
        Want::Blob { size, .. } => *size,
        Want::Size(_) | Want::Manifest(_) | Want::Beside(_) | Want::Referrers(_) => 0,
    }
}

/// None where there is no such thing.
async fn fetch(want: Want, image: &Image, limits: &Limits) -> Result<Option<Vec<u8>>, RegistryError> {
    if size(&want) > MAX_ANSWER {
        return Ok(None);
    }
    if let Some(verified) = &limits.verified {
        let range = match &want {
            Want::Range { blob, range } => Some((blob, range.clone())),
            Want::Blob { blob, size } => Some((blob, 0..*size)),
            Want::Size(_) | Want::Manifest(_) | Want::Beside(_) | Want::Referrers(_) => None,
        };
        if !matches!(want, Want::Size(_)) {
            return Ok(range.and_then(|(blob, range)| verified.get(blob, range)).map(<[u8]>::to_vec));
        }
    }
    let _slot = limits.slots.acquire().await;
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
        Want::Blob { blob, size } => source.blob(&blob, Some(size)).await.map(Vec::from),
        Want::Size(blob) => source.blob_size(&blob).await.map(|size| size.to_le_bytes().to_vec()),
        Want::Manifest(digest) => source.manifest_by_digest(&digest).await.map(|m| m.bytes.into()),
        Want::Beside(suffix) => match source {
            ImageSource::Registry { client, reference } => {
                let Some(tag) = &reference.tag else { return Ok(None) };
                let tag = Some(format!("{tag}{suffix}"));
                let beside = Reference { tag, digest: None, ..reference.clone() };
                client.manifest(&beside).await.map(|m| m.bytes.into())
            }
            ImageSource::Layout { layout, tag } => {
                let Some(tag) = tag else { return Ok(None) };
                layout.manifest(Some(&format!("{tag}{suffix}"))).await.map(|m| m.bytes.into())
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
