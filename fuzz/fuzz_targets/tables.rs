//! Any bytes as a table: errors are fine, panics are bugs, and of a table that was decoded all
//! lookups work, stay inside what it says it describes, and it reads the same when written again.
#![no_main]

use hoist_format::span::Spans;
use hoist_format::table::Table;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(data);
    // Hardly any bytes are a zstd frame; these always are.
    check(&zstd::bulk::compress(data, 1).expect("compressing to memory does not fail"));
});

fn check(stored: &[u8]) {
    let Ok(table) = Table::decode(stored) else { return };
    assert_eq!(Table::decode(&table.encode()).as_ref().ok(), Some(&table));
    let Table { extents, spans } = &table;
    for (i, extent) in extents.extents.iter().enumerate() {
        let pieces = extents.pieces_of(i);
        assert!(!pieces.is_empty());
        let range = extents.stream_range(i);
        assert!(range.start < range.end && range.end <= spans.stream_size());
        let end = extent.data_offset + extent.len;
        assert!(end <= extents.data_size);
        assert!(extents.touching(extent.data_offset, end).contains(&i));
        for piece in pieces {
            assert!(piece.data_offset >= extent.data_offset && piece.data_offset + piece.len <= end);
        }
        assert!(spans.containing(range.end - 1) < spans.len());
    }
    assert!(extents.extents.windows(2).all(|e| e[0].data_offset + e[0].len <= e[1].data_offset));
    for i in 0..spans.len() {
        let (stream, blob) = (spans.stream_range(i), spans.blob_range(i));
        assert!(stream.start <= stream.end && stream.end <= spans.stream_size());
        assert!(i > 0 || stream.start == 0);
        let size = match spans {
            Spans::Linear(spans) => spans.blob_size,
            Spans::Chunks(table) => table.blobs[usize::from(table.chunks[i].blob)].size,
        };
        assert!(blob.start <= blob.end && blob.end <= size);
        spans.is_followed(i);
        if let Spans::Chunks(table) = spans {
            let output = stream.end - stream.start;
            assert!(table.parts_of(i).iter().all(|p| p.len > 0 && p.offset + p.len <= output));
        }
    }
}
