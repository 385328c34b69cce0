//! Any bytes as an overlaybd layer, what it says is read first, as TurboOCI metadata, and as an ext4 device. Errors are fine, panics, endless work
//! and unbounded memory are bugs. Random bytes hardly get past the magic numbers, so a small ext4 is damaged too:
//! three bytes of the input are a place in it and what stands there.
#![no_main]

use hoist_format::digest::Digest;
use hoist_format::ext4;
use hoist_format::overlaybd::{GzipIndex, Image, Recorded, Step, TurboLayer, describe_turbo, recorded};
use hoist_format::table::Table;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let digest = Digest::of(b"");
    overlaybd(bytes);
    let _ = recorded(bytes);
    let _ = describe_turbo(&[TurboLayer { meta: bytes.to_vec(), target: digest, size: 1 << 40 }]);
    if let Ok(index) = GzipIndex::read(bytes.to_vec()) {
        for span in 0..index.spans.len() {
            let _ = (index.window(span), index.stream_range(span), index.blob_range(span));
        }
    }
    let _ = ext4::decode(&mut &bytes[..]);
    let mut device = sample();
    for patch in bytes.chunks_exact(3) {
        let at = 1024 + usize::from(u16::from_le_bytes([patch[0], patch[1]]));
        if let Some(byte) = device.get_mut(at) {
            *byte = patch[2];
        }
    }
    let _ = ext4::decode(&mut &device[..]);
    let mut blob = packed(&device);
    overlaybd(&blob);
    for patch in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]]));
        if let Some(byte) = blob.get_mut(at) {
            *byte = patch[2];
        }
    }
    first(&blob, recorded(&traced(bytes)));
});

fn overlaybd(bytes: &[u8]) {
    first(bytes, Vec::new());
}

/// The image, of which this is read first.
fn first(bytes: &[u8], recorded: Vec<Recorded>) {
    let Ok(mut image) = Image::new(vec![(Digest::of(b""), bytes.len() as u64)]) else { return };
    image.read_first(recorded);
    for _ in 0..64 {
        match image.step() {
            Ok(Step::Fetch(ranges)) => {
                for (layer, range) in ranges {
                    image.put(layer, range.start, bytes[range.start as usize..range.end as usize].to_vec());
                }
            }
            Ok(Step::Done(described)) => {
                let table = Table::decode(&described.table.encode());
                assert_eq!(table.as_ref().ok(), Some(&described.table));
                let size = described.table.extents.data_size;
                assert!(described.prefetch.iter().all(|range| range.start < range.end && range.end <= size));
                return;
            }
            Err(_) => return,
        }
    }
    panic!("it asks without end");
}

