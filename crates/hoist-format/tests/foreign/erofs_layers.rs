//! Native EROFS layers.

use std::collections::BTreeMap;

use hoist_format::build::Described;
use hoist_format::chunk::ChunkCodec;
use hoist_format::digest::Digest;
use hoist_format::erofs::{Bytes, decode_foreign};
use hoist_format::formats::ImageLayer;
use hoist_format::layer::DataSink;
use hoist_format::merge::merge;
use hoist_format::span::Codec;
use hoist_format::table::Table;
use hoist_format::tree::{InodeId, Kind, Tree};
use hoist_format::volume::{Stretch, Volume};

use crate::fixture::data_file;
use crate::unpacked::{Allowed, compare, layers};

fn images(image: &str) -> Vec<Vec<u8>> {
    let raw = |(descriptor, bytes): (serde_json::Value, Vec<u8>)| match descriptor["mediaType"]
        .as_str()
        .unwrap()
        .ends_with("+zstd")
    {
        true => hoist_format::table::decompress(&bytes, 1 << 30).unwrap(),
        false => bytes,
    };
    layers(image).into_iter().map(raw).collect()
}

fn content(image: &[u8], stretches: &[Stretch]) -> Vec<u8> {
    let mut out = Vec::new();
    for stretch in stretches {
        match stretch {
            Stretch::Hole { len } => out.resize(out.len() + *len as usize, 0),
            Stretch::Plain { offset, len } => {
                out.extend_from_slice(&image[*offset as usize..(offset + len) as usize])
            }
            Stretch::Packed { stored, codec, raw_len, offset, len } => {
                let stored = &image[stored.start as usize..stored.end as usize];
                let raw = match codec {
                    ChunkCodec::Lz4 => lz4_flex::block::decompress(stored, *raw_len as usize).unwrap(),
                    ChunkCodec::Zstd => zstd::bulk::decompress(stored, *raw_len as usize).unwrap(),
                    ChunkCodec::Inflate => {
                        let mut out = vec![0; *raw_len as usize];
                        let mut inflate = hoist_sys::inflate::Inflate::raw().unwrap();
                        assert_eq!(inflate.step(stored, &mut out, false).unwrap().produced, out.len());
                        out
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(raw.len() as u64, *raw_len);
                out.extend_from_slice(&raw[*offset as usize..(offset + len) as usize]);
            }
        }
    }
    out
}

fn check(images: &[Vec<u8>]) {
    let mut volumes: Vec<Volume> = images.iter().map(|i| decode_foreign(Bytes::Whole(i)).unwrap()).collect();
    // A number for each file, for the merged tree to name.
    let mut contents: BTreeMap<(u16, u64), Vec<u8>> = BTreeMap::new();
    for (number, (volume, image)) in volumes.iter_mut().zip(images).enumerate() {
        for (id, stretches) in &volume.contents {
            let bytes = content(image, stretches);
            let Kind::File { size, data } = &mut volume.tree.inodes[*id as usize].kind else {
                panic!("no file")
            };
            assert_eq!(bytes.len() as u64, *size);
            data.offset = u64::from(*id) * 4096;
            contents.insert((number as u16, data.offset), bytes);
        }
    }
    let trees: Vec<&Tree> = volumes.iter().map(|v| &v.tree).collect();
    let merged = merge(&trees).unwrap();
    let allowed = Allowed { implied_mode: Some("0o777"), ..Allowed::default() };
    compare(&merged, &allowed, |_, place, _| contents[&(place.layer, place.offset)].clone());
}

#[derive(Default)]
struct Data(Vec<u8>);

impl DataSink for Data {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        assert!(offset >= self.0.len() as u64, "in order, each byte once");
        self.0.resize(offset as usize, 0);
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// What a layer is, and its data file.
fn read(image: &[u8], blob: &[u8], codec: Codec) -> (Described, Vec<u8>) {
    let (mut data, blob) = (Data::default(), (Digest::of(blob), blob.len() as u64));
    let layer = ImageLayer { image, digest: Digest::of(image), codec, blob };
    let described = layer.read(&mut data).unwrap();
    data.0.resize(described.table.extents.data_size as usize, 0);
    (described, data.0)
}

/// The data file is what containerd's unpack has, is what the table's digests say, and what its chunks lead to again.
#[test]
fn layers_are_read_whole_into_data_files() {
    for fixture in ["erofs-raw", "erofs-zstd", "erofs-lz4hc"] {
        let mut all = Vec::new();
        for (descriptor, blob) in layers(fixture) {
            let zstd = descriptor["mediaType"].as_str().unwrap().ends_with("+zstd");
            let codec = if zstd { Codec::Zstd } else { Codec::Plain };
            let image =
                if zstd { hoist_format::table::decompress(&blob, 1 << 30).unwrap() } else { blob.clone() };
            let (described, data) = read(&image, &blob, codec);
            for extent in &described.table.extents.extents {
                let bytes = &data[extent.data_offset as usize..(extent.data_offset + extent.len) as usize];
                assert_eq!(*blake3::hash(bytes).as_bytes(), extent.digest);
            }
            assert_eq!(Table::decode(&described.table.encode()).unwrap(), described.table);
            let blobs = [(Digest::of(&blob), blob)].into();
            assert!(data_file(&described, &blobs) == data, "{fixture}");
            all.push((described, data));
        }
        let trees: Vec<&Tree> = all.iter().map(|(described, _)| &described.tree).collect();
        let allowed = Allowed { implied_mode: Some("0o777"), ..Allowed::default() };
        compare(&merge(&trees).unwrap(), &allowed, |_, place, size| {
            let data = &all[usize::from(place.layer)].1;
            data[place.offset as usize..(place.offset + size) as usize].to_vec()
        });
    }
}

/// Compressed clusters within zstd are read like any; only that their parts cannot be fetched is told by the table,
/// whose blob is none that a registry has.
#[test]
fn clusters_within_zstd_are_read_whole() {
    for image in images("erofs-lz4hc") {
        let blob = zstd::bulk::compress(&image, 1).unwrap();
        let (within, data) = read(&image, &blob, Codec::Zstd);
        assert!(data == read(&image, &image, Codec::Plain).1);
        let blobs: Vec<Digest> = within.table.spans.blobs().iter().map(|blob| blob.digest).collect();
        assert_eq!(blobs, [Digest::of(&image)]);
        assert!(data_file(&within, &[(Digest::of(&image), image)].into()) == data);
    }
}

#[test]
fn raw_layers_are_what_containerd_unpacks() {
    let images = images("erofs-raw");
    for image in &images {
        let volume = decode_foreign(Bytes::Whole(image)).unwrap();
        let plain = |s: &Vec<Stretch>| matches!(s[..], [Stretch::Plain { offset, .. }] if offset % 4096 == 0);
        assert!(volume.contents.values().all(plain), "each file is one run on the block grid");
    }
    check(&images);
}

#[test]
fn layers_within_zstd_are_what_containerd_unpacks() {
    check(&images("erofs-zstd"));
}

#[test]
fn lz4_clusters_are_what_containerd_unpacks() {
    check(&images("erofs-lz4hc"));
}

/// Trees made anew by mkfs.erofs with every layout that it knows and we read.
#[test]
fn other_layouts_of_mkfs_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let noise = |n: usize, seed: u64| {
        let mut x = seed | 1;
        let step = |_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        };
        (0..n).map(step).collect::<Vec<u8>>()
    };
    let text: Vec<u8> =
        (0..200_000u32).flat_map(|i| format!("{} line {}\n", i * 7919 % 1000, i / 3).into_bytes()).collect();
    let mixed =
        [&text[..100_000], &noise(70_000, 5), &[0; 300_000], &text[50_000..90_001], &noise(5000, 9)].concat();
    for (name, bytes) in [
        ("small", &b"a few bytes"[..]),
        ("text", &text),
        ("tail", &text[..8192 + 77]),
        ("noise", &noise(50_000, 3)),
        ("mixed", &mixed),
        ("zeros", &vec![0; 1 << 20]),
        ("block", &text[..4096]),
        ("odd", &text[..65537]),
    ] {
        std::fs::write(source.join(name), bytes).unwrap();
    }
    for options in [
        &["-zlz4"][..],
        &["-zlz4hc", "-C65536"],
        &["-zlz4", "-Elegacy-compress"],
        &["-zlz4hc", "-Eztailpacking"],
        &["-zlz4hc", "-C16384", "-Efragments"],
        &["-zlz4hc", "-C65536", "-Efragments,dedupe"],
        &["-zlz4hc", "-Eall-fragments"],
        &["--chunksize=4096"],
        &["-Enoinline_data"],
        &[],
    ] {
        let image = dir.path().join("image");
        let made =
            std::process::Command::new("mkfs.erofs").args(options).arg(&image).arg(&source).output().unwrap();
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "{options:?}: {said}");
        let bytes = std::fs::read(&image).unwrap();
        let volume = match decode_foreign(Bytes::Whole(&bytes)) {
            Err(e) if options.contains(&"-Elegacy-compress") => {
                assert!(e.to_string().contains("without padding"), "{e}");
                continue;
            }
            decoded => decoded.unwrap_or_else(|e| panic!("{options:?}: {e}")),
        };
        let names: BTreeMap<_, InodeId> =
            volume.tree.entries(0).unwrap().iter().map(|(n, id)| (n.clone(), *id)).collect();
        for (name, id) in names {
            let path = source.join(std::str::from_utf8(&name).unwrap());
            let got = content(&bytes, volume.contents.get(&id).map_or(&[][..], |s| s));
            assert!(got == std::fs::read(&path).unwrap(), "{options:?}: {path:?}");
        }
        std::fs::remove_file(&image).unwrap();
    }
}

