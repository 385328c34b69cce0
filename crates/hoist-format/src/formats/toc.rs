//! The table of contents that eStargz and zstd:chunked have in common (stargz-snapshotter `docs/estargz.md`, "TOC";
//! containers/storage `pkg/chunked/internal/minimal/compression.go`): JSON that lists the entries of the layer's tar, and where the
//! chunks of each file stand in the blob.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::rfc3339;
use super::{LayerFacts, Refusal};
use crate::build::{Builder, Described, Run, StoredChunk};
use crate::chunk::{ChunkCodec, ContentDigest};
use crate::digest::Digest;
use crate::layer::Applier;
use crate::tar::{self, Entry, EntryKind, MAX_ENTRIES};
use crate::tree::{Dev, FileData, InodeId, Kind, Meta};

/// Largest TOC, bytes of JSON.
pub(super) const MAX_TOC: usize = 128 << 20;
/// Where a writer ended what is to be fetched first; and where it said that nothing is.
const PREFETCH: &[u8] = b".prefetch.landmark";
const NO_PREFETCH: &[u8] = b".no.prefetch.landmark";
/// The TOC as it stands in the tar.
pub(super) const TOC_FILE: &[u8] = b"stargz.index.json";

/// What writers of these formats add to a layer's root.
pub(super) const OWN_FILES: [&[u8]; 3] = [PREFETCH, NO_PREFETCH, TOC_FILE];

/// One entry, as it is written. What is not needed here is passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TocEntry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    size: u64,
    modtime: Option<String>,
    link_name: String,
    mode: u64,
    uid: u64,
    gid: u64,
    dev_major: u64,
    dev_minor: u64,
    xattrs: Option<BTreeMap<String, String>>,
    digest: String,
    offset: u64,
    inner_offset: u64,
    end_offset: u64,
    chunk_offset: u64,
    chunk_size: u64,
    chunk_digest: String,
    chunk_type: String,
}

/// A run of a file's bytes.
struct TocChunk {
    len: u64,
    /// Where the compressed chunk starts in the blob, and where the run in its output; None: zeros.
    place: Option<(u64, u64)>,
    digest: Option<[u8; 32]>,
}

struct File {
    size: u64,
    chunks: Vec<TocChunk>,
    /// Of the whole file.
    digest: Option<[u8; 32]>,
}

/// What a TOC says.
struct Toc {
    applier: Applier,
    /// The files that have bytes; [`FileData::offset`] is the index.
    files: Vec<File>,
    /// Ends of chunks, as far as they are told.
    ends: Vec<u64>,
    /// How many of the files stand before the landmark.
    first: Option<usize>,
    entries: u64,
    /// The last file's name and how many of its bytes have a chunk.
    open: Option<(String, u64)>,
}

/// What a layer with this TOC is. `end`: where the last chunk ends at the latest.
pub(super) fn describe(
    json: &[u8],
    layer: &LayerFacts,
    codec: ChunkCodec,
    end: u64,
) -> Result<Described, Refusal> {
    let mut toc = Toc {
        applier: Applier::new(),
        files: Vec::new(),
        ends: vec![end],
        first: None,
        entries: 0,
        open: None,
    };
    let mut json = serde_json::Deserializer::from_slice(json);
    let read = Document(&mut toc).deserialize(&mut json).and_then(|()| json.end());
    read.map_err(|e| Refusal::because(format!("its TOC cannot be used: {e}")))?;
    toc.build(layer, codec)
}

