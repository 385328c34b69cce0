use std::collections::BTreeMap;

use super::*;
use crate::chunk::ChunkTable;
use crate::codec::{BlockAlgorithm, BlockRun, checksum, decode_chunk};
use crate::extent::BLOCK;
use crate::span::Spans;
use crate::table::TableError;
use crate::tree::{FileData, Inode, Kind, Meta, ROOT};

/// Numbers that look like chance and are the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        // Compressible, but not alike.
        (0..n).map(|i| if i % 3 == 0 { self.below(256) as u8 } else { b'x' }).collect()
    }
}

/// Chunks in blobs, as bytes, and the builder that was told of them.
struct World {
    builder: Builder,
    blobs: Vec<Vec<u8>>,
    raw: Vec<Vec<u8>>,
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    // Stored blocks: a valid member without a deflate encoder at hand.
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut parts = bytes.chunks(0xffff).peekable();
    while let Some(part) = parts.next() {
        out.push(u8::from(parts.peek().is_none()));
        let len = part.len() as u16;
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(part);
    }
    let crc = bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 })
    });
    out.extend_from_slice(&(!crc).to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out
}

/// A run of 4 KiB blocks as overlaybd has them.
fn block_run(bytes: &[u8], algorithm: BlockAlgorithm) -> (Vec<u8>, Vec<u8>) {
    let (mut stored, mut lens) = (Vec::new(), Vec::new());
    for block in bytes.chunks(4096) {
        let packed = match algorithm {
            BlockAlgorithm::Lz4 => lz4_flex::block::compress(block),
            BlockAlgorithm::Zstd => zstd::bulk::compress(block, 1).unwrap(),
        };
        lens.push(packed.len() as u32 + 4);
        stored.extend_from_slice(&packed);
        stored.extend_from_slice(&checksum(&packed).to_le_bytes());
    }
    (stored, BlockRun { algorithm, checksums: true, block_size: 4096, lens }.encode())
}

impl World {
    /// `n` chunks of every codec, in blobs of chance, in an order of chance.
    fn of(chance: &mut Chance, n: usize) -> Self {
        let mut world = World { builder: Builder::new(), blobs: vec![Vec::new(); 3], raw: Vec::new() };
        let mut places = Vec::new();
        for i in 0..n {
            let len = match i % 4 {
                0 => chance.below(300) + 1,
                1 => chance.below(10_000) + 1,
                _ => chance.below(700_000) + 1,
            };
            let raw = chance.bytes(len as usize);
            let (codec, stored, state) = match chance.below(6) {
                0 => (ChunkCodec::Plain, raw.clone(), None),
                1 => (ChunkCodec::Gzip, gzip(&raw), None),
                2 => (ChunkCodec::Zstd, zstd::bulk::compress(&raw, 1).unwrap(), None),
                3 => (ChunkCodec::Lz4, lz4_flex::block::compress(&raw), None),
                _ if raw.len() > 4096 * 4000 => unreachable!(),
                4 => {
                    let (stored, state) = block_run(&raw, BlockAlgorithm::Lz4);
                    (ChunkCodec::BlockRun, stored, Some(state))
                }
                _ => {
                    let (stored, state) = block_run(&raw, BlockAlgorithm::Zstd);
                    (ChunkCodec::BlockRun, stored, Some(state))
                }
            };
            let blob = chance.below(3) as usize;
            // Something foreign now and then.
            let gap = chance.below(2) as usize * 37;
            let start = world.blobs[blob].len() + gap;
            world.blobs[blob].resize(start, 0xee);
            let start = start as u64;
            world.blobs[blob].extend_from_slice(&stored);
            places.push((blob, start..start + stored.len() as u64, codec, state));
            world.raw.push(raw);
        }
        for blob in &world.blobs {
            world.builder.blob(Digest::of(blob), blob.len() as u64).unwrap();
        }
        for (i, (blob, stored, codec, state)) in places.into_iter().enumerate() {
            let stored_digest = (i % 5 == 0).then(|| {
                let bytes = &world.blobs[blob][stored.start as usize..stored.end as usize];
                *Digest::of(bytes).as_bytes()
            });
            let raw_len = world.raw[i].len() as u64;
            let chunk =
                StoredChunk { blob: blob as u16, stored, codec, raw_len, bits: 0, state, stored_digest };
            let id = world.builder.chunk(chunk).unwrap();
            let digest = match i % 2 {
                0 => ContentDigest::Sha256(*Digest::of(&world.raw[i]).as_bytes()),
                _ => ContentDigest::Blake3(*blake3::hash(&world.raw[i]).as_bytes()),
            };
            world.builder.check(id, 0..raw_len, digest).unwrap();
        }
        world
    }

