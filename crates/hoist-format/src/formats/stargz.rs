//! eStargz and stargz (stargz-snapshotter `docs/estargz.md`; CRFS): a gzip layer in which every chunk of a file begins
//! a member of its own, or stands in one with others, with a TOC in the last member and a footer that tells where; or
//! with the TOC in an image of its own.

use super::toc::{self, MAX_TOC, TOC_FILE};
use super::{Covers, Found, LayerFacts, MAX_ANSWER, Reader, Refusal, Step, Want};
use crate::chunk::ChunkCodec;
use crate::codec::{CodecError, StreamDecoder};
use crate::digest::Digest;
use crate::span::Codec;
use crate::tar::{self, Entry, TarError};

/// SHA-256 of the TOC's JSON.
pub(super) const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// On a layer of an image of TOCs: which layer it is about.
const TOC_OF: &str = "containerd.io/snapshot/stargz/layer.digest";
/// What the tag of such an image has behind the image's own.
const TOC_IMAGE: &str = "-esgztoc";

/// So much of a blob's end is fetched first: the footer, and all of a small TOC.
const FIRST: u64 = 32 << 10;

/// Where the TOC is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Footer {
    /// From this byte of the blob on, with a footer of so many bytes.
    At(u64, &'static str),
    /// In another image.
    External,
}

/// The three footers: an empty gzip member whose extra field has the TOC's offset, 16 hexadecimal digits.
fn footer(tail: &[u8]) -> Option<Footer> {
    const HEAD: &[u8] = &[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0];
    // The operating system is 255 where Go wrote it, and may be anything.
    let member = |len: usize, extra: usize| {
        let all = tail.get(tail.len().checked_sub(len)?..)?;
        let fits = all.starts_with(HEAD) && u16::from_le_bytes([all[10], all[11]]) as usize == extra;
        fits.then(|| &all[12..12 + extra])
    };
    let offset = |hex: &[u8]| u64::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok();
    if let Some(field) = member(51, 26)
        && let Some(digits) = field.strip_prefix(b"SG\x16\0").and_then(|f| f.strip_suffix(b"STARGZ"))
    {
        return Some(Footer::At(offset(digits)?, "eStargz"));
    }
    if let Some(digits) = member(47, 22).and_then(|f| f.strip_suffix(b"STARGZ")) {
        return Some(Footer::At(offset(digits)?, "stargz"));
    }
    let external = member(46, 21).and_then(|f| f.strip_prefix(b"SG\x11\0"));
    (external == Some(b"STARGZEXTERNALTOC")).then_some(Footer::External)
}

/// Does a blob that ends so have a TOC?
pub(super) fn has_footer(tail: &[u8]) -> bool {
    footer(tail).is_some()
}

/// The reader of a layer, if it may be one. Without a digest of its TOC in the manifest a gzip layer is only looked at
/// where such a TOC may be used.
pub(super) fn reader(number: usize, layer: &LayerFacts, unpinned: bool) -> Option<Box<dyn Reader>> {
    let known = layer.annotations.get(TOC_DIGEST);
    let gzip = layer.media_type.ends_with("tar+gzip") || layer.media_type.ends_with("tar.gzip");
    if !gzip || known.is_none() && !unpinned || layer.size < 46 {
        return None;
    }
    let layer = layer.clone();
    Some(Box::new(Stargz { number, layer, at: At::Start, tail: Vec::new(), format: "eStargz" }))
}

struct Stargz {
    number: usize,
    layer: LayerFacts,
    at: At,
    tail: Vec<u8>,
    format: &'static str,
}

#[derive(Clone, Copy)]
enum At {
    Start,
    /// The end of the blob was asked for.
    Tail,
    /// What stands before it, from the TOC on.
    Rest(u64),
    /// The image of TOCs.
    Image,
    /// The TOC of that image.
    External,
}

impl Reader for Stargz {
    fn covers(&self) -> Covers {
        Covers::Layer(self.number)
    }

    fn format(&self) -> &'static str {
        self.format
    }

    fn is_certain(&self) -> bool {
        self.annotated() || !matches!(self.at, At::Start | At::Tail)
    }

    fn step(&mut self, answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        let mut answer = answers.into_iter().next().flatten();
        let mut came =
            |what: &str| answer.take().ok_or_else(|| Refusal::because(format!("{what} is not there")));
        let size = self.layer.size;
        match self.at {
            At::Start => {
                self.at = At::Tail;
                Ok(Step::Fetch(vec![self.range(size.saturating_sub(FIRST), size)]))
            }
            At::Tail => {
                self.tail = came("its end")?;
                self.after_footer()
            }
            At::Rest(offset) => {
                let mut all = came("its TOC")?;
                all.append(&mut self.tail);
                self.inner(&all, offset)
            }
            At::Image => {
                let manifest = came("the image of its TOC, under the tag with -esgztoc behind it,")?;
                self.external(&manifest)
            }
            At::External => {
                let bytes = came("its external TOC")?;
                let json = untar(&bytes)?;
                self.done(&json, size)
            }
        }
    }
}

impl Stargz {
    fn range(&self, from: u64, to: u64) -> Want {
        Want::Range { blob: self.layer.digest, range: from..to }
    }

    fn annotated(&self) -> bool {
        self.layer.annotations.contains_key(TOC_DIGEST)
    }

