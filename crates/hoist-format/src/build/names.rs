//! Names for extents whose digest nobody knows yet: of what they are cut from. Extents of one name have the same
//! bytes, so that what one layer has fetched need not be fetched for another.

use crate::chunk::{ChunkTable, ContentDigest};
use crate::extent::{ExtentTable, Piece};

/// Gives every extent its name; zero where its bytes have no cryptographic digest.
pub(crate) fn name_extents(extents: &mut ExtentTable, table: &ChunkTable) {
    let mut chunk = 0;
    for i in 0..extents.extents.len() {
        let start = extents.extents[i].data_offset;
        let mut hasher = blake3::Hasher::new_derive_key("hoist 2026 name of an extent by its parts");
        let mut named = true;
        for piece in extents.pieces_of(i) {
            while table.chunks.get(chunk + 1).is_some_and(|c| c.stream_offset <= piece.stream_offset) {
                chunk += 1;
            }
            hasher.update(&(piece.data_offset - start).to_le_bytes());
            named &= name_piece(&mut hasher, piece, chunk, table);
        }
        extents.extents[i].digest = if named { hasher.finalize().into() } else { [0; 32] };
    }
}

/// A piece may go on in the chunks that follow.
fn name_piece(hasher: &mut blake3::Hasher, piece: &Piece, mut chunk: usize, table: &ChunkTable) -> bool {
    let (mut at, end) = (piece.stream_offset, piece.stream_offset + piece.len);
    while at < end && chunk < table.chunks.len() {
        let output = table.stream_range(chunk);
        let (offset, len) = (at - output.start, end.min(output.end) - at);
        let mut number = |n: u64| {
            hasher.update(&n.to_le_bytes());
        };
        let has =
            table.parts_of(chunk).iter().find(|p| p.offset <= offset && offset + len <= p.offset + p.len);
        match (has, table.stored_digest(chunk)) {
            (Some(part), _) => {
                number(match part.digest {
                    ContentDigest::Sha256(_) => 0,
                    ContentDigest::Blake3(_) => 1,
                });
                [part.len, offset - part.offset, len].into_iter().for_each(number);
                hasher.update(part.digest.bytes());
            }
            // What it decodes to depends on its state too, where it has one.
            (None, Some(digest)) if table.chunks[chunk].state.is_none() => {
                number(2 + u64::from(table.chunks[chunk].codec.number()) * 16);
                [offset, len].into_iter().for_each(number);
                hasher.update(digest);
            }
            _ => return false,
        }
        (at, chunk) = (at + len, chunk + 1);
    }
    true
}
