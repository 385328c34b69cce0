//! OCI image layouts on disk (image-spec v1.1 `image-layout.md`): a folder, or an uncompressed tar
//! file of one whose members are found by one scan of its headers.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hoist_format::digest::Digest;

use super::error::RegistryError;
use super::media::{self, ArtifactHead, Descriptor, Fetched, MAX_MANIFEST};
use super::range::{Kind, RangeBody};
use super::read::{MAX_BLOB, fallback_tag};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const PIECE: u64 = 1 << 20;
const MAX_MEMBERS: usize = 1 << 20;
/// Indexes within indexes looked into for referrers.
const MAX_DEPTH: usize = 3;

/// An opened layout. Nothing in it is trusted: every manifest and blob is verified when read whole.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    members: Members,
}

#[derive(Debug)]
enum Members {
    Folder,
    Tar { file: Arc<File>, at: HashMap<String, Range<u64>> },
}

/// The file that holds a member, and where in it.
type Place = (Arc<File>, Range<u64>);

/// A part of a blob of a layout.
pub(super) struct LayoutRange {
    layout: Arc<Layout>,
    file: Arc<File>,
    rest: Range<u64>,
}

impl Layout {
    /// Opens the layout at `path`; reads a tar file's headers. Blocks.
    ///
    /// # Errors
    /// `Layout` when there is none.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        let fail = |what: String| error(path, what);
        let kind = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?;
        let members = if kind.is_dir() {
            Members::Folder
        } else {
            let file = File::open(path).map_err(|e| fail(e.to_string()))?;
            let at = scan(&file, kind.len()).map_err(fail)?;
            Members::Tar { file: Arc::new(file), at }
        };
        let layout = Self { path: path.to_owned(), members };
        match layout.find("index.json")? {
            Some(_) => Ok(layout),
            None => Err(fail("it holds no index.json, so it is no OCI layout".to_owned())),
        }
    }

    /// Where a member lies; none if it is not there.
    fn find(&self, name: &str) -> Result<Option<Place>, RegistryError> {
        match &self.members {
            Members::Tar { file, at } => Ok(at.get(name).map(|range| (file.clone(), range.clone()))),
            Members::Folder => {
                let path = self.path.join(name);
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(e) => return Err(error(&self.path, format!("{name}: {e}"))),
                };
                let kind = file.metadata().map_err(|e| error(&self.path, format!("{name}: {e}")))?;
                if !kind.is_file() {
                    return Err(error(&self.path, format!("{name} is no regular file")));
                }
                Ok(Some((Arc::new(file), 0..kind.len())))
            }
        }
    }

    async fn read(self: &Arc<Self>, name: String, limit: u64) -> Result<Bytes, RegistryError> {
        let this = self.clone();
        blocking(move || {
            let Some((file, range)) = this.find(&name)? else {
                return Err(RegistryError::NotFound {
                    doing: format!("reading {name}"),
                    host: format!("layout {}", this.path.display()),
                });
            };
            if range.end - range.start > limit {
                return Err(error(&this.path, format!("{name} is longer than the {limit} bytes expected")));
            }
            this.read_at(&file, range)
        })
        .await
    }

    fn read_at(&self, file: &File, range: Range<u64>) -> Result<Bytes, RegistryError> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let read = file.read_exact_at(&mut bytes, range.start);
        read.map_err(|e| {
            error(&self.path, format!("cannot read {} bytes at {}: {e}", bytes.len(), range.start))
        })?;
        Ok(bytes.into())
    }

    /// The entries of index.json.
    ///
    /// # Errors
    /// `Layout` when it cannot be read.
    pub async fn entries(self: &Arc<Self>) -> Result<Vec<Descriptor>, RegistryError> {
        let bytes = self.read("index.json".to_owned(), MAX_MANIFEST).await?;
        media::entries(&bytes).map_err(|e| error(&self.path, format!("index.json cannot be read: {e}")))
    }

    /// The manifest or index under `tag` (or digest); without one, the only image there is.
    ///
    /// # Errors
    /// `Layout` when the choice is not clear, telling what there is; `NotFound` for a missing blob.
    pub async fn manifest(self: &Arc<Self>, tag: Option<&str>) -> Result<Fetched, RegistryError> {
        let entries = self.entries().await?;
        let name = |entry: &Descriptor| entry.annotations.get(REF_NAME).cloned();
        let chosen = match tag {
            Some(tag) => entries.iter().find(|entry| {
                // Some tools write the whole reference.
                name(entry).is_some_and(|name| name == tag || name.ends_with(&format!(":{tag}")))
                    || entry.digest.to_string() == tag
            }),
            None => match &entries[..] {
                [only] => Some(only),
                all => {
                    let images =
                        all.iter().filter(|entry| entry.artifact_type.is_none() && name(entry).is_some());
                    let images: Vec<_> = images.collect();
                    let latest = images.iter().find(|entry| name(entry).as_deref() == Some("latest"));
                    if images.len() == 1 { Some(images[0]) } else { latest.copied() }
                }
            },
        };
        let Some(chosen) = chosen else {
            let names: Vec<_> = entries.iter().filter_map(name).take(20).collect();
            let what = match tag {
                Some(tag) => format!("it has no tag {tag}; it has: {}", names.join(", ")),
                None => format!("name one of its tags as oci:DIR:TAG; it has: {}", names.join(", ")),
            };
            return Err(error(&self.path, what));
        };
        self.manifest_by_digest(&chosen.digest).await
    }

    /// The manifest or index `digest`, verified.
    ///
    /// # Errors
    /// `NotFound`, `DigestMismatch` or `Layout`.
    pub async fn manifest_by_digest(self: &Arc<Self>, digest: &Digest) -> Result<Fetched, RegistryError> {
        let bytes = self.blob(digest, Some(MAX_MANIFEST)).await?;
        Ok(Fetched { media_type: media::media_type_of(&bytes, None), digest: *digest, bytes })
    }

    /// A blob as a whole, verified; nothing longer than `size_hint` is taken.
    ///
    /// # Errors
    /// `NotFound`, `DigestMismatch` or `Layout`.
    pub async fn blob(
        self: &Arc<Self>,
        digest: &Digest,
        size_hint: Option<u64>,
    ) -> Result<Bytes, RegistryError> {
        let limit = size_hint.unwrap_or(MAX_BLOB).min(MAX_BLOB);
        let bytes = self.read(blob_path(digest), limit).await?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(RegistryError::DigestMismatch {
                doing: format!("reading blob {digest}"),
                host: format!("layout {}", self.path.display()),
                expected: *digest,
                found,
            });
        }
        Ok(bytes)
    }

    /// The bytes `range` of a blob.
    ///
    /// # Errors
    /// `NotFound`, or `Layout` when the blob is shorter.
    pub async fn blob_range(
        self: &Arc<Self>,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<RangeBody, RegistryError> {
        let (this, name) = (self.clone(), blob_path(digest));
        blocking(move || {
            let Some((file, whole)) = this.find(&name)? else {
                return Err(RegistryError::NotFound {
                    doing: format!("reading {name}"),
                    host: format!("layout {}", this.path.display()),
                });
            };
            if range.end > whole.end - whole.start {
                return Err(error(&this.path, format!("{name} ends before byte {}", range.end)));
            }
            let rest = whole.start + range.start..whole.start + range.end;
            Ok(RangeBody(Kind::Layout(LayoutRange { layout: this, file, rest })))
        })
        .await
    }

    /// How many bytes a blob has.
    ///
    /// # Errors
    /// `NotFound`, or `Layout` when it cannot be looked at.
    pub async fn blob_size(self: &Arc<Self>, digest: &Digest) -> Result<u64, RegistryError> {
        let (this, name) = (self.clone(), blob_path(digest));
        blocking(move || {
            let missing = || RegistryError::NotFound {
                doing: format!("reading {name}"),
                host: format!("layout {}", this.path.display()),
            };
            let (_, range) = this.find(&name)?.ok_or_else(missing)?;
            Ok(range.end - range.start)
        })
        .await
    }

    /// What refers to the manifest `digest`: manifests of index.json, or of indexes in it, with
    /// that subject, and the entries of the fallback tag.
    ///
    /// # Errors
    /// `Layout` when index.json cannot be read.
    pub async fn referrers(
        self: &Arc<Self>,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let tag = fallback_tag(digest);
        let mut todo: Vec<_> = self.entries().await?.into_iter().map(|entry| (entry, 0, false)).collect();
        let mut found: Vec<Descriptor> = Vec::new();
        let mut looked_at = 0;
        while let Some((entry, depth, listed)) = todo.pop() {
            looked_at += 1;
            if looked_at > 10_000 {
                break;
            }
            // A broken or missing entry is the trouble of who asks for that entry.
            let Ok(manifest) = self.manifest_by_digest(&entry.digest).await else { continue };
            let Ok(head) = serde_json::from_slice::<ArtifactHead>(&manifest.bytes) else { continue };
            let refers = head.subject.as_ref().is_some_and(|subject| subject.digest == *digest);
            if refers || listed {
                let mut entry = Descriptor { media_type: manifest.media_type.clone(), ..entry.clone() };
                entry.artifact_type = entry.artifact_type.or_else(|| head.kind());
                if !found.iter().any(|other| other.digest == entry.digest) {
                    found.push(entry);
                }
            } else if depth < MAX_DEPTH {
                let listed = entry.annotations.get(REF_NAME) == Some(&tag);
                let inner = media::entries(&manifest.bytes).unwrap_or_default();
                todo.extend(inner.into_iter().map(|inner| (inner, depth + 1, listed)));
            }
        }
        let wanted =
            |entry: &Descriptor| artifact_type.is_none_or(|t| entry.artifact_type.as_deref() == Some(t));
        Ok(found.into_iter().filter(wanted).collect())
    }
}

