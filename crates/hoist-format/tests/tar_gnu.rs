//! Archives made by GNU tar, against the files they were made from; and hostile ones by hand.

use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use hoist_format::layer::{DataSink, Discard, Layer, LayerBuilder, LayerError};
use hoist_format::merge::merge;
use hoist_format::tree::Kind;

#[derive(Default)]
struct Mem(Vec<u8>);

impl DataSink for Mem {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.resize(self.0.len().max(offset as usize + bytes.len()), 0);
        self.0[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

fn gnu_tar(dir: &Path, args: &[&str]) -> Vec<u8> {
    let out = Command::new("tar").args(args).arg("-C").arg(dir).args(["-cf", "-", "."]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

fn compare(dir: &Path, stream: &[u8], nanos: bool) {
    let (mut builder, mut data) = (LayerBuilder::new(), Mem::default());
    for part in stream.chunks(10_000) {
        builder.feed(part, &mut data).unwrap();
    }
    let Layer { tree, extents, .. } = builder.finish().unwrap();
    data.0.resize(extents.data_size as usize, 0);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().as_encoded_bytes();
        let inode = tree.get(tree.lookup(name).unwrap_or_else(|| panic!("{path:?}")));
        let meta = fs::symlink_metadata(&path).unwrap();
        assert_eq!((inode.meta.uid, inode.meta.gid), (meta.uid(), meta.gid()));
        assert_eq!(u32::from(inode.meta.perm), meta.mode() & 0o7777);
        assert_eq!(inode.meta.mtime.secs, meta.mtime());
        if nanos {
            assert_eq!(i64::from(inode.meta.mtime.nanos), meta.mtime_nsec());
        }
        match &inode.kind {
            Kind::File { size, data: at } => {
                assert_eq!(*size, meta.size(), "{path:?}");
                let ours = if *size == 0 { &[][..] } else { &data.0[at.offset as usize..][..*size as usize] };
                assert!(fs::read(&path).unwrap() == ours, "{path:?}");
            }
            Kind::Symlink(target) => {
                assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_encoded_bytes(), &**target);
            }
            other => panic!("{path:?} is {other:?}"),
        }
    }
}

fn sample(long: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("small"), b"hello").unwrap();
    fs::write(dir.path().join("empty"), b"").unwrap();
    fs::write(dir.path().join("n".repeat(long)), vec![7; 300_000]).unwrap();
    fs::hard_link(dir.path().join("small"), dir.path().join("hard")).unwrap();
    symlink("t".repeat(long), dir.path().join("soft")).unwrap();
    let mut sparse = fs::File::create(dir.path().join("sparse")).unwrap();
    for i in 0..40u64 {
        sparse.seek(SeekFrom::Start(i * 200_000)).unwrap();
        sparse.write_all(&[i as u8 + 1; 5000]).unwrap();
    }
    sparse.set_len(9_000_000).unwrap();
    fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 20).unwrap();
    dir
}

#[test]
fn every_format_of_gnu_tar() {
    for (format, long) in [("v7", 90), ("oldgnu", 250), ("gnu", 250), ("ustar", 90), ("posix", 250)] {
        let dir = sample(long);
        compare(dir.path(), &gnu_tar(dir.path(), &[&format!("--format={format}")]), format == "posix");
    }
}

#[test]
fn every_sparse_format_of_gnu_tar() {
    let dir = sample(250);
    compare(dir.path(), &gnu_tar(dir.path(), &["--format=gnu", "--sparse"]), false);
    for version in ["0.0", "0.1", "1.0"] {
        let args = ["--format=posix", "--sparse", &format!("--sparse-version={version}")];
        let stream = gnu_tar(dir.path(), &args);
        assert!(stream.len() < 3_000_000, "tar made it sparse");
        compare(dir.path(), &stream, true);
    }
}

fn header(name: &str, flag: u8, size: &str, link: &str) -> Vec<u8> {
    let mut h = vec![0; 512];
    h[..name.len()].copy_from_slice(name.as_bytes());
    h[100..107].copy_from_slice(b"0000644");
    h[124..124 + size.len()].copy_from_slice(size.as_bytes());
    h[156] = flag;
    h[157..157 + link.len()].copy_from_slice(link.as_bytes());
    h[257..265].copy_from_slice(b"ustar\x0000");
    h[148..156].fill(b' ');
    let sum: u32 = h.iter().map(|&b| u32::from(b)).sum();
    h[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    h
}

fn decode(stream: &[u8]) -> Result<Layer, LayerError> {
    let mut builder = LayerBuilder::new();
    builder.feed(stream, &mut Discard)?;
    builder.finish()
}

#[test]
fn paths_never_leave_the_root() {
    let names = ["../../a", "/b", "x/../../c"];
    let stream: Vec<u8> = names.iter().flat_map(|n| header(n, b'0', "0", "")).collect();
    let tree = decode(&stream).unwrap().tree;
    let root: Vec<_> = tree.entries(0).unwrap().keys().map(|k| &**k).collect();
    assert_eq!(root, [b"a", b"b", b"c"]);
    let stream = [header("l", b'2', "0", "/../../etc"), header("l/f", b'0', "0", "")].concat();
    assert!(decode(&stream).unwrap().tree.lookup(b"etc/f").is_some());
}

#[test]
fn hostile_headers_are_errors() {
    let bad = [
        header("f", b'0', "77777777777", ""),
        header("x", b'x', "77777777777", ""),
        header("l", b'L', "00001000000", ""),
        header("f", b'0', "-1", ""),
        header("f", b's', "0", ""),
        header("f", b'1', "0", "f"),
        header(".wh...", b'0', "0", ""),
        [header("d/f", b'0', "0", ""), header("l", b'1', "0", "d")].concat(),
        [header("l", b'2', "0", "l"), header("l/f", b'0', "0", "")].concat(),
        [header("f", b'0', "0", ""), header("f/g", b'0', "0", "")].concat(),
        [header("f", b'0', "0", ""), vec![0; 512], header("g", b'0', "0", "")].concat(),
    ];
    for (i, stream) in bad.iter().enumerate() {
        assert!(decode(stream).is_err(), "case {i}");
    }
    let tree = decode(&header("f", b'1', "0", "nowhere")).unwrap().tree;
    assert!(merge(&[&tree]).unwrap_err().to_string().contains("nowhere"));
}

#[test]
fn a_million_entries_and_links_into_lower_layers() {
    let stream: Vec<u8> = (0..1_000_000).flat_map(|i| header(&format!("d/{i}"), b'0', "0", "")).collect();
    let lower = decode(&stream).unwrap().tree;
    let upper = decode(&header("new", b'1', "0", "d/7")).unwrap().tree;
    let merged = merge(&[&lower, &upper]).unwrap();
    assert_eq!(merged.lookup(b"new"), merged.lookup(b"d/7"));
    assert_eq!(merged.entries(merged.lookup(b"d").unwrap()).unwrap().len(), 1_000_000);
}

#[test]
fn implied_folders_replace_lower_links() {
    let lower = [header("usr/bin/a", b'0', "0", ""), header("bin", b'2', "0", "usr/bin")].concat();
    let (lower, upper) = (decode(&lower).unwrap(), decode(&header("bin/b", b'0', "0", "")).unwrap());
    let merged = merge(&[&lower.tree, &upper.tree]).unwrap();
    assert!(merged.lookup(b"bin/b").is_some() && merged.lookup(b"usr/bin/b").is_none());
    assert!(merged.lookup(b"usr/bin/a").is_some());
}
