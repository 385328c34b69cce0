//! A layer that is an EROFS image with compressed clusters, damaged (`seeds/`: the upper layer of a test image, made by
//! mkfs.erofs as containerd does): errors are fine, panics are bugs. What is read goes inside the data file, and its table
//! reads the same when it was stored. Five bytes of the input are a place and what stands there.
#![no_main]

use std::sync::LazyLock;

use hoist_format::digest::Digest;
use hoist_format::formats::ImageLayer;
use hoist_format::layer::DataSink;
use hoist_format::span::Codec;
use hoist_format::table::Table;
use libfuzzer_sys::fuzz_target;

static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    zstd::bulk::decompress(include_bytes!("../seeds/erofs-lz4hc.zst"), 1 << 20).expect("it is zstd")
});

/// Where the last byte goes.
struct End(u64);

impl DataSink for End {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0 = self.0.max(offset + bytes.len() as u64);
        // An image of 32 KiB may say that a file has terabytes of zeros: enough is enough.
        if self.0 > 256 << 20 { Err(std::io::Error::other("it is full")) } else { Ok(()) }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((which, patches)) = data.split_first() else { return };
    let mut image = IMAGE.clone();
    for patch in patches.chunks_exact(5) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]])) + usize::from(patch[2]);
        if let Some(two) = image.get_mut(at..at + 2) {
            two.copy_from_slice(&patch[3..]);
        }
    }
    // Most inputs would end at the checksum.
    image[1024 + 8] &= !1;
    let codec = if which & 1 == 0 { Codec::Plain } else { Codec::Zstd };
    let digest = Digest::of(&image);
    let blob = (Digest::of(b"blob"), image.len() as u64);
    let mut end = End(0);
    let Ok(described) = (ImageLayer { image: &image, digest, codec, blob }).read(&mut end) else { return };
    assert!(end.0 <= described.table.extents.data_size);
    let table = Table::decode(&described.table.encode());
    assert_eq!(table.as_ref().ok(), Some(&described.table));
});
