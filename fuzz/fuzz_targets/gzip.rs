//! Any bytes as a gzip blob: `codec.rs` tells what must hold. For the deflate data and not only the
//! headers to be reached, the bytes are tried behind a header too.
#![no_main]

mod codec;

use hoist_format::span::Codec;
use libfuzzer_sys::fuzz_target;

const HEADER: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

fuzz_target!(|data: &[u8]| {
    codec::whole(Codec::Gzip, data);
    codec::whole(Codec::Gzip, &[HEADER, data].concat());
    codec::span(Codec::Gzip, data);
});
