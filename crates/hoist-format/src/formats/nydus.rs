//! nydus images: a bootstrap in the last layer describes the whole image (see [`crate::rafs`]).

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Covers, ImageFacts, LayerFacts, MAX_ANSWER, Original, Reader, Refusal, Step, Want, of_image};
use crate::build::{Builder, ChunkId, Described, Run, StoredChunk};
use crate::chunk::{ChunkCodec, ContentDigest};
use crate::codec::{CodecError, StreamDecoder};
use crate::digest::Digest;
use crate::rafs::{
    Beside, Bootstrap, Contexts, Digester, MAX_PACKAGE, Package, PackageReader, Rafs, RafsError, Toc,
    USUAL_TOC, Unit, UnitCodec, Version,
};
use crate::span::Codec;
use crate::tar::TarError;

/// Marks the layer with the bootstrap, and those with chunks (nydus-snapshotter `pkg/label/label.go`).
const BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";
const BLOB: &str = "containerd.io/snapshot/nydus-blob";
/// On a layer of contexts alone (zran): the layer of another image that they are about.
const ORIGINAL: &str = "containerd.io/snapshot/nydus-ref";
/// What such a layer is: contexts are of gzip.
const ORIGINAL_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Marks a bootstrap that is encrypted.
const ENCRYPTED: &str = "containerd.io/snapshot/nydus-encrypted-blob";
/// Media type of blobs with chunks.
const BLOB_TYPE: &str = "application/vnd.oci.image.layer.nydus.blob.v1";

/// Mark a manifest in an index.
const OS_FEATURE: &str = "nydus.remoteimage.v1";
const ARTIFACT: &str = "application/vnd.nydus.image.manifest.v1+json";

/// Whether an index says of a manifest that it is nydus's.
pub(super) fn is_marked(os_features: &[String], artifact_type: Option<&str>) -> bool {
    os_features.iter().any(|feature| feature == OS_FEATURE) || artifact_type == Some(ARTIFACT)
}

fn says(layer: &LayerFacts, key: &str) -> bool {
    layer.annotations.get(key).is_some_and(|v| v == "true")
}

fn has_chunks(layer: &LayerFacts) -> bool {
    says(layer, BLOB) || layer.media_type == BLOB_TYPE
}

/// The layers that an image was made of, where its blobs are contexts alone (zran).
pub(super) fn originals(image: &ImageFacts) -> Option<Vec<Original>> {
    let original = |layer: &LayerFacts| {
        let digest = layer.annotations.get(ORIGINAL)?.parse().ok()?;
        Some(Original { digest, media_type: ORIGINAL_TYPE.to_owned() })
    };
    let blobs = image.layers.iter().filter(|layer| has_chunks(layer));
    let all: Vec<_> = blobs.map(original).collect::<Option<_>>()?;
    (!all.is_empty()).then_some(all)
}

/// The reader of an image, if a layer of it says that it is nydus's.
pub(super) fn reader(image: &ImageFacts) -> Option<Box<dyn Reader>> {
    let bootstrap = image.layers.iter().rfind(|layer| says(layer, BOOTSTRAP));
    if bootstrap.is_none() && !image.layers.iter().any(has_chunks) {
        return None;
    }
    let bootstrap = bootstrap.cloned();
    Some(Box::new(Nydus {
        room: MAX_CONTEXTS,
        layers: image.layers.clone(),
        bootstrap,
        package: Package::default(),
        at: At::Start,
    }))
}

/// Most bytes that the contexts of all blobs and the digests of their chunks have, decompressed.
const MAX_CONTEXTS: u64 = 512 << 20;

/// A blob up to this size is fetched whole where nothing but its digest vouches for the contexts in it, bytes: those of
/// zran have blobs of their own.
const MAX_WHOLE: u64 = 64 << 20;

struct Nydus {
    /// What is left of [`MAX_CONTEXTS`].
    room: u64,
    layers: Vec<LayerFacts>,
    bootstrap: Option<LayerFacts>,
    package: Package,
    at: At,
}

/// What was asked for.
enum At {
    Start,
    Bootstrap,
    /// Of these blobs the contexts, and what tells whether they are right.
    Contexts(Vec<(u32, Vouching)>),
    /// Of these blobs the ends, where their tables of contents are.
    Tails(Vec<u32>),
    /// Of these blobs the contexts and the digests of their chunks.
    Parts(Vec<(u32, Toc)>),
}