    fn run(&self, chunk: usize, offset: u64, len: u64) -> (Run, Vec<u8>) {
        let bytes = self.raw[chunk][offset as usize..(offset + len) as usize].to_vec();
        (Run::Data { len, chunk: ChunkId(chunk as u32), offset }, bytes)
    }
}

fn file(size: u64) -> Inode {
    let kind = Kind::File { size, data: FileData { layer: 9, offset: 77 } };
    Inode { kind, meta: Meta::default(), implied: false, opaque: false }
}

/// A tree of files of these sizes, in the root.
fn tree(sizes: impl Iterator<Item = u64>) -> Tree {
    let mut tree = Tree::default();
    let ids: Vec<_> = sizes.map(|size| tree.push(file(size))).collect();
    let Kind::Dir(entries) = &mut tree.inodes[ROOT as usize].kind else { panic!("no root") };
    entries.extend(ids.into_iter().map(|id| (id.to_string().into_bytes().into(), id)));
    tree
}

/// The slow and obvious way to fill a data file: decode every chunk, and copy every piece.
fn fill(table: &Table, windows: &[u8], blobs: &[Vec<u8>]) -> Vec<u8> {
    let chunks = table.spans.chunks().unwrap();
    let stream: Vec<u8> = (0..chunks.chunks.len()).flat_map(|i| decode(chunks, i, windows, blobs)).collect();
    assert_eq!(stream.len() as u64, chunks.stream_size);
    let mut data = vec![0; table.extents.data_size as usize];
    for p in &table.extents.pieces {
        let from = &stream[p.stream_offset as usize..(p.stream_offset + p.len) as usize];
        data[p.data_offset as usize..(p.data_offset + p.len) as usize].copy_from_slice(from);
    }
    data
}

fn decode(table: &ChunkTable, i: usize, windows: &[u8], blobs: &[Vec<u8>]) -> Vec<u8> {
    let blob = &blobs[usize::from(table.chunks[i].blob)];
    let range = table.stored_range(i);
    let state = table.state(i).map(|s| &windows[s.offset as usize..s.offset as usize + s.len as usize]);
    let stored = &blob[range.start as usize..range.end as usize];
    decode_chunk(table, i, stored, state).unwrap().into_owned()
}

/// A world whose files are made of runs of chance: shared chunks, parts of them, holes.
fn by_chance(seed: u64) -> (World, Vec<Vec<u8>>, Tree) {
    let mut chance = Chance(seed);
    let n = 1 + chance.below(30) as usize;
    let mut world = World::of(&mut chance, n);
    let mut files: Vec<Vec<u8>> = Vec::new();
    let mut all = Vec::new();
    for _ in 0..chance.below(40) {
        let (mut runs, mut bytes) = (Vec::new(), Vec::new());
        for _ in 0..chance.below(5) {
            if chance.below(6) == 0 {
                let len = chance.below(100_000) + 1;
                runs.push(Run::Hole { len });
                bytes.resize(bytes.len() + len as usize, 0);
                continue;
            }
            let chunk = chance.below(n as u64) as usize;
            let size = world.raw[chunk].len() as u64;
            let offset = if chance.below(2) == 0 { 0 } else { chance.below(size) };
            let (run, own) = world.run(chunk, offset, size - offset);
            runs.push(run);
            bytes.extend(own);
        }
        files.push(bytes);
        all.push(runs);
    }
    let tree = tree(files.iter().map(|f| f.len() as u64));
    for (i, runs) in all.into_iter().enumerate().filter(|(_, runs)| !runs.is_empty()) {
        world.builder.file(i as u32 + 1, runs).unwrap();
        world.builder.prefetch(i as u32 + 1);
    }
    (world, files, tree)
}

