//! Images of the fixtures, taken apart, and a slow reader of what was decoded.

use std::collections::BTreeMap;
use std::fs;

use hoist_format::codec::{CodecError, SpanDecoder, StreamDecoder};
use hoist_format::digest::Digest;
use hoist_format::rafs::{Beside, Blob, Digester, Package, Piece, Rafs, UnitCodec};
use hoist_format::span::{Codec, Span, SpanTable};
use serde_json::Value;
use sha2::Digest as _;

use crate::unpacked::fixtures;

pub struct Image {
    name: &'static str,
    /// The bootstrap's layer, decompressed.
    pub layer: Vec<u8>,
}

impl Image {
    pub fn open(name: &'static str) -> Self {
        let mut image = Self { name, layer: Vec::new() };
        let index = fs::read(fixtures().join(name).join("index.json")).unwrap();
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let digest = |v: &Value| v["digest"].as_str().unwrap().parse::<Digest>().unwrap();
        let manifest = json(&image.blob(&digest(&json(&index)["manifests"][0])));
        let layer = manifest["layers"].as_array().unwrap().last().unwrap();
        assert_eq!(layer["annotations"]["containerd.io/snapshot/nydus-bootstrap"], "true");
        image.layer = gunzip(&image.blob(&digest(layer)));
        image
    }

    pub fn blob(&self, digest: &Digest) -> Vec<u8> {
        fs::read(fixtures().join(self.name).join("blobs/sha256").join(digest.hex())).unwrap()
    }

    pub fn decode(&self) -> Rafs {
        let package = Package::read(&self.layer).unwrap();
        let bootstrap = package.bootstrap().unwrap();
        let beside = package.contexts(&bootstrap).unwrap();
        bootstrap.decode(&beside).unwrap()
    }

    /// The bootstrap, and what is known beside it.
    pub fn parts(&self) -> (Vec<u8>, BTreeMap<u32, Beside>) {
        let package = Package::read(&self.layer).unwrap();
        let bootstrap = package.bootstrap().unwrap();
        (bootstrap.bytes().to_vec(), package.contexts(&bootstrap).unwrap())
    }
}

pub fn gunzip(stored: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut decoder = StreamDecoder::new(Codec::Gzip, false).unwrap();
    decoder
        .feed::<CodecError>(stored, &mut |bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    decoder.finish().unwrap();
    out
}

/// Decodes units from whole blobs, each once, and verifies every piece.
pub struct Reader<'a> {
    rafs: &'a Rafs,
    blobs: Vec<Vec<u8>>,
    units: BTreeMap<u32, Vec<u8>>,
    pub verified: usize,
}

impl<'a> Reader<'a> {
    pub fn new(rafs: &'a Rafs, blob: impl Fn(&Blob) -> Vec<u8>) -> Self {
        Self { rafs, blobs: rafs.blobs.iter().map(blob).collect(), units: BTreeMap::new(), verified: 0 }
    }

    pub fn piece(&mut self, index: u32) -> &[u8] {
        let Piece { unit, offset, len, digest } = self.rafs.pieces[index as usize];
        let raw = self.units.entry(unit).or_insert_with(|| decode(self.rafs, unit, &self.blobs));
        let bytes = &raw[offset as usize..][..len as usize];
        let found: [u8; 32] = match self.rafs.digester {
            Digester::Blake3 => *blake3::hash(bytes).as_bytes(),
            Digester::Sha256 => sha2::Sha256::digest(bytes).into(),
        };
        assert_eq!(found, digest, "piece {index}");
        self.verified += 1;
        bytes
    }

    pub fn file(&mut self, runs: &[hoist_format::rafs::Run]) -> Vec<u8> {
        let mut all = Vec::new();
        for run in runs {
            match run.piece {
                Some(piece) => all.extend_from_slice(&self.piece(piece)[..run.len as usize]),
                None => all.resize(all.len() + run.len as usize, 0),
            }
        }
        all
    }
}

fn decode(rafs: &Rafs, unit: u32, blobs: &[Vec<u8>]) -> Vec<u8> {
    let unit = &rafs.units[unit as usize];
    let blob = &blobs[unit.blob as usize];
    let stored = &blob[unit.stored.start as usize..unit.stored.end as usize];
    let len = unit.raw_len as usize;
    let raw = match &unit.codec {
        UnitCodec::Plain => stored.to_vec(),
        UnitCodec::Lz4Block => lz4_flex::block::decompress(stored, len).unwrap(),
        UnitCodec::Zstd => zstd::bulk::decompress(stored, len).unwrap(),
        UnitCodec::Gzip => gunzip(stored),
        UnitCodec::Deflate { bits, window } => {
            inflate(blob, unit, *bits, &rafs.windows[window.start as usize..window.end as usize])
        }
    };
    assert!(raw.len() >= len);
    raw
}

/// By hoist's own decoder, which other tests judge by gzip.
fn inflate(blob: &[u8], unit: &hoist_format::rafs::Unit, bits: u8, window: &[u8]) -> Vec<u8> {
    let stored = if window.is_empty() { Vec::new() } else { zstd::bulk::compress(window, 1).unwrap() };
    let span = Span {
        blob_offset: unit.stored.start,
        bits,
        raw: true,
        window_len: stored.len() as u32,
        window_digest: *blake3::hash(&stored).as_bytes(),
        ..Span::default()
    };
    let table = SpanTable {
        codec: Codec::Gzip,
        blob_size: blob.len() as u64,
        stream_size: 1 << 30,
        spans: vec![span],
    };
    let mut decoder = SpanDecoder::new(&table, 0, Some(&stored)).unwrap();
    let from = unit.stored.start - u64::from(bits > 0);
    let mut raw = Vec::new();
    decoder
        .feed::<CodecError>(&blob[from as usize..unit.stored.end as usize], &mut |bytes| {
            raw.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    raw
}
