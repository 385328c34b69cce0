//! An image of the fixtures, and the data file that a description of it leads to.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use hoist_format::build::Described;
use hoist_format::codec::decode_chunk;
use hoist_format::digest::Digest;
use serde_json::Value;

pub fn fixtures() -> PathBuf {
    std::env::var_os("HOIST_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
        PathBuf::from,
    )
}

pub fn blob(image: &str, digest: &str) -> Vec<u8> {
    fs::read(fixtures().join(image).join("blobs/sha256").join(digest.trim_start_matches("sha256:"))).unwrap()
}

/// The layers of an image's manifest, lowest first: descriptor and bytes.
pub fn layers(image: &str) -> Vec<(Value, Vec<u8>)> {
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let mut manifest = json(&fs::read(fixtures().join(image).join("index.json")).unwrap());
    while let Some(first) = manifest["manifests"][0]["digest"].as_str() {
        manifest = json(&blob(image, first));
    }
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|l| (l.clone(), blob(image, l["digest"].as_str().unwrap()))).collect()
}

/// The data file, filled from blobs by digest.
pub fn data_file(described: &Described, blobs: &HashMap<Digest, Vec<u8>>) -> Vec<u8> {
    let table = described.table.spans.chunks().expect("chunks");
    let decode = |i: usize| {
        let stored = table.stored_range(i);
        let blob = &blobs[&table.blobs[usize::from(table.chunks[i].blob)].digest];
        let state = table.state(i).map(|s| &described.windows[s.offset as usize..][..s.len as usize]);
        decode_chunk(table, i, &blob[stored.start as usize..stored.end as usize], state).unwrap().into_owned()
    };
    let mut data = vec![0; described.table.extents.data_size as usize];
    let mut held = (usize::MAX, Vec::new());
    for piece in &described.table.extents.pieces {
        let mut at = 0;
        while at < piece.len {
            let chunk = table.containing(piece.stream_offset + at);
            if held.0 != chunk {
                held = (chunk, decode(chunk));
            }
            let output = table.stream_range(chunk);
            let from = piece.stream_offset + at - output.start;
            let n = (output.end - output.start - from).min(piece.len - at);
            let to = (piece.data_offset + at) as usize;
            data[to..to + n as usize].copy_from_slice(&held.1[from as usize..(from + n) as usize]);
            at += n;
        }
    }
    data
}
