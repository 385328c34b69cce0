//! SOCI: zTOCs of plain layers.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use hoist_format::build::Described;
use hoist_format::chunk::{Blob, ChunkCodec};
use hoist_format::codec::decode_chunk;
use hoist_format::digest::Digest;
use hoist_format::merge::merge;
use hoist_format::soci::{SociError, describe, is_plain_header};
use hoist_format::span::Codec;
use hoist_format::tree::Tree;
use serde_json::Value;

use crate::fixture::data_file;
use crate::unpacked::{Allowed, blob, compare, fixtures, layers};

/// Each layer's blob and zTOC, lowest first.
fn fixture(image: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let all = std::fs::read_dir(fixtures().join(image).join("blobs/sha256")).unwrap();
    let index = all.filter_map(|file| {
        let json: Value = serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).ok()?;
        json["config"]["mediaType"].as_str()?.contains("soci.index").then_some(json)
    });
    let index: Vec<Value> = index.collect();
    let ztoc = |digest: &Value| {
        let all = index[0]["layers"].as_array().unwrap().iter();
        let found = all.filter(|l| &l["annotations"]["com.amazon.soci.image-layer-digest"] == digest);
        let mut found = found.filter(|l| l["mediaType"] == "application/octet-stream");
        blob(image, found.next().unwrap()["digest"].as_str().unwrap())
    };
    layers(image).into_iter().map(|(layer, bytes)| (bytes, ztoc(&layer["digest"]))).collect()
}

fn told_as(codec: Codec, layer: &[u8], ztoc: &[u8]) -> Result<Described, SociError> {
    let blob = Blob { digest: Digest::of(layer), size: layer.len() as u64 };
    describe(ztoc, blob, codec, &[]).map(|told| told.described)
}

fn told(layer: &[u8], ztoc: &[u8]) -> Result<Described, SociError> {
    let codec = if layer.starts_with(b"\x1f\x8b") { Codec::Gzip } else { Codec::Plain };
    told_as(codec, layer, ztoc)
}

fn assert_expected(all: &[(Vec<u8>, Vec<u8>)]) {
    let described: Vec<_> = all.iter().map(|(layer, ztoc)| told(layer, ztoc).unwrap()).collect();
    let blobs: HashMap<Digest, Vec<u8>> =
        all.iter().map(|(layer, _)| (Digest::of(layer), layer.clone())).collect();
    let data: Vec<Vec<u8>> = described.iter().map(|d| data_file(d, &blobs)).collect();
    let trees: Vec<&Tree> = described.iter().map(|d| &d.tree).collect();
    compare(&merge(&trees).unwrap(), &Allowed::default(), |_, place, size| {
        data[usize::from(place.layer)][place.offset as usize..(place.offset + size) as usize].to_vec()
    });
}

#[test]
fn ztocs_of_both_versions_are_what_containerd_unpacks() {
    for image in ["soci-v1", "soci-v2"] {
        assert_expected(&fixture(image));
    }
}

/// Every span that is used has the digest of its stored bytes, and none of it is given out if they differ.
#[test]
fn spans_are_held_to_their_digests() {
    let (layer, ztoc) = fixture("soci-v1").swap_remove(0);
    let described = told(&layer, &ztoc).unwrap();
    let table = described.table.spans.chunks().unwrap();
    assert!(table.chunks.len() > 10);
    let mut with_bits = 0;
    for i in 0..table.chunks.len() {
        assert!(table.stored_digest(i).is_some());
        let stored = table.stored_range(i);
        let mut bytes = layer[stored.start as usize..stored.end as usize].to_vec();
        let state = table.state(i).map(|s| &described.windows[s.offset as usize..][..s.len as usize]);
        assert!(decode_chunk(table, i, &bytes, state).is_ok());
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        assert!(decode_chunk(table, i, &bytes, state).is_err());
        with_bits += usize::from(table.chunks[i].bits > 0);
    }
    assert!(with_bits > 0);
}

fn patch(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let at: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(from)).collect();
    assert_eq!(at.len(), 1, "{from:?}");
    bytes[at[0]..at[0] + to.len()].copy_from_slice(to);
}