impl LayoutRange {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let Range { start, end } = self.rest;
        if start >= end {
            return Ok(None);
        }
        let piece = start..end.min(start.saturating_add(PIECE));
        self.rest.start = piece.end;
        let (layout, file) = (self.layout.clone(), self.file.clone());
        blocking(move || layout.read_at(&file, piece)).await.map(Some)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn error(path: &Path, what: String) -> RegistryError {
    RegistryError::Layout { path: path.display().to_string(), what }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failure) => Err(RegistryError::Layout { path: String::new(), what: failure.to_string() }),
    }
}

/// Name and place of the regular files of a tar archive (POSIX ustar; sizes in GNU's base-256 too).
/// The names that matter are short: long-name and PAX records are stepped over.
fn scan(file: &File, length: u64) -> Result<HashMap<String, Range<u64>>, String> {
    let mut members = HashMap::new();
    let mut at = 0u64;
    while let Some(body) = at.checked_add(512).filter(|body| *body <= length) {
        let mut header = [0; 512];
        file.read_exact_at(&mut header, at).map_err(|e| e.to_string())?;
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        if &header[257..262] != b"ustar" {
            let what = match header {
                [0x1f, 0x8b, ..] => "it is compressed with gzip; decompress it first",
                [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is compressed with zstd; decompress it first",
                _ => "it is neither a folder nor a tar file",
            };
            return Err(what.to_owned());
        }
        let size =
            number(&header[124..136]).ok_or_else(|| format!("its tar header at {at} has no valid size"))?;
        let end = body.checked_add(size).filter(|end| *end <= length);
        let end = end.ok_or_else(|| format!("its tar member at {at} ends after the file; it is cut off"))?;
        if matches!(header[156], b'0' | 0) {
            let text = |field: &[u8]| {
                String::from_utf8_lossy(field.split(|byte| *byte == 0).next().unwrap_or_default())
                    .into_owned()
            };
            let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
            let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            members.insert(name.trim_start_matches("./").to_owned(), body..end);
            if members.len() > MAX_MEMBERS {
                return Err(format!("it has more than {MAX_MEMBERS} members"));
            }
        }
        at = end.checked_next_multiple_of(512).ok_or_else(|| "its size overflows".to_owned())?;
    }
    Ok(members)
}

fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let clean = high[0] == 0x80 && high[1..].iter().all(|byte| *byte == 0);
        return clean.then(|| u64::from_be_bytes(low.try_into().unwrap_or([0xff; 8])));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    u64::from_str_radix(text, 8).ok()
}
