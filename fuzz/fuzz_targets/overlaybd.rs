//! Any bytes as an overlaybd layer, what it says is read first, as TurboOCI metadata, and as an ext4 device. Errors are fine, panics, endless work
//! and unbounded memory are bugs. Random bytes hardly get past the magic numbers, so a small ext4 is damaged too:
//! three bytes of the input are a place in it and what stands there.
#![no_main]

use hoist_format::digest::Digest;
use hoist_format::ext4;
use hoist_format::overlaybd::{GzipIndex, Image, Step, TurboLayer, describe_turbo, recorded};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let digest = Digest::of(b"");
    overlaybd(bytes);
    let _ = recorded(bytes);
    let _ = describe_turbo(&[TurboLayer { meta: bytes.to_vec(), target: digest, size: 1 << 40 }]);
    if let Ok(index) = GzipIndex::read(bytes.to_vec()) {
        for span in 0..index.spans.len() {
            let _ = (index.window(span), index.stream_range(span), index.blob_range(span));
        }
    }
    let _ = ext4::decode(&mut &bytes[..]);
    let mut device = sample();
    for patch in bytes.chunks_exact(3) {
        let at = 1024 + usize::from(u16::from_le_bytes([patch[0], patch[1]]));
        if let Some(byte) = device.get_mut(at) {
            *byte = patch[2];
        }
    }
    let _ = ext4::decode(&mut &device[..]);
});

fn overlaybd(bytes: &[u8]) {
    let Ok(mut image) = Image::new(vec![(Digest::of(b""), bytes.len() as u64)]) else { return };
    for _ in 0..64 {
        match image.step() {
            Ok(Step::Fetch(ranges)) => {
                for (layer, range) in ranges {
                    image.put(layer, range.start, bytes[range.start as usize..range.end as usize].to_vec());
                }
            }
            Ok(Step::Done(_)) | Err(_) => return,
        }
    }
    panic!("it asks without end");
}

/// 32 blocks of 1 KiB: superblock, descriptors, a table of 16 inodes (2: the root, 11: a file, 12: a link), the root's
/// block.
fn sample() -> Vec<u8> {
    let mut device = vec![0; 32 << 10];
    let mut put = |at: usize, bytes: &[u8]| device[at..at + bytes.len()].copy_from_slice(bytes);
    let sb = 1024;
    for (at, value) in [(0, 16u32), (4, 32), (0x14, 1), (0x20, 8192), (0x28, 16), (0x4C, 1), (0x60, 0x42), (0x64, 0)] {
        put(sb + at, &value.to_le_bytes());
    }
    put(sb + 0x38, &0xEF53u16.to_le_bytes());
    put(sb + 0x58, &256u16.to_le_bytes());
    put(2048 + 8, &4u32.to_le_bytes());
    let inode = |number: usize| 4096 + (number - 1) * 256;
    for (number, mode, size, block) in [(2, 0o040_755u16, 1024u32, 10u32), (11, 0o100_644, 5000, 12), (12, 0o120_777, 3, 0)] {
        let at = inode(number);
        put(at, &mode.to_le_bytes());
        put(at + 4, &size.to_le_bytes());
        put(at + 0x1A, &1u16.to_le_bytes());
        if block > 0 {
            put(at + 0x20, &0x8_0000u32.to_le_bytes());
            put(at + 0x28, &[0x0A, 0xF3, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]);
            put(at + 0x28 + 20, &block.to_le_bytes());
        } else {
            put(at + 0x28, b"abc");
        }
    }
    let mut at = 10 << 10;
    for (inode, len, name) in [(2u32, 12u16, &b"."[..]), (2, 12, b".."), (11, 12, b"file"), (12, 988, b"link")] {
        put(at, &inode.to_le_bytes());
        put(at + 4, &len.to_le_bytes());
        put(at + 6, &[name.len() as u8, 0]);
        put(at + 8, name);
        at += usize::from(len);
    }
    device
}