/// As the first version of checkpoints was: without the one at the start.
fn without_first(ztoc: &[u8]) -> Vec<u8> {
    const CHECKPOINT: usize = 17 + (32 << 10);
    let start = [&(1u64 << 20).to_le_bytes()[..], &10u64.to_le_bytes(), &0u64.to_le_bytes()].concat();
    let first = ztoc.windows(24).position(|w| w == start).unwrap() + 8;
    let mut ztoc = ztoc.to_vec();
    let count = u32::from_le_bytes(ztoc[first - 12..first - 8].try_into().unwrap()) as usize;
    ztoc.copy_within(first + CHECKPOINT..first + count * CHECKPOINT, first);
    let len = (12 + (count - 1) * CHECKPOINT) as u32;
    ztoc[first - 16..first - 12].copy_from_slice(&len.to_le_bytes());
    ztoc
}

#[test]
fn checkpoints_of_the_first_version() {
    let all = fixture("soci-v2");
    let all: Vec<_> = all.into_iter().map(|(layer, ztoc)| (layer, without_first(&ztoc))).collect();
    assert_expected(&all);
}

#[test]
fn headers_that_the_first_version_knows() {
    let plain = [0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 0, 3];
    assert!(is_plain_header(&plain) && is_plain_header(&[&plain[..], b"more"].concat()));
    assert!(!is_plain_header(&plain[..9]) && !is_plain_header(b""));
    for (at, byte, is_plain) in [(0, 0x1e, false), (2, 9, false), (3, 1, true), (3, 2, false), (3, 8, false)]
    {
        let mut header = plain;
        header[at] = byte;
        assert_eq!(is_plain_header(&header), is_plain, "{header:?}");
    }
}

/// The zTOC of the upper layer, as one of its uncompressed tar.
fn of_plain(tar: &[u8], ztoc: &[u8]) -> Vec<u8> {
    let mut ztoc = ztoc.to_vec();
    ztoc[40..48].copy_from_slice(&(tar.len() as u64).to_le_bytes());
    let text = ztoc.windows(7).position(|w| w == b"sha256:").unwrap();
    ztoc[text..text + 71].copy_from_slice(Digest::of(tar).to_string().as_bytes());
    let checkpoints = ztoc.windows(8).position(|w| w == b"\x1d\x80\0\0\x01\0\0\0").unwrap();
    let info = checkpoints - 0x60;
    let put = [&20u32.to_le_bytes()[..], &2u32.to_le_bytes(), &(1u64 << 20).to_le_bytes()].concat();
    ztoc[checkpoints..checkpoints + 16].copy_from_slice(&put);
    ztoc[checkpoints + 16..checkpoints + 24].copy_from_slice(&(tar.len() as u64).to_le_bytes());
    // The algorithm has its default so far: it gets a place where the window was.
    ztoc[checkpoints + 100] = 2;
    ztoc[info - 8..info - 6].copy_from_slice(&(0x60u16 + 100).to_le_bytes());
    ztoc
}

#[test]
fn layers_that_are_not_compressed() {
    let mut all = fixture("soci-v2");
    let tar = layers("tar").swap_remove(1).1;
    all[1] = (tar.clone(), of_plain(&tar, &all[1].1));
    let described = told(&all[1].0, &all[1].1).unwrap();
    let table = described.table.spans.chunks().unwrap();
    assert!(table.chunks.iter().all(|c| c.codec == ChunkCodec::Plain));
    assert_expected(&all);
}