#[test]
fn what_is_built_fills_to_what_was_described() {
    for seed in 0..25 {
        let (world, files, tree) = by_chance(seed);
        let described = world.builder.build(tree).unwrap();
        let Described { tree, table, windows, prefetch } = &described;
        let data = fill(table, windows, &world.blobs);
        for (i, wanted) in files.iter().enumerate() {
            let Kind::File { size, data: place } = tree.get(i as u32 + 1).kind else { panic!("no file") };
            assert_eq!((size, place.layer, place.offset % BLOCK), (wanted.len() as u64, 0, 0), "seed {seed}");
            let found = &data[place.offset as usize..place.offset as usize + wanted.len()];
            assert!(found == wanted, "seed {seed} file {i}");
            assert!(wanted.is_empty() || prefetch.iter().any(|r| r.contains(&place.offset)));
        }
        for (i, extent) in table.extents.extents.iter().enumerate() {
            // From one chunk, but for a last block that several share.
            let shared = (extent.data_offset + extent.len - 1) / BLOCK * BLOCK;
            let pieces = table.extents.pieces_of(i);
            let first = table.spans.containing(pieces[0].stream_offset);
            for p in pieces.iter().filter(|p| p.data_offset < shared) {
                let last = p.stream_offset + p.len.min(shared - p.data_offset) - 1;
                assert_eq!(table.spans.containing(last), first, "seed {seed} extent {i} {extent:?}");
            }
        }
        let stored = table.encode();
        assert_eq!(Table::decode(&stored).as_ref().unwrap(), table, "seed {seed}");
    }
}

#[test]
fn equal_names_are_of_equal_bytes() {
    let mut seen: BTreeMap<[u8; 32], Vec<u8>> = BTreeMap::new();
    let mut again = 0;
    for seed in 0..12 {
        // The same world, told in two ways: every file, and every second one.
        for step in [1, 2] {
            let (mut world, _, tree) = by_chance(seed);
            let mut tree = tree;
            for id in (1..tree.inodes.len()).filter(|id| id % step != 0) {
                tree.inodes[id] = file(0);
                world.builder.files.remove(&(id as u32));
            }
            let built = world.builder.build(tree).unwrap();
            let data = fill(&built.table, &built.windows, &world.blobs);
            for x in &built.table.extents.extents {
                let bytes = data[x.data_offset as usize..(x.data_offset + x.len) as usize].to_vec();
                assert_ne!(x.digest, [0; 32]);
                again += u32::from(seen.contains_key(&x.digest));
                assert!(*seen.entry(x.digest).or_insert_with(|| bytes.clone()) == bytes, "seed {seed}");
            }
        }
    }
    assert!(again > 50, "{again} names were seen twice");
}

#[test]
fn damage_anywhere_in_a_chunk_is_found() {
    let mut chance = Chance(7);
    let mut world = World::of(&mut chance, 12);
    let runs: Vec<_> = (0..12).map(|i| world.run(i, 0, world.raw[i].len() as u64).0).collect();
    let tree = tree(world.raw.iter().map(|raw| raw.len() as u64));
    for (i, run) in runs.into_iter().enumerate() {
        world.builder.file(i as u32 + 1, vec![run]).unwrap();
    }
    let built = world.builder.build(tree).unwrap();
    let table = built.table.spans.chunks().unwrap();
    for i in 0..table.chunks.len() {
        let range = table.stored_range(i);
        let stored =
            &world.blobs[usize::from(table.chunks[i].blob)][range.start as usize..range.end as usize];
        let state = table.state(i);
        let state = state.map(|s| &built.windows[s.offset as usize..s.offset as usize + s.len as usize]);
        let right = decode_chunk(table, i, stored, state).unwrap();
        for at in (0..stored.len()).step_by(stored.len() / 40 + 1) {
            let mut bad = stored.to_vec();
            bad[at] ^= 0x10;
            // A flag in a header that changes nothing is no damage.
            if let Ok(bytes) = decode_chunk(table, i, &bad, state) {
                assert!(bytes == right);
            }
            assert!(decode_chunk(table, i, &stored[..at], state).is_err());
        }
        if let Some(state) = state {
            let mut bad = state.to_vec();
            bad[state.len() / 2] ^= 1;
            assert!(decode_chunk(table, i, stored, Some(&bad)).is_err());
            assert!(decode_chunk(table, i, stored, None).is_err());
        }
    }
}

