//! Any bytes, cut anywhere, are an error or a layer whose table describes the stream: errors are
//! fine, panics are bugs, and how the bytes are cut must not show.
#![no_main]

use hoist_format::layer::{Discard, Layer, LayerBuilder, LayerError};
use libfuzzer_sys::fuzz_target;

fn decode(data: &[u8], step: usize) -> Result<Layer, LayerError> {
    let mut builder = LayerBuilder::new();
    for part in data.chunks(step) {
        builder.feed(part, &mut Discard)?;
    }
    builder.finish()
}

fuzz_target!(|data: &[u8]| {
    let whole = decode(data, usize::MAX);
    let parts = decode(data, 131);
    assert_eq!(whole.is_ok(), parts.is_ok());
    let (Ok(whole), Ok(parts)) = (whole, parts) else { return };
    assert_eq!(whole, parts);
    assert_eq!(whole.stream_size, data.len() as u64);
    for piece in &whole.extents.pieces {
        assert!(piece.stream_offset + piece.len <= whole.stream_size);
        assert!(piece.data_offset + piece.len <= whole.extents.data_size);
    }
    let _ = hoist_format::merge::merge(&[&whole.tree, &parts.tree]);
});
