//! TurboOCI metadata that is damaged: errors are fine, panics, endless work and unbounded memory are bugs, and what is
//! described names no bytes that an original does not have. The metadata of
//! a test image's two layers, made by overlaybd's own tools (`seeds/`; its ZFile is unpacked, so that damage reaches
//! what is in it): five bytes of the input are a place and what stands there.
#![no_main]

#[path = "../../crates/hoist-format/tests/foreign/archive.rs"]
mod archive;

use std::sync::LazyLock;

use archive::tar;
use hoist_format::digest::Digest;
use hoist_format::overlaybd::{GzipIndex, TurboLayer, describe_turbo};
use libfuzzer_sys::fuzz_target;

fn seed(stored: &[u8]) -> Vec<u8> {
    zstd::bulk::decompress(stored, 4 << 20).expect("it is zstd")
}

/// Lower and upper layer, of ext4 and of EROFS.
static BLOCKS: LazyLock<[[Vec<u8>; 2]; 2]> = LazyLock::new(|| {
    [
        [
            seed(include_bytes!("../seeds/turbo-ext4-lower.zst")),
            seed(include_bytes!("../seeds/turbo-ext4-upper.zst")),
        ],
        [
            seed(include_bytes!("../seeds/turbo-erofs-lower.zst")),
            seed(include_bytes!("../seeds/turbo-erofs-upper.zst")),
        ],
    ]
});
static GZIP: LazyLock<Vec<u8>> = LazyLock::new(|| seed(include_bytes!("../seeds/turbo-gzip-meta.zst")));

/// Bytes of each original.
const ORIGINAL: u64 = 64 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((which, patches)) = data.split_first() else { return };
    let (kind, damaged) = (usize::from(which & 1), usize::from(which >> 1 & 3));
    let [mut lower, mut upper] = BLOCKS[kind].clone();
    let mut gzip = GZIP.clone();
    patch([&mut lower, &mut upper, &mut gzip, &mut Vec::new()][damaged], patches);
    if let Ok(index) = GzipIndex::read(gzip.clone()) {
        for span in 0..index.spans.len() {
            let _ = index.window(span);
            assert!(index.stream_range(span).end <= index.stream_size);
            assert!(index.blob_range(span).end <= index.blob_size);
        }
    }
    let name = ["ext4.fs.meta", "erofs.fs.meta"][kind];
    let layer = |files: &[(&str, &[u8])], of: &[u8]| TurboLayer {
        meta: tar(files),
        target: Digest::of(of),
        size: ORIGINAL,
    };
    let lower = layer(&[(name, &lower)], b"lower");
    let upper = match which & 8 {
        0 => layer(&[(name, &upper), ("gzip.meta", &gzip)], b"upper"),
        _ => layer(&[(name, &upper)], b"upper"),
    };
    let Ok(described) = describe_turbo(&[lower, upper]) else { return };
    let Some(chunks) = described.table.spans.chunks() else { return };
    for i in 0..chunks.chunks.len() {
        assert!(chunks.stored_range(i).end <= ORIGINAL);
    }
});

fn patch(bytes: &mut [u8], patches: &[u8]) {
    for patch in patches.chunks_exact(5) {
        let at = u32::from_le_bytes([patch[0], patch[1], patch[2], 0]) as usize;
        if let Some(two) = bytes.get_mut(at..at + 2) {
            two.copy_from_slice(&patch[3..]);
        }
    }
}