impl Toc {
    fn entry(&mut self, entry: TocEntry) -> Result<(), String> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err("more than 16777216 entries".into());
        }
        let name = entry.name.clone();
        self.take(entry)
            .map_err(|why| format!("entry {:?}: {why}", name.chars().take(300).collect::<String>()))
    }

    fn take(&mut self, entry: TocEntry) -> Result<(), String> {
        if entry.kind == "chunk" {
            return match self.open.take() {
                Some((name, at)) if name == entry.name && at == entry.chunk_offset => {
                    self.chunk(&entry, name, at)
                }
                _ => Err("a chunk that does not follow its file".into()),
            };
        }
        self.finish_file()?;
        if OWN_FILES.contains(&entry.name.as_bytes()) {
            if entry.name.as_bytes() == PREFETCH {
                self.first = Some(self.files.len());
            }
            self.ends.push(entry.offset);
            return Ok(());
        }
        let kind = kind(&entry)?;
        let mut data = FileData::default();
        if let EntryKind::File(size) = kind
            && size > 0
        {
            data.offset = self.files.len() as u64;
            let digest = digest(&entry.digest)?;
            self.files.push(File { size, chunks: Vec::new(), digest });
            self.chunk(&entry, entry.name.clone(), 0)?;
        }
        let meta = meta(&entry)?;
        let entry = Entry { path: entry.name.into_bytes(), kind, meta };
        let entry = tar::checked(entry).map_err(|e| e.to_string())?;
        self.applier.apply(entry, data).map_err(|e| e.to_string())
    }

    /// The chunk that an entry tells of: the next of the last file.
    fn chunk(&mut self, entry: &TocEntry, name: String, at: u64) -> Result<(), String> {
        let Some(file) = self.files.last_mut() else { return Err("a chunk without a file".into()) };
        let left = file.size - at;
        let len = if entry.chunk_size == 0 { left } else { entry.chunk_size };
        if len == 0 || len > left {
            return Err("a chunk beyond the end of its file".into());
        }
        let place = match entry.chunk_type.as_str() {
            "" | "data" => Some((entry.offset, entry.inner_offset)),
            "zeros" => None,
            other => return Err(format!("a chunk of unknown type {other:?}")),
        };
        if entry.end_offset > 0 {
            self.ends.push(entry.end_offset);
        }
        file.chunks.push(TocChunk { len, place, digest: digest(&entry.chunk_digest)? });
        self.open = Some((name, at + len));
        Ok(())
    }

    fn finish_file(&mut self) -> Result<(), String> {
        let Some((name, at)) = self.open.take() else { return Ok(()) };
        let Some(file) = self.files.last_mut() else { return Ok(()) };
        if at != file.size {
            return Err(format!("the chunks of {name:?} are not all of it"));
        }
        if let [only] = &mut file.chunks[..] {
            only.digest = only.digest.or(file.digest);
        }
        if file.chunks.iter().any(|c| c.digest.is_none() && c.place.is_some()) {
            return Err(format!("{name:?} has chunks without a digest"));
        }
        Ok(())
    }

    fn build(mut self, layer: &LayerFacts, codec: ChunkCodec) -> Result<Described, Refusal> {
        self.finish_file().map_err(|why| Refusal::because(format!("its TOC cannot be used: {why}")))?;
        let Toc { applier, files, mut ends, first, .. } = self;
        let mut raw: BTreeMap<u64, u64> = BTreeMap::new();
        for chunk in files.iter().flat_map(|file| &file.chunks) {
            let Some((offset, inner)) = chunk.place else { continue };
            let end = inner.checked_add(chunk.len);
            let end = end.ok_or_else(|| Refusal::because("its TOC has a chunk beyond all bounds"))?;
            let known = raw.entry(offset).or_default();
            *known = end.max(*known);
        }
        ends.extend(raw.keys());
        ends.sort_unstable();
        let mut builder = Builder::new();
        let blob = builder.blob(layer.digest, layer.size)?;
        let mut ids = BTreeMap::new();
        for (&offset, &raw_len) in &raw {
            let end = ends.get(ends.partition_point(|&end| end <= offset)).copied();
            let end = end.ok_or_else(|| Refusal::because("its TOC has a chunk behind the last one"))?;
            let stored = StoredChunk {
                blob,
                stored: offset..end,
                codec,
                raw_len,
                bits: 0,
                state: None,
                stored_digest: None,
            };
            ids.insert(offset, builder.chunk(stored)?);
        }
        let tree = applier.tree;
        let mut place = vec![None; files.len()];
        for (id, inode) in tree.inodes.iter().enumerate() {
            if let Kind::File { size: 1.., data } = &inode.kind {
                place[data.offset as usize] = Some(id as InodeId);
            }
        }
        // Of what a later entry has replaced nothing is needed; its inode may still be in the list.
        for (file, inode) in files.iter().zip(&place) {
            let Some(inode) = *inode else { continue };
            let mut runs = Vec::with_capacity(file.chunks.len());
            for chunk in &file.chunks {
                let len = chunk.len;
                let Some((offset, inner)) = chunk.place else {
                    runs.push(Run::Hole { len });
                    continue;
                };
                let id = ids[&offset];
                if let Some(digest) = chunk.digest {
                    builder.check(id, inner..inner + len, ContentDigest::Sha256(digest))?;
                }
                runs.push(Run::Data { len, chunk: id, offset: inner });
            }
            builder.file(inode, runs)?;
        }
        place.iter().take(first.unwrap_or(0)).flatten().for_each(|&inode| builder.prefetch(inode));
        Ok(builder.build(tree)?)
    }
}