/// What tells whether contexts are right, beside the digests of the chunks that they lead to.
#[derive(Clone, Copy)]
enum Vouching {
    /// The table of contents at the end of their blob, whose digest the bootstrap may have.
    Toc,
    /// The blob's digest: all of it comes.
    Blob,
    /// Nothing else: it is a blob of another image.
    Nothing,
}

impl Reader for Nydus {
    fn covers(&self) -> Covers {
        Covers::Image
    }

    fn format(&self) -> &'static str {
        "nydus"
    }

    fn is_certain(&self) -> bool {
        true
    }

    fn step(&mut self, answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        match std::mem::replace(&mut self.at, At::Start) {
            At::Start => self.start(),
            At::Bootstrap => self.opened(answers),
            At::Contexts(blobs) => self.with_contexts(&blobs, answers),
            At::Tails(blobs) => self.with_tails(&blobs, answers),
            At::Parts(blobs) => self.with_parts(&blobs, answers),
        }
    }
}

fn because(e: RafsError) -> Refusal {
    Refusal::because(e.to_string())
}

/// An answer, which may be missing.
fn given(answer: Option<Vec<u8>>, what: &str) -> Result<Vec<u8>, Refusal> {
    answer.ok_or_else(|| Refusal::because(format!("the registry does not have {what}")))
}

impl Nydus {
    fn start(&mut self) -> Result<Step, Refusal> {
        let layer = self.bootstrap.as_ref();
        let layer = layer
            .ok_or_else(|| Refusal::because("its manifest has nydus blobs, but no layer with a bootstrap"))?;
        if layer.annotations.contains_key(ENCRYPTED) || layer.media_type.ends_with("+encrypted") {
            return Err(because(RafsError::Encrypted));
        }
        if layer.size > MAX_ANSWER {
            return Err(Refusal::because("its bootstrap's layer has more than 256 MiB"));
        }
        self.at = At::Bootstrap;
        Ok(Step::Fetch(vec![Want::Blob { blob: layer.digest, size: layer.size }]))
    }

    /// So many bytes more are to be decompressed.
    fn take(room: &mut u64, bytes: u64) -> Result<(), Refusal> {
        let left = room.checked_sub(bytes);
        *room = left.ok_or_else(|| Refusal::because("the contexts of its blobs have more than 512 MiB"))?;
        Ok(())
    }

    /// The bootstrap is here: what of the blobs is needed besides?
    fn opened(&mut self, answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        let stored = given(answers.into_iter().next().flatten(), "the layer with its bootstrap")?;
        self.package =
            unpack(&stored).map_err(|e| Refusal::because(format!("its bootstrap's layer: {e}")))?;
        drop(stored);
        let bootstrap = self.package.bootstrap().map_err(because)?;
        if !bootstrap.has_chunks() && !bootstrap.blobs().is_empty() {
            return self.ask_for_tails();
        }
        let known = self.package.contexts(&bootstrap).map_err(because)?;
        let (mut wants, mut blobs) = (Vec::new(), Vec::new());
        for (index, blob) in (0..).zip(bootstrap.blobs()) {
            if let Some(at) =
                blob.contexts.as_ref().filter(|_| blob.needs_contexts() && !known.contains_key(&index))
            {
                Self::take(&mut self.room, at.raw_len)?;
                if at.stored.end - at.stored.start > MAX_ANSWER {
                    return Err(Refusal::because("the contexts of one of its blobs have more than 256 MiB"));
                }
                let contexts = Want::Range { blob: at.blob, range: at.stored.clone() };
                let vouching = match (self.size_of(&at.blob), at.toc) {
                    (Some(size), None) if size <= MAX_WHOLE => {
                        wants.push(Want::Blob { blob: at.blob, size });
                        Vouching::Blob
                    }
                    (Some(size), _) => {
                        wants.extend([contexts, Want::Range { blob: at.blob, range: tail_of(size) }]);
                        Vouching::Toc
                    }
                    (None, _) => {
                        wants.push(contexts);
                        Vouching::Nothing
                    }
                };
                blobs.push((index, vouching));
            }
        }
        if wants.is_empty() {
            return done(bootstrap, &known, &self.layers);
        }
        self.at = At::Contexts(blobs);
        Ok(Step::Fetch(wants))
    }

