//! Block devices and their metadata that say what cannot be: each is refused with the reason. What is a lie only to a file
//! system is told by debugfs, which does not mind.

use std::fs;
use std::process::Command;

use hoist_format::digest::Digest;
use hoist_format::ext4;
use hoist_format::overlaybd::{GzipIndex, Image, Step, TurboLayer, describe_turbo};

use super::archive::tar;

fn crc(bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!0, bytes)
}

fn put(bytes: &mut [u8], at: usize, number: u64, len: usize) {
    bytes[at..at + len].copy_from_slice(&number.to_le_bytes()[..len]);
}

/// An LSMT header or trailer.
fn head(flags: u64, index: u64, count: u64, device: u64) -> Vec<u8> {
    let mut head = vec![0; 4096];
    head[..8].copy_from_slice(b"LSMT\0\x01\x02\0");
    head[8..24].copy_from_slice(b"\x65\x7e\x63\xd2\x94\x44\x08\x4c\xa2\xd2\xc8\xec\x4f\xcf\xae\x8a");
    for (at, number, len) in [(24, 390, 4), (28, flags, 4), (32, index, 8), (40, count, 8), (48, device, 8)] {
        put(&mut head, at, number, len);
    }
    (head[132], head[133]) = (1, 1);
    head
}

const DEVICE: u64 = 1 << 20;

/// An LSMT file of 64 sectors. An entry: first sector, sectors, second word.
fn lsmt(entries: &[(u64, u64, u64)], trailer: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut all = head(7, 0, 0, DEVICE);
    all.resize(4096 + 64 * 512, 7);
    let index = all.len() as u64;
    for (start, len, word) in entries {
        all.extend_from_slice(&(start | len << 50).to_le_bytes());
        all.extend_from_slice(&word.to_le_bytes());
    }
    let mut end = head(6, index, entries.len() as u64, DEVICE);
    trailer(&mut end);
    all.extend_from_slice(&end);
    all
}

fn describe(blob: &[u8]) -> Result<(), String> {
    let mut image = Image::new(vec![(Digest::of(blob), blob.len() as u64)]).unwrap();
    for _ in 0..64 {
        match image.step().map_err(|e| e.to_string())? {
            Step::Done(_) => return Ok(()),
            Step::Fetch(ranges) => {
                for (layer, range) in ranges {
                    let part =
                        blob.get(range.start as usize..range.end as usize).expect("it asks inside the blob");
                    image.put(layer, range.start, part.to_vec());
                }
            }
        }
    }
    panic!("it asks without end");
}

fn refused(blob: &[u8], why: &str) {
    let said = describe(blob).expect_err(why);
    assert!(said.contains(why), "{said}");
}

#[test]
fn indexes_of_sectors() {
    let same = |_: &mut Vec<u8>| {};
    refused(&lsmt(&[(0, 8, 8), (4, 8, 16)], same), "overlaps or is out of order");
    refused(&lsmt(&[(8, 8, 8), (0, 8, 16)], same), "overlaps or is out of order");
    refused(&lsmt(&[(0, 8, 1 << 40)], same), "sectors that it has not");
    refused(&lsmt(&[(0, 16383, 8)], same), "sectors that it has not");
    refused(&lsmt(&[(0, 8, 8 | 9 << 56)], same), "unknown kind");
    refused(&lsmt(&[(0, 8, 8)], |t| put(t, 40, 1 << 60, 8)), "lies beyond it");
    refused(&lsmt(&[(0, 8, 8)], |t| put(t, 32, 1 << 50, 8)), "lies beyond it");
    refused(&lsmt(&[(0, 8, 8)], |t| put(t, 32, u64::MAX - 7, 8)), "lies beyond it");
    refused(&lsmt(&[(0, 8, 8)], |t| put(t, 48, 1 << 60, 8)), "more than 8 TiB");
    refused(&lsmt(&[(0, 8, 8)], |t| put(t, 28, 2, 4)), "not sealed");
    // Of no device at all.
    assert!(describe(&lsmt(&[], same)).is_err());
}