#[test]
fn lies_are_refused() {
    let mut builder = Builder::new();
    let blob = builder.blob(Digest::of(b"x"), 1000).unwrap();
    assert_eq!(builder.blob(Digest::of(b"x"), 1000), Ok(blob));
    let chunk = |stored: Range<u64>, raw_len, codec, bits| StoredChunk {
        blob,
        stored,
        codec,
        raw_len,
        bits,
        state: None,
        stored_digest: None,
    };
    for bad in [
        chunk(900..1001, 10, ChunkCodec::Gzip, 0),
        chunk(10..10, 10, ChunkCodec::Gzip, 0),
        chunk(0..u64::MAX, 10, ChunkCodec::Gzip, 0),
        chunk(0..10, 0, ChunkCodec::Gzip, 0),
        chunk(0..10, 11, ChunkCodec::Plain, 0),
        chunk(0..10, 10_400, ChunkCodec::Gzip, 0),
        chunk(0..1000, MAX_CHUNK + 1, ChunkCodec::Zstd, 0),
        chunk(0..10, 10, ChunkCodec::Gzip, 1),
        chunk(0..10, 10, ChunkCodec::Inflate, 8),
        StoredChunk { blob: 7, ..chunk(0..10, 10, ChunkCodec::Plain, 0) },
        StoredChunk { state: Some(vec![0; MAX_STATE + 1]), ..chunk(0..10, 10, ChunkCodec::BlockRun, 0) },
    ] {
        assert!(builder.chunk(bad.clone()).is_err(), "{bad:?}");
    }
    let id = builder.chunk(chunk(0..10, 10, ChunkCodec::Plain, 0)).unwrap();
    let digest = ContentDigest::Sha256([0; 32]);
    assert!(builder.check(id, 0..11, digest).is_err() && builder.check(id, 3..3, digest).is_err());
    for run in [(11, 0), (1, 10), (u64::MAX, 5), (0, 0)] {
        assert!(builder.file(1, vec![Run::Data { len: run.0, chunk: id, offset: run.1 }]).is_err());
    }
    let run = Run::Data { len: 10, chunk: id, offset: 0 };
    builder.file(1, vec![run]).unwrap();
    assert!(builder.file(1, vec![run]).is_err());
    let again = || {
        let mut builder = Builder::new();
        builder.blob(Digest::of(b"x"), 1000).unwrap();
        builder.chunk(chunk(0..10, 10, ChunkCodec::Plain, 0)).unwrap();
        builder
    };
    for (size, inode) in [(9, 1), (10, 0), (10, 2), (0, 1)] {
        let mut builder = again();
        builder.file(inode, vec![run]).unwrap();
        assert!(builder.build(tree([size].into_iter())).is_err(), "{size} {inode}");
    }
    assert!(again().build(tree([10].into_iter())).is_err());
    let mut huge = again();
    huge.file(1, vec![Run::Hole { len: MAX_SIZE }]).unwrap();
    assert!(huge.build(tree([MAX_SIZE].into_iter())).is_err());
}

#[test]
fn every_flip_and_cut_of_a_stored_table_is_refused_or_consistent() {
    let (world, _, tree) = by_chance(3);
    let table = world.builder.build(tree).unwrap().table;
    let raw = crate::table::decompress(&table.encode(), 1 << 20).unwrap();
    let pack = |raw: &[u8]| zstd::bulk::compress(raw, 1).unwrap();
    for i in 0..raw.len() {
        let cut = Table::decode(&pack(&raw[..i]));
        assert!(matches!(cut, Err(TableError::Length(_) | TableError::Lie(_) | TableError::Version)), "{i}");
        for bit in 0..8 {
            let mut bad = raw.clone();
            bad[i] ^= 1 << bit;
            if let Ok(t) = Table::decode(&pack(&bad)) {
                assert_eq!(Table::decode(&t.encode()).unwrap(), t, "byte {i} bit {bit}");
            }
        }
    }
}

#[test]
fn counts_beyond_what_is_there_allocate_nothing() {
    for fill in [0, 1, 0x7f] {
        for count in 0..7 {
            let mut raw = b"hoisttb2\x01\0\0".to_vec();
            raw.extend((0..7).flat_map(|i| if i == count { &[0xff, 0xff, 0xff, 0x3f][..] } else { &[1] }));
            raw.resize(100_000, fill);
            assert!(Table::decode(&zstd::bulk::compress(&raw, 1).unwrap()).is_err());
        }
    }
}

#[test]
fn nothing_at_all_is_a_layer_too() {
    let built = Builder::new().build(tree([0, 0].into_iter())).unwrap();
    assert!(built.table.spans.is_empty() && matches!(built.table.spans, Spans::Chunks(_)));
    assert_eq!(Table::decode(&built.table.encode()).unwrap(), built.table);
}
