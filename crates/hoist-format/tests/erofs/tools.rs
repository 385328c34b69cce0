//! `fsck.erofs` reads what we write; we read what `mkfs.erofs` writes.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use hoist_format::erofs::{decode, encode};
use hoist_format::tree::{Dev, FileData, Kind, ROOT, Tree};

use crate::support::*;

#[track_caller]
fn run(command: &mut Command) {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; install erofs-utils"));
    let text = [out.stdout, out.stderr].concat();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&text));
}

/// `fsck.erofs` finds nothing wrong with an image, whose data files it is given; files are kept in `dir`.
#[track_caller]
fn fsck(dir: &Path, image: &[u8], options: &[String]) {
    let path = dir.join("image");
    fs::write(&path, image).unwrap();
    let devices = data_files(dir).into_iter().map(|data| format!("--device={}", data.display()));
    run(Command::new("fsck.erofs").args(devices).args(options).arg(&path));
}

#[test]
fn fsck_accepts_a_rich_tree() {
    let tmp = tempfile::tempdir().unwrap();
    fsck(tmp.path(), &encode(&rich(), &devices()).unwrap(), &[]);
}

#[test]
fn fsck_extracts_the_right_bytes() {
    let tmp = tempfile::tempdir().unwrap();
    let mut tree = Tree { inodes: vec![dir()] };
    for (i, size) in [0, 1, 4096, 5000, 1 << 20, 3_000_001].into_iter().enumerate() {
        add(&mut tree, ROOT, format!("{i}").as_bytes(), file(size, (i % 2) as u16, 8192 * i as u64));
    }
    let out = tmp.path().join("out");
    let extract = format!("--extract={}", out.display());
    fsck(tmp.path(), &encode(&tree, &devices()).unwrap(), &[extract]);
    for (path, (inode, _)) in paths(&tree) {
        let Kind::File { size, data } = inode.kind else { continue };
        let read = fs::read(out.join(std::str::from_utf8(&path[1..]).unwrap())).unwrap();
        assert_eq!(read.len() as u64, size);
        let right = (0..size).map(|o| pattern(data.layer, data.offset + o));
        assert!(read.into_iter().eq(right));
    }
}

#[test]
fn fsck_accepts_100_000_files() {
    let mut tree = Tree { inodes: vec![dir()] };
    let big = add(&mut tree, ROOT, b"one-folder", dir());
    for i in 0..70_000 {
        add(&mut tree, big, format!("file number {i}").as_bytes(), file(i % 9000, 1, i % 100 * 4096));
    }
    for d in 0..300 {
        let sub = add(&mut tree, ROOT, format!("sub{d}").as_bytes(), dir());
        for i in 0..100 {
            let mut inode = file(i, 0, i * 4096);
            inode.meta.mtime.secs += i as i64 % 3;
            add(&mut tree, sub, format!("f{i}").as_bytes(), inode);
        }
    }
    let bytes = encode(&tree, &devices()).unwrap();
    assert_eq!(paths(&decode(&bytes).unwrap()).len(), paths(&tree).len());
    let tmp = tempfile::tempdir().unwrap();
    fsck(tmp.path(), &bytes, &[]);
}

#[test]
fn an_image_of_mkfs_is_read() {
    let tmp = tempfile::tempdir().unwrap();
    let (src, image) = (tmp.path().join("src"), tmp.path().join("image"));
    make_source(&src);
    run(Command::new("mkfs.erofs").args(["--quiet", "-Enoinline_data"]).arg(&image).arg(&src));
    compare(&src, &fs::read(&image).unwrap());
}

#[test]
fn an_image_of_mkfs_in_chunks_is_read() {
    let tmp = tempfile::tempdir().unwrap();
    let (src, image) = (tmp.path().join("src"), tmp.path().join("image"));
    make_source(&src);
    run(Command::new("mkfs.erofs").args(["--quiet", "--chunksize=4194304"]).arg(&image).arg(&src));
    compare(&src, &fs::read(&image).unwrap());
}

#[test]
fn inline_file_data_is_refused_by_name() {
    let tmp = tempfile::tempdir().unwrap();
    let (src, image) = (tmp.path().join("src"), tmp.path().join("image"));
    make_source(&src);
    run(Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&src));
    let message = decode(&fs::read(&image).unwrap()).unwrap_err().to_string();
    assert!(message.contains("stored inline"), "{message}");
}

fn make_source(src: &Path) {
    fs::create_dir_all(src.join("deep/er")).unwrap();
    fs::create_dir(src.join("wide")).unwrap();
    for i in 0..2000u32 {
        fs::write(src.join(format!("wide/{i}")), i.to_string().repeat(i as usize % 50)).unwrap();
    }
    let file = fs::File::create(src.join("deep/large")).unwrap();
    let bytes: Vec<u8> = (0..100_000).map(|o| pattern(0, o)).collect();
    file.write_all_at(&bytes, 0).unwrap();
    fs::hard_link(src.join("deep/large"), src.join("deep/er/link")).unwrap();
    symlink("some/where", src.join("symlink")).unwrap();
    run(Command::new("mkfifo").arg(src.join("fifo")));
    run(Command::new("mknod").arg(src.join("dev")).args(["b", "259", "70000"]));
    run(Command::new("setfattr").args(["-n", "user.k", "-v", "v"]).arg(src.join("wide/7")));
}

fn compare(src: &Path, image: &[u8]) {
    let tree = decode(image).unwrap();
    let all = paths(&tree);
    let mut seen = 1;
    let mut todo = vec![src.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(src).unwrap();
            let (inode, _) = &all[format!("/{}", name.display()).as_bytes()];
            seen += 1;
            assert_eq!(u32::from(inode.meta.perm), meta.mode() & 0o7777);
            assert_eq!((inode.meta.uid, inode.meta.gid), (meta.uid(), meta.gid()));
            let time = inode.meta.mtime;
            assert_eq!((time.secs, i64::from(time.nanos)), (meta.mtime(), meta.mtime_nsec()), "{name:?}");
            match &inode.kind {
                Kind::Dir(_) => todo.push(path),
                Kind::File { size, data: FileData { offset, .. } } => {
                    let at = *offset as usize;
                    assert!(image[at..at + *size as usize] == fs::read(&path).unwrap(), "{name:?}");
                }
                Kind::Symlink(target) => assert_eq!(**target, *b"some/where"),
                Kind::Fifo => assert_eq!(name.to_str(), Some("fifo")),
                Kind::Block(dev) => assert_eq!(*dev, Dev { major: 259, minor: 70_000 }),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(seen, all.len());
    assert_eq!(tree.lookup(b"deep/large"), tree.lookup(b"deep/er/link"));
    let user = &tree.get(tree.lookup(b"wide/7").unwrap()).meta.xattrs[&b"user.k"[..]];
    assert_eq!(**user, *b"v");
}
