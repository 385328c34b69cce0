//! The fixture's plain tar layers, decoded and merged, against containerd's own unpack of them.

#[path = "unpacked/mod.rs"]
mod unpacked;

use std::io;

use hoist_format::layer::{DataSink, Layer, LayerBuilder};
use hoist_format::merge::merge;
use hoist_format::tree::{FileData, Tree};

use unpacked::{Allowed, compare, layers};

#[derive(Default)]
struct Mem(Vec<u8>);

impl DataSink for Mem {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset as usize + bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }
}

fn decode(stream: &[u8], step: usize) -> (Layer, Vec<u8>) {
    let (mut builder, mut data) = (LayerBuilder::new(), Mem::default());
    for part in stream.chunks(step) {
        builder.feed(part, &mut data).unwrap();
    }
    let layer = builder.finish().unwrap();
    data.0.resize(layer.extents.data_size as usize, 0);
    (layer, data.0)
}

#[test]
fn merged_layers_equal_containerds_unpack() {
    let decoded: Vec<_> = layers("tar").iter().map(|(_, l)| decode(l, 1 << 20)).collect();
    let trees: Vec<&Tree> = decoded.iter().map(|(l, _)| &l.tree).collect();
    let tree = merge(&trees).unwrap();
    compare(&tree, &Allowed::default(), |_, FileData { layer, offset }, size| {
        decoded[usize::from(layer)].1[offset as usize..(offset + size) as usize].to_vec()
    });
}

/// The table against its own definition: digests over the data file, pieces equal to the stream.
#[test]
fn extents_tell_of_stream_and_data() {
    for (_, stream) in layers("tar") {
        let (layer, data) = decode(&stream, 1 << 20);
        assert_eq!(layer, decode(&stream, 777).0, "the feed's grain must not show");
        let table = &layer.extents;
        let mut end = 0;
        for (i, e) in table.extents.iter().enumerate() {
            assert!(e.data_offset % 4096 == 0 && e.data_offset >= end, "extent {i}");
            end = e.data_offset + e.len;
            let bytes = &data[e.data_offset as usize..end as usize];
            assert_eq!(e.digest, *blake3::hash(bytes).as_bytes(), "extent {i}");
            for p in table.pieces_of(i) {
                let range = |at: u64| at as usize..(at + p.len) as usize;
                assert_eq!(stream[range(p.stream_offset)], data[range(p.data_offset)], "extent {i}");
            }
        }
    }
}

/// Any prefix and any flipped bit of a layer: an error or a tree, never a panic.
#[test]
fn damaged_streams_do_not_panic() {
    let (_, stream) = &layers("tar")[1];
    let small = &stream[..stream.len().min(24 << 10)];
    let run = |bytes: &[u8]| {
        let mut builder = LayerBuilder::new();
        builder.feed(bytes, &mut Mem::default()).and_then(|()| builder.finish()).map(drop)
    };
    for end in 0..small.len() {
        let _ = run(&small[..end]);
    }
    for at in 0..small.len() {
        let mut bad = small.to_vec();
        bad[at] ^= 1 << (at % 8);
        let _ = run(&bad);
    }
}