    /// The digests of the chunks, which are in the bootstrap, hold right what contexts lead to; but wrong ones would lead
    /// nowhere for as long as the image is here.
    fn with_contexts(
        &self,
        blobs: &[(u32, Vouching)],
        answers: Vec<Option<Vec<u8>>>,
    ) -> Result<Step, Refusal> {
        let bootstrap = self.package.bootstrap().map_err(because)?;
        let mut known = self.package.contexts(&bootstrap).map_err(because)?;
        let mut answers = answers.into_iter();
        for (index, vouching) in blobs {
            let blob = &bootstrap.blobs()[*index as usize];
            let Some(at) = &blob.contexts else { continue };
            let mut stored = given(answers.next().flatten(), "a blob with contexts")?;
            match vouching {
                Vouching::Toc => {
                    let tail = given(answers.next().flatten(), "the end of a blob")?;
                    let size = self.size_of(&at.blob).unwrap_or_default();
                    let toc = Toc::decode(&tail, size, at.toc.as_ref()).map_err(because)?;
                    let part = toc.entry(PARTS[0]).filter(|part| part.stored.start == at.stored.start);
                    let missing = RafsError::Missing("contexts where its bootstrap has them");
                    part.ok_or_else(|| because(missing))?.open(&stored).map_err(because)?;
                }
                Vouching::Blob => {
                    let own = stored.get(at.stored.start as usize..at.stored.end as usize);
                    let missing = RafsError::Missing("contexts where its bootstrap has them");
                    stored = own.ok_or_else(|| because(missing))?.to_vec();
                }
                Vouching::Nothing => {}
            }
            let contexts = Contexts::stored(&stored, blob).map_err(because)?;
            known.insert(*index, Beside { contexts: Some(contexts), digests: None });
        }
        done(bootstrap, &known, &self.layers)
    }

    /// Chunks and their digests are in the blobs alone: their tables of contents must hold them right.
    fn ask_for_tails(&mut self) -> Result<Step, Refusal> {
        let bootstrap = self.package.bootstrap().map_err(because)?;
        let (mut wants, mut all) = (Vec::new(), Vec::new());
        for (index, blob) in (0..).zip(bootstrap.blobs()) {
            let at = blob.contexts.as_ref().filter(|at| at.toc.is_some());
            let at =
                at.ok_or_else(|| because(RafsError::Missing("digests of its chunks that can be trusted")))?;
            let size = self.size_of(&at.blob);
            let size = size.ok_or_else(|| because(RafsError::Missing("layer for one of its blobs")))?;
            wants.push(Want::Range { blob: at.blob, range: tail_of(size) });
            all.push(index);
        }
        self.at = At::Tails(all);
        Ok(Step::Fetch(wants))
    }

    fn size_of(&self, blob: &Digest) -> Option<u64> {
        self.layers.iter().find(|layer| layer.digest == *blob).map(|layer| layer.size)
    }

    fn with_tails(&mut self, blobs: &[u32], answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        let bootstrap = self.package.bootstrap().map_err(because)?;
        let (mut wants, mut tocs) = (Vec::new(), Vec::new());
        for (index, answer) in blobs.iter().zip(answers) {
            let tail = given(answer, "the end of a blob")?;
            let Some(at) = &bootstrap.blobs()[*index as usize].contexts else { continue };
            let size = self.size_of(&at.blob).unwrap_or_default();
            let toc = Toc::decode(&tail, size, at.toc.as_ref()).map_err(because)?;
            for name in PARTS {
                let part =
                    toc.entry(name).ok_or_else(|| because(RafsError::Missing("digests of its chunks")))?;
                Self::take(&mut self.room, part.raw_len)?;
                if part.stored.end - part.stored.start > MAX_ANSWER {
                    return Err(Refusal::because("the contexts of one of its blobs have more than 256 MiB"));
                }
                wants.push(Want::Range { blob: at.blob, range: part.stored.clone() });
            }
            tocs.push((*index, toc));
        }
        self.at = At::Parts(tocs);
        Ok(Step::Fetch(wants))
    }

    fn with_parts(&self, blobs: &[(u32, Toc)], answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        let bootstrap = self.package.bootstrap().map_err(because)?;
        let mut known = BTreeMap::new();
        let mut answers = answers.into_iter();
        for (index, toc) in blobs {
            let mut parts = Vec::new();
            for name in PARTS {
                let stored = given(answers.next().flatten(), "a part of a blob")?;
                let part =
                    toc.entry(name).ok_or_else(|| because(RafsError::Missing("digests of its chunks")))?;
                parts.push(part.open(&stored).map_err(because)?);
            }
            let [array, header, digests] = parts.try_into().map_err(|_| Refusal::Other)?;
            let contexts =
                Contexts::parts(&array, &header, &bootstrap.blobs()[*index as usize]).map_err(because)?;
            known.insert(*index, Beside { contexts: Some(contexts), digests: Some(digests) });
        }
        done(bootstrap, &known, &self.layers)
    }
}

