//! Any bytes as an EROFS image: errors are fine, panics are bugs, and a tree that was read and can
//! be written reads the same again.
#![no_main]

use hoist_format::erofs::{Image, decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Most inputs would end at the checksum.
    let mut image = bytes.to_vec();
    if let Some(compat) = image.get_mut(1024 + 8) {
        *compat &= !1;
    }
    let Ok(tree) = decode(&image) else { return };
    let devices = Image::new(&image).expect("it was just decoded").devices().to_vec();
    if let Ok(again) = encode(&tree, &devices) {
        assert_eq!(decode(&again).as_ref(), Ok(&tree));
    }
});