/// A ZFile of one block, which decodes to 4096 bytes.
fn zfile(change: impl FnOnce(&mut [u8; 512], &mut Vec<u8>)) -> Vec<u8> {
    let block = [&[0xF0][..], &[255; 16], &[1], &[0; 4096]].concat();
    let mut all = vec![0; 512];
    all.extend_from_slice(&block);
    all.extend_from_slice(&crc(&block).to_le_bytes());
    let (mut head, mut table) = ([0; 512], (block.len() as u32 + 4).to_le_bytes().to_vec());
    head[..24].copy_from_slice(b"ZFile\0\x01\0tuji.yyf@Alibaba");
    for (at, number) in [(24, 96), (32, 0x1b), (40, all.len() as u64), (48, 1), (56, 4096)] {
        put(&mut head, at, number, 8);
    }
    put(&mut head, 28, 0, 4);
    put(&mut head, 72, 4096, 4);
    (head[76], head[88]) = (1, 1);
    change(&mut head, &mut table);
    put(&mut head, 64, crc(&table).into(), 4);
    let sum = crc(&head);
    put(&mut head, 28, sum.into(), 4);
    all[..512].copy_from_slice(&head);
    all.extend_from_slice(&table);
    all.extend_from_slice(&[0; 512]);
    all
}

#[test]
fn tables_of_compressed_blocks() {
    type Change = fn(&mut [u8; 512], &mut Vec<u8>);
    let lies: [Change; 7] = [
        |head, _| put(head, 40, 1 << 40, 8),
        |head, _| put(head, 48, 1 << 61, 8),
        |head, _| put(head, 48, 7, 8),
        |head, _| put(head, 56, 1 << 50, 8),
        |head, _| put(head, 72, 4095, 4),
        |head, _| put(head, 72, 0, 4),
        |_, table| table[..4].copy_from_slice(&u32::MAX.to_le_bytes()),
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let said = describe(&zfile(lie)).unwrap_err();
        assert!(said.contains("ZFile"), "{number}: {said}");
    }
    // Without a lie it is the LSMT file in it that is none.
    refused(&zfile(|_, _| {}), "too short for one");
}

/// An index of a gzip layer of 1000 bytes, whose stream has 4 MiB. An entry: offsets in stream and blob, place and length of
/// its window, bits.
fn gzip_meta(entries: &[(u64, u64, u64, u32, u8)], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut list = Vec::new();
    for (stream, blob, window, len, bits) in entries {
        for number in [stream, blob, window] {
            list.extend_from_slice(&number.to_le_bytes());
        }
        list.push(*bits);
        list.extend_from_slice(&len.to_le_bytes());
    }
    let mut head = b"ddgzidx\0\x01\0\0\0\0".to_vec();
    for number in [1 << 20, 32_768u32, 29] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    let start = 333 + 32_768;
    for number in [entries.len() as u64, 1000, start + list.len() as u64, 4 << 20] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    head.resize(313, 0);
    for number in [start, list.len() as u64] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    change(&mut head);
    let sum = crc(&head);
    head.extend_from_slice(&sum.to_le_bytes());
    head.resize(start as usize, 0);
    head.extend_from_slice(&list);
    head
}

#[test]
fn indexes_of_gzip_layers() {
    const FIRST: (u64, u64, u64, u32, u8) = (0, 10, 333, 0, 0);
    let same = |_: &mut Vec<u8>| {};
    let sound = (1 << 20, 500, 333, 32_768, 3);
    GzipIndex::read(gzip_meta(&[FIRST, sound], same)).unwrap();
    let order = "out of order or bounds";
    let beyond = 1 << 40;
    for (second, why) in [
        // The stream's offset, and the blob's.
        ((0, 500, 333, 32_768, 3), order),
        ((1 << 20, 5, 333, 32_768, 3), order),
        ((beyond, 500, 333, 32_768, 3), order),
        ((1 << 20, beyond, 333, 32_768, 3), order),
        // Its window: in the header, in the list, behind everything.
        ((1 << 20, 500, 0, 32_768, 3), order),
        ((1 << 20, 500, 340, 32_768, 3), order),
        ((1 << 20, 500, u64::MAX - 5, 32_768, 3), order),
        ((1 << 20, 500, 333, 32_768, 8), order),
    ] {
        let said = GzipIndex::read(gzip_meta(&[FIRST, second], same)).unwrap_err().to_string();
        assert!(said.contains(why), "{second:?}: {said}");
    }
    type Change = fn(&mut Vec<u8>);
    let lies: [(Change, &str); 6] = [
        (|head| put(head, 25, 3, 8), "list is damaged"),
        (|head| put(head, 25, 8 << 20, 8), "fewer entries"),
        (|head| put(head, 25, 0, 8), "no or too many entries"),
        (|head| put(head, 25, u64::MAX, 8), "no or too many entries"),
        (|head| put(head, 41, 9, 8), "cut off"),
        (|head| put(head, 313, u64::MAX, 8), "cut off"),
    ];
    for (lie, why) in lies {
        let said = GzipIndex::read(gzip_meta(&[FIRST, sound], lie)).unwrap_err().to_string();
        assert!(said.contains(why), "{why}: {said}");
    }
    // A window that is none.
    let short = GzipIndex::read(gzip_meta(&[FIRST, (1 << 20, 500, 333, 100, 3)], same)).unwrap();
    assert!(short.window(1).unwrap_err().to_string().contains("a window is damaged"));
}