#[test]
fn lies_are_refused() {
    let (layer, ztoc) = fixture("soci-v2").swap_remove(1);
    let refused = |change: &dyn Fn(&mut Vec<u8>), why: &str| {
        let mut lie = ztoc.clone();
        change(&mut lie);
        let refusal = told(&layer, &lie).expect_err(why).to_string();
        assert!(refusal.contains(why), "{refusal}");
    };
    // keepmeta: 5000 bytes at 7168.
    let (size, offset) = (5000u64.to_le_bytes(), 7168u64.to_le_bytes());
    let place = [size, offset].concat();
    let at = |size: u64, offset: u64| [size.to_le_bytes(), offset.to_le_bytes()].concat();
    refused(&|z| patch(z, &place, &at(5000, 17_000)), "beyond the end");
    refused(&|z| patch(z, &place, &at(5000, u64::MAX)), "beyond the end");
    refused(&|z| patch(z, &place, &at(u64::MAX, 7168)), "beyond the end");
    refused(&|z| patch(z, &place, &at(6000, 7168)), "where another one does");
    refused(&|z| patch(z, &place, &at(5000, 0)), "where another one does");
    refused(&|z| patch(z, b"sha256:", b"sha512:"), "no SHA-256");
    // One checkpoint, then two; the last one's offsets.
    let head = b"\x1d\x80\0\0\x01\0\0\0";
    refused(&|z| patch(z, head, b"\x1d\x80\0\0\x02\0\0\0"), "one checkpoint for each span");
    refused(&|z| patch(z, head, b"\x1c\x80\0\0\x01\0\0\0"), "cut off");
    refused(&|z| patch(z, head, b"\xff\xff\xff\xff"), "leads out of it");
    let first = [&(1u64 << 20).to_le_bytes()[..], &10u64.to_le_bytes(), &0u64.to_le_bytes()].concat();
    let input = |n: u64| [&(1u64 << 20).to_le_bytes()[..], &n.to_le_bytes()].concat();
    refused(&|z| patch(z, &first, &input(1296)), "beyond the layer");
    refused(&|z| patch(z, &first, &input(0)), "beyond the layer");
    refused(&|z| patch(z, b"\x03\0\0\x000.9\0", b"\x03\0\0\x001.0\0"), "version");
    refused(&|z| z[40] ^= 1, "of a layer of");
    refused(&|z| z[32..40].fill(0xff), "no table");
    refused(&|z| drop(z.drain(..z.len() - 100)), "cannot be");
    refused(&|z| z.clear(), "leads out of it");
    for codec in [Codec::Plain, Codec::Zstd] {
        let refusal = told_as(codec, &layer, &ztoc).unwrap_err().to_string();
        assert!(refusal.contains("compressed otherwise"), "{refusal}");
    }
    // The zTOC of the other layer.
    let other = fixture("soci-v2").swap_remove(0).1;
    assert!(told(&layer, &other).unwrap_err().to_string().contains("of a layer of"));
}

/// Any byte flipped, any cut: an error or a description, never a panic.
#[test]
fn damage_does_not_panic() {
    let mut all = fixture("soci-v2");
    let (layer, ztoc) = all.swap_remove(1);
    for at in 0..ztoc.len() {
        let mut bad = ztoc.clone();
        for flip in [0x01, 0x80, 0xff] {
            bad[at] = ztoc[at] ^ flip;
            let _ = told(&layer, &bad);
        }
    }
    for cut in (0..ztoc.len()).step_by(7) {
        let _ = told(&layer, &ztoc[..cut]);
    }
    let (layer, ztoc) = all.swap_remove(0);
    for at in (0..ztoc.len()).step_by(40_009) {
        let mut bad = ztoc.clone();
        bad[at] ^= 0x41;
        let _ = told(&layer, &bad);
    }
}

/// Ranges of spans become those of the files' bytes in them, each once, whatever the order.
#[test]
fn what_is_fetched_first() {
    let (layer, ztoc) = fixture("soci-v2").swap_remove(0);
    let blob = Blob { digest: Digest::of(&layer), size: layer.len() as u64 };
    let first = |ranges: &[RangeInclusive<u64>]| {
        let described = describe(&ztoc, blob, Codec::Gzip, ranges).unwrap().described;
        let bytes: u64 = described.prefetch.iter().map(|r| r.end - r.start).sum();
        (bytes, described.prefetch, described.table.extents.data_size)
    };
    assert_eq!(first(&[]).0, 0);
    let (one, _, _) = first(&[3..=3]);
    // Some of a span is headers.
    assert!((1_500_000..5_428_161 - 3_818_346).contains(&one), "{one}");
    let (some, ranges, _) = first(&[3..=9]);
    assert!(some > 4 * one && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
    #[expect(clippy::reversed_empty_ranges, reason = "anybody may write one")]
    let same = first(&[7..=9, 9..=3, 3..=7, 4..=4, 1 << 40..=1 << 41]);
    assert_eq!((same.0, same.1), (some, ranges));
    let (all, _, size) = first(&[0..=u64::MAX]);
    assert!(all <= size && all > size / 2, "{all} of {size}");
}
