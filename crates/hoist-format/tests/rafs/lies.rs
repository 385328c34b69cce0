//! Every structure told otherwise than it is: an error that says what, and neither a panic nor much memory.

use std::collections::BTreeMap;

use hoist_format::rafs::{Beside, Bootstrap, Contexts, Layout, Package, Rafs, RafsError, Toc};
use sha2::Digest as _;

use crate::support::Image;

fn decode(bytes: &[u8], beside: &BTreeMap<u32, Beside>) -> Result<Rafs, RafsError> {
    Bootstrap::open(bytes)?.decode(beside)
}

/// Writes numbers of 1, 2, 4 or 8 bytes.
#[derive(Clone)]
struct Lie {
    bytes: Vec<u8>,
    beside: BTreeMap<u32, Beside>,
}

impl Lie {
    fn new(name: &'static str) -> Self {
        let (bytes, beside) = Image::open(name).parts();
        Self { bytes, beside }
    }
    fn put(mut self, at: u64, len: usize, value: u64) -> Self {
        self.bytes[at as usize..][..len].copy_from_slice(&value.to_le_bytes()[..len]);
        self
    }
    fn get(&self, at: u64, len: usize) -> u64 {
        let mut all = [0; 8];
        all[..len].copy_from_slice(&self.bytes[at as usize..][..len]);
        u64::from_le_bytes(all)
    }
    #[track_caller]
    fn refused(&self, why: &str) {
        let error = decode(&self.bytes, &self.beside).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn superblocks_of_version_5() {
    let right = Lie::new("nydus-v5");
    let lie = |at, len, value| right.clone().put(at, len, value);
    lie(0, 4, 7).refused("magic number");
    lie(4, 4, 0x501).refused("magic number");
    for (offset, count) in [(32, 56), (40, 60), (48, 64), (72, 68)] {
        lie(offset, 8, right.bytes.len() as u64).refused("beyond");
        lie(offset, 8, u64::MAX - 2).refused("beyond");
        lie(count, 4, u32::MAX.into()).refused("beyond");
        lie(offset, 8, 100).refused("overlap");
    }
    let prefetch = right.get(40, 8);
    lie(48, 8, prefetch - 8).refused("overlap");
    lie(68, 4, 1).refused("shorter");
    lie(56, 4, 5).refused("not in the inode table");
    lie(16, 8, right.get(16, 8) | 0x80).refused("several compressions");
    lie(16, 8, right.get(16, 8) & !0x4).refused("no digest");
    lie(16, 8, right.get(16, 8) | 0x0200_0000).refused("encrypted");
    // lz4 chunks in blobs that say they are not compressed.
    lie(16, 8, right.get(16, 8) & !0x2).refused("a compressed chunk in a blob that is not");
    lie(right.get(48, 8) + 8, 1, b'z'.into()).refused("not named by its SHA-256");
    // Without owners, everything is root's.
    let rafs = decode(&lie(16, 8, right.get(16, 8) & !0x10).bytes, &right.beside).unwrap();
    assert!(rafs.tree.inodes.iter().all(|i| (i.meta.uid, i.meta.gid) == (0, 0)));
}

/// Byte offset of an entry's inode, by its place in the table.
fn v5_inode(lie: &Lie, index: u64) -> u64 {
    lie.get(lie.get(32, 8) + 4 * (index - 1), 4) * 8
}

#[test]
fn inodes_of_version_5() {
    let right = Lie::new("nydus-v5");
    let lie = |at, len, value| right.clone().put(at, len, value);
    let root = v5_inode(&right, 1);
    let (first, table) = (right.get(root + 92, 4), right.get(32, 8));
    lie(root + 60, 4, 0o100_755).refused("the root is no folder");
    lie(root + 96, 4, u32::MAX.into()).refused("");
    lie(root + 92, 4, 0).refused("not in the inode table");
    // The root among its own entries, and a folder in itself, and in itself under another number.
    lie(root + 92, 4, 1).refused("no file can have");
    let folder = v5_inode(&right, first);
    lie(folder + 92, 4, first).refused("no hard link");
    lie(folder + 40, 8, 1 << 40).put(folder + 92, 4, first).refused("");
    lie(table, 4, u32::MAX.into()).refused("beyond");
    lie(table + 4 * (first - 1), 4, right.get(table + 4 * first, 4)).refused("hard link");
    lie(folder + 100, 2, 0).refused("no file can have");
    lie(folder + 100, 2, 0xffff).refused("no file can have");
    lie(folder + 128, 1, b'/'.into()).refused("no file can have");
    lie(folder + 128, 2, u16::from_le_bytes(*b"..").into())
        .put(folder + 100, 2, 2)
        .refused("no file can have");
    lie(folder + 60, 4, 0o755).refused("no file type");
    lie(folder + 108, 4, 1_000_000_000).refused("nanoseconds");
    // The first file: its size, the number of its chunks, and the chunk.
    let file = (first..).map(|i| v5_inode(&right, i)).find(|at| right.get(at + 60, 4) >> 12 == 0o10).unwrap();
    let chunk = file + 128 + right.get(file + 100, 2).next_multiple_of(8);
    lie(file + 64, 8, right.get(file + 64, 8) + 1).refused("do not make up its size");
    lie(file + 64, 8, 1 << 60).refused("do not make up its size");
    lie(file + 96, 4, 0).refused("do not make up its size");
    lie(file + 96, 4, u32::MAX.into()).refused("beyond");
    lie(chunk + 64, 8, 1).refused("do not make up its size");
    lie(chunk + 64, 8, 1 << 60).refused("out of order");
    lie(chunk + 44, 4, 0).refused("empty");
    lie(chunk + 44, 4, 17 << 20).refused("more than 16 MiB");
    lie(chunk + 40, 4, 0).refused("beyond its blob");
    lie(chunk + 48, 8, 1 << 40).refused("beyond its blob");
    lie(chunk + 48, 8, u64::MAX).refused("beyond all blobs");
    lie(chunk + 32, 4, 2).refused("a chunk of no blob");
    lie(chunk + 36, 4, 0).refused("of two sizes");
    lie(chunk + 36, 4, 4).refused("encrypted");
    // Where the inode says that it has holes, what no chunk has is zeros.
    let holed = lie(file + 80, 8, 8).put(file + 64, 8, 1 << 20);
    let rafs = decode(&holed.bytes, &holed.beside).unwrap();
    assert!(rafs.files.iter().any(|f| f.runs.last().is_some_and(|r| r.piece.is_none())));
    lie(file + 80, 8, 4).refused("");
}

#[test]
fn superblocks_of_version_6() {
    let right = Lie::new("nydus-v6");
    let lie = |at, len, value| right.clone().put(at, len, value);
    lie(1024, 4, 7).refused("magic number");
    lie(1024 + 8, 4, 0).refused("magic number");
    lie(1024 + 80, 4, 0xd).refused("magic number");
    lie(1024 + 12, 1, 9).refused("4096");
    lie(1024 + 14, 2, 0xffff).refused("");
    lie(1024 + 40, 4, u32::MAX.into()).refused("beyond");
    for (offset, size, len) in [(8, 16, 4), (24, 32, 8), (40, 48, 4)] {
        lie(1152 + offset, 8, right.bytes.len() as u64).refused("beyond");
        lie(1152 + offset, 8, u64::MAX - 2).refused("beyond");
        lie(1152 + size, len, u64::MAX >> 1 & !0xffff).refused("beyond");
        lie(1152 + size, len, right.get(1152 + size, len) + 1).refused("");
        lie(1152 + offset, 8, 1100).refused("overlap");
    }
    lie(1152, 8, right.get(1152, 8) | 0x0200_0000).refused("encrypted");
    lie(1152, 8, right.get(1152, 8) | 0x200).refused("tarfs");
    lie(1152, 8, right.get(1152, 8) | 0x8 | 0x4).refused("several");
    let blob = right.get(1152 + 8, 8);
    lie(blob, 1, b'z'.into()).refused("not named by its SHA-256");
    lie(blob + 64, 4, 1).refused("out of order");
    lie(blob + 76, 4, 9).refused("newer than none, lz4");
    lie(blob + 80, 4, 9).refused("newer than BLAKE3");
    lie(blob + 84, 4, right.get(blob + 84, 4) | 0x100).refused("encrypted");
    lie(blob + 216, 4, 1).refused("encrypted");
    lie(blob + 84, 4, right.get(blob + 84, 4) | 0x8000).refused("newer than this reader");
    lie(blob + 84, 4, right.get(blob + 84, 4) | 0x8).refused("contradict");
    lie(blob + 84, 4, right.get(blob + 84, 4) | 0x4 | 0x8 | 0x80).refused("contradict");
    lie(blob + 84, 4, right.get(blob + 84, 4) | 0x4 | 0x8).refused("no contexts");
    lie(blob + 88, 8, 1 << 50).refused("1 TiB");
    lie(blob + 88, 8, 10).refused("beyond its blob");
    lie(blob + 112, 8, u64::MAX).refused("1 TiB");
}

#[test]
fn inodes_and_chunks_of_version_6() {
    let right = Lie::new("nydus-v6");
    let lie = |at, len, value| right.clone().put(at, len, value);
    let table = right.get(1152 + 24, 8);
    let second = table + 80;
    let copy: Vec<u8> = right.bytes[table as usize..second as usize].to_vec();
    let mut twice = right.clone();
    twice.bytes[second as usize..][..80].copy_from_slice(&copy);
    twice.refused("overlap");
    lie(table + 32, 4, 2).refused("a chunk of no blob");
    lie(table + 36, 4, 4).refused("encrypted");
    lie(table + 48, 8, u64::MAX).refused("beyond all blobs");
    lie(table + 56, 8, u64::MAX).refused("beyond all blobs");
    lie(table + 56, 8, right.get(table + 56, 8) + 1).refused("no chunk is");
    lie(table + 44, 4, 0).refused("");
    lie(table + 44, 4, 17 << 20).refused("overlap");

    let at = |nid: u64| 2 * 4096 + nid * 32;
    let root = at(right.get(1024 + 14, 2));
    lie(root + 4, 2, 0o100_755).refused("");
    lie(root, 2, 0).refused("compact");
    lie(root + 8, 8, u64::MAX).refused("overlap");
    lie(root + 40, 4, 1_000_000_000).refused("nanoseconds");
    lie(root + 2, 2, 0xffff).refused("");
    // Entries of the root: the first that is a folder, and the first that is a file.
    let block = root + 64;
    let entries = (0..right.get(block + 8, 2) / 12).map(|i| block + 12 * i);
    let named: Vec<_> = entries.skip(2).collect();
    let of = |kind| *named.iter().find(|&&e| right.get(e + 10, 1) == kind).unwrap();
    let (folder, file) = (of(2), of(1));
    lie(folder, 8, right.get(1024 + 14, 2)).refused("two places");
    lie(folder, 8, right.get(folder + 12, 8)).refused("two places");
    lie(folder, 8, u64::MAX).refused("");
    lie(folder, 8, 1 << 40).refused("beyond");
    lie(block, 8, 7).refused("its . is");
    lie(block + 12, 8, 7).refused("its .. is");
    let inner = at(right.get(folder, 8));
    let dots =
        (0..2).map(|i| inner + 64 + 12 * i).find(|e| right.get(*e, 8) != right.get(folder, 8)).unwrap();
    lie(dots, 8, right.get(folder, 8)).refused("its .. is");
    let inode = at(right.get(file, 8));
    let address = inode + 64;
    lie(inode + 8, 8, right.get(inode + 8, 8) + 4096).refused("");
    lie(inode + 8, 8, 1 << 62).refused("");
    lie(inode + 16, 2, 0).refused("not made of chunks");
    lie(inode + 16, 2, 0x3f).put(inode + 8, 8, 1 << 60).refused("");
    lie(address + 2, 1, 0).refused("inside of the bootstrap");
    lie(address + 2, 1, 3).refused("no chunk is");
    lie(address + 4, 4, u32::MAX.into()).refused("no chunk is");
}

#[test]
fn contexts_and_windows() {
    let image = Image::open("nydus-zran");
    let (bytes, beside) = image.parts();
    let bootstrap = Bootstrap::open(&bytes).unwrap();
    let blob = &bootstrap.blobs()[1];
    assert_eq!(blob.layout, Layout::Zran);
    let package = image.layer.clone();
    let name = format!("image/{}.blob.meta", blob.contexts.as_ref().unwrap().blob.hex());
    let file = member(&package, name.as_bytes());
    assert_eq!(Contexts::unpacked(&file, blob).as_ref().ok(), beside[&1].contexts.as_ref());
    let refused = |at: usize, value: &[u8], why: &str| {
        let mut lie = file.clone();
        lie[at..at + value.len()].copy_from_slice(value);
        let error = Contexts::unpacked(&lie, blob).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    };
    let header = file.len() - 4096;
    refused(header, &[1], "magic");
    refused(file.len() - 4, &[1], "magic");
    refused(header + 12, &[0], "not those of their blob");
    refused(header + 32, &[0], "not those of their blob");
    refused(header + 40, &[0; 8], "in the middle of chunk records");
    refused(header + 40, &[0xff; 8], "beyond");
    refused(header + 48, &[0xff; 8], "beyond");
    refused(header + 56, &[0xff; 4], "more contexts than chunks");
    refused(header + 56, &5000u32.to_le_bytes(), "");
    let units = u64::from_le_bytes(file[header + 40..header + 48].try_into().unwrap()) as usize;
    // The second context has bits and a window.
    let unit = units + 40;
    refused(unit, &[0; 8], "nothing can be decoded from");
    refused(unit, &[0xff; 8], "nothing can be decoded from");
    for (at, value) in [(unit, &3_000_000u64.to_le_bytes()[..]), (unit + 24, &[0; 4])] {
        let mut lie = file.clone();
        lie[at..at + value.len()].copy_from_slice(value);
        let mut lied = beside.clone();
        lied.insert(1, Beside { contexts: Some(Contexts::unpacked(&lie, blob).unwrap()), digests: None });
        let error = Bootstrap::open(&bytes).unwrap().decode(&lied).unwrap_err().to_string();
        assert!(error.contains("beyond its blob"), "{error}");
    }
    refused(unit + 16, &[0xff; 8], "beyond");
    refused(unit + 28, &[0; 4], "of nothing");
    refused(unit + 28, &[0xff; 4], "more than 64 MiB");
    refused(unit + 28, &[1, 0, 0, 0], "beyond what its context decodes to");
    refused(unit + 32, &[1, 0x80, 0, 0], "nothing can be decoded from");
    refused(unit + 37, &[8], "nothing can be decoded from");
    // The first chunk record: its flags, and which context it is part of.
    refused(7, &[0x8 | 0x3], "encrypted");
    refused(7, &[0x83], "newer than this reader");
    refused(20, &[0xff; 4], "a chunk of no context");
    refused(16, &[0xff; 4], "beyond what its context decodes to");
    for len in [0, 1, 4095, 4096, 8192, file.len() - 1] {
        assert!(Contexts::unpacked(&file[..len], blob).is_err(), "{len}");
    }
    // Another blob's contexts, and none at all.
    assert!(Contexts::unpacked(&file, &bootstrap.blobs()[0]).is_err());
    let none = Bootstrap::open(&bytes).unwrap().decode(&BTreeMap::new());
    assert!(none.unwrap_err().to_string().contains("no contexts"));
    let mut swapped = beside.clone();
    swapped.insert(0, beside[&1].clone());
    assert!(Bootstrap::open(&bytes).unwrap().decode(&swapped).is_err());
    // What is stored in the blob, compressed: a bomb, and damage.
    let at = blob.contexts.as_ref().unwrap();
    let stored = image.blob(&at.blob)[at.stored.start as usize..at.stored.end as usize].to_vec();
    let mut lie = stored.clone();
    lie[100] ^= 1;
    // zstd's own checksum is off: either it does not decode, or to something else.
    let right = Contexts::stored(&stored, blob).unwrap();
    assert!(Contexts::stored(&lie, blob).is_err() || Contexts::stored(&lie, blob).unwrap() != right);
    let bomb = zstd::bulk::compress(&vec![0; 200 << 20], 1).unwrap();
    let mut lie = [bomb, stored[stored.len() - 4096..].to_vec()].concat();
    let (packed, header) = (lie.len() as u64 - 4096, lie.len() - 4096);
    lie[header + 24..header + 32].copy_from_slice(&packed.to_le_bytes());
    assert!(matches!(Contexts::stored(&lie, blob), Err(RafsError::Compression(_))));
}

/// A regular file of a tar file without long names.
fn member(tar: &[u8], name: &[u8]) -> Vec<u8> {
    let at = (0..tar.len()).step_by(512).find(|at| tar[*at..].starts_with(name)).expect("no such file");
    let octal = std::str::from_utf8(&tar[at + 124..at + 135]).unwrap();
    let len = usize::from_str_radix(octal.trim_matches(['\0', ' ']), 8).unwrap();
    tar[at + 512..at + 512 + len].to_vec()
}

/// Batches: no fixture has them, so the contexts of one are written by hand, as `storage/src/meta/batch.rs` has them.
#[test]
fn batches_are_decoded_once_for_all_their_chunks() {
    let mut lie = Lie::new("nydus-v6");
    let blob = lie.get(1152 + 8, 8);
    let (features, chunks) = (lie.get(blob + 84, 4), lie.get(blob + 72, 4));
    assert_eq!(chunks, 7);
    // The records of this blob's chunks, by index.
    let (table, size) = (lie.get(1152 + 24, 8), lie.get(1152 + 32, 8));
    let records: BTreeMap<u64, (u64, u64)> = (table..table + size)
        .step_by(80)
        .filter(|at| lie.get(at + 32, 4) == 0)
        .map(|at| (lie.get(at + 72, 4), (lie.get(at + 56, 8), lie.get(at + 44, 4))))
        .collect();
    assert!(records.len() > 2);
    let (mut array, mut offset) = (Vec::new(), 0u64);
    for index in 0..chunks {
        let (raw_offset, len) = records.get(&index).copied().unwrap_or((1 << 30, 1));
        // Compressed and in a batch: the first, from byte 16 of the blob on.
        let raw = raw_offset >> 12 | (len - 1) << 32 | 5 << 56;
        array.extend([raw, 16, offset].into_iter().flat_map(u64::to_le_bytes));
        offset += len;
    }
    array.extend([100u32, offset as u32].into_iter().flat_map(u32::to_le_bytes));
    array.extend([0; 32]);
    let raw_len = array.len() as u64;
    lie = lie.put(blob + 84, 4, features | 0x4 | 0x80).put(blob + 128, 8, raw_len);
    let mut header = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0xb10b_b10bu32.to_le_bytes());
    put(4092, &0xb10b_b10bu32.to_le_bytes());
    put(12, &(chunks as u32).to_le_bytes());
    put(24, &raw_len.to_le_bytes());
    put(32, &raw_len.to_le_bytes());
    put(40, &(chunks * 24).to_le_bytes());
    put(48, &40u64.to_le_bytes());
    put(56, &1u32.to_le_bytes());
    let bootstrap = Bootstrap::open(&lie.bytes).unwrap();
    let stored = [array.clone(), header.clone()].concat();
    let contexts = Contexts::stored(&stored, &bootstrap.blobs()[0]).unwrap();
    let beside = BTreeMap::from([(0, Beside { contexts: Some(contexts), digests: None })]);
    let rafs = bootstrap.decode(&beside).unwrap();
    let batches: Vec<_> = rafs.units.iter().filter(|u| u.blob == 0).collect();
    assert_eq!(batches.len(), 1);
    assert_eq!((batches[0].stored.clone(), u64::from(batches[0].raw_len)), (16..116, offset));
    let parts = rafs.pieces.iter().filter(|p| rafs.units[p.unit as usize].blob == 0);
    let mut ends: Vec<_> = parts.map(|p| (p.offset, p.offset + p.len)).collect();
    ends.sort_unstable();
    assert!(ends.len() == records.len() && ends.windows(2).all(|e| e[0].1 <= e[1].0));
    // In two places; and of a chunk that reaches beyond it.
    let mut two = stored.clone();
    two[24 + 8] = 17;
    let blob = Bootstrap::open(&lie.bytes).unwrap().blobs()[0].clone();
    assert!(Contexts::stored(&two, &blob).unwrap_err().to_string().contains("two places"));
    let mut beyond = stored;
    beyond[24 + 16] = 0xff;
    beyond[24 + 17] = 0xff;
    beyond[24 + 18] = 0xff;
    assert!(Contexts::stored(&beyond, &blob).unwrap_err().to_string().contains("beyond what its context"));
}

#[test]
fn tables_of_contents() {
    let image = Image::open("nydus-v6");
    let (bytes, _) = image.parts();
    let digest = Bootstrap::open(&bytes).unwrap().blobs()[0].digest;
    let blob = image.blob(&digest);
    let (size, tail) = (blob.len() as u64, blob[blob.len() - 4096..].to_vec());
    let table = &tail[tail.len() - 512 - 640..tail.len() - 512];
    let expected = sha2::Sha256::digest(table).into();
    Toc::decode(&tail, size, Some(&expected)).unwrap();
    Toc::decode(&tail[4096 - 512 - 640..], size, Some(&expected)).unwrap();
    let cut = Toc::decode(&tail[4096 - 512 - 639..], size, None);
    assert!(matches!(cut, Err(RafsError::Cut { len: 640, .. })));
    assert!(matches!(Toc::decode(&tail, size, Some(&[1; 32])), Err(RafsError::Digest(_))));
    for no_toc in [&[][..], &tail[..4000], &[0; 512]] {
        assert!(matches!(Toc::decode(no_toc, size, None), Err(RafsError::Missing(_))));
    }
    // The first entry: how it is compressed, and where.
    let entry = tail.len() - 512 - 640;
    for (at, value) in [(0, &[0u8; 4][..]), (0, &[3]), (56, &[0xff; 8]), (64, &[0xff; 8])] {
        let mut lie = tail.clone();
        lie[entry + at..][..value.len()].copy_from_slice(value);
        assert!(Toc::decode(&lie, size, None).is_err(), "{at}");
    }
    let toc = Toc::decode(&tail, size, None).unwrap();
    assert!(toc.entry(b"image.none").is_none());
    let part = toc.entry(b"blob.digest").unwrap();
    let stored = &blob[part.stored.start as usize..part.stored.end as usize];
    assert!(part.open(&stored[1..]).is_err());
    let mut lie = stored.to_vec();
    lie[0] ^= 1;
    assert!(matches!(part.open(&lie), Err(RafsError::Digest(_))));
}

/// Cut anywhere, or with any byte of the first structures otherwise: an error or a tree whose pieces are within bounds.
#[test]
fn flips_and_cuts_are_refused_or_consistent() {
    for name in ["nydus-v5", "nydus-v6", "nydus-zran"] {
        let (bytes, beside) = Image::open(name).parts();
        let all = bytes.len();
        for at in (0..all).step_by(all / 60) {
            let cut = decode(&bytes[..at], &beside);
            assert!(cut.is_err(), "{name} cut at {at}");
        }
        let places = (0..80).chain(1024..1216).chain((4096..all).step_by(1499));
        for (i, at) in places.enumerate() {
            let mut lie = bytes.clone();
            lie[at] ^= 1 << (i % 8);
            if let Ok(rafs) = decode(&lie, &beside) {
                check(&rafs);
            }
        }
    }
}

fn check(rafs: &Rafs) {
    for unit in &rafs.units {
        assert!(unit.stored.end <= rafs.blobs[unit.blob as usize].data_size && !unit.stored.is_empty());
    }
    for piece in &rafs.pieces {
        let end = u64::from(piece.offset) + u64::from(piece.len);
        assert!(piece.len > 0 && end <= rafs.units[piece.unit as usize].raw_len.into());
    }
    for run in rafs.files.iter().flat_map(|f| &f.runs) {
        assert!(run.len > 0);
        assert!(run.piece.is_none_or(|p| run.len <= rafs.pieces[p as usize].len.into()));
    }
}

#[test]
fn a_bootstrap_that_is_plain_erofs_is_none() {
    let tree = hoist_format::tree::Tree::default();
    let plain = hoist_format::erofs::encode(&tree, &[]).unwrap();
    assert_eq!(Bootstrap::open(&plain).err(), Some(RafsError::NotRafs));
    assert_eq!(Bootstrap::open(&[]).err(), Some(RafsError::NotRafs));
    assert!(Package::read(b"no tar file").is_err());
}
