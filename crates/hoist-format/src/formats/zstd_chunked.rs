//! zstd:chunked, in the dialects of stargz-snapshotter (`docs/estargz.md`, "zstd:chunked") and of containers/storage
//! (`pkg/chunked/internal/minimal/compression.go`): a zstd layer in which every chunk of a file is a frame of its own, with the TOC in
//! a skippable frame, whose place the manifest tells, and a footer in another one.

use super::stargz::TOC_DIGEST;
use super::toc::{self, MAX_TOC};
use super::{Covers, Found, LayerFacts, MAX_ANSWER, Reader, Refusal, Step, Want};
use crate::chunk::ChunkCodec;
use crate::digest::Digest;

/// Where annotations of the two dialects begin; the second is also what containers/storage wrote at first.
const PREFIXES: [(&str, &str); 2] =
    [("io.github.containers.zstd-chunked.", "containers"), ("io.containers.zstd-chunked.", "stargz")];
/// SHA-256 of the TOC as it is stored.
const CHECKSUM: &str = "manifest-checksum";
/// `offset:length:raw length:type`, in bytes of the blob.
const POSITION: &str = "manifest-position";

/// Header of a skippable frame (RFC 8878, section 3.1.2): magic and length.
const SKIPPABLE: u32 = 0x184D_2A50;
const FRAME_HEAD: usize = 8;
/// Footers: stargz's and the first of containers/storage; later ones with places in the tar-split.
const FOOTERS: [usize; 3] = [40, 56, 64];
const MAGICS: [(&[u8; 8], &str); 2] = [(b"GnUlInUx", "stargz"), (b"GNUlInUx", "containers")];

/// Where the TOC stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    offset: u64,
    len: u64,
    raw_len: u64,
}

impl Place {
    fn checked(self, kind: u64, size: u64) -> Result<Self, Refusal> {
        if kind != 1 {
            return Err(Refusal::because(format!("its TOC is of type {kind}, not 1")));
        }
        let end = self.offset.checked_add(self.len);
        if end.is_none_or(|end| end > size) || self.len == 0 || self.len > MAX_ANSWER {
            return Err(Refusal::because("its TOC is said to stand where it cannot"));
        }
        if self.raw_len > MAX_TOC as u64 {
            return Err(Refusal::because("its TOC has more than 128 MiB"));
        }
        Ok(self)
    }
}

fn footer(tail: &[u8]) -> Option<([u64; 4], &'static str)> {
    let (_, dialect) = MAGICS.iter().find(|(magic, _)| tail.ends_with(*magic))?;
    let u32_at = |at: usize| Some(u32::from_le_bytes(tail.get(at..at + 4)?.try_into().ok()?));
    let start = FOOTERS.iter().find_map(|&len| {
        let frame = tail.len().checked_sub(len + FRAME_HEAD)?;
        let fits = u32_at(frame)? == SKIPPABLE && u32_at(frame + 4)? as usize == len;
        fits.then_some(frame + FRAME_HEAD)
    })?;
    let mut numbers = [0; 4];
    for (i, number) in numbers.iter_mut().enumerate() {
        *number = u64::from_le_bytes(tail.get(start + 8 * i..start + 8 * i + 8)?.try_into().ok()?);
    }
    Some((numbers, dialect))
}

/// Does a blob that ends so have a TOC?
pub(super) fn has_footer(tail: &[u8]) -> bool {
    footer(tail).is_some()
}

/// The reader of a layer, if it may be one.
pub(super) fn reader(number: usize, layer: &LayerFacts, unpinned: bool) -> Option<Box<dyn Reader>> {
    if !layer.media_type.ends_with("tar+zstd") && !layer.media_type.ends_with("tar.zstd") {
        return None;
    }
    let known =
        PREFIXES.iter().find(|(prefix, _)| layer.annotations.contains_key(&format!("{prefix}{POSITION}")));
    let digest = layer.annotations.contains_key(TOC_DIGEST);
    if known.is_none() && !digest && !unpinned || layer.size < FOOTERS[0] as u64 {
        return None;
    }
    let layer = layer.clone();
    Some(Box::new(ZstdChunked { number, layer, dialect: known.copied(), at: At::Start }))
}

