//! Any bytes as a zstd blob: `codec.rs` tells what must hold. Hardly any bytes are a frame; a
//! damaged frame comes closer.
#![no_main]

mod codec;

use hoist_format::span::Codec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    codec::whole(Codec::Zstd, data);
    codec::span(Codec::Zstd, data);
    let Some((&[low, high, change], data)) = data.split_first_chunk() else { return };
    let mut blob = zstd::bulk::compress(data, 1).expect("compressing to memory does not fail");
    let at = usize::from(u16::from_le_bytes([low, high])) % blob.len();
    blob[at] ^= change;
    blob.extend_from_within(..);
    codec::whole(Codec::Zstd, &blob);
});
