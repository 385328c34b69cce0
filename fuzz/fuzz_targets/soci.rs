//! Any bytes as what a registry answers to the reader of SOCI: the list of indexes, an index, a zTOC, what is fetched
//! first. Errors are fine, panics are bugs; and whatever a reader describes reads the same when its table was stored,
//! and decodes or fails. Random bytes hardly make a flatbuffer, so a real zTOC (`seeds/`, made by soci 0.15.0 of the
//! upper layer of a test image) is damaged too: four bytes of the input are a place and what stands there.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use hoist_format::build::Described;
use hoist_format::codec::{CodecError, StreamDecoder, decode_chunk};
use hoist_format::digest::Digest;
use hoist_format::formats::{ImageFacts, LayerFacts, Step, Want, readers};
use hoist_format::span::Codec;
use hoist_format::table::Table;
use libfuzzer_sys::fuzz_target;

static LAYER: &[u8] = include_bytes!("../seeds/soci-layer.gz");
static ZTOC: LazyLock<Vec<u8>> = LazyLock::new(|| {
    zstd::bulk::decompress(include_bytes!("../seeds/soci-ztoc.zst"), 1 << 20).expect("it is zstd")
});

/// The layer as it is without compression, and a zTOC of that.
static TAR: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut tar = Vec::new();
    let mut decoder = StreamDecoder::with_limit(Codec::Gzip, false, 1 << 20).expect("it is gzip");
    let fed = decoder.feed::<CodecError>(LAYER, &mut |bytes| {
        tar.extend_from_slice(bytes);
        Ok(())
    });
    fed.expect("it is gzip");
    tar
});
static PLAIN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    zstd::bulk::decompress(include_bytes!("../seeds/soci-plain.zst"), 1 << 20).expect("it is zstd")
});

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 5 {
        // The documents.
        0 => drive(LAYER, [data, data, data, data], true),
        1 => drive(LAYER, [data, data, data, data], false),
        2 => drive(LAYER, [b"", &index(LAYER), data, data], true),
        3 => drive(LAYER, [b"", &index(LAYER), &damaged(&ZTOC, data), data], true),
        _ => drive(&TAR, [b"", &index(&TAR), &damaged(&PLAIN, data), data], true),
    }
});

fn damaged(ztoc: &[u8], patches: &[u8]) -> Vec<u8> {
    let mut ztoc = ztoc.to_vec();
    for patch in patches.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]]));
        if let Some(two) = ztoc.get_mut(at..at + 2) {
            two.copy_from_slice(&patch[2..]);
        }
    }
    ztoc
}

/// An index with a zTOC of the layer, and with what is fetched first.
fn index(layer: &[u8]) -> Vec<u8> {
    let layer = serde_json::json!({ "com.amazon.soci.image-layer-digest": Digest::of(layer) });
    let part = |kind: &str| serde_json::json!({ "mediaType": kind, "digest": Digest::of(b""), "size": 9, "annotations": layer });
    let index = serde_json::json!({
        "config": { "mediaType": "application/vnd.amazon.soci.index.v2+json", "digest": Digest::of(b"") },
        "layers": [part("application/octet-stream"), part("application/vnd.amazon.soci.prefetch.v1+json")],
    });
    index.to_string().into_bytes()
}

/// `answers`: the list, the index, a zTOC, what is fetched first.
fn drive(blob: &[u8], answers: [&[u8]; 4], named: bool) {
    let compression = if blob.starts_with(&[0x1f, 0x8b]) { "+gzip" } else { "" };
    let layer = LayerFacts {
        media_type: format!("application/vnd.oci.image.layer.v1.tar{compression}"),
        digest: Digest::of(blob),
        size: blob.len() as u64,
        annotations: BTreeMap::new(),
    };
    let pair = ("com.amazon.soci.index-digest".to_owned(), Digest::of(b"index").to_string());
    let annotations = named.then_some(pair).into_iter().collect();
    let image =
        ImageFacts { digest: Digest::of(b"image"), annotations, layers: vec![layer], unpinned: !named };
    let mut reader = readers(&image).pop().expect("one of SOCI");
    let mut given = Vec::new();
    loop {
        let wants = match reader.step(given) {
            Err(_) => return,
            Ok(Step::Done(found)) => {
                return found.parts.iter().for_each(|(_, described)| check(blob, described));
            }
            Ok(Step::Fetch(wants)) => wants,
        };
        let answer = |(number, want): (usize, &Want)| match want {
            Want::Referrers(_) => Some(answers[0].to_vec()),
            Want::Manifest(_) => Some(answers[1].to_vec()),
            _ => Some(answers[2 + number % 2].to_vec()),
        };
        given = wants.iter().enumerate().map(answer).collect();
    }
}

fn check(blob: &[u8], described: &Described) {
    let table = Table::decode(&described.table.encode());
    assert_eq!(table.as_ref().ok(), Some(&described.table));
    let size = described.table.extents.data_size;
    assert!(described.prefetch.iter().all(|range| range.start < range.end && range.end <= size));
    let Some(chunks) = described.table.spans.chunks() else { return };
    for i in 0..chunks.chunks.len() {
        let stored = chunks.stored_range(i);
        let state = chunks.state(i).map(|s| &described.windows[s.offset as usize..][..s.len as usize]);
        let _ = decode_chunk(chunks, i, &blob[stored.start as usize..stored.end as usize], state);
    }
}