#[test]
fn archives_of_metadata() {
    let blocks = lsmt(&[(0, 8, 8)], |_| {});
    let layer =
        |files: &[(&str, &[u8])]| TurboLayer { meta: tar(files), target: Digest::of(b""), size: 1000 };
    let ext4 = ("ext4.fs.meta", &blocks[..]);
    let erofs = ("erofs.fs.meta", &blocks[..]);
    let index = gzip_meta(&[(0, 10, 333, 0, 0)], |_| {});
    let beyond = lsmt(&[(0, 8, 1 << 56 | 1 << 30)], |_| {});
    for (layers, why) in [
        (vec![layer(&[ext4, ext4])], "names a file twice"),
        (vec![layer(&[ext4, erofs])], "not one of"),
        (vec![layer(&[("gzip.meta", &index)])], "not one of"),
        (vec![layer(&[ext4]), layer(&[erofs])], "different file systems"),
        (vec![layer(&[("ext4.fs.meta", &blocks[..blocks.len() - 1])])], "LSMT"),
        (vec![layer(&[("ext4.fs.meta", &beyond)])], "of another layer"),
        (vec![layer(&[ext4, ("gzip.meta", &index[..index.len() - 1])])], "cut off"),
        (vec![layer(&[ext4])], "ext4"),
    ] {
        let said = describe_turbo(&layers).unwrap_err().to_string();
        assert!(said.contains(why), "{why}: {said}");
    }
}

/// An ext4 with `d/deep/victim` and `d/twin-a`, `d/twin-b`, of which debugfs has changed something.
fn ext4(commands: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    fs::create_dir_all(root.join("d/deep")).unwrap();
    fs::write(root.join("d/deep/victim"), vec![b'v'; 10_000]).unwrap();
    fs::write(root.join("d/twin-a"), "a").unwrap();
    fs::write(root.join("d/twin-b"), "b").unwrap();
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let (root, image) = (root.to_str().unwrap(), image.to_str().unwrap());
    let features = "^has_journal,^resize_inode,^metadata_csum,64bit,extent,dir_index";
    run("mkfs.ext4", &["-qF", "-b", "4096", "-I", "256", "-O", features, "-d", root, image, "4M"]);
    for command in commands {
        run("debugfs", &["-w", "-R", command, image]);
    }
    fs::read(image).unwrap()
}

#[test]
fn file_systems() {
    let decode = |device: &[u8]| ext4::decode(&mut &device[..]);
    decode(&ext4(&[])).unwrap().unwrap();
    let says = |device: &[u8], what: &str| {
        let said = decode(device).map(|_| ()).expect_err(what).to_string();
        assert!(said.contains(what), "{what}: {said}");
    };
    says(&ext4(&["ln / /d/deep/up"]), "a folder stands in a second place");
    says(&ext4(&["ln /d/deep /d/other"]), "a folder stands in a second place");
    says(&ext4(&["sif /d/deep/victim block[0] 0"]), "extent tree is damaged");
    says(&ext4(&["sif /d/deep/victim block[5] 99999999"]), "a block that the file system has not");
    says(&ext4(&["sif /d/deep/victim block[1] 0x00010004"]), "a block that the file system has not");
    says(
        &ext4(&[
            "sif /d/deep/victim block[0] 0x0002F30A",
            "sif /d/deep/victim block[6] 0",
            "sif /d/deep/victim block[7] 3",
            "sif /d/deep/victim block[8] 100",
        ]),
        "overlap or are out of order",
    );
    let mut twice = ext4(&[]);
    let at = twice.windows(6).position(|w| w == b"twin-b").unwrap();
    twice[at + 5] = b'a';
    says(&twice, "stands twice in the folder");
    let mut beyond = ext4(&[]);
    let at = beyond.windows(6).position(|w| w == b"victim").unwrap();
    put(&mut beyond, at - 8, 1 << 30, 4);
    says(&beyond, "beyond the last one");
    let mut long = ext4(&[]);
    put(&mut long, at - 4, 60_000, 2);
    says(&long, "impossible length");
}
