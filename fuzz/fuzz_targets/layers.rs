//! Any bytes as two layers of an image: errors are fine, panics are bugs. What two layers merge to has no whiteouts,
//! is written as EROFS and reads the same again, and so is each layer by itself. Tar headers have checksums and numbers in
//! octal, which hardly any bytes are, so the bytes say which entries to make: a path of few names each, that they meet.
#![no_main]

use hoist_format::erofs::{Device, decode, encode};
use hoist_format::layer::{Discard, Layer, LayerBuilder};
use hoist_format::merge::merge;
use hoist_format::tree::{Kind, Tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (low, high) = data.split_at(data.len() / 2);
    let layers: Vec<Layer> = [low, high, data].iter().filter_map(|part| layer(part)).collect();
    for layer in &layers {
        again(&layer.tree, &[layer]);
    }
    let trees: Vec<&Tree> = layers.iter().map(|layer| &layer.tree).collect();
    let Ok(merged) = merge(&trees) else { return };
    let flags = |i: &hoist_format::tree::Inode| i.implied || i.opaque;
    assert!(!merged.inodes.iter().any(|i| matches!(i.kind, Kind::Whiteout) || flags(i)));
    again(&merged, &layers.iter().collect::<Vec<_>>());
});

/// Written, read, and written again: the same bytes.
fn again(tree: &Tree, layers: &[&Layer]) {
    let device = |layer: &&Layer| Device { tag: "layer".into(), size: layer.extents.data_size };
    let devices: Vec<_> = layers.iter().map(device).collect();
    let image = encode(tree, &devices).expect("what a layer may hold can be written");
    let read = decode(&image).expect("it was just written");
    assert_eq!(encode(&read, &devices).as_ref(), Ok(&image));
}

fn layer(data: &[u8]) -> Option<Layer> {
    let mut builder = LayerBuilder::new();
    for entry in data.chunks_exact(4) {
        builder.feed(&header(entry), &mut Discard).ok()?;
    }
    builder.finish().ok()
}

const KINDS: &[u8] = b"0125346";
const NAMES: [&str; 8] = ["a", "b", "c", "..", ".wh.a", ".wh.b", ".wh..wh..opq", "dd"];

/// Two names for the path, two for where a link leads.
fn names(byte: u8) -> String {
    [byte & 7, byte >> 3 & 7].map(|n| NAMES[usize::from(n)]).join("/")
}

/// A header, and a block of data where there is one.
fn header(entry: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    let kind = KINDS[usize::from(entry[0]) % KINDS.len()];
    let size = if kind == b'0' { usize::from(entry[3]) } else { 0 };
    let path = names(entry[1]);
    put(0, if entry[0] & 0x80 == 0 { &path } else { path.split_once('/').map_or("x", |(name, _)| name) });
    put(100, &format!("{:07o}", entry[3]));
    put(108, &format!("{:07o}", entry[0]));
    put(116, &format!("{:07o}", entry[2]));
    put(124, &format!("{size:011o}"));
    put(136, &format!("{:011o}", entry[1]));
    put(148, "        ");
    put(157, &names(entry[2]));
    put(257, "ustar\x0000");
    put(329, "0000001");
    put(337, &format!("{:07o}", entry[3]));
    block[156] = kind;
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.resize(512 + size.next_multiple_of(512), entry[3]);
    block
}
