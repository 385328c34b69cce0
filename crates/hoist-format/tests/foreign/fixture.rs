//! The data file that a description leads to.

use std::collections::HashMap;

use hoist_format::build::Described;
use hoist_format::codec::decode_chunk;
use hoist_format::digest::Digest;

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