/// Where the table of contents of a blob of that size is.
fn tail_of(size: u64) -> Range<u64> {
    size - USUAL_TOC.min(size)..size
}

/// What a blob's table of contents must name where the bootstrap has no chunks.
const PARTS: [&[u8]; 3] = [b"blob.meta", b"blob.meta.header", b"blob.digest"];

/// What unpacking a bootstrap's layer comes to.
#[derive(Debug, thiserror::Error)]
enum Unpack {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Tar(#[from] TarError),
}

/// The bootstrap's layer: gzip, zstd, or tar as it is, by its first bytes.
fn unpack(stored: &[u8]) -> Result<Package, Unpack> {
    let codec = match stored {
        [0x1f, 0x8b, ..] => Codec::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Codec::Zstd,
        _ => Codec::Plain,
    };
    let mut decoder = StreamDecoder::with_limit(codec, false, MAX_PACKAGE)?;
    let mut package = PackageReader::default();
    decoder.feed(stored, &mut |bytes| package.feed(bytes).map_err(Unpack::Tar))?;
    decoder.finish()?;
    Ok(package.finish()?)
}

fn done(
    bootstrap: Bootstrap<'_>,
    known: &BTreeMap<u32, Beside>,
    layers: &[LayerFacts],
) -> Result<Step, Refusal> {
    let rafs = bootstrap.decode(known).map_err(because)?;
    let zran = rafs.units.iter().any(|unit| matches!(unit.codec, UnitCodec::Deflate { .. }));
    let format = match (rafs.version, zran) {
        (Version::V5, _) => "nydus RAFS v5",
        (Version::V6, false) => "nydus RAFS v6",
        (Version::V6, true) => "nydus RAFS v6 zran",
    };
    of_image(format.to_owned(), true, describe(rafs, layers)?)
}

/// Gives everything to the builder.
fn describe(rafs: Rafs, layers: &[LayerFacts]) -> Result<Described, Refusal> {
    let mut builder = Builder::new();
    let mut blobs = Vec::new();
    for blob in &rafs.blobs {
        // Blobs of other images, and layers that contexts are about, are not in the manifest.
        let known = layers.iter().find(|layer| layer.digest == blob.digest).map(|layer| layer.size);
        blobs.push(builder.blob(blob.digest, known.unwrap_or(blob.data_size))?);
    }
    let mut units = Vec::with_capacity(rafs.units.len());
    for unit in &rafs.units {
        units.push(builder.chunk(stored_chunk(unit, blobs[unit.blob as usize], &rafs.windows))?);
    }
    for piece in &rafs.pieces {
        let digest = match rafs.digester {
            Digester::Blake3 => ContentDigest::Blake3(piece.digest),
            Digester::Sha256 => ContentDigest::Sha256(piece.digest),
        };
        let start = u64::from(piece.offset);
        builder.check(units[piece.unit as usize], start..start + u64::from(piece.len), digest)?;
    }
    for file in &rafs.files {
        let runs = file.runs.iter().map(|run| match run.piece {
            None => Run::Hole { len: run.len },
            Some(piece) => {
                let piece = &rafs.pieces[piece as usize];
                let chunk: ChunkId = units[piece.unit as usize];
                Run::Data { len: run.len, chunk, offset: piece.offset.into() }
            }
        });
        builder.file(file.inode, runs.collect())?;
    }
    for file in &rafs.prefetch {
        builder.prefetch(*file);
    }
    Ok(builder.build(rafs.tree)?)
}

fn stored_chunk(unit: &Unit, blob: u16, windows: &[u8]) -> StoredChunk {
    let (mut stored, mut bits, mut state) = (unit.stored.clone(), 0, None);
    let codec = match &unit.codec {
        UnitCodec::Plain => ChunkCodec::Plain,
        UnitCodec::Lz4Block => ChunkCodec::Lz4,
        UnitCodec::Zstd => ChunkCodec::Zstd,
        UnitCodec::Gzip => ChunkCodec::Gzip,
        UnitCodec::Deflate { bits: shared, window } => {
            // The byte before has the bits; contexts with bits begin after the first byte.
            stored.start -= u64::from(*shared > 0);
            bits = *shared;
            let window = &windows[window.start as usize..window.end as usize];
            state = (!window.is_empty()).then(|| window.to_vec());
            ChunkCodec::Inflate
        }
    };
    StoredChunk { blob, stored, codec, raw_len: unit.raw_len.into(), bits, state, stored_digest: None }
}