    fn after_footer(&mut self) -> Result<Step, Refusal> {
        let size = self.layer.size;
        match footer(&self.tail) {
            None if !self.annotated() => Err(Refusal::Other),
            None => Err(Refusal::because("its manifest says that it has a TOC, but it has no footer")),
            Some(Footer::External) => {
                self.format = "eStargz, its TOC in another image";
                if !self.annotated() {
                    return Err(Refusal::because(
                        "its TOC is elsewhere, and no digest of it is in the manifest",
                    ));
                }
                self.at = At::Image;
                Ok(Step::Fetch(vec![Want::Beside(TOC_IMAGE)]))
            }
            Some(Footer::At(offset, format)) => {
                self.format = format;
                if offset >= size || size - offset > MAX_ANSWER {
                    return Err(Refusal::because("its footer names no place of it where a TOC could be"));
                }
                let have = size - self.tail.len() as u64;
                if offset >= have {
                    let all = std::mem::take(&mut self.tail);
                    return self.inner(&all[(offset - have) as usize..], offset);
                }
                self.at = At::Rest(offset);
                Ok(Step::Fetch(vec![self.range(offset, have)]))
            }
        }
    }

    fn inner(&self, from_toc: &[u8], offset: u64) -> Result<Step, Refusal> {
        let json = untar(from_toc)?;
        self.done(&json, offset)
    }

    fn external(&mut self, manifest: &[u8]) -> Result<Step, Refusal> {
        #[derive(serde::Deserialize)]
        struct Layer {
            digest: Digest,
            size: u64,
            #[serde(default)]
            annotations: std::collections::BTreeMap<String, String>,
        }
        #[derive(serde::Deserialize)]
        struct Manifest {
            layers: Vec<Layer>,
        }
        let manifest: Manifest = serde_json::from_slice(manifest)
            .map_err(|e| Refusal::because(format!("the image of its TOC cannot be read: {e}")))?;
        let own = self.layer.digest.to_string();
        let found = manifest.layers.iter().find(|l| l.annotations.get(TOC_OF) == Some(&own));
        let found = found.ok_or_else(|| Refusal::because("the image of TOCs has none of this layer"))?;
        if found.size > MAX_ANSWER {
            return Err(Refusal::because("its external TOC has more than 256 MiB"));
        }
        self.at = At::External;
        Ok(Step::Fetch(vec![Want::Blob { blob: found.digest, size: found.size }]))
    }

    /// `end`: where the last chunk ends at the latest.
    fn done(&self, json: &[u8], end: u64) -> Result<Step, Refusal> {
        if let Some(known) = self.layer.annotations.get(TOC_DIGEST) {
            let found = Digest::of(json).to_string();
            if *known != found {
                let why = format!("its TOC has the digest {found}, and its manifest says {known:.100}");
                return Err(Refusal::because(why));
            }
        }
        let described = toc::describe(json, &self.layer, ChunkCodec::Gzip, end)?;
        let format = format!("{}, TOC version 1", self.format);
        Ok(Step::Done(Found::one(format, self.annotated(), self.covers(), described)))
    }
}

/// The TOC's JSON, of a gzip member that is a tar of it. What is behind is of no interest.
fn untar(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut decoder = StreamDecoder::new(Codec::Gzip, false)
        .map_err(|e| Refusal::because(format!("its TOC cannot be decompressed: {e}")))?;
    let (mut tar, mut found) = (tar::Decoder::new(), Toc::default());
    let fed = decoder.feed(bytes, &mut |raw: &[u8]| tar.feed(raw, &mut found));
    match fed {
        Ok(()) | Err(Fault::Enough) if found.is_whole() => Ok(found.json),
        Ok(()) | Err(Fault::Enough) => Err(Refusal::because("where its TOC should be is none")),
        Err(Fault::TooLarge) => Err(Refusal::because("its TOC has more than 128 MiB")),
        Err(Fault::Codec(_) | Fault::Tar(_)) if found.is_whole() => Ok(found.json),
        Err(Fault::Codec(e)) => Err(Refusal::because(format!("its TOC cannot be decompressed: {e}"))),
        Err(Fault::Tar(e)) => Err(Refusal::because(format!("its TOC cannot be read: {e}"))),
    }
}

#[derive(Default)]
struct Toc {
    size: Option<u64>,
    json: Vec<u8>,
}

impl Toc {
    fn is_whole(&self) -> bool {
        self.size == Some(self.json.len() as u64)
    }
}

enum Fault {
    /// The TOC is here, and no more is needed.
    Enough,
    TooLarge,
    Codec(CodecError),
    Tar(TarError),
}

impl From<CodecError> for Fault {
    fn from(e: CodecError) -> Self {
        Self::Codec(e)
    }
}

impl From<TarError> for Fault {
    fn from(e: TarError) -> Self {
        Self::Tar(e)
    }
}

impl tar::Sink for Toc {
    type Error = Fault;

    fn entry(&mut self, entry: Entry) -> Result<(), Fault> {
        match entry.kind {
            _ if self.size.is_some() => Err(Fault::Enough),
            tar::EntryKind::File(size) if entry.path == TOC_FILE && size <= MAX_TOC as u64 => {
                self.size = Some(size);
                Ok(())
            }
            tar::EntryKind::File(_) if entry.path == TOC_FILE => Err(Fault::TooLarge),
            _ => Err(Fault::Enough),
        }
    }

    fn data(&mut self, file_offset: u64, _: u64, bytes: &[u8]) -> Result<(), Fault> {
        if file_offset != self.json.len() as u64 {
            // A sparse TOC: nobody writes one.
            return Err(Fault::Enough);
        }
        self.json.extend_from_slice(bytes);
        if self.is_whole() { Err(Fault::Enough) } else { Ok(()) }
    }
}
