//! ext4 on devices that are mostly holes: what a file system says of itself costs nothing until there is something.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Read;
use std::process::Command;

use hoist_format::ext4;
use hoist_format::volume::{Device, Lack};

const BLOCK: usize = 4096;

/// A device of blocks, of which those of zeros are not here.
struct Sparse {
    blocks: BTreeMap<u64, Vec<u8>>,
    size: u64,
    calls: Cell<usize>,
}

impl Device for Sparse {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&mut self, offset: u64, len: u64) -> Result<Vec<u8>, Lack> {
        self.calls.set(self.calls.get() + 1);
        let mut out = vec![0; len as usize];
        for (at, byte) in (offset..).zip(&mut out) {
            let block = self.blocks.get(&(at / BLOCK as u64));
            *byte = block.map_or(0, |block| block[at as usize % BLOCK]);
        }
        Ok(out)
    }

    fn next_data(&self, start: u64, end: u64) -> u64 {
        self.calls.set(self.calls.get() + 1);
        let next = self.blocks.range(start / BLOCK as u64..).next();
        next.map_or(end, |(number, _)| (number * BLOCK as u64).clamp(start, end))
    }
}

#[test]
fn a_million_inodes_that_were_never_written_cost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (source, path) = (dir.path().join("source"), dir.path().join("device"));
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "some bytes").unwrap();
    let made = Command::new("mkfs.ext4")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        // Without checksums of groups, which would tell how many inodes were never used.
        .args(["-q", "-N", "1000000", "-O", "^has_journal,^metadata_csum,^uninit_bg", "-d"])
        .args([&source, &path])
        .arg("512M")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut file = std::fs::File::open(&path).unwrap();
    let mut device = Sparse { blocks: BTreeMap::new(), size: 512 << 20, calls: Cell::new(0) };
    let mut bytes = vec![0; BLOCK];
    for number in 0..device.size / BLOCK as u64 {
        file.read_exact(&mut bytes).unwrap();
        if bytes.iter().any(|&b| b != 0) {
            device.blocks.insert(number, bytes.clone());
        }
    }
    let volume = ext4::decode(&mut device).unwrap().unwrap();
    assert!(volume.tree.lookup(b"file").is_some());
    let calls = device.calls.get();
    assert!(calls < 1000, "{calls} calls for {} blocks that are here", device.blocks.len());
}