fn kind(entry: &TocEntry) -> Result<EntryKind, String> {
    let dev = || {
        let part = |n: u64, bits: u32| u32::try_from(n).ok().filter(|n| n >> bits == 0);
        let (major, minor) = (part(entry.dev_major, 12), part(entry.dev_minor, 20));
        major
            .zip(minor)
            .map(|(major, minor)| Dev { major, minor })
            .ok_or("a device number that Linux has not")
    };
    Ok(match entry.kind.as_str() {
        "dir" => EntryKind::Dir,
        "reg" => EntryKind::File(entry.size),
        "hardlink" => EntryKind::Hardlink(entry.link_name.clone().into_bytes()),
        "symlink" => EntryKind::Symlink(entry.link_name.clone().into_bytes()),
        "char" => EntryKind::Char(dev()?),
        "block" => EntryKind::Block(dev()?),
        "fifo" => EntryKind::Fifo,
        other => return Err(format!("unknown type {other:?}")),
    })
}

fn meta(entry: &TocEntry) -> Result<Meta, String> {
    let id = |n: u64| u32::try_from(n).map_err(|_| "an owner beyond 32 bits");
    let mtime = match &entry.modtime {
        None => crate::tree::Time::default(),
        Some(text) => rfc3339::parse(text).ok_or_else(|| format!("{text:?} is no time"))?,
    };
    let mut xattrs = BTreeMap::new();
    for (name, value) in entry.xattrs.iter().flatten() {
        let value = base64(value).ok_or("an attribute that is not base64")?;
        xattrs.insert(name.as_bytes().into(), value.into());
    }
    let perm = (entry.mode & 0o7777) as u16;
    Ok(Meta { perm, uid: id(entry.uid)?, gid: id(entry.gid)?, mtime, xattrs })
}

/// None where there is none.
fn digest(text: &str) -> Result<Option<[u8; 32]>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse::<Digest>().map(|digest| Some(*digest.as_bytes())).map_err(|e| e.to_string())
}

/// RFC 4648, section 4; with or without padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for four in text.chunks(4) {
        let mut bits = 0u32;
        for &c in four {
            let six = match c {
                b'A'..=b'Z' => c - b'A',
                b'a'..=b'z' => c - b'a' + 26,
                b'0'..=b'9' => c - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(six);
        }
        bits <<= 6 * (4 - four.len());
        let bytes = bits.to_be_bytes();
        match four.len() {
            1 => return None,
            n => out.extend_from_slice(&bytes[1..n]),
        }
    }
    Some(out)
}

/// The JSON document; its entries are taken one by one and never held together.
struct Document<'a>(&'a mut Toc);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a table of contents")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" => match map.next_value::<u64>()? {
                    1 => {}
                    other => return Err(A::Error::custom(format!("it is of version {other}, not 1"))),
                },
                "entries" if seen => return Err(A::Error::custom("it has two lists of entries")),
                "entries" => {
                    seen = true;
                    map.next_value_seed(Entries(&mut *self.0))?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if seen { Ok(()) } else { Err(A::Error::custom("it has no entries")) }
    }
}

struct Entries<'a>(&'a mut Toc);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of entries")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(entry) = seq.next_element::<TocEntry>()? {
            self.0.entry(entry).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