struct ZstdChunked {
    number: usize,
    layer: LayerFacts,
    /// Prefix of its annotations, and name.
    dialect: Option<(&'static str, &'static str)>,
    at: At,
}

#[derive(Clone, Copy)]
enum At {
    Start,
    Footer,
    Toc(Place, &'static str),
}

impl Reader for ZstdChunked {
    fn covers(&self) -> Covers {
        Covers::Layer(self.number)
    }

    fn format(&self) -> &'static str {
        "zstd:chunked"
    }

    fn is_certain(&self) -> bool {
        self.dialect.is_some() || self.pinned() || matches!(self.at, At::Toc(..))
    }

    fn step(&mut self, answers: Vec<Option<Vec<u8>>>) -> Result<Step, Refusal> {
        let came = answers.into_iter().next().flatten();
        let missing = || Refusal::because("its TOC is not there");
        let (size, blob) = (self.layer.size, self.layer.digest);
        match (self.at, self.dialect) {
            (At::Start, Some((prefix, name))) => {
                let place = position(&self.layer.annotations[&format!("{prefix}{POSITION}")], size)?;
                Ok(self.fetch(place, name))
            }
            (At::Start, None) => {
                self.at = At::Footer;
                let tail = size.saturating_sub((FOOTERS[2] + FRAME_HEAD) as u64);
                Ok(Step::Fetch(vec![Want::Range { blob, range: tail..size }]))
            }
            (At::Footer, _) => match footer(&came.ok_or_else(missing)?) {
                None if self.pinned() => {
                    Err(Refusal::because("its manifest says that it has a TOC, but it has no footer"))
                }
                None => Err(Refusal::Other),
                Some(([offset, len, raw_len, kind], name)) => {
                    let place = Place { offset, len, raw_len }.checked(kind, size)?;
                    Ok(self.fetch(place, name))
                }
            },
            (At::Toc(place, name), _) => self.done(&came.ok_or_else(missing)?, place, name),
        }
    }
}

impl ZstdChunked {
    fn fetch(&mut self, place: Place, name: &'static str) -> Step {
        self.at = At::Toc(place, name);
        let range = place.offset..place.offset + place.len;
        Step::Fetch(vec![Want::Range { blob: self.layer.digest, range }])
    }

    fn checksum(&self) -> Option<&String> {
        let (prefix, _) = self.dialect?;
        self.layer.annotations.get(&format!("{prefix}{CHECKSUM}"))
    }

    fn pinned(&self) -> bool {
        self.checksum().is_some() || self.layer.annotations.contains_key(TOC_DIGEST)
    }

    fn done(&self, stored: &[u8], place: Place, name: &str) -> Result<Step, Refusal> {
        let differs = |known: &String, bytes: &[u8]| *known != Digest::of(bytes).to_string();
        if self.checksum().is_some_and(|known| differs(known, stored)) {
            return Err(Refusal::because("its TOC has not the digest that its manifest says"));
        }
        let json = crate::table::decompress(stored, place.raw_len as usize)
            .map_err(|e| Refusal::because(format!("its TOC cannot be decompressed: {e}")))?;
        if self.layer.annotations.get(TOC_DIGEST).is_some_and(|known| differs(known, &json)) {
            return Err(Refusal::because("its TOC has not the digest that its manifest says"));
        }
        let end = place.offset.saturating_sub(FRAME_HEAD as u64);
        let described = toc::describe(&json, &self.layer, ChunkCodec::Zstd, end)?;
        let format = format!("zstd:chunked of {name}, TOC version 1");
        Ok(Step::Done(Found::one(format, self.pinned(), self.covers(), described)))
    }
}

fn position(text: &str, size: u64) -> Result<Place, Refusal> {
    let bad = || {
        Refusal::because(format!(
            "its manifest has {:?} as the place of its TOC",
            text.chars().take(100).collect::<String>()
        ))
    };
    let numbers: Option<Vec<u64>> = text.split(':').map(|n| n.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[offset, len, raw_len, kind]) => Place { offset, len, raw_len }.checked(kind, size),
        _ => Err(bad()),
    }
}