/// A device of less than 64 KiB as a layer: a ZFile of an LSMT file, its blocks compressed to themselves.
fn packed(device: &[u8]) -> Vec<u8> {
    let head = |flags: u32, index: usize, count: u64| {
        let mut head = vec![0; 4096];
        head[..8].copy_from_slice(b"LSMT\0\x01\x02\0");
        head[8..24].copy_from_slice(b"\x65\x7e\x63\xd2\x94\x44\x08\x4c\xa2\xd2\xc8\xec\x4f\xcf\xae\x8a");
        head[24..28].copy_from_slice(&390u32.to_le_bytes());
        head[28..32].copy_from_slice(&flags.to_le_bytes());
        head[32..40].copy_from_slice(&(index as u64).to_le_bytes());
        head[40..48].copy_from_slice(&count.to_le_bytes());
        head[48..56].copy_from_slice(&(device.len() as u64).to_le_bytes());
        (head[132], head[133]) = (1, 1);
        head
    };
    let mut lsmt = [&head(7, 0, 0), device].concat();
    let index = lsmt.len();
    lsmt.extend_from_slice(&((device.len() as u64 / 512) << 50).to_le_bytes());
    lsmt.extend_from_slice(&8u64.to_le_bytes());
    lsmt.resize(index + 4096, 0);
    for skipped in lsmt[index + 16..].chunks_exact_mut(16) {
        skipped[..8].copy_from_slice(&((1u64 << 50) - 1).to_le_bytes());
    }
    lsmt.extend_from_slice(&head(6, index, 256));
    let mut all = vec![0; 512];
    let mut lengths = Vec::new();
    for block in lsmt.chunks(4096) {
        // One run of literals: 15, 16 times 255 and what is left of 4096.
        let stored = [&[0xF0][..], &[255; 16], &[1], block, &[0; 4]].concat();
        lengths.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        all.extend_from_slice(&stored);
    }
    let head = |flags: u64| {
        let mut head = [0; 512];
        head[..24].copy_from_slice(b"ZFile\0\x01\0tuji.yyf@Alibaba");
        head[24..28].copy_from_slice(&96u32.to_le_bytes());
        for (at, value) in
            [(32, flags), (40, all.len() as u64), (48, lengths.len() as u64 / 4), (56, lsmt.len() as u64)]
        {
            head[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        head[72..76].copy_from_slice(&4096u32.to_le_bytes());
        (head[76], head[88]) = (1, 1);
        head
    };
    let (first, last) = (head(0x1b), head(0x16));
    all[..512].copy_from_slice(&first);
    all.extend_from_slice(&lengths);
    all.extend_from_slice(&last);
    all
}

/// An archive with the bytes as the records of a trace.
fn traced(bytes: &[u8]) -> Vec<u8> {
    let records = &bytes[..bytes.len() / 24 * 24];
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, "trace");
    put(100, "0000644");
    put(124, &format!("{:011o}", 24 + records.len()));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut all = header.to_vec();
    for word in [0xC2EF_1820, records.len() as u64, 0] {
        all.extend_from_slice(&word.to_le_bytes());
    }
    for record in records.chunks_exact(24) {
        let mut record = record.to_vec();
        // Reads of the one layer, near its beginning.
        record[0] = b'R';
        record[4..8].fill(0);
        record[11..16].fill(0);
        record[19..24].fill(0);
        all.extend_from_slice(&record);
    }
    all.resize(all.len().next_multiple_of(512) + 1024, 0);
    all
}

/// 32 blocks of 1 KiB: superblock, descriptors, a table of 16 inodes (2: the root, 11: a file, 12: a link), the root's
/// block.
fn sample() -> Vec<u8> {
    let mut device = vec![0; 32 << 10];
    let mut put = |at: usize, bytes: &[u8]| device[at..at + bytes.len()].copy_from_slice(bytes);
    let sb = 1024;
    for (at, value) in
        [(0, 16u32), (4, 32), (0x14, 1), (0x20, 8192), (0x28, 16), (0x4C, 1), (0x60, 0x42), (0x64, 0)]
    {
        put(sb + at, &value.to_le_bytes());
    }
    put(sb + 0x38, &0xEF53u16.to_le_bytes());
    put(sb + 0x58, &256u16.to_le_bytes());
    put(2048 + 8, &4u32.to_le_bytes());
    let inode = |number: usize| 4096 + (number - 1) * 256;
    for (number, mode, size, block) in
        [(2, 0o040_755u16, 1024u32, 10u32), (11, 0o100_644, 5000, 12), (12, 0o120_777, 3, 0)]
    {
        let at = inode(number);
        put(at, &mode.to_le_bytes());
        put(at + 4, &size.to_le_bytes());
        put(at + 0x1A, &1u16.to_le_bytes());
        if block > 0 {
            put(at + 0x20, &0x8_0000u32.to_le_bytes());
            put(at + 0x28, &[0x0A, 0xF3, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]);
            put(at + 0x28 + 20, &block.to_le_bytes());
        } else {
            put(at + 0x28, b"abc");
        }
    }
    let mut at = 10 << 10;
    for (inode, len, name) in
        [(2u32, 12u16, &b"."[..]), (2, 12, b".."), (11, 12, b"file"), (12, 988, b"link")]
    {
        put(at, &inode.to_le_bytes());
        put(at + 4, &len.to_le_bytes());
        put(at + 6, &[name.len() as u8, 0]);
        put(at + 8, name);
        at += usize::from(len);
    }
    device
}