/// mkfs.erofs of Debian 12 writes lz4 alone: a cluster of it is replaced by what gzip and zstd make of the same bytes.
#[test]
fn clusters_of_deflate_and_zstd_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    std::fs::create_dir(&source).unwrap();
    let text: Vec<u8> = (0..900u32).flat_map(|i| format!("line {i}\n").into_bytes()).collect();
    std::fs::write(source.join("file"), &text).unwrap();
    let run = |tool: &str, args: &[&std::ffi::OsStr]| {
        let out = std::process::Command::new(tool).args(args).output().unwrap();
        assert!(out.status.success(), "{tool}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    run("mkfs.erofs", &["-zlz4hc".as_ref(), image.as_ref(), source.as_ref()]);
    let said = String::from_utf8(run("dump.erofs", &["--path=/file".as_ref(), image.as_ref()])).unwrap();
    let number = |key: &str| {
        let rest = said.split_once(key).unwrap().1.trim_start();
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<usize>().unwrap()
    };
    let header = (number("NID:") * 32 + number("Inode size:") + number("Xattr size:")).next_multiple_of(8);
    let mut original = std::fs::read(&image).unwrap();
    // The superblock's checksum is of its whole block, which the file's header is in.
    original[1024 + 8] &= !1;
    let read = |bytes: &[u8]| {
        let volume = decode_foreign(Bytes::Whole(bytes)).unwrap();
        let id = volume.tree.lookup(b"file").unwrap();
        (content(bytes, &volume.contents[&id]), volume.contents[&id].clone())
    };
    let (bytes, stretches) = read(&original);
    assert_eq!(bytes, text);
    let [Stretch::Packed { stored, codec: ChunkCodec::Lz4, .. }] = &stretches[..] else {
        panic!("{stretches:?}")
    };
    let end = stored.end as usize;
    let gzip = run("gzip", &["-9nc".as_ref(), source.join("file").as_ref()]);
    let zstd = zstd::bulk::compress(&text, 19).unwrap();
    for (algorithm, packed, codec) in
        [(2, &gzip[10..gzip.len() - 8], ChunkCodec::Inflate), (3, &zstd[..], ChunkCodec::Zstd)]
    {
        let mut patched = original.clone();
        patched[header + 6] = algorithm;
        patched[end - 4096..end].fill(0);
        patched[end - packed.len()..end].copy_from_slice(packed);
        let (bytes, stretches) = read(&patched);
        assert_eq!(bytes, text);
        assert!(matches!(&stretches[..], [Stretch::Packed { codec: c, .. }] if *c == codec));
    }
    let mut lzma = original;
    lzma[header + 6] = 1;
    assert!(decode_foreign(Bytes::Whole(&lzma)).unwrap_err().to_string().contains("LZMA"));
}
